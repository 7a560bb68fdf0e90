"""The fast path on a real broker: what it must not disturb, and what happens when it can't be taken."""

import asyncio
import random
import struct
import time
from dataclasses import replace
from typing import Any

import pamqp.frame
import pytest
from aio_pika.connection import Connection
from tests.support import eventually
from tests.transports.rabbitmq.wire_rig import Rig

from eventpipe import EventPipe, Options, PublishTimeout, Queue
from eventpipe.clock import SystemClock
from eventpipe.message import Properties
from eventpipe.routing import topology
from eventpipe.transports.base import CONFIRMED, Delivery, Outgoing, VerdictKind
from eventpipe.transports.rabbitmq import RabbitTransport, frames
from eventpipe.transports.rabbitmq.consuming import RabbitSubscription
from eventpipe.transports.rabbitmq.fast import Wire
from eventpipe.transports.rabbitmq.hot import Feed
from eventpipe.transports.rabbitmq.properties import from_wire


def transport(url: str, **more: Any) -> RabbitTransport:
    return RabbitTransport([url], name="test", clock=SystemClock(), chance=random.Random(1), **more)


def to_queue(body: bytes = b"1", queue: str = "q", **properties: Any) -> Outgoing:
    return Outgoing("", queue, body, Properties(**properties))


async def test_a_connection_with_hot_frames_only_outlives_ten_heartbeats(eventpipe_rabbitmq: str) -> None:
    """Aiormq's watchdog sees nothing else; without being fed it gives up after seven seconds of a 1 s heartbeat."""
    pipe = EventPipe(eventpipe_rabbitmq, name="hot", options=Options(heartbeat=1))
    queue = Queue("hot")
    numbers = pipe.publisher(int, to=queue)
    seen: list[int] = []

    @pipe.consumer(queue)
    async def handle(number: int) -> None:
        seen.append(number)

    async with pipe, pipe.consuming():
        worker = pipe._session.workers["hot"]
        link = worker.intakes[0]._subscription._link
        # The broker's own heartbeats would hide it: they come only when nothing else does.
        passed: list[bytes] = []
        link._wire._reader.feed_data = passed.append  # what aiormq is not given can't keep it alive
        feed = Wire._feed
        real = asyncio.StreamReader.feed_data

        def only_ours(wire: Wire, data: bytes) -> None:
            feed(wire, data)
            if data == b"\x08\0\0\0\0\0\0\xce" and wire is link._wire:
                real(wire._reader, data)

        link._wire._feed = lambda data: only_ours(link._wire, data)
        end = time.monotonic() + 10.5
        while time.monotonic() < end:
            await numbers.publish(len(seen))
            await asyncio.sleep(0.02)
        assert worker.intakes[0]._subscription.epoch == 1
        assert pipe.health().ok
        del link._wire._feed, link._wire._reader.feed_data
    assert len(seen) > 200


async def test_a_recorded_stream_cut_anywhere(eventpipe_rabbitmq: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broker really sent on a consuming channel, against pamqp; bodies of none, one and several frames."""
    recorded: list[tuple[Wire, bytes]] = []
    received = Wire.data_received

    def record(wire: Wire, data: bytes) -> None:
        recorded.append((wire, bytes(data)))
        received(wire, data)

    monkeypatch.setattr(Wire, "data_received", record)
    made = transport(eventpipe_rabbitmq)
    await made.connect()
    queue = Queue("recorded")
    await made.declare(topology(queues=[queue]))
    for outgoing in (
        to_queue(b"", "recorded", message_id="empty"),
        to_queue(b"one", "recorded", content_type="text/plain", headers={"a": [1, {"b": "ü"}]}, priority=3),
        to_queue(b"x" * 300_000, "recorded", type="long", timestamp=7),
        to_queue(b"last", "recorded", correlation_id="c", reply_to="r", app_id="a", headers={"n": None}),
    ):
        assert await made.publish(outgoing) is CONFIRMED
    seen: list[Delivery] = []
    await made.subscribe(queue, 10, seen.append, lambda _epoch: None)
    await eventually(lambda: len(seen) == 4)
    wire = made._consuming._wire
    stream = b"".join(data for one, data in recorded if one is wire)
    monkeypatch.undo()
    await made.close()

    channel, starts = _frames_of(stream)
    decoded = _pamqp_messages(stream, channel)
    assert [0, 3, 300_000, 4] == [len(body) for _, body in decoded]
    near = {at + by for at in starts for by in range(-9, 30)} | set(range(0, len(stream), 4096))
    cuts = sorted(at for at in near if 0 <= at <= len(stream))
    for segments in [*([stream[:at], stream[at:]] for at in cuts), [stream[at : at + 1] for at in range(len(stream))]]:
        rig = Rig(channel=channel)
        for segment in segments:
            rig.wire.data_received(segment)
        assert decoded == [(one.properties, one.body) for one in rig.deliveries]


def _frames_of(stream: bytes) -> tuple[int, list[int]]:
    """Give the consuming channel, and where each frame begins."""
    starts, channels, at = [], set(), 0
    while at < len(stream):
        kind, channel, size = struct.unpack_from(">BHI", stream, at)
        starts.append(at)
        channels |= {channel} if kind == 2 else set()
        at += size + 8
    (found,) = channels
    return found, starts


def _pamqp_messages(stream: bytes, channel: int) -> list[tuple[Properties, bytes]]:
    """Read the messages of a channel with pamqp."""
    found: list[tuple[Properties, bytes]] = []
    while stream:
        size, number, frame = pamqp.frame.unmarshal(stream)
        stream = stream[size:]
        if number == channel and isinstance(frame, pamqp.header.ContentHeader):
            headers = dict(frame.properties.headers or {})
            headers.pop(frames.PUBLISH_ID, None)
            found.append((replace(from_wire(frame.properties), headers=headers), b""))
        elif number == channel and isinstance(frame, pamqp.body.ContentBody):
            found[-1] = (found[-1][0], found[-1][1] + frame.value)
    return found


async def test_a_changed_aiormq_means_the_plain_path_for_both_connections(
    eventpipe_rabbitmq: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, at connect, and everything works."""
    connect = Connection.connect

    async def without_factory(self: Connection, *args: Any, **more: Any) -> None:
        self.kwargs.pop("transport_factory", None)
        await connect(self, *args, **more)

    monkeypatch.setattr(Connection, "connect", without_factory)
    pipe = EventPipe(eventpipe_rabbitmq, name="plain")
    queue = Queue("q")
    numbers = pipe.publisher(int, to=queue)
    seen: list[int] = []

    @pipe.consumer(queue)
    async def handle(number: int) -> None:
        seen.append(number)

    async with pipe, pipe.consuming():
        await numbers.publish_many(range(20))
        await eventually(lambda: len(seen) == 20)
        made = pipe._session.transport
        assert [False, False] == [made._consuming.fast, made._publishing_link.fast]
    assert capsys.readouterr().out.count("plain path") == 1


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.fault("F20")
async def test_two_publishes_with_one_id_keep_their_own_verdicts(eventpipe_rabbitmq: str, fast: bool) -> None:
    """One of them is unroutable; the message id can't tell which."""
    made = transport(eventpipe_rabbitmq, fast=fast)
    await made.connect()
    await made.declare(EventPipe("memory://", name="x").topology)
    pipe = EventPipe(eventpipe_rabbitmq, name="declares")
    pipe.publisher(int, to=Queue("q"))
    async with pipe:
        for _ in range(20):
            pair = [made.publish(to_queue(queue=name, message_id="same")) for name in ("q", "nowhere")]
            assert [CONFIRMED.kind, VerdictKind.UNROUTABLE] == [(await one).kind for one in pair]
    await made.close()


async def test_publishes_wait_for_a_full_socket_and_go_on_in_order(eventpipe_rabbitmq: str) -> None:
    """Above the high-water mark nothing is written; what waits can still be withdrawn as not sent."""
    pipe = EventPipe(eventpipe_rabbitmq, name="declares")
    pipe.publisher(int, to=Queue("q"))
    async with pipe:
        made = transport(eventpipe_rabbitmq)
        await made.connect()
        await eventually(lambda: made._publishing._channel is not None)
        wire = made._publishing_link._wire
        wire.pause_writing()
        verdicts = [made.publish(to_queue(b"%d" % number)) for number in range(50)]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in verdicts)
        assert made.withdraw(verdicts.pop()) is False
        assert len(made._publishing._waiting) == 49  # what was withdrawn is not kept
        wire.resume_writing()
        assert {CONFIRMED} == {await one for one in verdicts}
        found: list[Delivery] = []
        subscription = await made.subscribe(Queue("q"), 100, found.append, lambda _: None)
        await eventually(lambda: len(found) == 49)
        assert [b"%d" % number for number in range(49)] == [one.body for one in found]
        await subscription.close()
        await made.close()


@pytest.mark.fault("F51")
async def test_a_blocked_broker_costs_a_window(eventpipe_rabbitmq: str, rabbit_node: Any) -> None:
    """Publishers at full speed against a memory alarm: what waits is bounded by the window, whoever calls."""
    pipe = EventPipe(eventpipe_rabbitmq, name="blocked")
    texts = pipe.publisher(bytes, to=Queue("q"), timeout=2.0)
    async with pipe:
        await texts.publish(b"x")
        rabbit_node.ctl("set_vm_memory_high_watermark", "0.0000001")
        try:
            results = await asyncio.gather(*(texts.publish(b"x" * 50_000) for _ in range(6000)), return_exceptions=True)
            outlet, publishing = pipe._session.outlet, pipe._session.transport._publishing
            assert any(isinstance(one, PublishTimeout) for one in results)
            assert not publishing._pending
            assert publishing._link._wire._socket.get_write_buffer_size() < 2 * 1024 * 1024
            assert outlet._window._messages == 4096
        finally:
            rabbit_node.ctl("set_vm_memory_high_watermark", "0.4")


class Written:
    """A consuming channel that notes what it is told to write, and when."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, bool]]] = []

    def acknowledge(self, acks: list[tuple[int, bool]], given_back: list[tuple[int, bool]]) -> None:
        self.calls.append([*acks, *given_back])

    async def written(self) -> None: ...


async def test_acknowledgements_are_coalesced_and_never_late() -> None:
    """One turn of the loop when idle, half of the prefetch at most, and never over an unsettled one."""
    subscription: Any = RabbitSubscription(None, str, Queue("q"), 10, lambda _: None, lambda _: None)  # type: ignore[arg-type]
    written = subscription._deliveries = Written()
    subscription._channel = object()
    for tag in (1, 2, 3):
        subscription.settle(0, (tag,))
    assert [] == written.calls
    await asyncio.sleep(0)
    assert [[(3, True)]] == written.calls
    for tag in (5, 6, 8, 9):
        subscription.settle(0, (tag,))
    assert len(written.calls) == 1
    subscription.settle(0, (10,))  # the fifth: half of the prefetch
    assert [(5, False), (6, False), (8, False), (9, False), (10, False)] == written.calls[-1]
    subscription.settle(0, (4,))
    await asyncio.sleep(0)
    assert [(4, False)] == written.calls[-1]
    subscription.settle(0, (7,))
    await asyncio.sleep(0)
    assert [[(7, False)]] == written.calls[3:]


async def test_a_channel_whose_consumer_was_cancelled_is_closed(eventpipe_rabbitmq: str, rabbit_node: Any) -> None:
    """The next epoch has a channel of its own; the old one is not left open, and its lane is let go."""
    pipe = EventPipe(eventpipe_rabbitmq, name="cancelled")
    queue = Queue("q")
    numbers = pipe.publisher(int, to=queue)
    seen: list[int] = []

    @pipe.consumer(queue)
    async def handle(number: int) -> None:
        seen.append(number)

    async with pipe, pipe.consuming():
        await numbers.publish(1)
        await eventually(lambda: seen)
        link = pipe._session.transport._consuming
        before = len(link._wire._lanes)
        rabbit_node.api("DELETE", f"queues/{eventpipe_rabbitmq.rpartition('/')[2]}/q")
        await eventually(lambda: pipe._session.workers["q"].intakes[0]._subscription.epoch == 2)
        await eventually(lambda: pipe.health().ok)
        assert before == len(link._wire._lanes)
        assert before == len(link._connection.transport.connection.channels)


def test_a_feed_takes_the_prefix_off() -> None:
    """Names are the application's; the count is the broker's only on a redelivery by a quorum queue."""
    found: list[Delivery] = []
    claim = Properties(headers={"x-delivery-count": 7})
    for quorum, redelivered in ((True, 0), (True, 1), (False, 1)):
        Feed(3, "p.", quorum, found.append).deliver(1, redelivered, "", "p.q", claim, b"", None)
    assert ["q", "q", "q"] == [one.key for one in found]
    assert [0, 7, None] == [one.delivery_count for one in found]
