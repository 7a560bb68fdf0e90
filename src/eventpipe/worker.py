"""The life of one delivery: taken from the intake, unpacked, handled, and settled once.

``slots.py`` has the tasks, ``unpacking.py`` finds the events in it, ``handling.py`` runs their handlers and
``retry.py`` decides, ``storing.py`` stores the copies (``copies.py`` says what they carry). Every path ends in exactly
one settlement of the delivery, or leaves it to the broker to deliver again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, assert_never

import structlog

from .context import current
from .handler import Kind
from .handling import DONE, Handling, Run
from .intake import Intake, Parcel
from .middleware import Outcome
from .recall import Recall
from .retry import Ack, DeadLetter, RetryIn
from .routing import Queue
from .slots import Slot, Slots
from .storing import NotStored, Storing
from .unpacking import Unpacking
from .work import Counts, Surroundings, Work

log = structlog.get_logger("eventpipe")

SUSPICIOUS = 2
"""How many unsettled hand-overs make a message a suspect of killing its process."""

CANCEL_GRACE = 1.0
"""Seconds that a cancelled handler gets to end before it is left behind."""

SLICE = 0.003
"""Seconds of handling after which the event loop gets its turn, although no handler has suspended."""


class Worker:
    """Handles the messages of one queue, at most ``concurrency`` events at a time."""

    def __init__(self, work: Work, around: Surroundings) -> None:
        self.work = work
        self.counts = Counts()
        self._around = around
        self._main = self._intake(work.queue, work.prefetch)
        suspects = work.queue.suspects
        self._suspects = None if suspects is None else self._intake(suspects, 1)
        self._open: deque[Parcel] = deque()
        self._alone: Parcel | None = None
        self._stopping = self._pausing = False
        self._nothing_runs: asyncio.Future[None] | None = None
        self._slots = Slots(work.concurrency, self._serve, self._rested)
        self._recall = Recall(work.prefetch)
        self._unpacking = Unpacking(work, around)
        self._handling = Handling(work, around, self._unpacking)
        self._storing = Storing(work, around, self.counts)

    # --- starting and stopping

    @property
    def intakes(self) -> tuple[Intake, ...]:
        """Where its messages come from: its queue, and the queue of suspects."""
        return (self._main,) if self._suspects is None else (self._main, self._suspects)

    @property
    def in_flight(self) -> int:
        """How many events are in handlers or being settled."""
        return len(self._slots.busy)

    @property
    def draining(self) -> bool:
        """Whether it has been told to stop."""
        return self._stopping

    @property
    def trouble(self) -> str | None:
        """What can't be stored at the moment."""
        return self._storing.trouble

    async def start(self) -> None:
        """Begin to consume. Raises ``TopologyMissing`` or ``ConnectError``."""
        self._slots.open()
        self._handling.open()
        for intake in self.intakes:
            await intake.open(self._around.transport)

    async def stop(self, seconds: float) -> None:
        """Drain: start nothing more, give back what has not begun, let the rest end within ``seconds``, settle it."""
        self._stopping = True
        await asyncio.gather(self._give_back(), self._until_nothing_runs(seconds))
        unfinished = dict.fromkeys([*(slot.parcel for slot in self._slots.busy), self._alone])
        for slot in self._slots.busy:
            slot.task.cancel()
        await self._until_nothing_runs(CANCEL_GRACE)
        if self._slots.busy:
            log.warning(
                "handlers left behind: they ignore cancellation", queue=self.work.queue.name, count=self.in_flight
            )
        await self._hand_on([parcel for parcel in unfinished if parcel is not None and self._would_count(parcel)])
        self._slots.close()
        for intake in self.intakes:
            await intake.close()
        self._handling.close()

    async def _give_back(self) -> None:
        """Give back what has not begun, now: what runs may take its time, and others need not wait for it."""
        waiting: list[Parcel] = []
        for intake in self.intakes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_GRACE):
                    waiting += [Parcel(intake, delivery) for delivery in await intake.cancel()]
        waiting = [parcel for parcel in waiting if not self._was_here(parcel)]
        await self._hand_on([parcel for parcel in waiting if self._would_count(parcel)])
        for parcel in waiting:
            parcel.intake.give_back(parcel.delivery)

    def _would_count(self, parcel: Parcel) -> bool:
        """Tell whether whoever gets it next would take this hand-over for the death of a process."""
        delivery = parcel.delivery
        if self._suspects is None or delivery.fault is not None:
            return False
        if parcel.intake is self._suspects:
            return not delivery.redelivered  # one that is was not given back by a stop: it is charged, later
        return delivery.redelivered and (delivery.delivery_count or 0) + 1 >= SUSPICIOUS

    async def _hand_on(self, parcels: list[Parcel]) -> None:
        """Give back as copies, which nobody counts: RabbitMQ can't tell a stop from a death."""

        async def hand_on(parcel: Parcel) -> None:
            if parcel.intake.holds(parcel.delivery):
                with contextlib.suppress(NotStored):
                    await self._storing.hand_on(self._unpacking.whole(parcel), parcel.intake.queue)
                    parcel.intake.settle(parcel.delivery)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_GRACE):
                await asyncio.gather(*map(hand_on, parcels))

    async def _until_nothing_runs(self, seconds: float) -> None:
        if self._slots.busy:
            self._nothing_runs = asyncio.get_running_loop().create_future()
            # The loop's time, not the pipe's, bounds a shutdown: a clock turned by hand may never move again.
            await asyncio.wait([self._nothing_runs], timeout=seconds)
            self._nothing_runs = None

    # --- taking deliveries

    def _intake(self, queue: Queue, prefetch: int) -> Intake:
        return Intake(queue, prefetch, clock=self._around.clock, arrived=self._arrived, lost=self._lost)

    def _arrived(self) -> None:
        if not self._stopping:
            self._slots.call()

    def _rested(self) -> None:
        """Hear that a slot has ended its work, or its life: others may go on with what it left."""
        if self._nothing_runs is not None and not self._slots.busy and not self._nothing_runs.done():
            self._nothing_runs.set_result(None)
        if not self._stopping and not self._pausing and self._waiting:
            self._slots.call()

    @property
    def _waiting(self) -> bool:
        """Whether anything has not begun."""
        if self._alone is not None:
            return not self._slots.busy  # the last one to rest takes it
        return bool(self._main.waiting or self._open or (self._suspects is not None and self._suspects.waiting))

    def _lost(self, intake: Intake) -> None:
        """Forget what has not started, for it comes again; remember what has, for it comes again too."""
        if self._alone is not None and intake is self._suspects and not self._alone.begun:
            self._alone = None
        unfinished = {slot.parcel for slot in self._slots.busy} | {self._alone, *self._open}
        lost = [parcel for parcel in unfinished if parcel is not None and parcel.intake is intake]
        self._recall.lost(lost, self._around.clock.monotonic())

    def _take(self) -> Parcel | None:
        """Give a parcel that has an event to begin."""
        while not self._stopping and not self._pausing:
            if self._alone is not None:
                mine = len(self._slots.busy) == 1 and self._alone.begun < self._alone.size
                return self._alone if mine else None
            if self._open:
                parcel = self._open[0]
                if parcel.begun < parcel.size:
                    return parcel
                self._open.popleft()
            elif self._suspects is not None and self._suspects.waiting:
                self._open_suspect(Parcel(self._suspects, self._suspects.waiting.popleft()))
            elif self._main.waiting:
                found = self._open_parcel(Parcel(self._main, self._main.waiting.popleft()))
                if found is not None:
                    return found
            else:
                break
        return None

    def _open_parcel(self, parcel: Parcel) -> Parcel | None:
        if self._was_here(parcel):
            return None
        delivery = parcel.delivery
        suspicious = delivery.redelivered and (delivery.delivery_count or 0) >= SUSPICIOUS
        if suspicious and self._suspects is not None and delivery.fault is None:  # no handler sees a faulty one
            parcel.move = self._set_aside
            return parcel
        self._unpacking.open(parcel)
        if parcel.size > 1:
            self._open.append(parcel)
        return parcel

    def _open_suspect(self, parcel: Parcel) -> None:
        """Handle a suspect alone; one that comes again has ended its process while it was the only one in hand."""
        if self._was_here(parcel):
            return
        if parcel.delivery.redelivered:
            parcel.move = self._charge
            self._open.append(parcel)
        else:
            self._unpacking.open(parcel)
            self._alone = parcel

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
            self._settle(parcel)
        else:
            known.delivery = parcel.delivery
        return True

    # --- working on them, in a slot

    async def _serve(self, slot: Slot) -> bool:
        """Begin one event after another until there are none; ``False`` once a handler has bound something."""
        until = monotonic() + SLICE
        while (parcel := self._take()) is not None:
            if not await self._work(slot, parcel, until):
                return False
            if slot.stuck:
                return True
            if monotonic() >= until:
                await self._pause()
                until = monotonic() + SLICE
        return True

    async def _pause(self) -> None:
        """Let the loop have its turn, in which no other slot begins anything either."""
        self._pausing = True
        try:
            await asyncio.sleep(0)
        finally:
            self._pausing = False

    async def _work(self, slot: Slot, parcel: Parcel, until: float) -> bool:
        """Handle events of a parcel that have not begun, one after another; tell whether the context is as before."""
        slot.parcel = parcel
        run = Run(parcel, slot, self._unpacking)
        current.set(run)
        before = copy_context()
        quick = self._handling.quick(parcel)
        clean = False
        try:
            if quick is None or quick.direct is None:
                clean = await self._each(run, before, until)
            elif quick.kind is Kind.THREAD:
                clean = await self._share_in_thread(run, quick.direct)
            else:
                clean = await self._each_directly(run, quick.direct, before, until)
            if not parcel.open:
                self._settle(parcel)
        except NotStored:
            log.info("the pipe closed before a copy was stored; the broker keeps the original")
        except Exception:
            log.exception("eventpipe's own fault; the broker keeps the message")
        finally:
            slot.parcel = None
            if parcel is self._alone and parcel.begun == parcel.size:
                self._alone = None  # also when it could not be settled: nobody else would begin anything
            if parcel.begun == parcel.size and self._open and self._open[0] is parcel:
                self._open.popleft()
        return clean

    async def _each(self, run: Run, before: Context, until: float) -> bool:
        parcel = run.parcel
        clean = True
        while clean and parcel.begun < parcel.size:
            run.index = parcel.begun
            parcel.begun += 1
            if not self._slots.called and self._waiting:
                self._slots.call()  # should this handler suspend, the next event need not wait
            await self._handle(run)
            clean = _same(before)
            parcel.open -= 1
            if run.slot.stuck or monotonic() >= until:
                break
        return clean

    async def _each_directly(self, run: Run, handle: Callable[[Any], Any], before: Context, until: float) -> bool:
        """Do the same for a decoded batch whose handler needs nothing but the event: two microseconds for each."""
        parcel, events, slots = run.parcel, run.parcel.events or [], self._slots
        counts, size = self.counts, run.parcel.size
        while (index := parcel.begun) < size:
            run.index = index
            parcel.begun = index + 1
            if not slots.called and self._waiting:
                slots.call()
            try:
                await handle(events[index])
                counts.handled += 1
            except BaseException as error:  # noqa: BLE001  a handler may raise anything, and each must be settled
                await self._store(run, self._handling.failed(run, error))
            parcel.open -= 1
            if not _same(before):
                return False
            if monotonic() >= until:
                break
        return True

    async def _share_in_thread(self, run: Run, handle: Callable[[Any], Any]) -> bool:
        """Do the same in a thread, for this slot's share of the batch."""
        parcel = run.parcel
        share = -(-(parcel.size - parcel.begun) // self.work.concurrency)
        indices = range(parcel.begun, parcel.begun + share)
        parcel.begun += share
        if self._waiting:
            self._slots.call()
        tried, failures = await self._handling.in_thread(run, handle, indices, lambda: self._stopping)
        self.counts.handled += tried - len(failures)
        for index, error in failures:
            run.index = index
            await self._store(run, self._handling.failed(run, error))
        parcel.open -= tried  # what was not tried any more comes again, with its batch
        return True

    async def _handle(self, run: Run) -> None:
        """Handle one event, and carry out what was decided. A crash in here repeats the event and never loses it."""
        parcel = run.parcel
        if parcel.move is not None:
            await parcel.move(parcel)
            return
        if parcel is self._alone and parcel.begun == 1:
            # Nothing unsettled may be behind it: if it ends the process, nothing else is to come again.
            await self._main.flush()
        outcome = await self._handling.attempt(run)
        if outcome is DONE:
            self.counts.handled += 1
        else:
            await self._store(run, outcome)
        if self._around.observe is not None:
            self._around.observe(run.message, outcome[0])

    async def _store(self, run: Run, outcome: Outcome) -> None:
        decision, failure = outcome
        match decision:
            case RetryIn(seconds):
                await self._storing.retry(run.message, seconds, failure)
            case DeadLetter(reason):
                await self._storing.dead_letter(run.message, reason, failure)
            case Ack():
                pass
            case _:
                assert_never(decision)

    async def _set_aside(self, parcel: Parcel) -> None:
        await self._storing.set_aside(self._unpacking.message(parcel, 0), parcel.delivery.delivery_count)

    async def _charge(self, parcel: Parcel) -> None:
        await self._storing.charge(self._unpacking.message(parcel, 0))

    def _settle(self, parcel: Parcel) -> None:
        """Settle a delivery: the last of its events has ended."""
        if parcel is self._alone:
            self._alone = None
        parcel.empty()
        settled = parcel.intake.settle(parcel.delivery)
        self._recall.concluded(parcel, settled=settled, now=self._around.clock.monotonic())


def _same(before: Context) -> bool:
    """Tell whether nothing was bound since ``before``; cheap when nothing was."""
    try:
        return bool(copy_context() == before)
    except Exception:  # noqa: BLE001  whatever is bound there may not like to be compared
        return False
