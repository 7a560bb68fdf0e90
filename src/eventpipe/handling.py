"""Run the handler of one event, and decide what becomes of it; nothing is stored or settled here."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import types
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .clock import Deadlines
from .codec import Undecodable
from .errors import ConfigurationError
from .handler import Handler, Kind
from .intake import Parcel
from .message import EXPIRES, Message, expired
from .middleware import Outcome, through
from .providing import Providing
from .retry import Ack, DeadLetter, Decision
from .slots import Slot
from .unpacking import Unpacking
from .work import Surroundings, Work

DONE = Outcome(Ack())


class Run:
    """One event being worked on. Its message is made when somebody asks for it: few handlers do."""

    __slots__ = ("_made", "index", "parcel", "slot", "unpacking")

    def __init__(self, parcel: Parcel, slot: Slot, unpacking: Unpacking) -> None:
        self.parcel, self.slot, self.unpacking = parcel, slot, unpacking
        self.index = 0  # of the event, in its batch; the next one's once this one has ended
        self._made: tuple[int, Message] | None = None

    @property
    def message(self) -> Message:
        if self._made is None or self._made[0] != self.index:
            self._made = self.index, self.unpacking.message(self.parcel, self.index)
        return self._made[1]


class Handling:
    """Runs handlers: on the loop, or in threads of its own; within the handler's timeout."""

    def __init__(self, work: Work, around: Surroundings, unpacking: Unpacking) -> None:
        self._work, self._around, self._unpacking = work, around, unpacking
        self._deadlines: Deadlines[Slot] = Deadlines(around.clock, _time_out)
        self._threads: ThreadPoolExecutor | None = None
        self.attempt: Callable[[Run], Awaitable[Outcome]] = self._within if work.middleware else self._attempt
        """Runs the handler, inside of the middleware if there is any, and decides what becomes of its message."""

    def open(self) -> None:
        """Make threads, if a handler needs them."""
        if any(handler.kind is Kind.THREAD for handler in self._work.handlers):
            self._threads = ThreadPoolExecutor(self._work.concurrency, thread_name_prefix=self._work.queue.name)

    def close(self) -> None:
        """Let go of timers and idle threads; a thread that still runs ends when its handler does."""
        self._deadlines.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _within(self, run: Run) -> Outcome:
        return await through(self._work.middleware, run.message, lambda: self._attempt(run))

    async def _attempt(self, run: Run) -> Outcome:
        refusal = run.parcel.refusal or self._late(run)
        if refusal is not None:
            return Outcome(DeadLetter(refusal))
        slot, tick = run.slot, None
        if self._work.timeout is not None:
            tick = self._deadlines.add(slot, self._work.timeout)
        try:
            handler = self._unpacking.handler(run.parcel.delivery.properties.type)
            event = self._event(run, handler)
            if handler.needs:
                await self._with_dependencies(run, handler, event)
            else:
                await self._call(run, handler, event)
        except Undecodable as error:
            return Outcome(DeadLetter(f"undecodable: {error}"))
        except BaseException as error:  # noqa: BLE001  a handler may raise anything, and each must be settled
            return self.failed(run, error)
        else:
            return DONE
        finally:
            if tick is not None:
                self._in_time(slot, tick)

    def quick(self, parcel: Parcel) -> Handler | None:
        """Give the handler of a decoded batch, if calling it with each event is all there is to do."""
        work, properties = self._work, parcel.delivery.properties
        if parcel.events is None or parcel.move is not None or self._around.observe is not None or work.middleware:
            return None
        if work.timeout is not None or work.emit is not None or EXPIRES in properties.headers:
            return None
        handler = self._unpacking.handler(properties.type)
        return None if handler.direct is None or handler.kind is Kind.GENERATOR else handler

    async def in_thread(
        self, run: Run, handle: Callable[[Any], Any], indices: range, stopped: Callable[[], bool]
    ) -> tuple[int, list[tuple[int, BaseException]]]:
        """Call a sync handler with these events of a batch, in one thread; give how many were handled, and failures."""
        if self._threads is None:
            raise ConfigurationError("a sync handler's worker was not started")
        events = run.parcel.events or []
        apart = contextvars.copy_context().run
        thread = self._threads.submit(apart, _each_in_thread, run, handle, events, indices, stopped)
        run.slot.thread = thread
        tried, failures, awaitables = await asyncio.wrap_future(thread)
        for index, awaitable in awaitables:
            try:
                await awaitable
            except BaseException as error:  # noqa: BLE001  as with any handler
                failures.append((index, error))
        return tried, failures

    def failed(self, run: Run, error: BaseException) -> Outcome:
        """Decide what becomes of a message whose handler raised; a cancellation that was asked for is raised again."""
        failure = self._failure(run.slot, error)
        return Outcome(self._decide(run.message, failure), failure)

    def _late(self, run: Run) -> str | None:
        properties = run.parcel.delivery.properties
        late = EXPIRES in properties.headers and expired(properties, self._around.clock.time())
        return "expired" if late else None

    def _event(self, run: Run, handler: Handler) -> Any:
        parcel = run.parcel
        if parcel.events is not None:
            return parcel.events[run.index]
        if self._work.decode is not None:
            try:
                return self._work.decode(run.message)
            except Exception as error:
                raise Undecodable(f"decode= failed: {type(error).__name__}: {error}") from error
        if parcel.bodies is not None:
            return handler.codec.decode(parcel.bodies[run.index], None)
        return handler.codec.decode(parcel.delivery.body, parcel.delivery.properties.content_type)

    def _in_time(self, slot: Slot, tick: int) -> None:
        self._deadlines.discard(slot, tick)
        if slot.timed_out:  # and the handler ignored it: that must not reach the next event
            slot.timed_out = False
            slot.task.uncancel()

    async def _with_dependencies(self, run: Run, handler: Handler, event: Any) -> None:
        """Call a handler with its dependencies, and end those, which may fail the handling but not save it."""
        failure: BaseException | None = None
        async with contextlib.AsyncExitStack() as stack:
            try:
                values = await Providing(run.message, stack, self._work.overrides).values(handler.needs)
                await self._call(run, handler, event, values)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            raise failure  # a dependency has swallowed it

    async def _call(self, run: Run, handler: Handler, event: Any, values: dict[str, Any] | None = None) -> None:
        """Call a handler, and publish what it gives."""
        invoke = handler.invoke if values is None else functools.partial(handler.invoke, **values)
        if handler.kind is Kind.COROUTINE:
            result = await (handler.direct(event) if handler.direct else invoke(event, run.message))
        elif handler.kind is Kind.GENERATOR:
            result = invoke(event, run.message)
        else:
            result = await self._in_thread(run, handler, functools.partial(invoke, event))
        if self._work.emit is not None:
            await self._work.emit(result, run.message)

    async def _in_thread(self, run: Run, handler: Handler, call: Callable[[Any], Any]) -> Any:
        if self._threads is None:
            raise ConfigurationError(f"{handler.name} is a sync function, and its worker was not started")
        message = run.message if handler.direct is None else None
        run.slot.thread = self._threads.submit(contextvars.copy_context().run, _in_thread, call, message)
        result = await asyncio.wrap_future(run.slot.thread)
        return await result if inspect.isawaitable(result) else result

    def _failure(self, slot: Slot, error: BaseException) -> BaseException:
        """Tell a handler's failure from a cancellation that was asked for, which is raised again."""
        if isinstance(error, asyncio.CancelledError):
            if slot.timed_out:
                slot.timed_out = False
                slot.task.uncancel()
                return TimeoutError(f"the handler took longer than {self._work.timeout} s")
            if slot.task.cancelling():
                raise error
        if isinstance(error, GeneratorExit) and asyncio.get_running_loop().is_closed():
            raise error
        return error

    def _decide(self, message: Message, failure: BaseException) -> Decision:
        try:
            return self._work.retry.decide(failure, attempt=message.attempt, chance=self._around.chance.random())
        except Exception as error:  # noqa: BLE001  Retry(on=function) is the user's
            return DeadLetter(f"Retry.on raised {type(error).__name__}: {error}")


def _time_out(slot: Slot) -> None:
    slot.timed_out = True
    slot.task.cancel()


def _in_thread(call: Callable[[Any], Any], message: Any) -> Any:
    """Call a sync handler in its thread; a generator runs there too, and not on the loop."""
    result = call(message)
    return list(result) if isinstance(result, types.GeneratorType) else result


def _each_in_thread(
    run: Run, handle: Callable[[Any], Any], events: list[Any], indices: range, stopped: Callable[[], bool]
) -> tuple[int, list[tuple[int, BaseException]], list[tuple[int, Any]]]:
    """Call a sync handler event by event, each in a context of its own."""
    failures: list[tuple[int, BaseException]] = []
    awaitables: list[tuple[int, Any]] = []
    tried = 0
    for index in indices:
        if stopped():
            break
        run.index = index
        tried += 1
        try:
            result = contextvars.copy_context().run(handle, events[index])
            if inspect.isawaitable(result):
                awaitables.append((index, result))
            elif isinstance(result, types.GeneratorType):
                list(result)
        except BaseException as error:  # noqa: BLE001  a handler may raise anything, and each must be settled
            failures.append((index, error))
    return tried, failures, awaitables
