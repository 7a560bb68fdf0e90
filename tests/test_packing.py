"""Packs: many events in one message, on both brokers."""

import asyncio
import json
import random
import threading
import time
import weakref
from typing import Any

import pytest
from pydantic import BaseModel
from tests.push_transport import PushTransport
from tests.support import eventually

from eventpipe import (
    ConfigurationError,
    EventPipe,
    Exchange,
    InvalidMessage,
    Message,
    Options,
    Pack,
    Properties,
    PublishManyError,
    Queue,
    Retry,
    Unroutable,
)
from eventpipe.clock import SystemClock
from eventpipe.codec import BATCH, Undecodable, split
from eventpipe.handler import plan
from eventpipe.testing import running
from eventpipe.work import Surroundings, Work
from eventpipe.worker import Worker


class Posted(BaseModel):
    user: str
    number: int


QUEUE = Queue("posted")


def make(**pack: Any) -> tuple[EventPipe, Any, list[tuple[str, int]]]:
    pipe = EventPipe("memory://", name="packs", retry=Retry(attempts=2, delay=0.1))
    posted = pipe.publisher(Posted, to=QUEUE, pack=Pack(**pack))
    seen: list[tuple[str, int]] = []

    @pipe.consumer(QUEUE, concurrency=3)
    async def handle(event: Posted, message: Message) -> None:
        assert json.loads(message.body) == event.model_dump()
        seen.append((message.id, event.number))
        if event.number < 0:
            raise ValueError("negative")

    return pipe, posted, seen


async def test_single_publishes_share_a_pack(eventpipe_broker: str) -> None:
    """One message, one id with an index for each, and each caller gets its own receipt."""
    pipe, posted, seen = make(seconds=0.05)
    async with running(pipe, url=eventpipe_broker) as bus:
        receipts = await asyncio.gather(*(posted.publish(Posted(user="ann", number=n)) for n in range(5)))
        await bus.settled()
        pack = receipts[0].id.partition("/")[0]
        assert [f"{pack}/{index}" for index in range(5)] == [one.id for one in receipts]
        assert [(f"{pack}/{n}", n) for n in range(5)] == sorted(seen)
        assert [Posted(user="ann", number=n) for n in range(5)] == bus.published(Posted)


async def test_a_failing_event_leaves_its_pack(eventpipe_broker: str) -> None:
    """It is retried, then dead-lettered, by itself; the others are handled once."""
    pipe, posted, seen = make()
    async with running(pipe, url=eventpipe_broker) as bus:
        receipts = await posted.publish_many([Posted(user="ann", number=n) for n in (1, -2, 3)])
        await bus.settled()
        assert sorted([(receipts[0].id, 1), (receipts[1].id, -2), (receipts[1].id, -2), (receipts[2].id, 3)]) == sorted(
            seen
        )
        (dead,) = bus.dead_letters(QUEUE)
        assert (receipts[1].id, b'{"user":"ann","number":-2}') == (dead.message.id, dead.message.body)
        assert dead.message.properties.content_type == "application/json"


async def test_packs_are_cut_at_events_bytes_and_time() -> None:
    """Whatever comes first; each pack is one message."""
    pipe, posted, _ = make(events=10, bytes=200, seconds=0.01)
    async with pipe:
        sent: list[Any] = []
        publish = pipe._session.transport.publish
        pipe._session.transport.publish = lambda out: (sent.append(out), publish(out))[1]
        await posted.publish_many([Posted(user="a" * (40 * (n < 8)), number=n) for n in range(30)])
        assert all(len(one.body) <= 200 and len(json.loads(one.body)) <= 10 for one in sent)
        assert list(range(30)) == [event["number"] for one in sent for event in json.loads(one.body)]
        assert {BATCH} == {one.properties.content_type for one in sent}
        sent.clear()
        await asyncio.gather(*(posted.publish(Posted(user="", number=n)) for n in range(12)))
        assert [8, 4] == [len(json.loads(one.body)) for one in sent]
        sent.clear()
        await asyncio.wait_for(posted.publish(Posted(user="", number=1)), 1.0)
        assert len(sent) == 1


async def test_only_what_is_equal_shares_a_pack() -> None:
    """Keys, priorities and headers are the message's."""
    pipe = EventPipe("memory://", name="packs")
    exchange = Exchange("posts")
    queue = Queue("all", bind=exchange.on("#"))
    posted = pipe.publisher(Posted, to=exchange, key=lambda event: event.user, pack=Pack(seconds=0.02))
    keys: dict[str, set[str]] = {}

    @pipe.consumer(queue)
    async def handle(event: Posted, message: Message) -> None:
        assert message.key == event.user
        keys.setdefault(message.id.partition("/")[0], set()).add(f"{message.key} {message.priority}")

    async with pipe, pipe.consuming():
        events = [Posted(user="ab"[n % 2], number=n) for n in range(10)]
        receipts = await posted.publish_many(events)
        assert [event.user for event in events] == [one.key for one in receipts]
        await asyncio.gather(*(posted.publish(one, priority=one.number % 2) for one in events))
        await eventually(lambda: pipe.health().consumers[0].handled == 20)
    assert [["a None"], ["b None"], ["a 0"], ["b 1"]] == [sorted(found) for found in keys.values()]


async def test_a_verdict_is_for_each_event() -> None:
    """An unroutable pack is an error for each of its events, and for no other's."""
    pipe = EventPipe("memory://", name="packs")
    exchange = Exchange("posts")
    pipe.publisher(int, to=Queue("all", bind=exchange.on("a")))
    posted = pipe.publisher(Posted, to=exchange, key=lambda event: event.user, pack=Pack(seconds=0.0))
    async with pipe:
        with pytest.raises(PublishManyError) as error:
            await posted.publish_many([Posted(user="ab"[n % 2], number=n) for n in range(4)])
        assert [False, True, False, True] == [isinstance(one, Unroutable) for one in error.value.verdicts]
        with pytest.raises(Unroutable) as one:
            await posted.publish(Posted(user="b", number=1))
        assert one.value.id.endswith("/0")


async def test_leaving_the_pipe_sends_what_is_open() -> None:
    """A pack that is not full yet is not forgotten, and neither is one whose caller was cancelled."""
    pipe, posted, _ = make(seconds=30.0)
    async with pipe:
        waiting = [asyncio.create_task(posted.publish(Posted(user="", number=n))) for n in (1, 2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    assert (await waiting[1]).id.endswith("/1")
    assert waiting[0].cancelled()


async def test_options_that_can_not_be_packed() -> None:
    """An id or a delay sends a message of its own; contradictions are refused."""
    pipe, posted, seen = make(seconds=30.0)
    async with pipe, pipe.consuming():
        assert (await posted.publish(Posted(user="", number=1), id="mine")).id == "mine"
        await posted.publish(Posted(user="", number=2), delay=0.01)
        await eventually(lambda: len(seen) == 2)
        with pytest.raises(InvalidMessage, match="over the limit"):
            await posted.publish_many([Posted(user="x" * 17_000_000, number=1)])
        with pytest.raises(InvalidMessage, match="str"):
            await posted.publish_many([Posted(user="", number=1), "nonsense"])
    with pytest.raises(ConfigurationError, match="id="):
        pipe.publisher(Posted, to=QUEUE, id=lambda _: "x", pack=Pack())
    with pytest.raises(ConfigurationError, match="bytes"):
        pipe.publisher(bytes, to=QUEUE, pack=Pack())
    for wrong in ({"events": 0}, {"bytes": 0}, {"seconds": -1}, {"events": 2.5}):
        with pytest.raises(ConfigurationError, match="Pack"):
            Pack(**wrong)


async def test_a_batch_with_one_bad_event_costs_that_event() -> None:
    """From a foreign publisher: the others are handled, and each body stays as it was written."""
    pipe, _, seen = make()
    raw = pipe.publisher(bytes, to=QUEUE)
    async with pipe, pipe.consuming():
        outlet = pipe._session.outlet
        body = b' [ {"user":"a", "number": 1} , {"user":1.10},{"user":"c","number":3}]\n'
        out = raw.outgoing(body, outlet, raw.wish)
        out.properties.content_type, out.properties.message_id = BATCH, "foreign"
        await outlet.send(out, raw.wish)
        await eventually(lambda: pipe.health().consumers[0].dead_lettered == 1)
        await eventually(lambda: len(seen) == 2)
    assert [("foreign/0", 1), ("foreign/2", 3)] == sorted(seen)


def test_split_keeps_every_byte() -> None:
    """Bodies are cut out as they stand there."""
    assert [b'{"a": 1.10}', b"[1, [2]]", b'"],"', b"null"] == split(b' [ {"a": 1.10} , [1, [2]],"],", null ] ')
    assert [] == split(b"[ ]")
    assert [b"1" * 10_000, b"1e9999"] == split(b"[" + b"1" * 10_000 + b",1e9999]")
    for wrong in (b"", b"{}", b"[1 2]", b"[1,", b"[1,]", b"[1] 2", b"[NaN]", b"\xff", b"[" * 100_000):
        with pytest.raises(Undecodable, match="not a JSON array"):
            split(wrong)


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_handlers_that_suspend_and_handlers_that_do_not(concurrency: int) -> None:
    """Events of one pack are in at most ``concurrency`` handlers, each once, and what suspends holds nobody up."""
    pipe = EventPipe("memory://", name="packs")
    numbers = pipe.publisher(int, to=Queue("n"), pack=Pack())
    running_now = most = 0
    seen: list[int] = []

    @pipe.consumer(Queue("n"), concurrency=concurrency)
    async def handle(number: int) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        if number % 10 == 0:
            await asyncio.sleep(0.001)
        seen.append(number)
        running_now -= 1

    async with pipe, pipe.consuming():
        await numbers.publish_many(range(1000))
        await eventually(lambda: len(seen) == 1000)
    assert (list(range(1000)), concurrency) == (sorted(seen), most)
    assert concurrency > 1 or seen == sorted(seen)


async def test_plain_functions_take_packs_in_shares() -> None:
    """In ``concurrency`` threads, not one submission for each event; a failing event costs itself."""
    pipe = EventPipe("memory://", name="packs", retry=Retry(attempts=1))
    numbers = pipe.publisher(int, to=Queue("n"), pack=Pack())
    seen: list[int] = []
    threads: set[int] = set()

    @pipe.consumer(Queue("n"), concurrency=4)
    def handle(number: int) -> None:
        if number == 7:
            raise ValueError(number)
        threads.add(threading.get_ident())
        time.sleep(0.001)  # it has to block its thread
        seen.append(number)

    async with pipe, pipe.consuming():
        await numbers.publish_many(range(100))
        await eventually(lambda: pipe.health().consumers[0].dead_lettered == 1)
        await eventually(lambda: pipe.health().consumers[0].unsettled == 0)
        assert pipe.health().consumers[0].handled == 99
    assert [number for number in range(100) if number != 7] == sorted(seen)
    assert 2 <= len(threads) <= 4


async def test_stopping_ends_a_share_after_the_event_in_hand() -> None:
    """The rest of the batch comes again."""
    pipe = EventPipe("memory://stopping-share", name="packs")
    numbers = pipe.publisher(int, to=Queue("n"), pack=Pack())
    seen: list[int] = []

    @pipe.consumer(Queue("n"), concurrency=1)
    def handle(number: int) -> None:
        seen.append(number)
        time.sleep(0.02)  # it has to block its thread

    async with pipe:
        async with pipe.consuming():
            await numbers.publish_many(range(20))
            await eventually(lambda: seen)
        assert len(seen) < 20
        async with pipe.consuming():
            await eventually(lambda: pipe.health().consumers[0].handled == 20)
    assert set(range(20)) == set(seen)


async def test_a_finished_pack_is_not_taken_for_a_running_one() -> None:
    """When its acknowledgement is lost it comes again, and is settled without being handled again."""
    transport = PushTransport()
    seen: list[int] = []

    async def handle(number: int) -> None:
        seen.append(number)
        if number == 3:
            # The slot gives the loop its turn behind this event, and the connection is lost in it.
            time.sleep(0.005)  # noqa: ASYNC251  it has to block
            asyncio.get_running_loop().call_soon(transport.subscriptions["n"].lose)

    work = Work(queue=Queue("n"), handlers=(plan(handle),), concurrency=2, prefetch=4, retry=Retry())
    worker = Worker(work, Surroundings(transport, SystemClock(), random.Random(1)))
    await worker.start()
    queue, pack = transport.subscriptions["n"], Properties(message_id="pack", content_type=BATCH)
    queue.push(b"[1, 2, 3]", pack)
    await eventually(lambda: queue.epoch == 2)
    assert not worker._recall._running
    queue.push(b"[1, 2, 3]", pack, redelivered=True, delivery_count=1)
    await eventually(lambda: len(queue.settled) == 2)
    await worker.stop(1.0)
    assert [1, 2, 3] == seen


async def test_settled_events_are_let_go_of() -> None:
    """What is remembered of a settled delivery is not its events: they would fill memory, and the collector's time."""
    pipe = EventPipe("memory://", name="packs")
    posted = pipe.publisher(Posted, to=QUEUE, pack=Pack())
    alive: list[weakref.ref[Posted]] = []

    @pipe.consumer(QUEUE, prefetch=1000)
    async def handle(event: Posted) -> None:
        alive.append(weakref.ref(event))

    async with pipe, pipe.consuming():
        await posted.publish_many([Posted(user="u", number=number) for number in range(2000)])
        await eventually(lambda: len(alive) == 2000)
        await eventually(lambda: not any(one() for one in alive))


async def test_packs_stay_under_the_body_limit() -> None:
    """However large ``Pack`` says they may be: a consumer refuses more."""
    pipe = EventPipe("memory://", name="packs", options=Options(body_limit=100))
    texts = pipe.publisher(str, to=QUEUE, pack=Pack(bytes=10_000, seconds=0.01))
    seen: list[str] = []

    @pipe.consumer(QUEUE)
    async def handle(text: str) -> None:
        seen.append(text)

    async with pipe, pipe.consuming():
        await asyncio.gather(*(texts.publish("x" * 30) for _ in range(20)))
        await texts.publish_many(["x" * 30] * 20)
        await texts.publish("x" * 96)
        with pytest.raises(InvalidMessage, match="over the limit"):
            await texts.publish("x" * 97)
        await eventually(lambda: len(seen) == 41)
        assert pipe.health().consumers[0].dead_lettered == 0
