"""How long eventpipe takes to be back: ``python -m tests.chaos.recovery --restarts 100 --leaders 30``.

A restart counts from the moment that the broker's port is open, a leader's death from the kill -9.
"""

import argparse
import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

from tests.chaos.cluster import Cluster

from eventpipe import EventPipe, Options, PublishError, Queue, Retry
from eventpipe.testing import RabbitNode


class Watch:
    """A pipe that publishes one message after the other, and knows when the last confirm and delivery were."""

    def __init__(self, urls: list[str]) -> None:
        options = Options(heartbeat=2, connect_timeout=3.0)
        self.pipe = EventPipe(urls, name="recovery", retry=Retry(delay=0.1), options=options)
        self.publisher = self.pipe.publisher(float, to=Queue("jobs"))
        self.confirmed = self.delivered = 0.0

        @self.pipe.consumer(Queue("jobs"))
        async def handle(_sent: float) -> None:
            self.delivered = time.monotonic()

    async def publish(self) -> None:
        while True:
            with contextlib.suppress(PublishError):
                await self.publisher.publish(time.monotonic(), timeout=60.0)
                self.confirmed = time.monotonic()
            await asyncio.sleep(0.002)

    async def after(self, moment: float) -> tuple[float, float]:
        """Wait for a confirm and a delivery after a moment; give how long each took."""
        return await _first(lambda: self.confirmed, moment), await _first(lambda: self.delivered, moment)


async def _first(last: Callable[[], float], moment: float) -> float:
    while last() <= moment:
        await asyncio.sleep(0.001)
    return last() - moment


async def restarts(count: int) -> list[tuple[float, float]]:
    """Kill and restart one node so often."""
    found: list[tuple[float, float]] = []
    with RabbitNode.start() as node:
        watch = Watch([node.url])
        async with watch.pipe, watch.pipe.consuming():
            task = asyncio.create_task(watch.publish())
            await watch.after(time.monotonic())
            for _ in range(count):
                await asyncio.sleep(1.5)  # RabbitMQ 3.10 loses a quorum queue that is younger
                await asyncio.to_thread(node.kill)
                starting = asyncio.create_task(asyncio.to_thread(node.restart))
                found.append(await watch.after(await asyncio.to_thread(_open, node.facts["port"])))
                await starting
            task.cancel()
    return found


def _open(port: int) -> float:
    """Wait until a port is open."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return time.monotonic()
        time.sleep(0.005)  # in a thread of its own


async def leaders(count: int) -> list[tuple[float, float]]:
    """Kill the leader of a cluster's queue so often."""
    found: list[tuple[float, float]] = []
    with Cluster.start() as cluster:
        watch = Watch(cluster.urls())
        async with watch.pipe, watch.pipe.consuming():
            task = asyncio.create_task(watch.publish())
            for _ in range(count):
                await watch.after(time.monotonic())
                leader = await asyncio.to_thread(cluster.leader, "jobs")
                await asyncio.to_thread(leader.kill)
                found.append(await watch.after(time.monotonic()))
                await asyncio.to_thread(leader.restart)
                await asyncio.sleep(3)
            task.cancel()
    return found


def _tell(what: str, found: list[tuple[float, float]]) -> None:
    for name, times in zip(("first confirm", "first delivery"), zip(*found, strict=True), strict=True):
        ordered = sorted(times)
        p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        print(f"{what}, {name}: p50 {p50:.2f} s, p99 {p99:.2f} s, of {len(ordered)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--leaders", type=int, default=30)
    given = parser.parse_args()
    if given.restarts:
        _tell("broker's port open", asyncio.run(restarts(given.restarts)))
    if given.leaders:
        _tell("leader killed", asyncio.run(leaders(given.leaders)))


if __name__ == "__main__":
    main()
