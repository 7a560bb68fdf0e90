"""How fast outbox and replay are, on a private PostgreSQL and RabbitMQ on this machine. ``make bench-around``."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine
from tests.postgres import Postgres

from benchmarks.events import Tweet, tweet
from eventpipe import EventPipe, Queue, Reject, Where
from eventpipe.sql import Outbox
from eventpipe.testing import RabbitNode

COUNT = 20_000
ROUNDS = 3
RATE = 500
"""Events a second, one transaction each, of which the latency is measured."""

SECONDS = 10


class Bench:
    """An application, its outbox, and a queue that is consumed as fast as can be."""

    def __init__(self, url: str, database: str) -> None:
        self.engine = create_async_engine(database)
        self.pipe = EventPipe(url, name="bench")
        self.tweets = self.pipe.publisher(Tweet, to=Queue("tweets"))
        self.doomed = self.pipe.publisher(Tweet, to=Queue("doomed"))
        self.times = self.pipe.publisher(float, to=Queue("times"))
        self.outbox = Outbox(metadata := MetaData(), pipe=self.pipe, engine=self.engine)
        self.metadata = metadata
        self.handled = 0
        self.latencies: list[float] = []

        @self.pipe.consumer(Queue("tweets"), concurrency=200)
        async def count(_: Tweet) -> None:
            self.handled += 1

        @self.pipe.consumer(Queue("doomed"), concurrency=200)
        async def reject(_: Tweet) -> None:
            raise Reject("as it should be")

        @self.pipe.consumer(Queue("times"))
        async def note(added: float) -> None:
            self.latencies.append(time.time() - added)

    async def add(self, count: int, ordering: Callable[[int], str | None]) -> None:
        """Add events, a hundred in a transaction."""
        for first in range(0, count, 100):
            async with self.engine.begin() as connection:
                events = [tweet(100) for _ in range(100)]
                await self.outbox.add_many(connection, self.tweets, events, ordering=ordering(first))

    async def relay(self) -> None:
        """Publish what is there."""
        async with self.outbox.relaying() as relay:
            while relay.published < COUNT:
                await asyncio.sleep(0.005)

    async def kill(self) -> None:
        """Make dead letters of what is in the queue."""
        async with self.pipe.consuming("doomed"):
            while self.pipe.health().consumers[0].dead_lettered < COUNT:
                await asyncio.sleep(0.05)

    async def replay(self, where: Where) -> None:
        """Put them back."""
        await self.pipe.dead_letters("doomed").replay(where)

    async def through(self) -> None:
        """Add, publish and handle, all at once."""
        self.handled = 0
        async with self.pipe.consuming("tweets"), self.outbox.relaying():
            await self.add(COUNT, lambda _: None)
            while self.handled < COUNT:
                await asyncio.sleep(0.005)

    async def latency(self) -> None:
        """Add at a steady rate, and note when each event is handled."""

        async def one() -> None:
            async with self.engine.begin() as connection:
                await self.outbox.add(connection, self.times, time.time())

        async with self.pipe.consuming("times"), self.outbox.relaying():
            await asyncio.sleep(1.0)
            begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(RATE * SECONDS):
                    await asyncio.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
                    group.create_task(one())
            while len(self.latencies) < RATE * SECONDS:
                await asyncio.sleep(0.01)


async def rate(work: Callable[[], Awaitable[Any]]) -> float:
    """Give the events a second of a piece of work."""
    begun = time.perf_counter()
    await work()
    return COUNT / (time.perf_counter() - begun)


async def run(url: str, database: str) -> None:
    """Measure, and print medians."""
    bench = Bench(url, database)
    async with bench.engine.begin() as connection:
        await connection.run_sync(bench.metadata.create_all)
    results: dict[str, list[float]] = {}
    async with bench.pipe:
        for _ in range(ROUNDS):
            for name, ordering in (("no order", lambda _: None), ("200 keys", lambda first: f"key {first // 100}")):
                results.setdefault(f"add, {name}", []).append(await rate(lambda to=ordering: bench.add(COUNT, to)))
                results.setdefault(f"relay, {name}", []).append(await rate(bench.relay))
            async with bench.pipe.consuming("tweets"):
                await asyncio.sleep(2.0)  # what the relays published
            results.setdefault("add, relay and handle at once", []).append(await rate(bench.through))
        await bench.doomed.publish_many([tweet(100) for _ in range(COUNT)], timeout=60.0)
        for name, where in (("all", Where()), ("with a condition", Where(reason="as it should"))):
            await bench.kill()
            await asyncio.sleep(1.0)
            results[f"replay, {name}"] = [await rate(lambda which=where: bench.replay(which))]
        await bench.latency()
    for name, found in results.items():
        print(f"{name:32} {statistics.median(found):>8,.0f} events/s")
    quantiles = statistics.quantiles(bench.latencies, n=100)
    print(f"added to handled at {RATE}/s: {1000 * quantiles[49]:.1f} ms p50, {1000 * quantiles[98]:.1f} ms p99")
    await bench.engine.dispose()


def main() -> None:
    """Start what is needed."""
    server = Postgres.start()
    try:
        with RabbitNode.start() as node:
            asyncio.run(run(node.url, server.create()))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
