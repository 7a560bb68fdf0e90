"""AMQP 0-9-1's hot frames as bytes: what ``fast.py`` reads and writes itself. Pure; the rest of AMQP is pamqp's.

Layouts (AMQP 0-9-1 specification, 4.2; field types as in RabbitMQ's errata)::

    frame    type:u8  channel:u16  size:u32  payload:size  end:0xCE      type 1 method, 2 header, 3 body, 8 heartbeat
    method   class:u16  method:u16  arguments
      basic.publish  60.40   0:u16  exchange:short  key:short  mandatory:bit
      basic.return   60.50   code:u16  text:short  exchange:short  key:short
      basic.deliver  60.60   consumer:short  tag:u64  redelivered:bit  exchange:short  key:short
      basic.ack      60.80   tag:u64  multiple:bit
      basic.nack     60.120  tag:u64  multiple:bit=1, requeue:bit=2
    header   class:u16  0:u16  body size:u64  flags:u16  the properties whose flag is set, content type at bit 15 first
    short    size:u8  bytes               table    size:u32  (name:short  type:u8  value) ...

A message is a method, a header and as many body frames as its size asks for; nothing else of its channel between them.
Whatever arrives here was accepted by the broker, which checks neither text nor depth: what does not decode is
``Malformed`` and costs that message only.
"""

import datetime as dt
import decimal
import functools
import struct
from collections.abc import Callable, Mapping
from typing import Any

from ...message import NO_HEADERS, PREFIX, Properties

METHOD, HEADER, BODY, END = 1, 2, 3, 0xCE
FRAME = struct.Struct(">BHI")
OVERHEAD = FRAME.size + 1
"""Bytes around a payload."""

DELIVER, RETURN, ACK, NACK = 60 << 16 | 60, 60 << 16 | 50, 60 << 16 | 80, 60 << 16 | 120
PUBLISH, CHANNEL_CLOSE = 60 << 16 | 40, 20 << 16 | 40
HEARTBEAT = bytes((8, 0, 0, 0, 0, 0, 0, END))

PUBLISH_ID = PREFIX + "publish"
"""Private header: which publish of its channel this was. Returns are matched by it."""

RAW = PREFIX + "raw-properties"
"""On the dead letter of a message whose properties did not decode: their bytes."""

MAX_DEPTH = 16
MAX_VALUES = 1_000
"""Values in the headers of one message, nested ones included; more would hold up the event loop."""

_RAW_KEPT = 64_000  # bytes
_LATEST = 253_402_300_799  # seconds: the end of the year 9999
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_CACHED = 1024

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_ACK = struct.Struct(">BHIIQBB")
_LONG = struct.Struct(">cq")
_SCALARS = {
    code: struct.Struct(">" + form)
    for code, form in zip(b"bBsuIilLfd", ("b", "B", "h", "H", "i", "I", "q", "q", "f", "d"), strict=True)
}
_PROPERTIES = (  # from flag 15 downwards; RabbitMQ ignores the last, cluster id, and so do we
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
)


class Malformed(Exception):
    """What the broker passed on and cannot be read."""


# --- reading


def read_short(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a short string's bytes and where it ends."""
    start = at + 1
    end = start + data[at]
    return data[start:end], end


def read_properties(payload: bytes) -> Properties:
    """Read the properties of a header frame's payload. Raises ``Malformed``."""
    found, faults = _properties(payload)
    if faults:
        raise Malformed(faults[0])
    return found


def salvage(payload: bytes) -> Properties:
    """Keep what can be read of malformed properties, and their raw bytes as a header."""
    found, _ = _properties(payload)
    found.headers = {**found.headers, RAW: payload[12 : 12 + _RAW_KEPT]}
    return found


def _properties(payload: bytes) -> tuple[Properties, list[str]]:
    """Read properties; a field that does not decode is left out, and said."""
    found, faults, at, size = Properties(delivery_mode=None), [], 14, len(payload)
    try:
        flags = _U16.unpack_from(payload, 12)[0]
        for name in _plan(flags):
            read, width = _FIELDS.get(name, _SHORT)
            if width == _SIZED_SHORT:
                start = at + 1
                at = start + payload[at]
            elif width == _SIZED_LONG:
                start = at + 4
                at = start + _U32.unpack_from(payload, at)[0]
            else:
                start = at
                at += width
            if at > size:
                faults.append(f"{name} is longer than its frame")
                break
            try:
                setattr(found, name, read(payload[start:at]))
            except _UNREADABLE as error:
                faults.append(f"{name}: {error}")
    except (struct.error, IndexError, Malformed) as error:
        faults.append(f"the properties can't be read: {error}")
    return found, faults


@functools.lru_cache(_CACHED)
def _plan(flags: int) -> tuple[str, ...]:
    """Give the properties that these flags announce; there are few sets of them in an application."""
    if flags & 1:
        raise Malformed("flags that AMQP 0-9-1 does not know")
    return tuple(name for index, name in enumerate(_PROPERTIES) if flags >> (15 - index) & 1)


def _text(raw: bytes) -> str | None:
    return raw.decode() or None


def _timestamp(raw: bytes) -> int:
    seconds: int = _U64.unpack(raw)[0]
    if seconds > _LATEST:
        raise Malformed(f"{seconds} seconds are after the year 9999")
    return seconds


def read_table(raw: bytes) -> Mapping[str, Any]:
    """Read a table without its size. Raises ``Malformed`` or ``ValueError``."""
    return _Table(raw).read()


_UNREADABLE = (Malformed, ValueError, IndexError, struct.error, OverflowError)
_SIZED_SHORT, _SIZED_LONG = -1, -4
_SHORT: tuple[Callable[[bytes], Any], int] = (_text, _SIZED_SHORT)
_FIELDS: dict[str, tuple[Callable[[bytes], Any], int]] = {
    "headers": (read_table, _SIZED_LONG),
    "delivery_mode": (ord, 1),
    "priority": (ord, 1),
    "timestamp": (_timestamp, 8),
}


class _Table:
    """Reads one message's headers, within bounds on depth and number."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._left = raw, MAX_VALUES

    def read(self) -> Mapping[str, Any]:
        table = self._table(0, len(self._raw), 0)
        table.pop(PUBLISH_ID, None)
        return table or NO_HEADERS

    def _table(self, at: int, end: int, depth: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        while at < end:
            name, at = read_short(self._raw, at)
            table[name.decode()], at = self._value(at, depth)
        if at != end:
            raise Malformed("a table is shorter than what is in it")
        return table

    def _array(self, at: int, end: int, depth: int) -> list[Any]:
        array = []
        while at < end:
            value, at = self._value(at, depth)
            array.append(value)
        if at != end:
            raise Malformed("an array is shorter than what is in it")
        return array

    def _value(self, at: int, depth: int) -> tuple[Any, int]:
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"more than {MAX_VALUES} values")
        kind, at = self._raw[at], at + 1
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar.unpack_from(self._raw, at)[0], at + scalar.size
        if kind in b"SxFA":
            return self._sized(kind, at, depth)
        if kind in b"V\0":
            return None, at
        if kind == b"t"[0]:
            return bool(self._raw[at]), at + 1
        if kind == b"T"[0]:
            return _EPOCH + dt.timedelta(seconds=_timestamp(self._raw[at : at + 8])), at + 8
        if kind == b"D"[0]:
            scale, value = struct.unpack_from(">Bi", self._raw, at)
            return decimal.Decimal(value).scaleb(-scale), at + 5
        raise Malformed(f"unknown field type {bytes((kind,))!r}")

    def _sized(self, kind: int, at: int, depth: int) -> tuple[Any, int]:
        size = _U32.unpack_from(self._raw, at)[0]
        at += 4
        end = at + size
        if end > len(self._raw):
            raise Malformed("a value is longer than its table")
        if kind == b"S"[0]:
            raw = self._raw[at:end]
            try:
                return raw.decode(), end
            except UnicodeDecodeError:
                return raw, end  # a long string may be any bytes
        if kind == b"x"[0]:
            return self._raw[at:end], end
        if depth == MAX_DEPTH:
            raise Malformed(f"nested more than {MAX_DEPTH} deep")
        read: Any = self._table if kind == b"F"[0] else self._array
        return read(at, end, depth + 1), end


def publish_id(payload: bytes) -> int | None:
    """Find the private publish id in the header payload of a returned message: the last of its headers."""
    flags, at = _U16.unpack_from(payload, 12)[0], 14
    for bit in (15, 14):  # content type and encoding come before the headers
        if flags >> bit & 1:
            at += 1 + payload[at]
    if not flags >> 13 & 1:
        return None
    number = at + 4 + _U32.unpack_from(payload, at)[0] - _U64.size
    named = payload[number - len(_PUBLISH_ID) : number] == _PUBLISH_ID
    return _U64.unpack_from(payload, number)[0] if named else None


# --- writing


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Write basic.ack."""
    return _ACK.pack(METHOD, channel, 13, ACK, tag, multiple, END)


def nack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Write basic.nack that gives back."""
    return _ACK.pack(METHOD, channel, 13, NACK, tag, 2 | multiple, END)


def publish_method(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    """Write the method frame of a publish. Raises ``ValueError`` for names that are too long."""
    payload = _U32.pack(PUBLISH) + b"\0\0" + _short(exchange) + _short(key) + bytes((mandatory,))
    return frame(METHOD, channel, payload)


def content(channel: int, properties: Properties, body: bytes, frame_max: int, number: int | None) -> list[bytes]:
    """Write the header and body frames of a publish; ``number`` is its private id.

    Raises ``ValueError`` or ``struct.error`` for what AMQP can't carry.
    """
    flags, parts = write_properties(properties, number)
    size = len(body)
    header = b"".join((b"\0\x3c\0\0", _U64.pack(size), _U16.pack(flags), *parts))
    if len(header) + OVERHEAD > frame_max:
        raise ValueError(f"its properties of {len(header)} bytes are over the broker's frame_max")
    frames = [FRAME.pack(HEADER, channel, len(header)), header, _END]
    room = frame_max - OVERHEAD
    if size <= room:
        if size:
            frames += (FRAME.pack(BODY, channel, size), body, _END)
        return frames
    for at in range(0, size, room):
        part = body[at : at + room]
        frames += (FRAME.pack(BODY, channel, len(part)), part, _END)
    return frames


_END = bytes((END,))


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Write a frame."""
    return FRAME.pack(kind, channel, len(payload)) + payload + _END


def write_properties(  # noqa: C901, PLR0912  a loop over fields would take twice as long, on every publish
    properties: Properties, number: int | None
) -> tuple[int, list[bytes]]:
    """Give the flags of what is set, and its bytes in the order of the flags."""
    flags, parts = 0, []
    if properties.content_type:
        flags |= 1 << 15
        parts.append(_known(properties.content_type))
    if properties.content_encoding:
        flags |= 1 << 14
        parts.append(_known(properties.content_encoding))
    if properties.headers or number is not None:
        flags |= 1 << 13
        parts.append(_headers(properties.headers, number))
    if properties.delivery_mode is not None:
        flags |= 1 << 12
        parts.append(bytes((properties.delivery_mode,)))
    if properties.priority is not None:
        flags |= 1 << 11
        parts.append(bytes((properties.priority,)))
    if properties.correlation_id:
        flags |= 1 << 10
        parts.append(_short(properties.correlation_id))
    if properties.reply_to:
        flags |= 1 << 9
        parts.append(_short(properties.reply_to))
    if properties.expiration:
        flags |= 1 << 8
        parts.append(_short(properties.expiration))
    if properties.message_id:
        flags |= 1 << 7
        parts.append(_short(properties.message_id))
    if properties.timestamp is not None:
        flags |= 1 << 6
        parts.append(_U64.pack(properties.timestamp))
    if properties.type:
        flags |= 1 << 5
        parts.append(_known(properties.type))
    if properties.user_id:
        flags |= 1 << 4
        parts.append(_short(properties.user_id))
    if properties.app_id:
        flags |= 1 << 3
        parts.append(_known(properties.app_id))
    return flags, parts


def _short(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > 255:
        raise ValueError(f"{text[:60]!r}… is longer than 255 bytes")
    return bytes((len(raw),)) + raw


@functools.lru_cache(_CACHED)
def _known(text: str) -> bytes:
    """Write a short string that is one of few."""
    return _short(text)


_PUBLISH_ID = bytes((len(PUBLISH_ID),)) + PUBLISH_ID.encode() + b"l"


def _headers(headers: Mapping[str, Any], number: int | None) -> bytes:
    parts = [b"", *_fields(headers)]
    if number is not None:
        parts += (_PUBLISH_ID, _U64.pack(number))
    raw = b"".join(parts)
    return _U32.pack(len(raw)) + raw


def _fields(table: Mapping[str, Any]) -> list[bytes]:
    parts: list[bytes] = []
    for name, value in table.items():
        if name != PUBLISH_ID:
            parts += (_known(name), _LONG.pack(b"l", value) if type(value) is int else write_value(value))
    return parts


def write_value(value: Any) -> bytes:
    """Write a header value with its type. Raises ``ValueError`` or ``struct.error``."""
    write = _WRITERS.get(type(value))
    if write is None:
        write = next((one for kind, one in _WRITERS.items() if isinstance(value, kind)), None)
    if write is None and isinstance(value, Mapping):
        write = _WRITERS[dict]
    if write is None:
        raise ValueError(f"AMQP has no {type(value).__name__}")
    return write(value)


def _sized(kind: bytes, raw: bytes) -> bytes:
    return kind + _U32.pack(len(raw)) + raw


def _write_decimal(value: decimal.Decimal) -> bytes:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"AMQP has no decimal {value}")  # noqa: TRY004  a NaN
    scale = max(0, -exponent)
    return struct.pack(">cBi", b"D", scale, int(value.scaleb(scale)))


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    str: lambda value: _sized(b"S", value.encode()),
    bool: lambda value: b"t\1" if value else b"t\0",
    int: lambda value: _LONG.pack(b"l", value),
    float: lambda value: struct.pack(">cd", b"d", value),
    bytes: lambda value: _sized(b"x", value),
    bytearray: lambda value: _sized(b"x", bytes(value)),
    type(None): lambda _value: b"V",
    dt.datetime: lambda value: struct.pack(">cQ", b"T", int(value.timestamp())),
    decimal.Decimal: _write_decimal,
    dict: lambda value: _sized(b"F", b"".join(_fields(value))),
    list: lambda value: _sized(b"A", b"".join(map(write_value, value))),
    tuple: lambda value: _sized(b"A", b"".join(map(write_value, value))),
}
