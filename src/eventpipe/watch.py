"""What goes wrong slowly and in silence: an event loop that is held up, a delivery that is kept too long.

Both are said while there is still time: a held-up loop answers no heartbeat, and RabbitMQ closes the channel of a
consumer that keeps a delivery longer than its ``consumer_timeout``.
"""

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

import structlog

from .handler import Handler
from .intake import Intake
from .shown import shown
from .transports.base import Delivery
from .worker import Worker

log = structlog.get_logger("eventpipe")

LOOK_EVERY = 1.0
"""Seconds between looks at the ages of deliveries, at most."""

WARN_AT = (0.5, 0.8)
"""The parts of ``consumer_timeout`` at which a delivery is warned of."""

_DEEPEST = 30  # frames of a stack that are logged


class Ages:
    """Warns of deliveries that are kept for long, once at each part of ``consumer_timeout`` (in seconds)."""

    def __init__(self, workers: Iterable[Worker], consumer_timeout: float) -> None:
        self._workers, self._timeout = list(workers), consumer_timeout
        self._warned: dict[Delivery, int] = {}

    def look(self) -> None:
        """Look at every delivery that is older than the first of ``WARN_AT``."""
        old: dict[Delivery, int] = {}
        for worker in self._workers:
            for intake in worker.intakes:
                for delivery, age in intake.older(WARN_AT[0] * self._timeout):
                    old[delivery] = self._warn(worker, intake, delivery, age)
        self._warned = old

    def _warn(self, worker: Worker, intake: Intake, delivery: Delivery, age: float) -> int:
        level = sum(age >= part * self._timeout for part in WARN_AT)
        if level > self._warned.get(delivery, 0):
            log.warning(
                "a delivery is not settled for long: the broker closes the channel at its consumer_timeout",
                queue=intake.queue.name,
                message_id=shown(delivery.properties.message_id),
                handler=", ".join(handler.name for handler in worker.work.handlers),
                seconds=round(age, 1),
                consumer_timeout=self._timeout,
            )
        return level


class LoopWatch:
    """A thread that notices when the event loop does not turn, and logs where it stands and which handler that is."""

    def __init__(self, handlers: Iterable[Handler], after: float) -> None:
        self._handlers = {handler.code: handler.name for handler in handlers if handler.code is not None}
        self._after = after
        self._ended = threading.Event()
        self._beat = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._timer = self._loop.call_soon(self._turn)
        threading.Thread(target=self._watch, name="eventpipe loop watch", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._timer.cancel()
        self._ended.set()

    def _turn(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(self._after / 4, self._turn)

    def _watch(self) -> None:
        said = 0.0
        while not self._ended.wait(self._after / 4):
            beat = self._beat
            held = time.monotonic() - beat
            if held < self._after or beat == said:
                continue
            said = beat
            self._say(held)

    def _say(self, held: float) -> None:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001  the only way to another thread's stack
        handler = next((self._handlers[one.f_code] for one in _up(frame) if one.f_code in self._handlers), None)
        stack = "".join(traceback.format_stack(frame, _DEEPEST)) if frame is not None else ""
        log.error("the event loop is held up", handler=handler, seconds=round(held, 1), stack=stack)


def _up(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


@contextlib.contextmanager
def watching(workers: Sequence[Worker], *, stall: float, consumer_timeout: float) -> Iterator[None]:
    """Watch over these workers inside the block. Both times are in seconds; 0 turns that watch off."""
    loop, ages = asyncio.get_running_loop(), Ages(workers, consumer_timeout)
    every = min(LOOK_EVERY, consumer_timeout / 10)
    # The loop's own timers, not the pipe's clock: whoever turns a clock by hand to its next timer would never end.
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal timer
        ages.look()
        timer = loop.call_later(every, look)

    if consumer_timeout:
        timer = loop.call_later(every, look)
    handlers = [handler for worker in workers for handler in worker.work.handlers]
    loop_watch = LoopWatch(handlers, stall) if stall else None
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        if loop_watch is not None:
            loop_watch.close()
