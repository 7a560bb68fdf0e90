"""The life of one delivery: unpack, decode, handle, decide, settle.

Deciding is ``retry.py``'s; what a copy carries is ``copies.py``'s; where deliveries come from is ``intake.py``. Every
path through this module ends in exactly one settlement of the delivery, or leaves it to the broker to deliver again.
"""

import asyncio
import contextlib
import contextvars
import inspect
import types
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, assert_never

import structlog

from . import codec
from .clock import Chance, Clock, Deadlines, sleep, uuid7
from .context import current
from .copies import dead_copy, describe, retry_copy, suspect_copy
from .errors import ConfigurationError
from .handler import Handler, Kind
from .intake import Intake, Parcel
from .message import EXCHANGE, KEY, DeadMessage, Message, Properties, attempt_of, expired
from .recall import Recall
from .retry import Ack, DeadLetter, Decision, Retry, RetryIn
from .routing import Queue
from .transports.base import Outgoing, Transport, VerdictKind

log = structlog.get_logger("eventpipe")

SUSPICIOUS = 2
"""How many unsettled hand-overs make a message a suspect of killing its process."""

CANCEL_GRACE = 1.0
"""Seconds that a cancelled handler gets to end before it is left behind."""

STORE_AGAIN = (0.1, 10.0)
"""Seconds between tries to store a copy that the broker does not take: at first, and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done with the messages of one queue. Times are in seconds, sizes in bytes."""

    queue: Queue
    handlers: tuple[Handler, ...]
    concurrency: int = 10
    prefetch: int = 20
    timeout: float | None = None
    retry: Retry = Retry()
    emit: Callable[[Any, Message], Awaitable[None]] | None = None
    decode: Callable[[Message], Any] | None = None
    on_dead_letter: Callable[[DeadMessage], Any] | None = None
    body_limit: int = codec.BODY_LIMIT


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker is given: the broker, time, chance, and who wants to hear of decisions."""

    transport: Transport
    clock: Clock
    chance: Chance
    observe: Callable[[Message, Decision], None] | None = None


@dataclass(slots=True)
class Counts:
    """What a worker has done since it started."""

    handled: int = 0
    retried: int = 0
    dead_lettered: int = 0
    set_aside: int = 0
    settled_again: int = 0


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


class Worker:
    """Handles the messages of one queue, at most ``concurrency`` events at a time."""

    def __init__(self, work: Work, around: Surroundings) -> None:
        self.work = work
        self.counts = Counts()
        self.trouble: str | None = None
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
        self._deadlines: Deadlines[Run] = Deadlines(around.clock, _time_out)
        self._threads: ThreadPoolExecutor | None = None

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
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits here."""
        return not self._running and not any(intake.unsettled for intake in self.intakes)

    async def start(self) -> None:
        """Begin to consume. Raises ``TopologyMissing`` or ``ConnectError``."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        if any(handler.kind is Kind.THREAD for handler in self.work.handlers):
            self._threads = ThreadPoolExecutor(self.work.concurrency, thread_name_prefix=self.work.queue.name)
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
        self._deadlines.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

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
            self._ready.append(Run(parcel, self._message(parcel), self._set_aside))
        else:
            self._ready.extend(self._runs(parcel))

    def _open_suspect(self, parcel: Parcel) -> None:
        """Handle a suspect alone; one that comes again has ended its process while it was the only one in hand."""
        if self._was_here(parcel):
            return
        if parcel.delivery.redelivered:
            self._ready.append(Run(parcel, self._message(parcel), self._charge))
        else:
            self._alone = deque(self._runs(parcel))

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
            messages = self._messages(parcel)
        except codec.Undecodable as error:
            return [Run(parcel, self._message(parcel), self._handle, refusal=f"undecodable: {error}")]
        if not messages:
            return [Run(parcel, self._message(parcel), self._handle, refusal="undecodable: an empty batch")]
        parcel.open = len(messages)
        return [Run(parcel, message, self._handle) for message in messages]

    def _messages(self, parcel: Parcel) -> list[Message]:
        """Unpack what a delivery holds. Raises ``Undecodable``."""
        delivery = parcel.delivery
        if delivery.fault is not None:
            raise codec.Undecodable(delivery.fault.reason)
        if len(delivery.body) > self.work.body_limit:
            raise codec.Undecodable(f"a body of {len(delivery.body)} bytes is over the limit of {self.work.body_limit}")
        if delivery.properties.content_encoding not in (None, "", "utf-8", "identity"):
            raise codec.Undecodable(f"content encoding {delivery.properties.content_encoding!r} is not supported")
        whole = self._message(parcel)
        if delivery.properties.content_type != codec.BATCH:
            return [whole]
        properties = replace(delivery.properties, content_type=codec.JSON)
        return [
            replace(whole, id=f"{whole.id}/{index}", body=body, properties=properties)
            for index, body in enumerate(codec.unpack(delivery.body))
        ]

    def _message(self, parcel: Parcel) -> Message:
        delivery = parcel.delivery
        properties = delivery.properties
        headers = properties.headers
        return Message(
            id=properties.message_id or uuid7(self._around.clock, self._around.chance),
            body=delivery.body,
            properties=properties,
            queue=self.work.queue.name,
            exchange=str(headers.get(EXCHANGE, delivery.exchange)),
            key=str(headers.get(KEY, delivery.key)),
            attempt=attempt_of(headers, self.work.retry.attempts),
            redelivered=delivery.redelivered,
            id_generated=not properties.message_id,
        )

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
        except _NotStored:
            log.info(
                "the pipe closed before a copy was stored; the broker keeps the original", message_id=run.message.id
            )
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

    async def _handle(self, run: Run) -> None:
        """Handle one event, and carry out what was decided. A crash in here repeats the event and never loses it."""
        current.set(run.message)
        decision, failure = await self._attempt(run)
        match decision:
            case Ack():
                self.counts.handled += 1
            case RetryIn(seconds):
                await self._retry(run, seconds, failure)
            case DeadLetter(reason):
                await self._dead_letter(run, reason, failure)
            case _:
                assert_never(decision)
        if self._around.observe is not None:
            self._around.observe(run.message, decision)

    async def _attempt(self, run: Run) -> tuple[Decision, BaseException | None]:
        """Run the handler and decide what becomes of its message."""
        refusal = run.refusal
        if refusal is None and expired(run.message.properties, self._around.clock.time()):
            refusal = "expired"
        if refusal is not None:
            return DeadLetter(refusal), None
        tick = None if self.work.timeout is None else self._deadlines.add(run, self.work.timeout)
        try:
            handler = self._handler(run.message)
            result = await self._invoke(run, handler, self._event(run.message, handler))
            if self.work.emit is not None:
                await self.work.emit(result, run.message)
        except codec.Undecodable as error:
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
        handlers = self.work.handlers
        if len(handlers) == 1:
            return handlers[0]
        for handler in handlers:
            if handler.wire_type == message.type:
                return handler
        raise codec.Undecodable(f"no handler for the type {message.type!r}")

    def _event(self, message: Message, handler: Handler) -> Any:
        if self.work.decode is None:
            return handler.codec.decode(message.body, message.properties.content_type)
        try:
            return self.work.decode(message)
        except Exception as error:
            raise codec.Undecodable(f"decode= failed: {type(error).__name__}: {error}") from error

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
                return TimeoutError(f"the handler took longer than {self.work.timeout} s")
            if run.task.cancelling():
                raise error
        if isinstance(error, GeneratorExit) and self._loop.is_closed():
            raise error
        return error

    def _decide(self, message: Message, failure: BaseException) -> Decision:
        try:
            return self.work.retry.decide(failure, attempt=message.attempt, chance=self._around.chance.random())
        except Exception as error:  # noqa: BLE001  Retry(on=function) is the user's
            return DeadLetter(f"Retry.on raised {type(error).__name__}: {error}")

    # --- copies

    async def _retry(self, run: Run, seconds: float, failure: BaseException | None) -> None:
        attempt = run.message.attempt + 1
        log.info("retry", seconds=seconds, next_attempt=attempt, error=repr(failure))
        copy = retry_copy(run.message, attempt=attempt, now=self._around.clock.time())
        await self._store(run.message, self.work.queue, copy, seconds)
        self.counts.retried += 1

    async def _dead_letter(self, run: Run, reason: str, failure: BaseException | None) -> None:
        message = run.message
        log.warning("dead-lettered", reason=reason, error=repr(failure) if failure else None)
        about = {} if failure is None else describe(failure)
        dead = DeadMessage(message=message, queue=self.work.queue.name, reason=reason, attempt=message.attempt, **about)
        names = ", ".join(handler.name for handler in self.work.handlers)
        target = self.work.queue.dead
        if target is not None:
            await self._store(message, target, dead_copy(dead, handler=names, now=self._around.clock.time()))
        self.counts.dead_lettered += 1
        if self.work.on_dead_letter is None:
            return
        try:
            result = self.work.on_dead_letter(dead)
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("on_dead_letter failed; the dead letter itself is stored")

    async def _set_aside(self, run: Run) -> None:
        """Move a message that may have killed its process to where it is handled alone; it costs it no attempt.

        Its neighbours were handed out as often as it was: the count alone can't tell which of them did it.
        """
        current.set(run.message)
        log.warning("set aside: handed out repeatedly and never settled", times=run.parcel.delivery.delivery_count)
        await self._store_suspect(run.message, run.message.attempt)
        self.counts.set_aside += 1

    async def _charge(self, run: Run) -> None:
        """Charge one attempt to a suspect whose process ended while it was handled alone."""
        current.set(run.message)
        if run.message.attempt >= self.work.retry.attempts:
            await self._dead_letter(
                run, f"its process died while it was handled alone, attempt {run.message.attempt}", None
            )
        else:
            await self._store_suspect(run.message, run.message.attempt + 1)

    async def _store_suspect(self, message: Message, attempt: int) -> None:
        suspects = self.work.queue.suspects
        if suspects is not None:
            await self._store(message, suspects, suspect_copy(message, attempt=attempt, now=self._around.clock.time()))

    async def _store(self, message: Message, queue: Queue, properties: Properties, seconds: float = 0.0) -> None:
        """Store a copy, however often it takes: the original stays with the broker until the copy is confirmed."""
        outgoing = Outgoing(exchange="", key=queue.name, body=message.body, properties=properties)
        transport = self._around.transport
        pause, longest = STORE_AGAIN
        while True:
            verdict = await (transport.delay(outgoing, seconds) if seconds > 0 else transport.publish(outgoing))
            if verdict.kind is VerdictKind.CONFIRMED:
                self.trouble = None
                return
            if verdict.kind in (VerdictKind.NOT_SENT, VerdictKind.UNKNOWN):
                raise _NotStored
            self.trouble = (
                f"a copy can't be stored in queue {queue.name!r}: {verdict.kind.value} {verdict.reason}".rstrip()
            )
            log.error(self.trouble, message_id=message.id)
            await sleep(self._around.clock, pause)
            pause = min(2 * pause, longest)


class _NotStored(Exception):
    """The transport closed before the broker took a copy."""


def _time_out(run: Run) -> None:
    run.timed_out = True
    if run.task is not None:
        run.task.cancel()


def _call(handler: Handler, event: Any, message: Message) -> Any:
    """Call a sync handler in its thread; a generator runs there too, and not on the loop."""
    result = handler.invoke(event, message)
    return list(result) if isinstance(result, types.GeneratorType) else result
