"""The hot path: deliveries, confirms and returns read, publishes and acknowledgements written, at the socket.

A ``Wire`` is the asyncio protocol of one connection. It passes every frame on to aiormq, except what belongs to
messages on the channels that are ours whole: ``FastDeliveries`` and ``FastPublishes``. Login, channels, declarations,
heartbeats and errors stay aiormq's; ``frames.py`` has the layouts.
"""

import asyncio
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aiormq.abc import AbstractChannel

from ..base import CONFIRMED, Fault, Verdict, VerdictKind
from . import frames
from .frames import (
    ACK,
    BODY,
    CHANNEL_CLOSE,
    DELIVER,
    END,
    HEADER,
    HEARTBEAT,
    METHOD,
    NACK,
    RETURN,
    Malformed,
    read_short,
)
from .hot import NACKED, UNENCODABLE, Entry, Feed, Names

FRAME_MAX = 131_072
"""Bytes of the largest frame, until the broker says otherwise."""

HIGH_WATER = 512 * 1024
"""Bytes in the socket's buffer above which publishes wait."""

_WRITE_AT = 64 * 1024  # bytes that are written at once instead of at the end of the loop's turn
_CACHED = 1024

_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")


class Lane(Protocol):
    """Takes the hot frames of one channel; ``False`` leaves a frame to aiormq."""

    def take(self, kind: int, data: bytes, at: int, end: int) -> bool: ...


class Violation(Exception):
    """The peer does not speak AMQP; the connection can't go on."""


class Wire(asyncio.StreamReaderProtocol):
    """One connection's bytes, both ways."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, heartbeat: float) -> None:
        super().__init__(reader, loop=loop)
        self.frame_max = FRAME_MAX
        self.paused = False
        self.resumed: Callable[[], object] = lambda: None
        self._reader, self._loop = reader, loop
        self._lanes: dict[int, Lane] = {}
        self._socket: Any = None
        self._parts: list[bytes] = []
        self._have = self._need = 0
        self._out: list[bytes] = []
        self._size = 0
        self._feed_every = heartbeat / 2 or float("inf")
        self._fed = self._heard = loop.time()
        self._heartbeat = heartbeat
        self._watch: asyncio.TimerHandle | None = None

    def own(self, channel: int, lane: Lane) -> None:
        """Take the hot frames of a channel from now on."""
        self._lanes[channel] = lane

    def disown(self, channel: int, lane: Lane) -> None:
        """Forget a channel that is closed on both sides; its number may be another's by now."""
        if self._lanes.get(channel) is lane:
            del self._lanes[channel]

    # --- reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._socket = transport
        self._socket.set_write_buffer_limits(high=HIGH_WATER)
        if self._heartbeat:
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()

    def _look(self) -> None:
        """Give up a broker that has been silent for two heartbeats; it sends one every half.

        aiormq's own watchdog waits for three. What has arrived is read before timers ring, so a loop that was held up
        does not take its own silence for the broker's.
        """
        silent = self._loop.time() - self._heard
        if silent > 2 * self._heartbeat:
            self._give_up(f"nothing was heard from the broker for {silent:.1f} s; the heartbeat is {self._heartbeat} s")
            return
        self._watch = self._loop.call_later(self._heartbeat / 4, self._look)

    def data_received(self, data: bytes) -> None:
        """Cut what has arrived into frames; what is incomplete waits, unjoined, until all of it is here."""
        self._heard = self._loop.time()
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        data = b"".join(self._parts) if len(self._parts) > 1 else bytes(data)
        try:
            at = self._frames(data)
        except (Violation, struct.error, IndexError) as error:
            self._give_up(f"the broker sent what is not AMQP: {error}")
            return
        self._parts = [data[at:]] if at < len(data) else []
        self._have = len(data) - at

    def _frames(self, data: bytes) -> int:
        """Hand out every complete frame; give where the incomplete one begins, and note what that one needs."""
        at = kept = 0
        size, lanes, unpack = len(data), self._lanes, frames.FRAME.unpack_from
        self._need = frames.FRAME.size
        while size - at >= frames.FRAME.size:
            kind, channel, length = unpack(data, at)
            end = at + length + frames.OVERHEAD
            if end > size or data[end - 1] != END or end - at > self.frame_max:
                self._check(end - at, complete=end <= size)
                self._need = end - at
                break
            lane = lanes.get(channel)
            if lane is not None and lane.take(kind, data, at + frames.FRAME.size, end - 1):
                if at > kept:
                    self._feed(data[kept:at])
                kept = end
            at = end
        if at > kept:
            self._feed(data[kept:at])
        elif self._loop.time() - self._fed > self._feed_every:
            self._feed(HEARTBEAT)  # aiormq's watchdog counts only what it reads itself
        return at

    def _check(self, size: int, *, complete: bool) -> None:
        """Refuse a frame that is not merely incomplete."""
        if size > self.frame_max:
            raise Violation(f"a frame of {size} bytes; frames of at most {self.frame_max} were agreed on")
        if complete:
            raise Violation("a frame without its end")

    def _feed(self, data: bytes) -> None:
        self._fed = self._loop.time()
        self._reader.feed_data(data)

    def _give_up(self, reason: str) -> None:
        self._reader.set_exception(ConnectionResetError(reason))
        self._parts.clear()
        self._socket.abort()

    # --- writing

    def write(self, parts: Sequence[bytes], size: int) -> None:
        """Write soon: at the end of this turn of the loop, or at once when there is much; ``size`` is in bytes."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out += parts
        self._size += size
        if self._size > _WRITE_AT:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the socket."""
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._size = 0
        if not self._socket.is_closing():
            self._socket.write(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self.paused = False
        self.resumed()


class WireFactory:
    """What aiormq asks for a connection's reader and writer (its ``TransportFactory``)."""

    def __init__(self, heartbeat: float) -> None:
        self.wire: Wire | None = None
        self._heartbeat = heartbeat

    async def create(self, url: Any, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. Raises ``OSError`` as the operating system does."""
        loop = asyncio.get_running_loop()
        provider = kwargs.pop("ssl_context_provider")
        ssl = await provider.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        wire = Wire(reader, loop, self._heartbeat)
        transport, _ = await loop.create_connection(lambda: wire, url.host, url.port, ssl=ssl, **kwargs)
        self.wire = wire
        return reader, asyncio.StreamWriter(transport, wire, reader, loop)


class FastDeliveries:
    """A consuming channel: deliveries cut out of the stream, acknowledgements written into it."""

    def __init__(self, wire: Wire, underlay: AbstractChannel, feed: Feed) -> None:
        self._wire, self._underlay, self._feed = wire, underlay, feed
        self._number, self._closed = underlay.number, False
        self._method: tuple[int, int, bytes, bytes] | None = None
        self._header = b""
        self._left = 0
        self._body: list[bytes] = []
        wire.own(self._number, self)

    async def consume(self, queue: str, tag: str) -> None:
        """Start the pushes. Raises what aiormq raises."""
        await self._underlay.basic_consume(queue, _never, consumer_tag=tag)

    def acknowledge(self, acks: Sequence[tuple[int, bool]], given_back: Sequence[tuple[int, bool]]) -> None:
        """Write acknowledgements, then what is given back."""
        if self._closed:
            return
        parts = [frames.ack(self._number, tag, multiple=multiple) for tag, multiple in acks]
        parts += [frames.nack(self._number, tag, multiple=multiple) for tag, multiple in given_back]
        self._wire.write(parts, 21 * len(parts))
        self._wire.flush()

    async def written(self) -> None:
        """Wait until what was acknowledged is on its way: it is."""

    def close(self) -> None:
        """Let go of a channel that is closed."""
        self._wire.disown(self._number, self)

    def take(self, kind: int, data: bytes, at: int, end: int) -> bool:
        if kind == METHOD:
            code = _U32.unpack_from(data, at)[0]
            if code != DELIVER:
                # Nothing may be written behind aiormq's answer to a close: it would cost the connection.
                self._closed = self._closed or code == CHANNEL_CLOSE
                return False
            at += 5 + data[at + 4]
            exchange, ends = read_short(data, at + 9)
            self._method = (_U64.unpack_from(data, at)[0], data[at + 8], exchange, read_short(data, ends)[0])
            return True
        if kind == HEADER:
            self._header = data[at:end]
            self._left = _U64.unpack_from(data, at + 4)[0]
        elif kind == BODY:
            self._left -= end - at
            if self._left == 0 and not self._body:
                self._complete(data[at:end])
                return True
            self._body.append(data[at:end])
        else:
            return False
        if self._left == 0:
            self._complete(b"".join(self._body))
            self._body.clear()
        elif self._left < 0:
            raise Violation("a body longer than its header says")
        return True

    def _complete(self, body: bytes) -> None:
        if self._method is None:
            raise Violation("a message without a delivery")
        tag, redelivered, exchange, key = self._method
        self._method = None
        try:
            properties = frames.read_properties(self._header)
            names = _name(exchange), _name(key)
        except (Malformed, UnicodeDecodeError) as error:
            fault = Fault(str(error) if isinstance(error, Malformed) else f"routing key or exchange: {error}")
            names = exchange.decode(errors="backslashreplace"), key.decode(errors="backslashreplace")
            self._feed.deliver(tag, redelivered, *names, frames.salvage(self._header), body, fault)
        else:
            self._feed.deliver(tag, redelivered, *names, properties, body, None)


class FastPublishes:
    """A publishing channel in confirm mode. ``resolve(entry, verdict)`` is called for each publish, once."""

    def __init__(
        self, wire: Wire, underlay: AbstractChannel, names: Names, resolve: Callable[[Entry, Verdict], object]
    ) -> None:
        self._wire, self._names, self._resolve = wire, names, resolve
        self._number, self._closed = underlay.number, False
        self._methods: dict[tuple[str, str, bool], bytes] = {}
        self._tag = 0
        self._oldest = 1
        self._unconfirmed: dict[int, Entry] = {}
        self._returned: dict[int, str] = {}
        self._returning = ""
        wire.own(self._number, self)

    @property
    def full(self) -> bool:
        """Whether publishes have to wait: the socket's buffer is above its high-water mark, or the channel closes."""
        return self._wire.paused or self._closed

    def when_ready(self, call: Callable[[], object]) -> None:
        """Have ``call`` called each time that it is full no longer."""
        self._wire.resumed = call

    def send(self, entry: Entry) -> None:
        """Write one publish."""
        outgoing = entry.outgoing
        tag = self._tag + 1
        try:
            method = self._method(outgoing.exchange, outgoing.key, mandatory=outgoing.mandatory)
            number = tag if outgoing.mandatory else None
            content = frames.content(self._number, outgoing.properties, outgoing.body, self._wire.frame_max, number)
        except UNENCODABLE as error:
            self._resolve(entry, Verdict(VerdictKind.REFUSED, f"it can't be encoded: {error}"))
            return
        self._tag = tag
        self._unconfirmed[tag] = entry
        entry.sent = True
        content.insert(0, method)
        self._wire.write(content, len(outgoing.body) + 256)

    async def close(self) -> None:
        """Let go of a channel that is closed."""
        self._wire.disown(self._number, self)

    def take(self, kind: int, data: bytes, at: int, end: int) -> bool:
        if kind == METHOD:
            code = _U32.unpack_from(data, at)[0]
            if code in (ACK, NACK):
                self._answered(_U64.unpack_from(data, at + 4)[0], data[at + 12], confirmed=code == ACK)
            elif code == RETURN:
                self._returning = read_short(data, at + 6)[0].decode(errors="backslashreplace")
            else:
                self._closed = self._closed or code == CHANNEL_CLOSE
                return False
        elif kind == HEADER:
            number = frames.publish_id(data[at:end])
            if number is not None:
                self._returned[number] = self._returning
        return kind in (METHOD, HEADER, BODY)

    def _answered(self, tag: int, bits: int, *, confirmed: bool) -> None:
        for one in range(self._oldest if bits & 1 else tag, tag + 1):
            entry = self._unconfirmed.pop(one, None)
            if entry is None:
                continue
            returned = self._returned.pop(one, None) if self._returned else None
            if not confirmed:
                verdict = NACKED
            else:
                verdict = CONFIRMED if returned is None else Verdict(VerdictKind.UNROUTABLE, returned)
            self._resolve(entry, verdict)
        while self._oldest <= self._tag and self._oldest not in self._unconfirmed:
            self._oldest += 1

    def _method(self, exchange: str, key: str, *, mandatory: bool) -> bytes:
        names = (exchange, key, mandatory)
        method = self._methods.get(names)
        if method is None:
            if len(self._methods) == _CACHED:
                self._methods.clear()
            exchange, key = (self._names(exchange), key) if exchange else ("", self._names(key))
            method = frames.publish_method(self._number, exchange, key, mandatory=mandatory)
            self._methods[names] = method
        return method


@functools.lru_cache(_CACHED)
def _name(raw: bytes) -> str:
    """Decode a name that is one of few."""
    return raw.decode()


async def _never(_message: object) -> None:
    """Hear of a delivery that aiormq has seen: none, they are all ours."""
