"""Faults that take their time: a slow consumer, a clock that jumps, thousands of consumers that come and go."""

import asyncio
import gc
import os
import time
from pathlib import Path

import pytest
from tests.faults.conftest import ROUNDS
from tests.support import eventually

from eventpipe import EventPipe, Options, Queue, Retry
from eventpipe.clock import SystemClock


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.fault("F50")
async def test_a_slow_consumer_takes_its_prefetch_and_no_more(guarded_url: str) -> None:
    """However much waits at the broker: 200 MB do here."""
    pipe = EventPipe(guarded_url, name="slow")
    queue = Queue("jobs")
    publisher = pipe.publisher(str, to=queue)
    seen: list[int] = []

    @pipe.consumer(queue, concurrency=10, prefetch=100)
    async def handle(text: str) -> None:
        seen.append(len(text))
        await asyncio.sleep(0.1)

    async with pipe:
        for _ in range(20):
            await publisher.publish_many(["x" * 10_000] * 1000, timeout=60.0)
        gc.collect()
        before = _resident()
        async with pipe.consuming():
            await eventually(lambda: len(seen) > 300, within=20)
            assert pipe.health().consumers[0].unsettled <= 100
            assert _resident() - before < 100 * 10_000 + 30_000_000


class JumpingClock(SystemClock):
    """A machine whose wall clock is set forward and back."""

    ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.mark.fault("F49")
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_the_clock_jumps(guarded_url: str, jump: float) -> None:
    """Timeouts, retries and delays keep their lengths; ids stay unique; nothing expires that has no expiry."""
    clock = JumpingClock()
    pipe = EventPipe(guarded_url, name="clock", retry=Retry(attempts=2, delay=0.5), options=Options(clock=clock))
    queue = Queue("jobs")
    publisher = pipe.publisher(int, to=queue)
    seen: list[tuple[int, float]] = []

    @pipe.consumer(queue, timeout=30.0)
    async def handle(number: int) -> None:
        seen.append((number, time.monotonic()))
        if number == 1:
            clock.ahead = jump
            raise ValueError(number)
        await asyncio.sleep(0.2)

    async with pipe, pipe.consuming():
        begun = time.monotonic()
        first = await publisher.publish(1)
        await eventually(lambda: seen)
        second = await publisher.publish(2, delay=0.5)
        await eventually(lambda: len(seen) == 3)
        assert all(0.4 < when - begun < 4.0 for _, when in seen[1:])
        await eventually(lambda: pipe.health().consumers[0].dead_lettered == 1)
        await eventually(lambda: pipe.health().consumers[0].handled == 1)
        assert first.id != second.id


@pytest.mark.fault("F52")
async def test_consumers_that_come_and_go_leave_nothing_behind(eventpipe_rabbitmq: str) -> None:
    """Neither tasks nor memory grow with the number of channels and consumers that were opened and closed."""
    pipe = EventPipe(eventpipe_rabbitmq, name="churn")
    queue = Queue("jobs")
    publisher = pipe.publisher(int, to=queue)
    seen: list[int] = []

    @pipe.consumer(queue)
    async def handle(number: int) -> None:
        seen.append(number)

    async def cycles(count: int) -> None:
        for _ in range(count):
            async with pipe.consuming():
                await publisher.publish(1, timeout=1.0)
                await eventually(lambda: seen)
                seen.clear()

    async def held() -> tuple[int, int, int]:
        await asyncio.sleep(1.1)  # a deadline that nobody needs any more is let go of when it passes
        gc.collect()
        return len(asyncio.all_tasks()), _descriptors(), len(gc.get_objects())

    async with pipe:
        await cycles(20 if ROUNDS == 1 else 1000)  # the allocator's arenas fill up at first
        tasks, descriptors, objects = await held()
        memory = _resident()
        await cycles(30 if ROUNDS == 1 else 500 * ROUNDS)
        now = await held()
        assert (tasks, descriptors) == now[:2]
        assert now[2] - objects < 300
        assert _resident() - memory < 2_000_000  # most of it is pytest's, which keeps what was logged
