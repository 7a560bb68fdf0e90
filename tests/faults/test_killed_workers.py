"""Worker processes that are killed, from outside and by a message."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter

import pytest
from tests.faults.conftest import ROUNDS, Workers
from tests.support import eventually

from eventpipe import EventPipe, Queue

HEAD = """
import asyncio, os, pathlib
from eventpipe import EventPipe, Message, Queue, Retry
here = pathlib.Path(__file__).parent
pipe = EventPipe(name="service")
jobs = Queue("jobs")

def note(*words):
    fd = os.open(here / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)
"""

FAILING = """
def given_up(dead):
    note("dead", dead.message.body.decode())

@pipe.consumer(jobs, concurrency=20, retry=Retry(attempts=3, delay=0.1, jitter=0.0), on_dead_letter=given_up)
async def handle(number: int, message: Message):
    note("pid", os.getpid())
    await asyncio.sleep(0.01)
    if number % 2 or message.attempt < 2:
        raise ValueError(number)
    note("done", number)
"""

KILLER = """
@pipe.consumer(jobs, concurrency=10, retry=Retry(attempts=2, delay=0.1))
async def handle(number: int, message: Message):
    if number == 500:
        note("killed")
        os._exit(9)
    await asyncio.sleep(0.002)
    note("done", number, message.attempt)
"""


@pytest.mark.fault("F29")
async def test_killed_at_random_points_nothing_is_lost(workers: Workers) -> None:
    """Two hundred failing messages, workers killed with -9 at random: each ends done or dead, none is missing."""
    (workers.folder / "service.py").write_text(HEAD + FAILING)
    chance = random.Random(7)
    jobs = Queue("jobs")
    pipe = EventPipe(workers.url, name="sender")
    publisher = pipe.publisher(int, to=jobs)
    async with pipe, workers.run("--workers", "2"):
        await publisher.publish_many(range(200))
        for _ in range(6 * ROUNDS):
            seen = len(workers.lines("pid"))
            await eventually(lambda seen=seen: len(workers.lines("pid")) > seen or _ended(workers) == 200, within=30)
            await asyncio.sleep(chance.random() * 0.3)
            _kill(workers)
        await eventually(lambda: _ended(workers) == 200, within=60)
        # Not gone, not waiting, not twice: the broker agrees with what the handlers wrote.
        transport = pipe._session.transport
        await eventually(lambda: _is_empty(transport, "jobs", "jobs.suspects"), within=20)
        done = {int(number) for _, number in workers.lines("done")}
        dead = {int(number) for _, number in workers.lines("dead")}
        assert set(range(200)) == done | dead
        assert {number for number in range(200) if number % 2} <= dead
        assert await transport.depth("jobs.dead") >= len(dead)


def _ended(workers: Workers) -> int:
    return len({number for start in ("done", "dead") for _, number in workers.lines(start)})


def _kill(workers: Workers) -> None:
    pid = int(workers.lines("pid")[-1][1])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def _is_empty(transport: object, *queues: str) -> bool:
    return not any([await transport.depth(queue) for queue in queues])


@pytest.mark.fault("F29")
async def test_a_message_that_kills_its_process(workers: Workers) -> None:
    """Among a thousand good ones it is dead-lettered after its attempts; the others are all handled, and uncharged."""
    (workers.folder / "service.py").write_text(HEAD + KILLER)
    pipe = EventPipe(workers.url, name="sender")
    publisher = pipe.publisher(int, to=Queue("jobs"))
    async with pipe:
        await publisher.publish_many(range(1001))
        async with workers.run("--workers", "2"):
            good = {str(number) for number in range(1001)} - {"500"}
            await eventually(lambda: {line[1] for line in workers.lines("done")} == good, within=60)
            transport = pipe._session.transport
            await eventually(lambda: _holds(transport, "jobs.dead", 1), within=60)
            await eventually(lambda: _is_empty(transport, "jobs", "jobs.suspects"), within=10)
    assert Counter({"1": len(workers.lines("done"))}) == Counter(line[2] for line in workers.lines("done"))
    # two hand-overs until it is a suspect, then its two attempts, alone
    assert 3 <= len(workers.lines("killed")) <= 6


async def _holds(transport: object, queue: str, count: int) -> bool:
    return await transport.depth(queue) == count
