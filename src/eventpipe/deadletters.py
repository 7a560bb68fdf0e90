"""Look at dead letters, and have them handled again, parked, or dropped.

Whatever is done with one, its original is acknowledged only after the copy that takes its place is confirmed. Those
that are not meant are given back as they were, in their places.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Self

from .clock import sleep, uuid7
from .copies import QUEUE, parked_copy, read_dead, replay_copy
from .errors import ConfigurationError, ConnectError, EventPipeError, PublishError, TopologyMissing
from .intake import Intake
from .message import EXCHANGE, KEY, DeadMessage, Message
from .outlet import Outlet
from .routing import UNDELIVERABLE, Queue, companion, topology
from .transports.base import Delivery, Outgoing, Transport
from .where import Where
from .wish import Wish

AT_ONCE = 500
"""Dead letters that are read ahead, and copies that are on their way."""

LOOKED_AT = 65_535
"""Dead letters that a call with a condition looks through at most: AMQP hands out no more to one consumer."""

QUIET = 2.0
"""Seconds without a delivery after which what is left is taken to be in somebody else's hands."""

EVERY = Where()


class DeadLetters:
    """The dead letters of one queue, with those messages of its that became undeliverable; or the parked ones.

    Made by ``pipe.dead_letters(queue)``. A call can be cancelled, or its process killed, at any time: call again.
    """

    def __init__(self, queue: Queue, transport: Transport, outlet: Outlet, *, parked: bool = False) -> None:
        self.queue = queue
        self._transport, self._outlet = transport, outlet
        self._parked = companion(queue, "parked")
        undeliverable = Queue(UNDELIVERABLE, dead_letter=False)
        if queue.name == UNDELIVERABLE:
            self._sources = [undeliverable]
        else:
            self._sources = [self._parked] if parked else [companion(queue, "dead"), undeliverable]

    async def browse(self, where: Where = EVERY, *, limit: int | None = None) -> AsyncGenerator[DeadMessage, None]:
        """Give the dead letters that are meant, in their order, and leave them where they are.

        While it runs nobody else can reach them.

        Raises:
            TopologyMissing: the queue has no dead-letter queue.
            ConnectError: the connection was lost.
        """
        async with aclosing(self._find(where, limit, _Crew())) as found:
            async for one in found:
                yield one.dead

    async def replay(self, where: Where = EVERY, *, limit: int | None = None, rate: float | None = None) -> int:
        """Have them handled again by their queue's consumer, each as a first attempt with the same id; count them.

        ``rate`` is the most per second. Other queues of the exchange that they once came through get nothing.

        Raises:
            PublishError: the broker did not take a copy (its queue is gone, or full). That dead letter stays; a note
                says how many were replayed.
            ConnectError: the connection was lost. The last ones may be replayed twice by another call.
            TopologyMissing: the queue has no dead-letter queue.
            ConfigurationError: these are the undeliverable ones of many queues: name one of those.
        """
        if self.queue.name == UNDELIVERABLE:
            raise ConfigurationError(
                f"what is in {UNDELIVERABLE!r} was meant for many queues: replay the dead letters of one of those"
            )
        return await self._move(where, limit, rate, self._again)

    async def park(self, where: Where = EVERY, *, limit: int | None = None, rate: float | None = None) -> int:
        """Move them to ``<queue>.parked``, out of the way, to be looked at later; count them. Raises as ``replay``."""
        await self._transport.declare(topology(queues=[self._parked]))
        return await self._move(where, limit, rate, self._aside)

    async def drop(self, where: Where = EVERY, *, limit: int | None = None, rate: float | None = None) -> int:
        """Remove them for ever; count them. Raises ``ConnectError`` or ``TopologyMissing``."""
        return await self._move(where, limit, rate, None)

    def _again(self, dead: DeadMessage) -> Outgoing:
        # To the queue that was named to us: what a header says, somebody may have forged.
        name = self.queue.name
        return Outgoing(exchange="", key=name, body=dead.message.body, properties=replay_copy(dead.message))

    def _aside(self, dead: DeadMessage) -> Outgoing:
        return Outgoing(exchange="", key=self._parked.name, body=dead.message.body, properties=parked_copy(dead))

    # --- moving

    async def _move(
        self, where: Where, limit: int | None, rate: float | None, copy: Callable[[DeadMessage], Outgoing] | None
    ) -> int:
        pace, moving, crew = _Pace(rate, self._outlet), _Moving(self._outlet, copy), _Crew()
        try:
            async with aclosing(self._find(where, limit, crew)) as all_found:
                async for found in all_found:
                    await pace.wait()
                    await crew.begin(moving.move(found))
                    if moving.failure is not None:
                        break
            if moving.failure is not None:
                raise moving.failure
        except EventPipeError as error:
            error.add_note(f"{moving.moved} were done before; the others are where they were")
            raise
        return moving.moved

    # --- reading

    async def _find(self, where: Where, limit: int | None, crew: "_Crew") -> "AsyncGenerator[_Found]":
        """Give those that are meant, and keep hold of the others until the end, and until the crew has ended."""
        if limit is not None and limit < 1:
            raise ConfigurationError(f"limit={limit!r}: must be 1 or more")
        count = 0
        for source in self._sources:
            async with aclosing(self._read(source, where, limit and limit - count, crew)) as found:
                async for one in found:
                    yield one
                    count += 1
                    if count == limit:
                        return

    async def _read(self, source: Queue, where: Where, limit: int | None, crew: "_Crew") -> "AsyncGenerator[_Found]":
        try:
            depth = await self._transport.depth(source.name)
        except TopologyMissing:
            if source is self._sources[0]:
                raise
            return
        if not depth:
            return
        # What is not meant is in hand until the end. Only then it makes sense to be handed everything there is.
        selective = bool(where) or source is not self._sources[0]
        prefetch = min(depth, LOOKED_AT) if selective else min(limit or AT_ONCE, AT_ONCE)
        async with _reading(source, prefetch, self._transport, self._outlet) as reader, crew:
            for _ in range(depth):
                while (delivery := await reader.next()) is None and crew.busy:
                    pass  # the next ones come when those on their way are settled
                if delivery is None:
                    return
                dead = self._dead(source, delivery)
                if self._is_ours(source, dead) and where.meets(dead, now=self._outlet.clock.time()):
                    yield _Found(dead, delivery, reader.intake)
                else:
                    delivery.body = b""  # not to keep it all in memory; it is given back by its tag

    def _dead(self, source: Queue, delivery: Delivery) -> DeadMessage:
        properties, outlet = delivery.properties, self._outlet
        message = Message(
            id=properties.message_id or uuid7(outlet.clock, outlet.chance),
            body=delivery.body,
            properties=properties,
            queue=source.name,
            exchange=str(properties.headers.get(EXCHANGE, delivery.exchange)),
            key=str(properties.headers.get(KEY, delivery.key)),
            id_generated=not properties.message_id,
        )
        dead = read_dead(message)
        if delivery.fault is not None:
            return replace(dead, reason=f"undecodable: {delivery.fault.reason}")
        if source.name == UNDELIVERABLE:
            # The broker's own words are of the last wait of its delay; where it was going, its headers say.
            queue = properties.headers.get(QUEUE) or ("" if message.exchange else message.key)
            return replace(dead, queue=str(queue), reason="undeliverable: its queue was gone when its delay ended")
        return dead

    def _is_ours(self, source: Queue, dead: DeadMessage) -> bool:
        return source is self._sources[0] or dead.queue == self.queue.name


class _Found(NamedTuple):
    dead: DeadMessage
    delivery: Delivery
    intake: Intake


class _Moving:
    """Stores the copies that take the originals' places, and counts them; ``failure`` is the first."""

    def __init__(self, outlet: Outlet, copy: Callable[[DeadMessage], Outgoing] | None) -> None:
        self.moved = 0
        self.failure: PublishError | None = None
        self._outlet, self._copy = outlet, copy

    async def move(self, found: _Found) -> None:
        if self._copy is not None:
            if found.delivery.fault is not None:
                return  # a copy would be without the properties that can't be read
            try:
                await self._outlet.send(self._copy(found.dead), Wish())
            except PublishError as error:
                self.failure = self.failure or error
                return
        self.moved += found.intake.settle(found.delivery)


class _Reader:
    """Deliveries, one after the other; ``None`` when no more come."""

    intake: Intake

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._lost = False

    def arrived(self) -> None:
        self._changed.set()

    def lost(self, _intake: Intake) -> None:
        self._lost = True
        self._changed.set()

    async def next(self) -> Delivery | None:
        """Wait for a delivery. Raises ``ConnectError`` once the connection was lost."""
        while not self.intake.waiting:
            if self._lost:
                raise ConnectError(f"the connection was lost while reading queue {self.intake.queue.name!r}")
            self._changed.clear()
            try:
                async with asyncio.timeout(QUIET):
                    await self._changed.wait()
            except TimeoutError:
                return None
        return self.intake.waiting.popleft()


@asynccontextmanager
async def _reading(source: Queue, prefetch: int, transport: Transport, outlet: Outlet) -> AsyncIterator[_Reader]:
    reader = _Reader()
    reader.intake = Intake(source, prefetch, clock=outlet.clock, arrived=reader.arrived, lost=reader.lost)
    await reader.intake.open(transport)
    try:
        yield reader
    finally:
        await reader.intake.close()


class _Crew:
    """Runs a bounded number of tasks, and waits for all of them at its end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def begin(self, work: Coroutine[None, None, None]) -> None:
        if len(self._tasks) >= AT_ONCE:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Pace:
    """Lets so many through per second."""

    def __init__(self, rate: float | None, outlet: Outlet) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigurationError(f"rate={rate!r}: must be more than 0 per second")
        self._gap = 0.0 if rate is None else 1 / rate
        self._clock = outlet.clock
        self._next = self._clock.monotonic()

    async def wait(self) -> None:
        if not self._gap:
            return
        now = self._clock.monotonic()
        if self._next > now:
            await sleep(self._clock, self._next - now)
        self._next = max(self._next, now) + self._gap
