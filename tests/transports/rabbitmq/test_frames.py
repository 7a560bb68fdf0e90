"""Frames as bytes: what is written is what pamqp reads, and nothing that arrives can do harm."""

import asyncio
import contextlib
import datetime as dt
import random
import struct
import time
from decimal import Decimal
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, header
from tests.transports.rabbitmq.wire_rig import Channel, Rig

from eventpipe.message import Properties
from eventpipe.transports.base import CONFIRMED, Delivery, Outgoing, VerdictKind
from eventpipe.transports.rabbitmq import frames
from eventpipe.transports.rabbitmq.fast import FastDeliveries
from eventpipe.transports.rabbitmq.hot import Entry, Feed
from eventpipe.transports.rabbitmq.properties import from_wire, to_wire

SHORT = st.text(min_size=1, max_size=30)  # a field name has at most 128 bytes, says AMQP
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3),
    max_leaves=8,
)
OPTIONAL = st.none() | SHORT
PROPERTIES = st.builds(
    Properties,
    content_type=OPTIONAL,
    content_encoding=OPTIONAL,
    headers=st.dictionaries(SHORT, VALUES, max_size=4),
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=OPTIONAL,
    reply_to=OPTIONAL,
    expiration=OPTIONAL,
    message_id=OPTIONAL,
    timestamp=st.none() | st.integers(0, 2**32 - 1),
    type=OPTIONAL,
    user_id=OPTIONAL,
    app_id=OPTIONAL,
)


def deliver(tag: int, content: bytes, properties: Properties, channel: int = 1, part: int = 1000) -> bytes:
    """Frames of one delivery, as pamqp writes them; the body in parts."""
    method = commands.Basic.Deliver("ctag", tag, tag % 2 == 0, "exchange", "key")
    parts = [content[at : at + part] for at in range(0, len(content), part)]
    made = [method, header.ContentHeader(0, len(content), to_wire(properties)), *map(body.ContentBody, parts)]
    return b"".join(pamqp.frame.marshal(one, channel) for one in made)


@given(PROPERTIES)
@settings(max_examples=150, deadline=None)
def test_pamqp_reads_what_is_written(properties: Properties) -> None:
    """Header frames are AMQP's: pamqp reads the same properties, and so do we."""
    parts = frames.content(3, properties, b"", 131_072, None)
    _, channel, found = pamqp.frame.unmarshal(b"".join(parts))
    assert (3, properties) == (channel, from_wire(found.properties))
    assert properties == frames.read_properties(parts[1])


@given(PROPERTIES)
@settings(max_examples=100, deadline=None)
def test_what_pamqp_writes_is_read(properties: Properties) -> None:
    """The other way round, with pamqp's own choice of field types."""
    raw = pamqp.frame.marshal(header.ContentHeader(0, 0, to_wire(properties)), 3)
    assert properties == frames.read_properties(raw[7:-1])


def test_every_field_type() -> None:
    """All types that RabbitMQ's errata list."""
    raw = b"".join(
        bytes((1,)) + name + value
        for name, value in (
            (b"a", b"t\1"),
            (b"b", b"b\xff"),
            (b"c", b"B\xff"),
            (b"d", struct.pack(">ch", b"s", -2)),
            (b"e", struct.pack(">cH", b"u", 65535)),
            (b"f", struct.pack(">ci", b"I", -3)),
            (b"g", struct.pack(">cI", b"i", 2**32 - 1)),
            (b"h", struct.pack(">cq", b"l", -4)),
            (b"i", struct.pack(">cf", b"f", 0.5)),
            (b"j", struct.pack(">cd", b"d", 0.1)),
            (b"k", struct.pack(">cBi", b"D", 2, 314)),
            (b"l", b"S\0\0\0\2\xff\xfe"),
            (b"m", b"x\0\0\0\1\xff"),
            (b"n", struct.pack(">cQ", b"T", 60)),
            (b"o", b"V"),
            (b"p", b"A\0\0\0\2t\0"),
            (b"q", b"F\0\0\0\4\1zt\1"),
        )
    )
    minute = dt.datetime(1970, 1, 1, 0, 1, tzinfo=dt.UTC)
    assert [True, -1, 255, -2, 65535, -3, 2**32 - 1, -4, 0.5, 0.1, Decimal("3.14"), b"\xff\xfe", b"\xff", minute] == [
        *frames.read_table(raw).values()
    ][:14]
    assert [None, [False], {"z": True}] == [*frames.read_table(raw).values()][14:]


@pytest.mark.parametrize(
    "raw",
    [
        b"\1a?",
        b"\1\xffV",
        b"\1aS\0\0\1\0x",
        b"\1aF\0\0\0\2\5b",
        b"\1aA\0\0\0\3t\1l",
        b"\1aT\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\1al\0",
        b"\5a",
        b"".join(b"\1aF" + struct.pack(">I", 7 * depth) for depth in range(900, 0, -1)) + b"\1aV",
        b"\1aV" * 5000,
    ],
)
def test_malformed_headers_are_named_and_kept(raw: bytes) -> None:
    """They cost little, and the rest of the properties is kept, with the raw bytes."""
    rest = b"\4good"
    payload = struct.pack(">HHQH", 60, 0, 0, 1 << 13 | 1 << 7) + struct.pack(">I", len(raw)) + raw + rest
    begin = time.perf_counter()
    with pytest.raises(frames.Malformed, match="headers"):
        frames.read_properties(payload)
    saved = frames.salvage(payload)
    assert time.perf_counter() - begin < 0.01
    assert ("good", payload[12:]) == (saved.message_id, saved.headers[frames.RAW])


async def test_deliveries_cut_at_every_byte() -> None:
    """Several messages and frames of aiormq's, cut in two at every place, and byte by byte."""
    properties = Properties(message_id="m", content_type="application/json", headers={"a": 1})
    heartbeat, qos = pamqp.frame.marshal(pamqp.frame.heartbeat.Heartbeat(), 0), commands.Basic.QosOk()
    stream = b"".join(
        (
            deliver(1, b"one", properties),
            heartbeat,
            deliver(2, b"", properties),
            pamqp.frame.marshal(qos, 1),
            deliver(3, b"x" * 25, properties, part=10),
            deliver(4, b"not ours", properties, channel=7),
        )
    )
    passed = heartbeat + pamqp.frame.marshal(qos, 1) + deliver(4, b"not ours", properties, channel=7)
    cuts = [(stream[:at], stream[at:]) for at in range(len(stream) + 1)]
    for segments in [*cuts, [bytes((byte,)) for byte in stream]]:
        rig = Rig()
        for segment in segments:
            rig.wire.data_received(segment)
        found = [(one.tag, one.redelivered, one.body, one.exchange, one.key) for one in rig.deliveries]
        assert [
            (1, False, b"one", "exchange", "key"),
            (2, True, b"", "exchange", "key"),
            (3, False, b"x" * 25, "exchange", "key"),
        ] == found
        assert all(properties == one.properties for one in rig.deliveries)
        assert passed == rig.reader.passed


async def test_interleaved_channels() -> None:
    """Frames of two messages on two channels, taking turns."""
    rig = Rig()
    other: list[Delivery] = []
    FastDeliveries(rig.wire, Channel(5), Feed(1, "", True, other.append))
    split = [deliver(1, b"ab", Properties(), channel=number, part=1) for number in (1, 5)]
    pieces: list[list[bytes]] = [[], []]
    for index, raw in enumerate(split):
        left = raw
        while left:
            size = 8 + struct.unpack_from(">I", left, 3)[0]
            pieces[index].append(left[:size])
            left = left[size:]
    for pair in zip(*pieces, strict=True):
        rig.wire.data_received(b"".join(pair))
    assert [b"ab"] == [one.body for one in rig.deliveries] == [one.body for one in other]


async def test_confirms_of_all_kinds() -> None:
    """Multiple and single, nacks, and a return that is matched by its own publish and not by the message id."""
    rig = Rig()
    for key in "abcdefg":
        rig.publish(key, mandatory=key != "g")
    rig.wire.flush()
    answer = commands.Basic.Return(312, "NO_ROUTE", "x", "c")
    sent = rig.socket.written
    returned = b""
    while sent:  # the header of the third publish, as the broker returns it
        size = 8 + struct.unpack_from(">I", sent, 3)[0]
        if sent[0] == 2 and frames.publish_id(sent[7 : size - 1]) == 3:
            returned = sent[:size]
        sent = sent[size:]
    rig.wire.data_received(pamqp.frame.marshal(commands.Basic.Ack(5), 2))
    rig.wire.data_received(
        pamqp.frame.marshal(answer, 2) + returned + pamqp.frame.marshal(body.ContentBody(b"body"), 2)
    )
    rig.wire.data_received(pamqp.frame.marshal(commands.Basic.Ack(4, multiple=True), 2))
    rig.wire.data_received(pamqp.frame.marshal(commands.Basic.Nack(7, multiple=True), 2))
    kinds = {key: verdict.kind.value for key, verdict in rig.verdicts}
    assert {
        "e": "confirmed",
        "a": "confirmed",
        "b": "confirmed",
        "c": "unroutable",
        "d": "confirmed",
        "f": "refused",
        "g": "refused",
    } == kinds
    assert CONFIRMED in [verdict for _, verdict in rig.verdicts]
    assert len(rig.verdicts) == 7


@pytest.mark.parametrize("text", ["", "\x11eventpipe-publishl" + "\0" * 8])
def test_the_publish_id_is_found_where_it_was_written(text: str) -> None:
    """Whatever other fields hold."""
    properties = Properties(
        content_type="a", content_encoding="b", headers={"x": text, frames.PUBLISH_ID: 3}, message_id=text or None
    )
    parts = frames.content(1, properties, b"", 131_072, 7)
    assert frames.publish_id(parts[1]) == 7
    plain = frames.content(1, Properties(message_id=text or "m", headers={"x": 1}), b"", 131_072, None)
    assert frames.publish_id(plain[1]) is None


async def test_a_body_over_several_frames_is_written() -> None:
    """Frames no longer than what was agreed on; pamqp puts them together again."""
    rig = Rig()
    rig.wire.frame_max = 4096
    out = Outgoing("", "q", bytes(range(256)) * 50, Properties(message_id="m"))
    rig.publishing.send(Entry(out, asyncio.get_running_loop().create_future()))
    rig.wire.flush()
    data, bodies = rig.socket.written, b""
    while data:
        size, _, found = pamqp.frame.unmarshal(data)
        assert size <= 4096
        bodies += found.value if isinstance(found, body.ContentBody) else b""
        data = data[size:]
    assert out.body == bodies


async def test_what_can_not_be_encoded_is_refused_and_the_next_goes_through() -> None:
    """It takes no delivery tag."""
    rig = Rig()
    for key in ("k" * 300, "good"):
        rig.publish(key)
    rig.wire.data_received(pamqp.frame.marshal(commands.Basic.Ack(1), 2))
    assert [VerdictKind.REFUSED, VerdictKind.CONFIRMED] == [verdict.kind for _, verdict in rig.verdicts]


async def test_the_watchdog_is_fed_while_only_hot_frames_arrive() -> None:
    """Aiormq gets a heartbeat that nobody sent, at most every half of the heartbeat."""
    rig = Rig(heartbeat=0.2)
    for tag in range(1, 40):
        rig.wire.data_received(deliver(tag, b"x", Properties()))
        await asyncio.sleep(0.01)
    assert 2 <= rig.reader.passed.count(frames.HEARTBEAT) <= 4
    assert rig.reader.passed.replace(frames.HEARTBEAT, b"") == b""


async def test_nothing_is_written_on_a_channel_that_the_broker_closes() -> None:
    """It would cost the connection: aiormq answers the close, and what follows names a channel that is not open."""
    rig = Rig()
    close = [pamqp.frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 60, 40), number) for number in (1, 2)]
    rig.wire.data_received(b"".join(close))
    assert b"".join(close) == rig.reader.passed
    rig.consuming.acknowledge([(1, False)], [])
    assert (True, b"") == (rig.publishing.full, rig.socket.written)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">BHI", 1, 1, 200_000),  # longer than frame_max
        struct.pack(">BHI", 1, 1, 200_000) + bytes(200_000) + b"\xce",  # the same, in one read
        struct.pack(">BHI", 1, 1, 4) + b"\0\0\0\0\0",  # no frame end
        struct.pack(">BHI", 1, 1, 2) + b"\0\0\xce",  # a method without its number
        deliver(1, b"ab", Properties())[:-10] + struct.pack(">BHI", 3, 1, 3) + b"abc\xce",  # more than announced
        struct.pack(">BHI", 2, 1, 14) + bytes(14) + b"\xce",  # a header without a method
    ],
)
async def test_what_is_not_amqp_ends_the_connection(data: bytes) -> None:
    """With a reason, for aiormq to report."""
    rig = Rig()
    rig.wire.data_received(data)
    assert rig.socket.aborted
    assert "not AMQP" in str(rig.reader.exception())


@pytest.mark.parametrize("seed", range(300))
async def test_random_bytes(seed: int) -> None:
    """Anything may arrive: it is passed on, becomes a delivery or ends the connection, and never an exception."""
    chance = random.Random(seed)
    rig = Rig()
    good = deliver(1, b"good", Properties(message_id="m", headers={"a": [1, {"b": None}]}))
    data = bytearray(chance.randbytes(400) if seed % 3 == 0 else good * 5)
    for _ in range(chance.randint(0, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    while data and not rig.socket.aborted:
        size = chance.randint(1, 60)
        rig.wire.data_received(bytes(data[:size]))
        del data[:size]
    for one in rig.deliveries:
        assert isinstance(one, Delivery)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_properties(payload: bytes) -> None:
    """They are read or ``Malformed``, and always salvaged."""
    raw: Any = struct.pack(">HHQ", 60, 0, 0) + payload
    with contextlib.suppress(frames.Malformed):
        assert isinstance(frames.read_properties(raw), Properties)
    assert isinstance(frames.salvage(raw), Properties)


async def test_what_is_written_after_the_connection_is_lost_is_dropped() -> None:
    """The epoch is over; its publishes are sent again on the next connection."""
    rig = Rig()
    rig.publish("a")
    rig.socket.aborted = True
    rig.wire.connection_lost(ConnectionResetError())
    rig.consuming.acknowledge([(1, False)], [])
    await asyncio.sleep(0)
    assert rig.socket.written == b""
