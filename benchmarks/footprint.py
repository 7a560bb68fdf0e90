"""What eventpipe costs besides time: the event loop's lag, memory, and importing it. ``make bench-footprint``."""

import asyncio
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.events import CONCURRENCY, Counter, Tweet, tweet
from benchmarks.peers import Eventpipe
from eventpipe import EventPipe, PublishError, Queue
from eventpipe.testing.node import RabbitNode

MIB = 1024 * 1024
BACKLOG = 1_000_000
CALLERS = 5_000


def resident() -> int:
    """Give this process's resident memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def at_import(*, rich: bool) -> float:
    """Give how many milliseconds importing eventpipe takes on top of aio_pika and pydantic; median of 9 pairs.

    structlog imports ``rich`` where it is installed; eventpipe brings it with its ``cli`` extra only.
    """
    hidden = "" if rich else "import sys; sys.modules['rich'] = None; "

    def timed(modules: str) -> float:
        code = f"{hidden}import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
        return float(subprocess.check_output([sys.executable, "-c", code]))

    pairs = [(timed("aio_pika, pydantic"), timed("aio_pika, pydantic, eventpipe")) for _ in range(9)]
    return statistics.median((after - before) * 1000 for before, after in pairs)


async def lag(url: str) -> float:
    """Give the 99th percentile of the loop's lag, in milliseconds, while consuming flat out."""
    made = Eventpipe(url, "lag", "quorum", 100)
    await made.open()
    await made.publish_many(100_000)
    gc.collect()
    gc.freeze()
    counter, lags = Counter(100_000), list[float]()

    async def watch() -> None:
        while not counter.done.is_set():
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - begin - 0.001)

    await made.start(counter)
    await watch()
    await made.close()
    return sorted(lags)[int(len(lags) * 0.99)] * 1000


async def fill(url: str) -> None:
    """Put a million messages of 1 KiB into a queue."""
    made = Eventpipe(url, "slow", "quorum", 1024)
    await made.open()
    for _ in range(BACKLOG // 10_000):
        await made.publish_many(10_000)
    await made.close()


async def slow_consumer(url: str) -> float:
    """Give how many MiB a slow consumer takes more than an idle one while a million messages wait."""
    pipe = EventPipe(url, name="slow")

    @pipe.consumer(Queue("idle"), concurrency=CONCURRENCY, prefetch=200)
    async def idle(_event: Tweet) -> None: ...

    @pipe.consumer(Queue("slow"), concurrency=CONCURRENCY, prefetch=200)
    async def handle(_event: Tweet) -> None:
        await asyncio.sleep(0.05)

    async with pipe, pipe.consuming("idle"):
        await asyncio.sleep(1)
        before, most = resident(), 0
        async with pipe.consuming("slow"):
            for _ in range(100):
                await asyncio.sleep(0.1)
                most = max(most, resident())
    return (most - before) / MIB


async def blocked(node: RabbitNode, url: str) -> tuple[float, float]:
    """Give how many MiB publishing at full speed takes while the broker is blocked, and the window's MiB."""
    pipe = EventPipe(url, name="blocked")
    event = tweet(10_000)
    publisher = pipe.publisher(Tweet, to=Queue("blocked"), timeout=5.0)
    async with pipe:
        await publisher.publish(event)
        node.ctl("set_vm_memory_high_watermark", "0.0000001")
        await asyncio.sleep(0.5)
        begin, waiting = asyncio.Event(), asyncio.Semaphore(0)

        async def caller() -> None:
            waiting.release()
            await begin.wait()
            end = time.monotonic() + 8
            while time.monotonic() < end:
                with contextlib.suppress(PublishError):
                    await publisher.publish(event)

        callers = [asyncio.ensure_future(caller()) for _ in range(CALLERS)]
        for _ in callers:
            await waiting.acquire()
        gc.collect()
        before, most = resident(), 0  # the callers' tasks are theirs
        begin.set()
        for _ in range(80):
            await asyncio.sleep(0.1)
            most = max(most, resident())
        node.ctl("set_vm_memory_high_watermark", "0.6")
        await asyncio.wait(callers)
    return (most - before) / MIB, 4096 * 10_000 / MIB


def apart(name: str, url: str) -> str:
    """Run one of these functions in a process of its own, whose memory is its own; give what it returned."""
    code = f"import asyncio; from benchmarks import footprint; print(asyncio.run(footprint.{name}({url!r})))"
    return subprocess.check_output([sys.executable, "-c", code], text=True)


def main() -> None:
    """Measure and print."""
    print(f"import: {at_import(rich=False):.0f} ms more than aio_pika and pydantic")
    print(f"import, with the cli extra (structlog imports rich): {at_import(rich=True):.0f} ms")
    with RabbitNode.start(config="vm_memory_high_watermark.relative = 0.7\n") as node:
        url = node.create_vhost()
        print(f"loop lag while consuming flat out, p99: {asyncio.run(lag(url)):.1f} ms")
        apart("fill", url)
        print(f"1,000,000 x 1 KiB waiting, slow handler: {float(apart('slow_consumer', url)):.1f} MiB over idle")
        taken, window = asyncio.run(blocked(node, node.create_vhost()))
        print(f"blocked broker, 5,000 callers: {taken:.1f} MiB; the window is {window:.1f} MiB of 10 kB bodies")


if __name__ == "__main__":
    main()
