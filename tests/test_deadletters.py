"""Dead letters in hand: looked at, handled again, parked, dropped; on both brokers."""

import asyncio
from typing import Any

import pytest
from tests.support import eventually

from eventpipe import (
    ConfigurationError,
    DeadMessage,
    EventPipe,
    Message,
    Queue,
    Reject,
    Retry,
    TopologyMissing,
    Unroutable,
    Where,
)
from eventpipe.testing import message as make_message

JOBS = Queue("jobs")


class Bench:
    """A pipe whose consumer rejects what is negative, until it is told otherwise."""

    def __init__(self, url: str) -> None:
        self.pipe = EventPipe(url, name="bench", retry=Retry(attempts=2, delay=0.0))
        self.publisher = self.pipe.publisher(int, to=JOBS)
        self.seen: list[tuple[int, Message]] = []
        self.mended = False

        @self.pipe.consumer(JOBS)
        async def handle(number: int, message: Message) -> None:
            self.seen.append((number, message))
            if self.mended:
                return
            if number < -100:
                raise ValueError(number)
            if number < 0:
                raise Reject(f"negative: {number}")

    async def kill(self, *numbers: int, **options: Any) -> None:
        """Make dead letters of these."""
        before = await self.pipe._session.transport.depth("jobs.dead")
        async with self.pipe.consuming():
            for number in numbers:
                await self.publisher.publish(number, **options)
            await eventually(lambda: self.depth("jobs.dead", before + len(numbers)))
        self.seen.clear()

    async def depth(self, queue: str, expected: int) -> bool:
        return await self.pipe._session.transport.depth(queue) == expected

    async def list(self, count: int, **options: Any) -> list[DeadMessage]:
        """What was in hand before is back a moment after it was given back."""
        async with asyncio.timeout(5):
            while len(found := [dead async for dead in self.pipe.dead_letters(JOBS).browse(**options)]) != count:
                await asyncio.sleep(0.05)
        return found


@pytest.fixture
async def bench(eventpipe_broker: str) -> Any:
    made = Bench(eventpipe_broker)
    async with made.pipe:
        yield made


async def test_browsing_tells_the_story_and_leaves_them(bench: Bench) -> None:
    """Why, when, by which handler, after which attempts; the same the next time."""
    await bench.kill(-200, -1)
    for _ in range(2):
        first, second = await bench.list(2)
        if first.message.body != b"-1":
            first, second = second, first
        assert (b"-1", "negative: -1", 1, ()) == (first.message.body, first.reason, first.attempt, first.history)
        assert (b"-200", "failed 2 times", "builtins.ValueError") == (
            second.message.body,
            second.reason,
            second.error_type,
        )
        ((attempt, error),) = [(one.attempt, one.error) for one in second.history]
        assert (1, "ValueError: -200") == (attempt, error)
        assert "raise ValueError(number)" in (second.traceback or "")
        assert "handle" in second.handler
        assert second.first_tried is not None
        assert second.died is not None
        assert second.first_tried <= second.history[0].at <= second.died
    await eventually(lambda: bench.depth("jobs.dead", 2))


async def test_replaying_is_a_first_attempt_with_the_same_id(bench: Bench) -> None:
    """The original goes when its copy is confirmed; nothing of its death is left on the copy."""
    await bench.kill(-200)
    (dead,) = await bench.list(1)
    await eventually(lambda: bench.depth("jobs.dead", 1))
    bench.mended = True
    async with bench.pipe.consuming():
        assert await bench.pipe.dead_letters("jobs").replay() == 1
        await eventually(lambda: bench.seen)
    ((number, message),) = bench.seen
    assert (-200, dead.message.id, 1, "jobs") == (number, message.id, message.attempt, message.key)
    left = {name for name in message.headers if name.startswith("eventpipe-")}
    assert left == {"eventpipe-time", "eventpipe-exchange", "eventpipe-key"}
    assert await bench.depth("jobs.dead", 0)


async def test_only_what_is_meant_is_replayed(bench: Bench) -> None:
    """The others stay, in their order, byte for byte."""
    await bench.kill(-1)
    await bench.kill(-2, headers={"tenant": "a"})
    await bench.kill(-200)
    before = await bench.list(3)
    letters = bench.pipe.dead_letters(JOBS)
    await eventually(lambda: bench.depth("jobs.dead", 3))
    assert await letters.replay(Where(headers={"tenant": "a"})) == 1
    after = await bench.list(2)
    assert [one.message.body for one in after] == [b"-1", b"-200"]
    kept = [one for one in before if one.message.body != b"-2"]
    assert [(one.message.id, _own(one)) for one in kept] == [(one.message.id, _own(one)) for one in after]


def _own(dead: DeadMessage) -> dict[str, Any]:
    return {name: value for name, value in dead.message.headers.items() if name != "x-delivery-count"}


async def test_limit_takes_the_oldest(bench: Bench) -> None:
    """In order, and no more than that."""
    for number in (-1, -2, -3):
        await bench.kill(number)
    letters = bench.pipe.dead_letters(JOBS)
    assert [one.message.body for one in await bench.list(2, limit=2)] == [b"-1", b"-2"]
    await eventually(lambda: bench.depth("jobs.dead", 3))
    assert await letters.drop(limit=1) == 1
    assert [one.message.body for one in await bench.list(2)] == [b"-2", b"-3"]


async def test_parking_keeps_the_story(bench: Bench) -> None:
    """Out of the way, looked at there, and replayed from there."""
    await bench.kill(-200, -1)
    assert await bench.pipe.dead_letters(JOBS).park(Where(exception="valueerror")) == 1
    (dead,) = [one async for one in bench.pipe.dead_letters(JOBS, parked=True).browse()]
    await eventually(lambda: bench.depth("jobs.parked", 1))
    assert (b"-200", "jobs", "failed 2 times", 2) == (dead.message.body, dead.queue, dead.reason, dead.attempt)
    assert dead.traceback
    bench.mended = True
    async with bench.pipe.consuming():
        assert await bench.pipe.dead_letters(JOBS, parked=True).replay() == 1
        await eventually(lambda: bench.seen)
    assert bench.seen[0][0] == -200
    await eventually(lambda: bench.depth("jobs.dead", 1))


async def test_what_became_undeliverable_is_there_too(eventpipe_broker: str) -> None:
    """A queue that was gone when a retry was due: its message is shown with the queue's dead letters, and replayed."""
    pipe = EventPipe(eventpipe_broker, name="bench", retry=Retry(attempts=2, delay=1.0))
    other = pipe.publisher(int, to=Queue("other"))
    jobs = pipe.publisher(int, to=JOBS)
    failed: list[int] = []
    deleted = asyncio.Event()

    @pipe.consumer(JOBS)
    async def handle(number: int) -> None:
        failed.append(number)
        raise ValueError(number)

    async with pipe:
        await other.publish(5, delay=1.0)
        async with pipe.consuming():
            await jobs.publish(7)
            await eventually(lambda: failed)
            await asyncio.sleep(0.2)
        await _delete(pipe, "jobs")
        await _delete(pipe, "other")
        await eventually(lambda: _depth(pipe, "eventpipe.undeliverable", 2), within=10)
        deleted.set()
        letters = pipe.dead_letters(JOBS)
        (dead,) = [one async for one in letters.browse()]
        assert (b"7", "jobs") == (dead.message.body, dead.queue)
        assert "undeliverable" in dead.reason
        with pytest.raises(Unroutable) as caught:
            await letters.replay()
        assert "0 were done" in caught.value.__notes__[0]
        await eventually(lambda: _depth(pipe, "eventpipe.undeliverable", 2))
        await pipe._session.transport.declare(pipe.topology)
        await eventually(lambda: _depth(pipe, "eventpipe.undeliverable", 2))
        assert await letters.replay() == 1
        assert await _depth(pipe, "jobs", 1)
        await eventually(lambda: _depth(pipe, "eventpipe.undeliverable", 1))
        everything = [one async for one in pipe.dead_letters("eventpipe.undeliverable").browse()]
        assert [("other", b"5")] == [(one.queue, one.message.body) for one in everything]
        with pytest.raises(ConfigurationError, match="one of those"):
            await pipe.dead_letters("eventpipe.undeliverable").replay()


async def _delete(pipe: EventPipe, name: str) -> None:
    transport = pipe._session.transport
    broker = getattr(transport, "broker", None)
    if broker is not None:
        broker.delete_queue(name)
        return
    channel = await transport._consuming.channel()
    await channel.queue_delete(name)
    await channel.close()


async def _depth(pipe: EventPipe, name: str, expected: int) -> bool:
    try:
        return await pipe._session.transport.depth(name) == expected
    except TopologyMissing:
        return False


async def test_a_slow_broker_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """More come only when the first are settled: silence until then is not the end."""
    monkeypatch.setattr("eventpipe.deadletters.AT_ONCE", 2)
    monkeypatch.setattr("eventpipe.deadletters.QUIET", 0.3)
    await bench.kill(-1, -2, -3, -4)
    outlet = bench.pipe._session.outlet
    send = outlet.send

    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(0.7)
        return await send(*arguments)

    monkeypatch.setattr(outlet, "send", slow)
    assert await bench.pipe.dead_letters(JOBS).replay() == 4


async def test_a_forged_header_chooses_no_queue(bench: Bench) -> None:
    """A replay goes to the queue that was named, whatever a message says of where it died."""
    victim = bench.pipe.publisher(int, to=Queue("victim"))
    await bench.pipe._session.transport.declare(bench.pipe.topology)
    assert victim.to.name == "victim"
    await bench.kill(-1, headers={"eventpipe-queue": "victim"})
    dead_queue = Queue("jobs.dead", declare=False, dead_letter=False)
    forged = bench.pipe.publisher(int, to=dead_queue)
    await forged.publish(7, headers={"eventpipe-queue": "victim", "eventpipe-reason": "forged"})
    assert await bench.pipe.dead_letters(JOBS).replay() == 2
    assert await bench.depth("victim", 0)
    await eventually(lambda: bench.depth("jobs", 2))


async def test_a_rate_is_kept(bench: Bench) -> None:
    """So many per second, and no more."""
    await bench.kill(-1, -2, -3, -4)
    begun = asyncio.get_running_loop().time()
    assert await bench.pipe.dead_letters(JOBS).replay(rate=20) == 4
    assert 0.14 < asyncio.get_running_loop().time() - begun < 2.0


async def test_what_can_not_be_is_said(bench: Bench) -> None:
    """A queue without dead letters, a rate or limit that is none, ages that exclude each other."""
    with pytest.raises(TopologyMissing, match=r"'nobody\.dead'"):
        await bench.pipe.dead_letters("nobody").replay()
    for call in (
        lambda: bench.pipe.dead_letters(JOBS).replay(rate=0),
        lambda: bench.pipe.dead_letters(JOBS).replay(limit=0),
        lambda: bench.pipe.dead_letters(JOBS).drop(Where(older=2, newer=1)),
    ):
        with pytest.raises(ConfigurationError):
            await call()


def _dead(**more: Any) -> DeadMessage:
    given = {"message": make_message(1, id="k", key="eu.order", headers={"n": 3}), "queue": "q", "reason": "Failed"}
    return DeadMessage(**{**given, "error_type": "app.PaymentError", "died": 1000.0, **more})


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        (Where(), True),
        (Where(id="k"), True),
        (Where(id="other"), False),
        (Where(reason="fail"), True),
        (Where(reason="expired"), False),
        (Where(exception="paymenterror"), True),
        (Where(exception="ValueError"), False),
        (Where(key="eu.*"), True),
        (Where(key="us.*"), False),
        (Where(headers={"n": "3"}), True),
        (Where(headers={"n": "4"}), False),
        (Where(headers={"m": "3"}), False),
        (Where(older=60), True),
        (Where(older=101), False),
        (Where(newer=101), True),
        (Where(newer=100), False),
        (Where(reason="fail", key="us.*"), False),
    ],
)
def test_where(where: Where, meets: bool) -> None:
    """Every part that is given has to fit."""
    assert where.meets(_dead(), now=1100.0) is meets


def test_without_a_time_there_is_no_age() -> None:
    """What does not say when it died is neither old nor new."""
    assert not Where(older=0).meets(_dead(died=None), now=1100.0)
    assert not Where(newer=1e9).meets(_dead(died=None), now=1100.0)


@pytest.mark.parametrize(
    "forged", ["text", 5, [1, "x", {"attempt": "1", "at": 0}, {"attempt": 1, "at": None}], {"attempt": 1}]
)
def test_a_forged_history_is_no_history(forged: Any) -> None:
    """Whoever published a message may have written anything into its headers."""
    from eventpipe.copies import HISTORY, read_dead, retry_copy

    message = make_message(1, headers={HISTORY: forged, "eventpipe-dead-at": "x", "eventpipe-attempt": "many"})
    dead = read_dead(message)
    assert ((), None, 1) == (dead.history, dead.died, dead.attempt)
    copy = retry_copy(message, attempt=2, now=1.0, failure="ValueError: x")
    assert copy.headers[HISTORY][-1] == {"attempt": 1, "at": 1000, "error": "ValueError: x"}
