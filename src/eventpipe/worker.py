"""The life of one delivery: taken from the intake, unpacked, handled, and settled once.

``unpacking.py`` finds the messages in it, ``handling.py`` runs their handlers and ``retry.py`` decides, ``storing.py``
stores the copies (``copies.py`` says what they carry). Every path ends in exactly one settlement of the delivery, or
leaves it to the broker to deliver again.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from typing import assert_never

import structlog

from .codec import Undecodable
from .context import current
from .handling import Handling, Run
from .intake import Intake, Parcel
from .message import Message
from .recall import Recall
from .retry import Ack, DeadLetter, RetryIn
from .routing import Queue
from .storing import NotStored, Storing
from .unpacking import message_of, messages_of
from .work import Counts, Surroundings, Work

log = structlog.get_logger("eventpipe")

SUSPICIOUS = 2
"""How many unsettled hand-overs make a message a suspect of killing its process."""

CANCEL_GRACE = 1.0
"""Seconds that a cancelled handler gets to end before it is left behind."""


class Worker:
    """Handles the messages of one queue, at most ``concurrency`` events at a time."""

    def __init__(self, work: Work, around: Surroundings) -> None:
        self.work = work
        self.counts = Counts()
        self._around = around
        self._main = self._intake(work.queue, work.prefetch)
        suspects = work.queue.suspects
        self._suspects = None if suspects is None else self._intake(suspects, 1)
        self._ready: deque[Run] = deque()
        self._alone: deque[Run] | None = None
        self._running: set[Run] = set()
        self._free = work.concurrency
        self._stopping = False
        self._nothing_runs: asyncio.Future[None] | None = None
        self._recall = Recall(work.prefetch)
        self._handling = Handling(work, around)
        self._storing = Storing(work, around, self.counts)

    # --- starting and stopping

    @property
    def intakes(self) -> tuple[Intake, ...]:
        """Where its messages come from: its queue, and the queue of suspects."""
        return (self._main,) if self._suspects is None else (self._main, self._suspects)

    @property
    def in_flight(self) -> int:
        """How many events are in handlers or being settled."""
        return len(self._running)

    @property
    def trouble(self) -> str | None:
        """What can't be stored at the moment."""
        return self._storing.trouble

    async def start(self) -> None:
        """Begin to consume. Raises ``TopologyMissing`` or ``ConnectError``."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._handling.open()
        for intake in self.intakes:
            await intake.open(self._around.transport)

    async def stop(self, seconds: float) -> None:
        """Drain: start nothing more, let what has started end within ``seconds``, settle it, give the rest back.

        The channel is closed and no consumer is cancelled first: with a single active consumer a cancel would let the
        next one overtake what is still in hand here.
        """
        self._stopping = True
        for intake in self.intakes:
            intake.pause()
        await self._until_nothing_runs(seconds)
        for run in self._running:
            if run.task is not None:
                run.task.cancel()
        await self._until_nothing_runs(CANCEL_GRACE)
        if self._running:
            log.warning(
                "handlers left behind: they ignore cancellation", queue=self.work.queue.name, count=self.in_flight
            )
        for intake in self.intakes:
            await intake.close()
        self._handling.close()

    async def _until_nothing_runs(self, seconds: float) -> None:
        if self._running:
            self._nothing_runs = self._loop.create_future()
            # The loop's time, not the pipe's, bounds a shutdown: a clock turned by hand may never move again.
            await asyncio.wait([self._nothing_runs], timeout=seconds)
            self._nothing_runs = None

    # --- taking deliveries

    def _intake(self, queue: Queue, prefetch: int) -> Intake:
        return Intake(queue, prefetch, clock=self._around.clock, arrived=self._pump, lost=self._lost)

    def _lost(self, intake: Intake) -> None:
        """Forget what has not started, for it comes again; remember what has, for it comes again too."""
        self._ready = deque(run for run in self._ready if run.parcel.started or run.parcel.intake is not intake)
        if intake is self._suspects and self._alone and not self._alone[0].parcel.started:
            self._alone = None
        unfinished = {run.parcel for run in (*self._running, *self._ready, *(self._alone or ()))}
        lost = [parcel for parcel in unfinished if parcel.intake is intake]
        self._recall.lost(lost, self._around.clock.monotonic())

    def _pump(self) -> None:
        """Start as much as there are free slots for."""
        while self._free > 0 and not self._stopping:
            if self._alone is not None:
                if self._running or not self._alone:
                    return
                self._start(self._alone.popleft())
            elif self._ready:
                self._start(self._ready.popleft())
            elif self._suspects is not None and self._suspects.waiting:
                self._open_suspect(Parcel(self._suspects, self._suspects.waiting.popleft()))
            elif self._main.waiting:
                self._open(Parcel(self._main, self._main.waiting.popleft()))
            else:
                return

    def _open(self, parcel: Parcel) -> None:
        delivery = parcel.delivery
        if self._was_here(parcel):
            return
        if self._suspects is not None and delivery.redelivered and (delivery.delivery_count or 0) >= SUSPICIOUS:
            self._ready.append(Run(parcel, self._message(parcel), self._storing.set_aside))
        else:
            self._ready.extend(self._runs(parcel))

    def _open_suspect(self, parcel: Parcel) -> None:
        """Handle a suspect alone; one that comes again has ended its process while it was the only one in hand."""
        if self._was_here(parcel):
            return
        if parcel.delivery.redelivered:
            self._ready.append(Run(parcel, self._message(parcel), self._storing.charge))
        else:
            self._alone = deque(self._runs(parcel))
            for run in self._alone:
                run.work = self._handle_alone

    def _was_here(self, parcel: Parcel) -> bool:
        """Settle a redelivery whose work is done; hand one whose work still runs to that work."""
        if not self._recall.armed:
            return False
        if not parcel.delivery.redelivered:
            self._recall.fresh(parcel)
            return False
        known = self._recall.match(parcel, self._around.clock.monotonic())
        if known is None:
            return False
        self.counts.settled_again += 1
        if known is parcel:
            self._conclude(parcel)
        else:
            known.delivery = parcel.delivery
        return True

    def _runs(self, parcel: Parcel) -> list[Run]:
        try:
            messages = messages_of(parcel.delivery, self.work, self._around)
        except Undecodable as error:
            return [Run(parcel, self._message(parcel), self._handle, refusal=f"undecodable: {error}")]
        parcel.open = len(messages)
        return [Run(parcel, message, self._handle) for message in messages]

    def _message(self, parcel: Parcel) -> Message:
        return message_of(parcel.delivery, self.work, self._around)

    # --- one run

    def _start(self, run: Run) -> None:
        self._free -= 1
        run.parcel.started = True
        self._running.add(run)
        # A fresh copy of the worker's own context: what one handler binds must not reach the next message's.
        run.task = self._loop.create_task(self._run(run), context=self._context.copy())

    async def _run(self, run: Run) -> None:
        try:
            await run.work(run)
            self._conclude(run.parcel)
        except NotStored:
            log.info(
                "the pipe closed before a copy was stored; the broker keeps the original", message_id=run.message.id
            )
        except Exception:
            log.exception("eventpipe's own fault; the broker keeps the message", message_id=run.message.id)
        finally:
            self._end(run)

    def _end(self, run: Run) -> None:
        self._running.discard(run)
        if run.thread is not None and not run.thread.done():
            # A thread can't be stopped: it keeps its slot until it ends.
            run.thread.add_done_callback(lambda _thread: self._free_later())
        else:
            self._free += 1
        if not self._running and self._nothing_runs is not None and not self._nothing_runs.done():
            self._nothing_runs.set_result(None)
        self._pump()

    def _free_later(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody needs the slot
            self._loop.call_soon_threadsafe(self._free_slot)

    def _free_slot(self) -> None:
        self._free += 1
        self._pump()

    def _conclude(self, parcel: Parcel) -> None:
        """Settle a delivery once the last of its events has ended."""
        parcel.open -= 1
        if parcel.open > 0:
            return
        if parcel.intake is self._suspects:
            self._alone = None
        settled = parcel.intake.settle(parcel.delivery)
        self._recall.concluded(parcel, settled=settled, now=self._around.clock.monotonic())

    async def _handle_alone(self, run: Run) -> None:
        """Handle a suspect with nothing unsettled behind it: if it ends the process, nothing else is to come again."""
        await self._main.flush()
        await self._handle(run)

    async def _handle(self, run: Run) -> None:
        """Handle one event, and carry out what was decided. A crash in here repeats the event and never loses it."""
        current.set(run.message)
        decision, failure = await self._handling.attempt(run)
        match decision:
            case Ack():
                self.counts.handled += 1
            case RetryIn(seconds):
                await self._storing.retry(run.message, seconds, failure)
            case DeadLetter(reason):
                await self._storing.dead_letter(run.message, reason, failure)
            case _:
                assert_never(decision)
        if self._around.observe is not None:
            self._around.observe(run.message, decision)
