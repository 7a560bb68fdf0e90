"""A typed event onto an exchange or a queue, confirmed by the broker before ``publish`` returns."""

import functools
import hashlib
import types
import typing
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

from .clock import uuid7
from .codec import BATCH, BytesCodec, Codec, codec_for, type_name, wire_type
from .context import current
from .errors import ConfigurationError, InvalidMessage, PublishError, PublishManyError
from .message import EXCHANGE, EXPIRES, KEY, TIME, Message, Properties
from .outlet import Outlet, Receipt, Stamp
from .packing import Label, Pack, Packer, bodies_of, receipts_of
from .routing import Exchange, Queue
from .transports.base import Outgoing
from .wish import SHORT, Wish

T = TypeVar("T")

_OUTPUTS_AT_ONCE = 100


class Prepared(NamedTuple):
    """A message that is to be published later, after ``delay`` seconds from when it was made."""

    outgoing: Outgoing
    delay: float


@dataclass(frozen=True, eq=False)
class Publisher(Generic[T]):
    """Publishes events of one type to one exchange or queue; made by ``pipe.publisher``.

    ``outlet`` gives the entered pipe's outlet, or raises ``ConfigurationError``; ``stamp`` what a message is made with.
    """

    event_type: Any
    to: Exchange | Queue
    wish: Wish
    mandatory: bool
    outlet: Callable[[], Outlet] = field(repr=False)
    stamp: Callable[[], Stamp] = field(repr=False)
    codec: Codec[T] = field(repr=False)
    packer: Packer | None = field(default=None, repr=False)

    async def publish(  # noqa: PLR0913  each option is an AMQP property of its own
        self,
        event: T,
        *,
        key: str | None = None,
        id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        expires: float | None = None,
        delay: float = 0.0,
        timeout: float | None = None,
    ) -> Receipt:
        """Publish one event and return once the broker has stored it.

        ``expires`` and ``delay`` are in seconds. A delayed publish to an *exchange* can't be known to be unroutable: it
        is routed when the delay ends. A lost connection is waited out and the message sent again, with the same id.

        Raises:
            InvalidMessage: the event or an option can't be published; nothing was sent.
            Unroutable: no queue is bound for this key (``mandatory=False`` allows it).
            Refused: the broker said no.
            PublishTimeout: no verdict within ``timeout`` seconds; ``outcome`` says whether it may be stored.
            Disconnected: the pipe was closed meanwhile.
        """
        wish = self.wish
        given = (key, id, headers, priority, expires, timeout)
        if delay or any(one is not None for one in given):
            wish = self._override(
                key=key, id=id, headers=headers, priority=priority, expires=expires, timeout=timeout, delay=delay
            )
        outlet = self.outlet()
        if self.packer is not None and wish.id is None and not wish.delay:
            return await self._pack(self.packer, event, outlet, wish)
        return await outlet.send(self.outgoing(event, outlet, wish), wish)

    def prepare(
        self,
        event: T,
        *,
        key: str | None = None,
        id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        expires: float | None = None,
        delay: float = 0.0,
    ) -> Prepared:
        """Make the message of an event, to be published later by other means; the pipe need not be entered.

        Raises ``InvalidMessage``.
        """
        wish = self._override(key=key, id=id, headers=headers, priority=priority, expires=expires, delay=delay)
        return Prepared(self.outgoing(event, self.stamp(), wish), delay)

    async def publish_many(self, events: Iterable[T], *, timeout: float | None = None) -> list[Receipt]:
        """Publish many events with their confirms pipelined; return a receipt for each, in order.

        ``timeout`` bounds each event, from when it is sent. All events are encoded before the first is sent.

        Raises:
            InvalidMessage: an event can't be published; nothing was sent.
            PublishManyError: some failed; its ``verdicts`` has a ``Receipt`` or a ``PublishError`` for each event.
        """
        wish = self.wish if timeout is None else self._override(timeout=timeout)
        outlet = self.outlet()
        if self.packer is not None:
            verdicts = await self._send_packs(self.packer.pack, list(events), outlet, wish)
        else:
            verdicts = await outlet.send_many(self._outgoings(events, outlet, wish), wish)
        receipts = [verdict for verdict in verdicts if isinstance(verdict, Receipt)]
        if len(receipts) < len(verdicts):
            failed = len(verdicts) - len(receipts)
            raise PublishManyError(f"{failed} of {len(verdicts)} publishes failed", verdicts)
        return receipts

    async def emit(self, result: Any, cause: Message) -> None:
        """Publish what the handler of ``cause`` returned; ids derive from the input's: a re-run repeats them."""
        outlet, index = self.outlet(), 0
        chunk: list[Outgoing] = []
        async for event in _outputs(result):
            wish = replace(self.wish, id=output_id(cause, index))
            chunk.append(self.outgoing(event, outlet, wish))
            index += 1
            if len(chunk) == _OUTPUTS_AT_ONCE:
                await self._emit(outlet, chunk)
                chunk = []
        await self._emit(outlet, chunk)

    async def _emit(self, outlet: Outlet, chunk: list[Outgoing]) -> None:
        for verdict in await outlet.send_many(chunk, self.wish):
            if isinstance(verdict, PublishError):
                raise verdict

    def outgoing(self, event: T, stamp: Stamp, wish: Wish) -> Outgoing:
        """Encode an event with its properties. Raises ``InvalidMessage``."""
        return self._single(self._body(event, stamp), self._names(event, wish), stamp, wish)

    def _outgoings(self, events: Iterable[T], outlet: Outlet, wish: Wish) -> Iterable[Outgoing]:
        """Encode all events now; complete each message when it is its turn."""
        ready = [(self._body(event, outlet), self._names(event, wish)) for event in events]
        return (self._single(body, names, outlet, wish) for body, names in ready)

    def _names(self, event: T, wish: Wish) -> tuple[str, str, str | None]:
        """Give an event's routing key, wire type and id, as far as they are the event's."""
        if self._uniform and wish.key is self.wish.key and wish.id is None:
            return self._same_names
        return *self._label(event, wish), self._text("id", wish.id, event)

    @functools.cached_property
    def _uniform(self) -> bool:
        """Whether all events have one key and one type."""
        return not self._many_types and not callable(self.wish.key)

    @functools.cached_property
    def _same_names(self) -> tuple[str, str, None]:
        event: Any = None  # nobody asks it
        return *self._label(event, self.wish), None

    def _single(self, body: bytes, names: tuple[str, str, str | None], stamp: Stamp, wish: Wish) -> Outgoing:
        key, named, given = names
        message_id = given or uuid7(stamp.clock, stamp.chance)
        properties = Properties(message_id=message_id, correlation_id=_chain() or message_id, type=named)
        return self._outgoing(body, stamp, wish, properties, key)

    def _body(self, event: T, stamp: Stamp) -> bytes:
        body = self.codec.encode(event)
        if len(body) > stamp.body_limit:
            raise InvalidMessage(f"a body of {len(body)} bytes is over the limit of {stamp.body_limit}")
        return body

    def _label(self, event: T, wish: Wish) -> tuple[str, str]:
        """Give an event's routing key and wire type."""
        named = wire_type(type(event)) if self._many_types else self.wire_type
        key = self.to.name if isinstance(self.to, Queue) else (self._text("key", wish.key, event) or named)
        return key, named

    def _outgoing(self, body: bytes, stamp: Stamp, wish: Wish, properties: Properties, key: str) -> Outgoing:
        """Complete the properties, and address the message."""
        to_queue = isinstance(self.to, Queue)
        now = round(stamp.clock.time() * 1000)
        headers = {**wish.headers, TIME: now}
        if wish.expires is not None:
            headers[EXPIRES] = now + round(wish.expires * 1000)
            properties.expiration = str(round(wish.expires * 1000))
        if wish.delay > 0:
            headers |= {EXCHANGE: "" if to_queue else self.to.name, KEY: key}
        properties.headers, properties.timestamp, properties.priority = headers, now // 1000, wish.priority
        if properties.content_type is None:
            properties.content_type = self.codec.content_type
        return Outgoing("" if to_queue else self.to.name, key, body, properties, self.mandatory)

    # --- packs

    async def _pack(self, packer: Packer, event: T, outlet: Outlet, wish: Wish) -> Receipt:
        body = self._body(event, outlet)
        key, named = self._label(event, wish)
        chain = _chain()
        options = (wish.priority, wish.expires, wish.timeout, repr(wish.headers))

        def wrap(bodies: bytes) -> Outgoing:
            return self._batch(bodies, outlet, wish, key, named, chain)

        return await packer.publish(body, Label(key, named, chain, options), wrap, outlet, wish)

    async def _send_packs(
        self, pack: Pack, events: list[T], outlet: Outlet, wish: Wish
    ) -> list[Receipt | PublishError]:
        chain = _chain()
        outgoings: list[Outgoing] = []
        counts: list[int] = []
        order: list[int] = []
        kinds = self._kinds(events, wish)
        for (key, named), indices in kinds.items():
            chosen = events if len(indices) == len(events) else [events[index] for index in indices]
            order += indices
            for body, count in bodies_of(self.codec, chosen, pack, outlet.body_limit):
                outgoings.append(self._batch(body, outlet, wish, key, named, chain))
                counts.append(count)
        verdicts = receipts_of(await outlet.send_many(outgoings, wish), counts)
        if len(kinds) < 2:
            return verdicts
        return [verdict for _, verdict in sorted(zip(order, verdicts, strict=True), key=lambda pair: pair[0])]

    def _kinds(self, events: list[T], wish: Wish) -> Mapping[tuple[str, str], Sequence[int]]:
        """Sort events by what has to be equal in a pack."""
        if self._uniform:
            return {self._same_names[:2]: range(len(events))} if events else {}
        kinds: dict[tuple[str, str], list[int]] = {}
        for index, event in enumerate(events):
            kinds.setdefault(self._label(event, wish), []).append(index)
        return kinds

    def _batch(self, body: bytes, outlet: Outlet, wish: Wish, key: str, named: str, chain: str | None) -> Outgoing:
        message_id = uuid7(outlet.clock, outlet.chance)
        properties = Properties(content_type=BATCH, message_id=message_id, correlation_id=chain, type=named)
        return self._outgoing(body, outlet, wish, properties, key)

    @functools.cached_property
    def wire_type(self) -> str:
        """What AMQP's ``type`` says, unless each event's own class does."""
        return wire_type(self.event_type)

    @functools.cached_property
    def _many_types(self) -> bool:
        """Whether the declared type is a union: then each event's own class names it."""
        return isinstance(self.event_type, types.UnionType) or typing.get_origin(self.event_type) is typing.Union

    def _text(self, what: str, wish: Any, event: T) -> str | None:
        """Give the text that was asked for, or what the function that was asked for makes of the event."""
        if callable(wish):
            try:
                wish = wish(event)
            except Exception as error:
                raise InvalidMessage(f"{what}= failed on {event!r}: {type(error).__name__}: {error}") from error
        if wish is None:
            return None
        if not isinstance(wish, str) or len(wish.encode(errors="replace")) > SHORT:
            raise InvalidMessage(f"{what} {str(wish)[:60]!r}: must be text of at most {SHORT} bytes")
        return wish

    def _override(self, **given: Any) -> Wish:
        stated = {name: value for name, value in given.items() if value is not None}
        if "key" in stated and isinstance(self.to, Queue):
            raise InvalidMessage(f"key={stated['key']!r}: a publisher to a queue ({self.to.name!r}) needs none")
        wish = replace(self.wish, **stated)
        wish.check()
        return wish


def make_publisher(
    event_type: Any,
    to: Exchange | Queue,
    wish: Wish,
    *,
    mandatory: bool,
    outlet: Callable[[], Outlet],
    stamp: Callable[[], Stamp],
    pack: Pack | None = None,
) -> Publisher[Any]:
    """Check what a publisher is declared with. Raises ``ConfigurationError``."""
    if not isinstance(to, (Exchange, Queue)):
        raise ConfigurationError(f"pipe.publisher(to={to!r}): must be an Exchange or a Queue")
    if isinstance(to, Queue) and wish.key is not None:
        raise ConfigurationError(f"pipe.publisher(to={to.name!r}, key=…): a queue needs no routing key")
    if isinstance(to, Exchange) and to.internal:
        raise ConfigurationError(f"exchange {to.name!r} is internal: only other exchanges publish to it")
    if isinstance(wish.key, str) and len(wish.key.encode()) > SHORT:
        raise ConfigurationError(f"key of {len(wish.key.encode())} bytes: AMQP allows {SHORT}")
    try:
        wish.check()
    except InvalidMessage as error:
        raise ConfigurationError(f"pipe.publisher({type_name(event_type)}): {error}") from error
    codec = codec_for(event_type)
    if pack is not None and (wish.id is not None or isinstance(codec, BytesCodec)):
        what = "id=: packed events are named <pack id>/<index>" if wish.id else "bytes: a pack is a JSON array"
        raise ConfigurationError(f"pipe.publisher({type_name(event_type)}, pack=…) can't have {what}")
    return Publisher(event_type, to, wish, mandatory, outlet, stamp, codec, None if pack is None else Packer(pack))


def output_id(cause: Message, index: int) -> str:
    """Derive the id of the ``index``-th output of handling ``cause``: the same on every re-run."""
    text = f"{cause.id}\0{cause.queue}\0{index}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _chain() -> str | None:
    """Give the correlation id of what is being handled, if anything is."""
    cause = current.get()
    return None if cause is None else cause.message.correlation_id


async def _outputs(result: Any) -> Any:
    """Yield the events of a handler's result: nothing, one, several in a list, or an async iterator's."""
    if result is None:
        return
    if isinstance(result, AsyncIterable):
        async for event in result:
            yield event
    elif isinstance(result, list):
        for event in result:
            yield event
    else:
        yield result
