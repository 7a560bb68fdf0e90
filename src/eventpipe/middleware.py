"""Middleware: what runs around every handling, for metrics, tracing and the like.

It sees the message and the outcome. It can't choose the outcome: what it returns is nothing, what it raises is logged,
and a handling that it leaves out takes place all the same.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Iterable
from typing import Any, NamedTuple, Protocol

import structlog

from .errors import ConfigurationError
from .message import Message
from .retry import Decision

log = structlog.get_logger("eventpipe")


class Outcome(NamedTuple):
    """How a handling ended: what was decided, and the exception that it was decided for."""

    decision: Decision
    error: BaseException | None = None


class Handle(Protocol):
    """What a middleware is given to handle the message with: once, however often it is called."""

    def __call__(self) -> Awaitable[Outcome]:
        """Give how it ended; what the handler raised is in there, and not raised."""
        ...


class Middleware(Protocol):
    """``async def middleware(message, handle)``: awaits ``handle()``, which gives the ``Outcome``."""

    def __call__(self, message: Message, handle: Handle, /) -> Awaitable[None]:
        """Run around the handling of one event."""
        ...


def check(middleware: Iterable[Any], where: str) -> tuple[Middleware, ...]:
    """Refuse what is no middleware. Raises ``ConfigurationError``."""
    found = tuple(middleware)
    for one in found:
        target = one if inspect.isroutine(one) else getattr(one, "__call__", None)  # noqa: B004  the method is wanted
        if not inspect.iscoroutinefunction(target):
            raise ConfigurationError(f"{where}: middleware {one!r} must be an async function of a message and `handle`")
    return found


async def through(middleware: tuple[Middleware, ...], message: Message, attempt: Handle) -> Outcome:
    """Handle a message inside of its middleware, the first of which is the outermost."""
    layer = _Layer(attempt)
    for one in reversed(middleware):
        layer = _Layer(_around(one, message, layer))
    return await layer()


def _around(one: Middleware, message: Message, inner: "_Layer") -> Handle:
    async def run() -> Outcome:
        try:
            await one(message, inner)
        except asyncio.CancelledError:
            if inner.outcome is None:
                raise
        except Exception:
            log.exception("a middleware failed; the outcome stays what it is", middleware=repr(one))
        return await inner()

    return run


class _Layer:
    """Runs once, and gives the same outcome to whoever asks again, or the same cancellation."""

    def __init__(self, run: Handle) -> None:
        self.outcome: Outcome | None = None
        self._cut_off: BaseException | None = None
        self._run = run
        self._running: asyncio.Future[None] | None = None

    async def __call__(self) -> Outcome:
        while self.outcome is None and self._running is not None:
            await asyncio.wait([self._running])
        if self._cut_off is not None:
            raise self._cut_off
        if self.outcome is None:
            self._running = asyncio.get_running_loop().create_future()
            try:
                self.outcome = await self._run()
            except BaseException as error:
                self._cut_off = error
                raise
            finally:
                running, self._running = self._running, None
                running.set_result(None)
        return self.outcome
