"""One simulated run: producers and workers on the memory broker, with faults, crashes and turned time, by seed."""

import asyncio
import contextlib
import functools
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any
from unittest import mock

from structlog.testing import capture_logs
from tests.simulation.faulty import Faulty, Odds
from tests.simulation.loop import LoopClock, SimulatedLoop

from eventpipe import (
    EventPipe,
    Message,
    Options,
    Pack,
    PublishError,
    PublishManyError,
    Queue,
    Receipt,
    Reject,
    Retry,
    RetryAfter,
)
from eventpipe.transports.memory import MemoryBroker, memory_broker
from eventpipe.transports.memory.broker import _shared
from eventpipe.transports.memory.transport import MemoryTransport
from eventpipe.worker import SLICE

ATTEMPTS = 3
TIMEOUT = 5.0
ENDED_WITHIN = 3600.0
"""Simulated seconds until every queue has to be empty."""

Event = tuple[int, str]
"""An event's number, and how its handler behaves."""

BEHAVIOURS = ("quick", "slow", "fails once", "fails", "rejects", "again later", "hangs", "prints")
FATAL = {"fails", "rejects", "again later", "hangs"}

_process: ContextVar["Process | None"] = ContextVar("process", default=None)


class Process:
    """What runs and dies together: some tasks, and the transport that they talk through."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: dict[asyncio.Task[Any], None] = {}  # in order: a seed is the same each time
        self.transport: Faulty | None = None
        self._loop = loop

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        before = _process.set(self)
        try:
            return self._loop.create_task(work)
        finally:
            _process.reset(before)

    def crash(self) -> None:
        """Die between two steps: nothing gets out any more, whatever the tasks still do about it."""
        if self.transport is not None:
            self.transport.kill()
        for task in list(self.tasks):
            task.cancel()


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> "asyncio.Task[Any]":
    """Note whose task it is."""
    task = asyncio.Task(work, loop=loop, **more)
    context = more.get("context")
    owner = _process.get() if context is None else context.get(_process)
    if owner is not None:
        owner.tasks[task] = None
        task.add_done_callback(lambda done: owner.tasks.pop(done, None))
    return task


class World:
    """The broker, the processes, and the ledger."""

    def __init__(self, seed: int, loop: SimulatedLoop) -> None:
        self.seed = seed
        self.story: list[str] = []
        self.chance = random.Random(seed)
        self.odds = Odds(self.chance)
        self.nacks = self.odds.nack > 0
        self.crashes_at_most = self.chance.choice((0, 0, 2, 5))
        self.crashes = self.faults = 0
        self.loop, self.clock = loop, LoopClock(loop)
        loop.set_task_factory(_make_task)
        self.url = f"memory://simulation-{seed}"
        self.broker: MemoryBroker = memory_broker(self.url)
        self.jobs, self.done = Queue("jobs"), Queue("done")
        self.behaviours: dict[int, str] = {}
        self.acknowledged: set[int] = set()
        self.handled: Counter[int] = Counter()
        self.outputs: dict[int, set[str]] = {}
        self.dead: dict[int, str] = {}
        self.problems: list[str] = []
        self.consuming: dict[EventPipe, None] = {}
        self._numbers = iter(range(10**9))

    def tell(self, what: str) -> None:
        """Write down what happens, for the replay."""
        self.story.append(f"{self.loop.time():9.3f} {what}")

    # --- processes

    def pipe(self, process: Process) -> EventPipe:
        chance = random.Random(self.chance.random())
        options = Options(clock=self.clock, chance=chance, stall=0, consumer_timeout=0)
        pipe = EventPipe(
            self.url, name="simulated", retry=Retry(attempts=ATTEMPTS, delay=0.5), drain=5, options=options
        )

        def wrap(inner: Any) -> Faulty:
            assert isinstance(inner, MemoryTransport)
            process.transport = Faulty(inner, self.broker, self.chance, self.odds)
            return process.transport

        pipe._wrap = wrap
        return pipe

    async def keep(self, make: Callable[[Process], Coroutine[Any, Any, None]], *, always: bool) -> None:
        """Run a process, and start it again when it has crashed; or ``always``."""
        while True:
            process = Process(self.loop)
            task = process.start(make(process))
            if self.crashes < self.crashes_at_most:
                self.crashes += 1
                self.loop.before(self.chance.randrange(1, 2000), functools.partial(self._crash, process))
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait([task])
                raise
            finally:
                self.faults += 0 if process.transport is None else process.transport.faults
            if not task.cancelled():
                task.result()
                if not always:
                    return
            process.crash()  # whoever was cancelled alone takes the others along
            await asyncio.sleep(self.chance.random())

    def _crash(self, process: Process) -> None:
        if process.tasks:
            self.tell("a process crashes")
            process.crash()

    async def worker(self, process: Process) -> None:
        pipe = self.pipe(process)
        concurrency = self.chance.choice((1, 2, 5))
        results = pipe.publisher(tuple[int, str], to=self.done)

        @pipe.consumer(
            self.jobs,
            concurrency=concurrency,
            prefetch=self.chance.choice((concurrency, 8)),
            timeout=self.chance.choice((None, 2.0)) and 2.0,
            output=results if self.chance.random() < 0.5 else None,
            on_dead_letter=lambda dead: self.tell(f"given up: {dead.message.body!r}: {dead.reason}"),
        )
        async def handle(event: Event, message: Message) -> Any:
            await self._behave(event, message)
            return event if pipe._consumers["jobs"].settings.output is not None else None

        @pipe.consumer(self.done)
        async def finish(event: Event, message: Message) -> None:
            self.outputs.setdefault(event[0], set()).add(message.id)

        self.consuming[pipe] = None
        try:
            async with pipe, pipe.consuming():
                await asyncio.sleep(self.chance.choice((20.0, ENDED_WITHIN)) * self.chance.random())
                self.tell("a worker is stopped")
        finally:
            del self.consuming[pipe]

    async def _behave(self, event: Event, message: Message) -> None:
        number, behaviour = event
        self.tell(f"{event} is handled, attempt {message.attempt}")
        if self.behaviours.get(number) != behaviour:
            self.problems.append(f"unexpected event {event}")
        if not 1 <= message.attempt <= ATTEMPTS:
            self.problems.append(f"{event} is handled a {message.attempt}th time")
        match behaviour:
            case "slow":
                await asyncio.sleep(self.chance.random())
            case "fails once" if message.attempt == 1:
                await asyncio.sleep(self.chance.random() / 10)
                raise OSError("once")
            case "fails":
                raise ValueError("always")
            case "rejects":
                raise Reject("no")
            case "again later":
                raise RetryAfter(2.0)
            case "hangs":
                await asyncio.sleep(10.0)
                raise ValueError("and then it fails")
            case "prints":
                await asyncio.sleep(0)
        self.handled[number] += 1

    async def producer(self, process: Process) -> None:
        pipe = self.pipe(process)
        single = pipe.publisher(Event, to=self.jobs, timeout=TIMEOUT)
        packed = pipe.publisher(Event, to=self.jobs, timeout=TIMEOUT, pack=Pack(events=4, seconds=0.1))
        async with pipe:
            while len(self.behaviours) < 40:
                events = self._events(self.chance.randint(1, 8))
                publisher = self.chance.choice((single, packed))
                if self.chance.random() < 0.5:
                    await self._bounded(self._many, publisher, events)
                else:
                    delay = self.chance.choice((0.0, 0.0, 1.5))
                    await asyncio.gather(*(self._bounded(self._one, publisher, event, delay) for event in events))
                await asyncio.sleep(self.chance.random())

    def _events(self, count: int) -> list[Event]:
        events = [(next(self._numbers), self.chance.choice(BEHAVIOURS)) for _ in range(count)]
        self.behaviours.update(events)
        return events

    async def _one(self, publisher: Any, event: Event, delay: float) -> None:
        with contextlib.suppress(PublishError):
            await publisher.publish(event, delay=delay)
            self._acknowledge([event])

    async def _many(self, publisher: Any, events: list[Event]) -> None:
        try:
            await publisher.publish_many(events)
            self._acknowledge(events)
        except PublishManyError as error:
            verdicts = zip(events, error.verdicts, strict=True)
            self._acknowledge([event for event, verdict in verdicts if isinstance(verdict, Receipt)])

    def _acknowledge(self, events: list[Event]) -> None:
        self.tell(f"acknowledged: {events}")
        self.acknowledged.update(number for number, _ in events)

    async def _bounded(self, call: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        begun = self.loop.time()
        await call(*arguments)
        if self.loop.time() - begun > TIMEOUT + 1:
            self.problems.append(f"a publish took {self.loop.time() - begun} s")

    # --- the run

    async def run(self) -> None:
        """Let everything happen, then let everything end, and check."""
        workers = [asyncio.ensure_future(self.keep(self.worker, always=True)) for _ in range(2)]
        producers = [asyncio.ensure_future(self.keep(self.producer, always=False)) for _ in range(2)]
        await asyncio.gather(*producers)
        self.odds.__dict__.update(dict.fromkeys(self.odds.__dict__, 0.0))
        self.crashes_at_most = 0
        end = self.loop.time() + ENDED_WITHIN
        while self.loop.time() < end and not self._empty():
            await asyncio.sleep(1.0)
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
        for worker in workers:
            if not worker.cancelled() and (error := worker.exception()) is not None:
                self.problems.append(f"a worker ended: {error!r}")
        self._check()

    def _empty(self) -> bool:
        waiting = [queue for name, queue in self.broker.queues.items() if not name.endswith(".dead")]
        busy = any(queue.ready or queue.unacked for queue in waiting)
        # A handler may have lost its message to somebody else, and still leave a copy when it fails.
        running = any(one.in_flight for pipe in self.consuming for one in pipe.health().consumers)
        return not busy and not running and not self.broker.delayed

    def _check(self) -> None:
        if not self._empty():
            depths = {name: queue.ready for name, queue in self.broker.queues.items()}
            self.problems.append(f"not empty after an hour: {depths}, {self.broker.delayed} delayed")
        dead = self._dead_letters()
        ended = self.handled.keys() | dead.keys()
        lost = self.acknowledged - ended
        if lost:
            self.problems.append(f"lost: {[(number, self.behaviours[number]) for number in sorted(lost)]}")
        for number, reason in dead.items():
            behaviour = self.behaviours[number]
            cut_off = reason.startswith("handed out alone and never settled") and (self.crashes or self.faults)
            refused = reason == f"failed {ATTEMPTS} times" and self.nacks  # its output was, each time
            if behaviour not in FATAL and not cut_off and not refused:
                self.problems.append(f"({number}, {behaviour}) was given up without need: {reason}")
        for number in self.handled.keys() & self.outputs.keys():
            if len(self.outputs[number]) > 2 + 2 * self.faults:
                self.problems.append(f"the output of {number} has {len(self.outputs[number])} ids")

    def _dead_letters(self) -> dict[int, str]:
        found: dict[int, str] = {}
        queue = self.broker.queues.get("jobs.dead")
        for dead in [] if queue is None else queue.messages():
            body, reason = json.loads(dead.body), str(dead.properties.headers.get("eventpipe-reason"))
            found.update((number, reason) for number, _ in (body if isinstance(body[0], list) else [body]))
        return found


def simulate(seed: int) -> World:
    """Run a seed; what went wrong is in ``problems``."""
    loop = SimulatedLoop()
    world = World(seed, loop)
    looks = itertools.count()
    # A worker measures its slices of the processor by the real clock: here each look at it takes a while.
    slices = mock.patch("eventpipe.worker.monotonic", lambda: next(looks) * SLICE / 4)
    with capture_logs(), slices, asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            runner.run(world.run())
        except AssertionError as error:
            world.problems.append(repr(error))
        finally:
            _shared.pop(world.url.partition("://")[2])
    return world
