"""A small application under load, which knows what was attempted, acknowledged and handled."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.support import eventually

from eventpipe import EventPipe, Options, PublishManyError, Queue, Receipt, Retry

TIMEOUT = 5.0
"""Seconds for each publish of the load."""

HEARTBEAT = 1


class Service:
    """One pipe with one queue, its publisher and its consumer; ``url`` is one or several."""

    def __init__(self, url: str | Sequence[str], *, heartbeat: int = HEARTBEAT, work: float = 0.0, **more: Any) -> None:
        options = Options(heartbeat=heartbeat, connect_timeout=more.pop("connect_timeout", 2.0))
        self.pipe = EventPipe(url, name="fault", retry=Retry(attempts=3, delay=0.1), drain=5.0, options=options)
        self.queue = more.pop("queue", Queue("jobs"))
        self.publisher = self.pipe.publisher(int, to=self.queue)
        self.attempted: set[int] = set()
        self.acknowledged: set[int] = set()
        self.handled: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.cancelled = 0
        self.slowest = 0.0

        @self.pipe.consumer(self.queue, **{"concurrency": 20, "prefetch": 40, **more})
        async def handle(number: int) -> None:
            try:
                await asyncio.sleep(work)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            self.handled[number] += 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Service"]:
        """Enter and consume."""
        async with self.pipe, self.pipe.consuming():
            yield self

    @contextlib.asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish without a pause inside the block; at its end wait for the verdicts of what is under way."""
        stopped = asyncio.Event()
        task = asyncio.create_task(self._publish(stopped))
        try:
            yield
        finally:
            stopped.set()
            await task

    async def _publish(self, stopped: asyncio.Event) -> None:
        number = 0
        while not stopped.is_set():
            numbers = range(number, number + 50)
            number += 50
            self.attempted.update(numbers)
            begun = time.monotonic()
            try:
                verdicts: list[Any] = await self.publisher.publish_many(numbers, timeout=TIMEOUT)
            except PublishManyError as error:
                verdicts = error.verdicts
            self.slowest = max(self.slowest, time.monotonic() - begun)
            for one, verdict in zip(numbers, verdicts, strict=True):
                if isinstance(verdict, Receipt):
                    self.acknowledged.add(one)
                else:
                    self.errors[type(verdict).__name__] += 1
            await asyncio.sleep(0.01)

    async def probe(self, *, within: float = 5.0) -> None:
        """Publish one message and have it handled: the only proof that everything is back; then health has to agree."""
        number = -1 - len([one for one in self.handled if one < 0])
        await self.publisher.publish(number, timeout=within)
        await eventually(lambda: self.handled[number] > 0, within=within)
        await eventually(lambda: self.pipe.health().ok, within=within)

    async def balanced(self, *, within: float = 20.0) -> None:
        """Wait until everything acknowledged is handled; then nothing may be lost, unexpected, or have hung."""
        await eventually(lambda: self.acknowledged <= self.handled.keys(), within=within)
        assert {number for number in self.handled if number >= 0} <= self.attempted
        # the verdicts of a batch are bounded one by one, from when each is sent: twice the timeout is its bound
        assert self.slowest <= 2 * TIMEOUT + 1
        assert self.acknowledged, "the load has to have run"
        assert self.cancelled == 0, "a handler outlives its connection"
