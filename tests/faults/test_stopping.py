"""SIGTERM, again and again, under load."""

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import ROUNDS, Workers
from tests.support import eventually

from eventpipe import EventPipe, Queue

SERVICE = """
import asyncio, os, pathlib
from eventpipe import EventPipe, Queue, Retry
here = pathlib.Path(__file__).parent
pipe = EventPipe(name="service", drain=5.0)

def note(*words):
    fd = os.open(here / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

@pipe.consumer(Queue("jobs"), concurrency=10, prefetch=100, retry=Retry(attempts=2))
async def handle(number: int):
    await asyncio.sleep(3600.0 if number < 0 else 0.05)
    note("done", number)

async def main():
    async with pipe:
        await pipe.run(started=lambda: note("started", os.getpid()))

asyncio.run(main())
"""


@asynccontextmanager
async def _process(folder: Path, url: str) -> Any:
    with (folder / "out").open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "service.py", cwd=folder, env={**os.environ, "EVENTPIPE_URL": url}, stdout=out
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.fault("F30")
async def test_sigterm_again_and_again(workers: Workers) -> None:
    """Each drains within a second, and none of its messages is lost, handled twice, or dead-lettered."""
    (workers.folder / "service.py").write_text(SERVICE)
    pipe = EventPipe(workers.url, name="sender")
    jobs = Queue("jobs")
    publisher = pipe.publisher(int, to=jobs)
    times = 5 if ROUNDS == 1 else 50 * ROUNDS
    async with pipe, asyncio.TaskGroup() as group:
        numbers = iter(range(10**9))
        ended = asyncio.Event()

        async def load() -> None:
            while not ended.is_set():
                if await pipe._session.transport.depth("jobs") < 500:
                    await publisher.publish_many([next(numbers) for _ in range(200)])
                await asyncio.sleep(0.05)

        slowest = 0.0
        await publisher.publish_many([next(numbers) for _ in range(200)])
        task = group.create_task(load())
        for _ in range(times):
            begun = len(workers.lines("started"))
            async with _process(workers.folder, workers.url) as process:
                await eventually(lambda begun=begun: len(workers.lines("started")) > begun, within=20)
                seen = len(workers.lines("done"))
                await eventually(lambda seen=seen: len(workers.lines("done")) > seen + 20)
                process.send_signal(signal.SIGTERM)
                told = time.monotonic()
                assert await asyncio.wait_for(process.wait(), 10) == 0
                slowest = max(slowest, time.monotonic() - told)
        ended.set()
        await task
        count = next(numbers)
        async with _process(workers.folder, workers.url) as process:
            await eventually(lambda: len({line[1] for line in workers.lines("done")}) == count, within=60)
            process.send_signal(signal.SIGTERM)
            await process.wait()
        assert [str(number) for number in range(count)] == sorted((line[1] for line in workers.lines("done")), key=int)
        assert await pipe._session.transport.depth("jobs.dead") == 0
        assert "set aside" not in (workers.folder / "out").read_text(), "a stop was taken for a death"
        assert slowest < 2.0


@pytest.mark.fault("F30")
async def test_what_has_not_begun_is_back_within_a_second(workers: Workers) -> None:
    """Although handlers take the whole drain; those are cut off then, and their messages are back too."""
    (workers.folder / "service.py").write_text(SERVICE)
    pipe = EventPipe(workers.url, name="sender")
    publisher = pipe.publisher(int, to=Queue("jobs"))
    async with pipe:
        await publisher.publish_many([-1] * 10 + list(range(50)))
        async with _process(workers.folder, workers.url) as process:
            await eventually(lambda: workers.lines("started"), within=20)
            await eventually(lambda: _is_empty(pipe))
            process.send_signal(signal.SIGTERM)
            await eventually(lambda: _holds(pipe, 50), within=1.0)
            assert process.returncode is None, "it drains"
            assert await asyncio.wait_for(process.wait(), 10) == 0
        await eventually(lambda: _holds(pipe, 60))


@pytest.mark.fault("F30")
async def test_a_second_signal_ends_it_at_once(workers: Workers) -> None:
    """Also while a handler runs that would take the whole drain; its message comes again."""
    (workers.folder / "service.py").write_text(SERVICE)
    pipe = EventPipe(workers.url, name="sender")
    publisher = pipe.publisher(int, to=Queue("jobs"))
    async with pipe:
        await publisher.publish(-1)
        async with _process(workers.folder, workers.url) as process:
            await eventually(lambda: workers.lines("started"), within=20)
            await eventually(lambda: _is_empty(pipe))
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert process.returncode is None, "it drains"
            process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGTERM
            assert time.monotonic() - told < 1.0
        await eventually(lambda: _holds(pipe, 1))


async def _is_empty(pipe: EventPipe) -> bool:
    return await _holds(pipe, 0)


async def _holds(pipe: EventPipe, count: int) -> bool:
    return await pipe._session.transport.depth("jobs") == count
