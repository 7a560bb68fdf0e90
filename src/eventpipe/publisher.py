"""A typed event onto an exchange or a queue, confirmed by the broker before ``publish`` returns."""

import asyncio
import datetime as dt
import decimal
import hashlib
import types
import typing
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from .clock import Chance, Clock, Deadlines, uuid7
from .codec import BODY_LIMIT, Codec, codec_for, type_name, wire_type
from .context import current
from .copies import HEADER_BUDGET, header_size
from .errors import (
    ConfigurationError,
    Disconnected,
    InvalidMessage,
    PublishError,
    PublishManyError,
    PublishTimeout,
    Refused,
    Unroutable,
)
from .message import EXCHANGE, EXPIRES, KEY, NO_HEADERS, TIME, Message, Properties, no_headers
from .retry import MAX_DELAY
from .routing import Exchange, Queue
from .transports.base import Outgoing, Transport, Verdict, VerdictKind

T = TypeVar("T")

PUBLISH_TIMEOUT = 5.0
"""Seconds until a publish without a verdict fails, unless said otherwise."""

WINDOW = (4096, 64 * 1024 * 1024)
"""Messages and bytes that may be unconfirmed at once; further publishes wait, within their timeout."""

_SHORT = 255  # bytes of an AMQP short string
_HEADER_NAME = 128  # bytes; AMQP 0-9-1 allows no longer field names
_HEADER_TYPES = (type(None), int, float, str, bytes, dt.datetime, decimal.Decimal)
_HEADER_DEPTH = 16  # deeper than anybody means, and far from a decoder's recursion limit
_OUTPUTS_AT_ONCE = 100
_YEAR = 31_536_000


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker has the message: it confirmed it."""

    id: str
    exchange: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a publisher is declared with, and what one publish may override. Times are in seconds."""

    key: Any = None
    id: Any = None
    headers: Mapping[str, Any] = field(default_factory=no_headers)
    priority: int | None = None
    expires: float | None = None
    delay: float = 0.0
    timeout: float = PUBLISH_TIMEOUT

    def check(self) -> None:
        """Refuse what AMQP or eventpipe can't carry. Raises ``InvalidMessage``."""
        _check_number("priority", self.priority, 0, 255, "a whole number")
        _check_number(
            "expires", self.expires, 0, 4_294_967, "seconds"
        )  # the broker's own limit: 2**32 - 1 milliseconds
        _check_number("delay", self.delay, 0, MAX_DELAY, "seconds")
        _check_number("timeout", self.timeout, 0, _YEAR, "seconds")
        if self.priority is not None and not isinstance(self.priority, int):
            raise InvalidMessage(f"priority={self.priority!r}: must be a whole number between 0 and 255")
        if self.headers is not NO_HEADERS:
            check_headers(self.headers)


class Window:
    """How much may be unconfirmed at once, in messages and bytes; shared by the publishers of a pipe."""

    def __init__(self, messages: int = WINDOW[0], size: int = WINDOW[1]) -> None:
        self._messages, self._bytes, self._size = messages, size, size
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def admit(self, size: int) -> bool:
        """Take room for one message of ``size`` bytes, if there is any and nobody waits for it."""
        if self._waiting or not self._fits(size):
            return False
        self._take(size)
        return True

    async def wait(self, size: int, timeout: float) -> None:
        """Wait for room, in the order of asking. Raises ``TimeoutError``."""
        future = asyncio.get_running_loop().create_future()
        entry = (future, size)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout):
                await future
        except BaseException:
            if future.done() and not future.cancelled():
                self.release(size)
            else:
                self._waiting.remove(entry)
                self._wake()
            raise

    def release(self, size: int) -> None:
        """Give room back."""
        self._messages += 1
        self._bytes += size
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            future, size = self._waiting.popleft()
            if not future.cancelled():
                self._take(size)
                future.set_result(None)

    def _fits(self, size: int) -> bool:
        # A message larger than the whole window goes alone.
        return self._messages > 0 and (self._bytes >= size or self._bytes >= self._size)

    def _take(self, size: int) -> None:
        self._messages -= 1
        self._bytes -= size


class Outlet:
    """Where the publishers of an entered pipe send: transport, window and deadlines."""

    def __init__(self, transport: Transport, clock: Clock, chance: Chance, body_limit: int = BODY_LIMIT) -> None:
        self.clock, self.chance, self.body_limit = clock, chance, body_limit
        self._transport = transport
        self._window = Window()
        self._deadlines: Deadlines[asyncio.Future[Verdict]] = Deadlines(clock, self._expire)

    async def send(self, outgoing: Outgoing, wish: Wish) -> Receipt:
        """Publish and wait for the verdict. Raises ``PublishError``."""
        size = len(outgoing.body)
        if not self._window.admit(size):
            await self._room(outgoing, wish)
        verdict = self._begin(outgoing, wish)
        return await self._end(verdict, outgoing)

    async def send_many(self, outgoings: Iterable[Outgoing], wish: Wish) -> list[Receipt | PublishError]:
        """Publish many with their confirms pipelined; give one verdict for each, in order."""
        verdicts: list[Receipt | PublishError] = []
        sent: deque[tuple[_Sent, Outgoing]] = deque()
        try:
            for outgoing in outgoings:
                while not self._window.admit(len(outgoing.body)):
                    if not sent:
                        await self._room(outgoing, wish)
                        break
                    verdicts.append(await self._verdict(*sent.popleft()))
                sent.append((self._begin(outgoing, wish), outgoing))
            while sent:
                verdicts.append(await self._verdict(*sent.popleft()))
        finally:  # cancelled: nobody will ask for the rest
            for one, outgoing in sent:
                self._forget(one, outgoing)
        return verdicts

    def close(self) -> None:
        """Let go of the timers."""
        self._deadlines.close()

    async def _verdict(self, sent: "_Sent", outgoing: Outgoing) -> Receipt | PublishError:
        try:
            return await self._end(sent, outgoing)
        except PublishError as error:
            return error

    async def _room(self, outgoing: Outgoing, wish: Wish) -> None:
        try:
            await self._window.wait(len(outgoing.body), wish.timeout)
        except TimeoutError:
            text = f"no room in the window of unconfirmed messages for {wish.timeout} s{self._why()}"
            raise PublishTimeout(text, outcome="not_stored", id=outgoing.properties.message_id or "") from None

    def _begin(self, outgoing: Outgoing, wish: Wish) -> "_Sent":
        delayed = wish.delay > 0
        future = self._transport.delay(outgoing, wish.delay) if delayed else self._transport.publish(outgoing)
        return _Sent(future, self._deadlines.add(future, wish.timeout), wish.timeout)

    async def _end(self, sent: "_Sent", outgoing: Outgoing) -> Receipt:
        try:
            verdict = await sent.future
        finally:
            self._forget(sent, outgoing)
        if verdict.kind is VerdictKind.CONFIRMED:
            return Receipt(outgoing.properties.message_id or "", outgoing.exchange, outgoing.key)
        raise self._error(verdict, outgoing, sent.timeout)

    def _forget(self, sent: "_Sent", outgoing: Outgoing) -> None:
        self._deadlines.discard(sent.future, sent.tick)
        self._window.release(len(outgoing.body))
        if not sent.future.done() or sent.future.cancelled():
            self._transport.withdraw(sent.future)

    def _expire(self, future: "asyncio.Future[Verdict]") -> None:
        if not future.done():
            future.set_result(_LATE if self._transport.withdraw(future) else _LATE_UNSENT)

    def _error(self, verdict: Verdict, outgoing: Outgoing, timeout: float) -> PublishError:
        what = f"message {outgoing.properties.message_id} to {_target(outgoing)}"
        because = f": {verdict.reason}" if verdict.reason else ""
        message_id = outgoing.properties.message_id or ""
        if verdict in (_LATE, _LATE_UNSENT):
            text = f"{what}: no verdict from the broker within {timeout} s{self._why()}"
            return PublishTimeout(text, outcome="unknown" if verdict is _LATE else "not_stored", id=message_id)
        match verdict.kind:
            case VerdictKind.UNROUTABLE:
                return Unroutable(f"{what} reached no queue{because}", outcome="not_stored", id=message_id)
            case VerdictKind.REFUSED:
                return Refused(f"{what} was refused by the broker{because}", outcome="not_stored", id=message_id)
            case VerdictKind.NOT_SENT:
                return Disconnected(f"{what} was not sent{because}", outcome="not_stored", id=message_id)
            case _:
                return Disconnected(f"{what} may be stored or not{because}", outcome="unknown", id=message_id)

    def _why(self) -> str:
        state = self._transport.state
        if state.blocked:
            return " (the broker has blocked publishing: a memory or disk alarm)"
        return "" if state.connected else f" (not connected: {state.error or 'reconnecting'})"


@dataclass(frozen=True, slots=True)
class _Sent:
    future: "asyncio.Future[Verdict]"
    tick: int
    timeout: float


_LATE = Verdict(VerdictKind.UNKNOWN, "timeout")
_LATE_UNSENT = Verdict(VerdictKind.NOT_SENT, "timeout")


@dataclass(frozen=True, slots=True, eq=False)
class Publisher(Generic[T]):
    """Publishes events of one type to one exchange or queue; made by ``pipe.publisher``.

    ``outlet`` gives the entered pipe's outlet, or raises ``ConfigurationError``.
    """

    event_type: Any
    to: Exchange | Queue
    wish: Wish
    mandatory: bool
    outlet: Callable[[], Outlet] = field(repr=False)
    codec: Codec[T] = field(repr=False)

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
        return await outlet.send(self.outgoing(event, outlet, wish), wish)

    async def publish_many(self, events: Iterable[T], *, timeout: float | None = None) -> list[Receipt]:
        """Publish many events with their confirms pipelined; return a receipt for each, in order.

        ``timeout`` bounds each event, from when it is sent. All events are encoded before the first is sent.

        Raises:
            InvalidMessage: an event can't be published; nothing was sent.
            PublishManyError: some failed; its ``verdicts`` has a ``Receipt`` or a ``PublishError`` for each event.
        """
        wish = self.wish if timeout is None else self._override(timeout=timeout)
        outlet = self.outlet()
        outgoings = [self.outgoing(event, outlet, wish) for event in events]
        verdicts = await outlet.send_many(outgoings, wish)
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

    def outgoing(self, event: T, outlet: Outlet, wish: Wish) -> Outgoing:
        """Encode an event with its properties. Raises ``InvalidMessage``."""
        body = self.codec.encode(event)
        if len(body) > outlet.body_limit:
            raise InvalidMessage(f"a body of {len(body)} bytes is over the limit of {outlet.body_limit}")
        event_type = type(event) if self._many_types else self.event_type
        to_queue = isinstance(self.to, Queue)
        now = round(outlet.clock.time() * 1000)
        message_id = self._text("id", wish.id, event) or uuid7(outlet.clock, outlet.chance)
        cause = current.get()
        headers = {**wish.headers, TIME: now}
        key = self.to.name if to_queue else (self._text("key", wish.key, event) or wire_type(event_type))
        if wish.expires is not None:
            headers[EXPIRES] = now + round(wish.expires * 1000)
        if wish.delay > 0:
            headers |= {EXCHANGE: "" if to_queue else self.to.name, KEY: key}
        properties = Properties(
            content_type=self.codec.content_type,
            headers=headers,
            priority=wish.priority,
            correlation_id=message_id if cause is None else cause.correlation_id,
            expiration=None if wish.expires is None else str(round(wish.expires * 1000)),
            message_id=message_id,
            timestamp=now // 1000,
            type=wire_type(event_type),
        )
        return Outgoing(
            exchange="" if to_queue else self.to.name,
            key=key,
            body=body,
            properties=properties,
            mandatory=self.mandatory,
        )

    @property
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
        if not isinstance(wish, str) or len(wish.encode(errors="replace")) > _SHORT:
            raise InvalidMessage(f"{what} {str(wish)[:60]!r}: must be text of at most {_SHORT} bytes")
        return wish

    def _override(self, **given: Any) -> Wish:
        stated = {name: value for name, value in given.items() if value is not None}
        if "key" in stated and isinstance(self.to, Queue):
            raise InvalidMessage(f"key={stated['key']!r}: a publisher to a queue ({self.to.name!r}) needs none")
        wish = replace(self.wish, **stated)
        wish.check()
        return wish


def make_publisher(
    event_type: Any, to: Exchange | Queue, wish: Wish, *, mandatory: bool, outlet: Callable[[], Outlet]
) -> Publisher[Any]:
    """Check what a publisher is declared with. Raises ``ConfigurationError``."""
    if not isinstance(to, (Exchange, Queue)):
        raise ConfigurationError(f"pipe.publisher(to={to!r}): must be an Exchange or a Queue")
    if isinstance(to, Queue) and wish.key is not None:
        raise ConfigurationError(f"pipe.publisher(to={to.name!r}, key=…): a queue needs no routing key")
    if isinstance(to, Exchange) and to.internal:
        raise ConfigurationError(f"exchange {to.name!r} is internal: only other exchanges publish to it")
    if isinstance(wish.key, str) and len(wish.key.encode()) > _SHORT:
        raise ConfigurationError(f"key of {len(wish.key.encode())} bytes: AMQP allows {_SHORT}")
    try:
        wish.check()
    except InvalidMessage as error:
        raise ConfigurationError(f"pipe.publisher({type_name(event_type)}): {error}") from error
    return Publisher(event_type, to, wish, mandatory, outlet, codec_for(event_type))


def output_id(cause: Message, index: int) -> str:
    """Derive the id of the ``index``-th output of handling ``cause``: the same on every re-run."""
    text = f"{cause.id}\0{cause.queue}\0{index}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse headers that AMQP can't carry. Raises ``InvalidMessage``."""
    if not isinstance(headers, Mapping):
        raise InvalidMessage(f"headers={headers!r}: must be a mapping of names to values")
    for name, value in headers.items():
        _check_header_name(name)
        _check_value(name, value)
    if header_size(headers) > HEADER_BUDGET:
        raise InvalidMessage(f"headers of about {header_size(headers)} bytes: at most {HEADER_BUDGET} fit a frame")


def _check_value(name: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, Mapping):
        for key in value:
            _check_header_name(key)
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        _check_scalar(name, value)
    elif depth == _HEADER_DEPTH:
        raise InvalidMessage(f"header {name!r} is nested more than {_HEADER_DEPTH} deep")
    else:
        for one in value:
            _check_value(name, one, depth + 1)


def _check_scalar(name: str, value: Any) -> None:
    if not isinstance(value, _HEADER_TYPES):
        raise InvalidMessage(f"header {name!r}: AMQP has no {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidMessage(f"header {name!r}: {value} does not fit 64 bits")
    if isinstance(value, str):
        _check_text(name, value)


def _check_header_name(name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= _HEADER_NAME:
        raise InvalidMessage(f"header name {str(name)[:60]!r}: must be text of 1 to {_HEADER_NAME} bytes")


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"header {name!r} is not UTF-8 text") from None


def _check_number(name: str, value: Any, low: float, high: float, unit: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidMessage(f"{name}={value!r}: must be {unit} between {low} and {high}")


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


def _target(outgoing: Outgoing) -> str:
    if outgoing.exchange:
        return f"exchange {outgoing.exchange!r} with key {outgoing.key!r}"
    return f"queue {outgoing.key!r}"
