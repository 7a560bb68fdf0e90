"""Run the handler of one message, and decide what becomes of it; nothing is stored or settled here."""

import asyncio
import contextvars
import inspect
import types
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .clock import Deadlines
from .codec import Undecodable
from .errors import ConfigurationError
from .handler import Handler, Kind
from .intake import Parcel
from .message import Message, expired
from .retry import Ack, DeadLetter, Decision
from .work import Surroundings, Work


@dataclass(slots=True, eq=False)
class Run:
    """One event being worked on: handled, or set aside as a suspect. ``refusal`` says why it can't be handled."""

    parcel: Parcel
    message: Message
    work: Callable[["Run"], Awaitable[None]]
    refusal: str | None = None
    task: "asyncio.Task[None] | None" = None
    thread: "Future[Any] | None" = None
    timed_out: bool = False


class Handling:
    """Runs handlers: on the loop, or in threads of its own; within the handler's timeout."""

    def __init__(self, work: Work, around: Surroundings) -> None:
        self._work, self._around = work, around
        self._deadlines: Deadlines[Run] = Deadlines(around.clock, _time_out)
        self._threads: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Make threads, if a handler needs them."""
        if any(handler.kind is Kind.THREAD for handler in self._work.handlers):
            self._threads = ThreadPoolExecutor(self._work.concurrency, thread_name_prefix=self._work.queue.name)

    def close(self) -> None:
        """Let go of timers and idle threads; a thread that still runs ends when its handler does."""
        self._deadlines.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def attempt(self, run: Run) -> tuple[Decision, BaseException | None]:
        """Run the handler and decide what becomes of its message."""
        refusal = run.refusal
        if refusal is None and expired(run.message.properties, self._around.clock.time()):
            refusal = "expired"
        if refusal is not None:
            return DeadLetter(refusal), None
        tick = None if self._work.timeout is None else self._deadlines.add(run, self._work.timeout)
        try:
            handler = self._handler(run.message)
            result = await self._invoke(run, handler, self._event(run.message, handler))
            if self._work.emit is not None:
                await self._work.emit(result, run.message)
        except Undecodable as error:
            return DeadLetter(f"undecodable: {error}"), None
        except BaseException as error:  # noqa: BLE001  a handler may raise anything, and each must be settled
            failure = self._failure(run, error)
            return self._decide(run.message, failure), failure
        else:
            return Ack(), None
        finally:
            if tick is not None:
                self._deadlines.discard(run, tick)

    def _handler(self, message: Message) -> Handler:
        handlers = self._work.handlers
        if len(handlers) == 1:
            return handlers[0]
        for handler in handlers:
            if handler.wire_type == message.type:
                return handler
        raise Undecodable(f"no handler for the type {message.type!r}")

    def _event(self, message: Message, handler: Handler) -> Any:
        if self._work.decode is None:
            return handler.codec.decode(message.body, message.properties.content_type)
        try:
            return self._work.decode(message)
        except Exception as error:
            raise Undecodable(f"decode= failed: {type(error).__name__}: {error}") from error

    async def _invoke(self, run: Run, handler: Handler, event: Any) -> Any:
        if handler.kind is Kind.COROUTINE:
            return await handler.invoke(event, run.message)
        if handler.kind is Kind.GENERATOR:
            return handler.invoke(event, run.message)
        if self._threads is None:
            raise ConfigurationError(f"{handler.name} is a sync function, and its worker was not started")
        run.thread = self._threads.submit(contextvars.copy_context().run, _call, handler, event, run.message)
        result = await asyncio.wrap_future(run.thread)
        return await result if inspect.isawaitable(result) else result

    def _failure(self, run: Run, error: BaseException) -> BaseException:
        """Tell a handler's failure from a cancellation that was asked for, which is raised again."""
        if isinstance(error, asyncio.CancelledError) and run.task is not None:
            if run.timed_out:
                run.task.uncancel()
                return TimeoutError(f"the handler took longer than {self._work.timeout} s")
            if run.task.cancelling():
                raise error
        if isinstance(error, GeneratorExit) and asyncio.get_running_loop().is_closed():
            raise error
        return error

    def _decide(self, message: Message, failure: BaseException) -> Decision:
        try:
            return self._work.retry.decide(failure, attempt=message.attempt, chance=self._around.chance.random())
        except Exception as error:  # noqa: BLE001  Retry(on=function) is the user's
            return DeadLetter(f"Retry.on raised {type(error).__name__}: {error}")


def _time_out(run: Run) -> None:
    run.timed_out = True
    if run.task is not None:
        run.task.cancel()


def _call(handler: Handler, event: Any, message: Message) -> Any:
    """Call a sync handler in its thread; a generator runs there too, and not on the loop."""
    result = handler.invoke(event, message)
    return list(result) if isinstance(result, types.GeneratorType) else result
