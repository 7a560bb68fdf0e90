"""As many tasks as events may be handled at once, each handling one event after another for as long as there are any.

A task of its own for every event would cost more than handling it. A slot that begins an event calls one more slot,
should its handler suspend; a handler that does not suspend costs no switch at all.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from .intake import Parcel


class Slot:
    """One of a worker's tasks, and what it works on."""

    __slots__ = ("parcel", "task", "thread", "timed_out", "wake")

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.parcel: Parcel | None = None
        self.thread: Future[Any] | None = None
        self.timed_out = False
        self.wake: asyncio.Future[None]

    @property
    def stuck(self) -> bool:
        """Whether a thread of a timed-out handler still runs: it can't be stopped, and keeps its slot until it ends."""
        return self.thread is not None and not self.thread.done()


class Slots:
    """Runs ``serve(slot)`` in at most ``limit`` tasks. ``serve`` returns once there is nothing to do.

    It returns ``False`` when the task's context is used up: what one handler binds must not reach the next message's.
    ``rested()`` is called whenever a slot has ended its work.
    """

    def __init__(self, limit: int, serve: Callable[[Slot], Awaitable[bool]], rested: Callable[[], object]) -> None:
        self.busy: dict[Slot, None] = {}
        self._limit, self._serve, self._rested = limit, serve, rested
        self._alive: dict[Slot, None] = {}
        self._idle: list[Slot] = []
        self.called = self._closed = False

    def open(self) -> None:
        """Remember the loop and the context that every task begins with."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    def call(self) -> None:
        """Have one more slot look for work, unless one is about to."""
        if self.called:
            return
        while self._idle:
            wake = self._idle.pop().wake
            if not wake.done():  # else its task was cancelled from outside, and ends
                wake.set_result(None)
                self.called = True
                return
        if len(self._alive) < self._limit:
            slot = Slot()
            self._alive[slot] = None
            slot.task = self._loop.create_task(self._live(slot), context=self._context.copy())
            self.called = True

    def close(self) -> None:
        """End the tasks that have no work; those that have some end with it."""
        self._closed = True
        self._idle.clear()
        for slot in self._alive:
            if slot not in self.busy:
                slot.task.cancel()

    async def _live(self, slot: Slot) -> None:
        try:
            while await self._work(slot) and not self._closed:
                slot.wake = self._loop.create_future()
                self._idle.append(slot)
                self._rested()
                await slot.wake
        finally:
            self._alive.pop(slot, None)
            self._rested()

    async def _work(self, slot: Slot) -> bool:
        self.called = False
        self.busy[slot] = None
        try:
            keep = await self._serve(slot)
            if slot.thread is not None and slot.stuck:
                await asyncio.wait([asyncio.wrap_future(slot.thread)])
            return keep
        finally:
            self.busy.pop(slot, None)
