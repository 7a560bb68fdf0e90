"""What retries do to other queues, and what the broker does to retries."""

import asyncio

import pytest
from tests.support import eventually

from eventpipe import EventPipe, Exchange, Message, Queue, Retry
from eventpipe.testing import running


async def test_a_retry_reaches_the_failing_queue_only(eventpipe_broker: str) -> None:
    """Of two queues on one topic exchange one fails four times: it handles five times, the other once."""
    events = Exchange("events")
    good, bad = Queue("good", bind=events.on("#")), Queue("bad", bind=events.on("#"))
    pipe = EventPipe("memory://", name="two")
    publisher = pipe.publisher(str, to=events, key="a.b")
    seen: list[tuple[str, int, str]] = []

    @pipe.consumer(good)
    async def fine(event: str, message: Message) -> None:
        seen.append(("good", message.attempt, message.key))

    @pipe.consumer(bad, retry=Retry(attempts=5, delay=0.1, jitter=0.0))
    async def fails(event: str, message: Message) -> None:
        seen.append(("bad", message.attempt, message.key))
        if message.attempt < 5:
            raise ValueError

    async with running(pipe, url=eventpipe_broker) as bus:
        await publisher.publish("x")
        await bus.settled()
    assert sorted(seen) == [*(("bad", attempt, "a.b") for attempt in range(1, 6)), ("good", 1, "a.b")]


@pytest.mark.fault("F34")
async def test_ten_rounds_are_no_cycle(eventpipe_broker: str) -> None:
    """The broker drops a message that dies in circles; ten retries keep it, with its id, body and headers."""
    pipe = EventPipe("memory://", name="rounds")
    queue = Queue("q")
    publisher = pipe.publisher(str, to=queue)
    seen: list[tuple[int, str, str, object]] = []

    @pipe.consumer(queue, retry=Retry(attempts=11, delay=0.05, factor=1.0, jitter=0.0))
    async def handle(event: str, message: Message) -> None:
        seen.append((message.attempt, message.id, event, message.headers["mine"]))
        if message.attempt < 11:
            raise ValueError

    async with running(pipe, url=eventpipe_broker) as bus:
        receipt = await publisher.publish("x", headers={"mine": [1, "2"]})
        await bus.settled()
    assert seen == [(attempt, receipt.id, "x", [1, "2"]) for attempt in range(1, 12)]


async def test_a_full_queue_does_not_block_anothers_retries(eventpipe_rabbitmq: str) -> None:
    """Retries into a queue that is full and rejects wait in front of it; a neighbour's come back in time."""
    pipe = EventPipe(eventpipe_rabbitmq, name="full")
    full, other = Queue("full", max_length=1), Queue("other")
    to_full, to_other = pipe.publisher(int, to=full), pipe.publisher(int, to=other)
    back: list[int] = []

    @pipe.consumer(full, prefetch=1)
    async def never(event: int) -> None:
        await asyncio.Event().wait()

    @pipe.consumer(other, retry=Retry(attempts=2, delay=0.2, jitter=0.0))
    async def handle(event: int, message: Message) -> None:
        if message.attempt == 1:
            raise ValueError
        back.append(event)

    async with pipe:
        for number in range(60):  # a quorum queue is a little late to notice that it is full
            try:
                await to_full.publish(number)
            except Exception:
                break
        for number in range(100):
            await to_full.publish(number, delay=0.2)
        await asyncio.sleep(0.5)
        async with pipe.consuming(other):
            begin = asyncio.get_running_loop().time()
            await to_other.publish(1)
            await eventually(lambda: back)
            assert asyncio.get_running_loop().time() - begin < 2.0


@pytest.mark.fault("F47")
async def test_copies_do_not_obey_what_the_publisher_wrote(eventpipe_broker: str) -> None:
    """A CC header, a forged count and attempt do not travel on with a retry; an expiry is kept, aside."""
    pipe = EventPipe("memory://", name="forged")
    queue, victim = Queue("q"), Queue("victim")
    publisher, _ = pipe.publisher(str, to=queue), pipe.publisher(str, to=victim)
    seen: list[tuple[int, bool, bool]] = []

    @pipe.consumer(queue, retry=Retry(attempts=3, delay=0.05, jitter=0.0))
    async def handle(event: str, message: Message) -> None:
        seen.append((message.attempt, "CC" in message.headers, "x-delivery-count" in message.headers))
        raise ValueError

    async with running(pipe, url=eventpipe_broker) as bus:
        headers = {"CC": ["victim"], "x-delivery-count": 99, "eventpipe-attempt": -5}
        await publisher.publish("x", headers=headers, expires=60.0)
        await bus.settled()
        (dead,) = bus.dead_letters(queue)
        assert await bus._record.depth("victim") == 1
    assert [(1, True), (2, False), (3, False)] == [one[:2] for one in seen]
    assert "60000" == dead.message.headers["eventpipe-original-expiration"]


async def test_a_consumer_that_can_not_dead_letter_keeps_the_message(eventpipe_rabbitmq: str) -> None:
    """With the dead-letter queue deleted, the original stays, health says why, and it works again once there is one."""
    pipe = EventPipe(eventpipe_rabbitmq, name="nodead")
    queue = Queue("q")
    publisher = pipe.publisher(str, to=queue)

    @pipe.consumer(queue, retry=Retry(attempts=1))
    async def handle(event: str) -> None:
        raise ValueError

    async with pipe, pipe.consuming():
        transport = pipe._session.transport
        async with transport._consuming.throwaway() as channel:
            await channel.queue_delete("q.dead")
        await publisher.publish("x")
        await eventually(lambda: "can't be stored in queue 'q.dead'" in (pipe.health().consumers[0].error or ""))
        assert not pipe.health().ok
        await transport.declare(pipe.topology)
        await eventually(lambda: pipe.health().ok, within=10)
        await eventually(lambda: _one_dead(transport))


async def _one_dead(transport: object) -> bool:
    return await transport.depth("q.dead") == 1


async def test_delayed_publishes_that_nobody_wants_block_nobody(eventpipe_rabbitmq: str) -> None:
    """Delayed messages to an exchange without a matching queue wait before it; a neighbour's delays come in time."""
    pipe = EventPipe(eventpipe_rabbitmq, name="unwanted")
    nobody, queue = Exchange("nobody"), Queue("q")
    to_nobody, to_queue = pipe.publisher(int, to=nobody, key="k"), pipe.publisher(int, to=queue)
    seen: list[int] = []

    @pipe.consumer(queue)
    async def handle(number: int) -> None:
        seen.append(number)

    async with pipe, pipe.consuming():
        await asyncio.gather(*(to_nobody.publish(number, delay=0.1) for number in range(200)))
        await asyncio.sleep(0.3)
        begin = asyncio.get_running_loop().time()
        await to_queue.publish(1, delay=0.1)
        await eventually(lambda: seen)
        assert asyncio.get_running_loop().time() - begin < 1.0
        assert await pipe._session.transport.depth("nobody.delayed") <= 200
