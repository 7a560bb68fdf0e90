"""Store the copies that decisions ask for: a retry, a dead letter, a suspect set aside.

The original is settled by the caller, and only after a copy is confirmed: a crash between the two duplicates the
message and never loses it.
"""

import inspect
from dataclasses import replace

import structlog

from .clock import sleep
from .copies import dead_copy, describe, read_dead, retry_copy, suspect_copy
from .message import DeadMessage, Message, Properties
from .routing import Queue
from .shown import shown
from .transports.base import Outgoing, VerdictKind
from .work import Counts, Surroundings, Work

log = structlog.get_logger("eventpipe")

STORE_AGAIN = (0.1, 10.0)
"""Seconds between tries to store a copy that the broker does not take: at first, and at most."""


class NotStored(Exception):
    """The transport closed before the broker took a copy; the original stays."""


class Storing:
    """Stores copies, however often it takes; ``trouble`` says what can't be stored at the moment."""

    def __init__(self, work: Work, around: Surroundings, counts: Counts) -> None:
        self.trouble: str | None = None
        self._work, self._around, self._counts = work, around, counts

    async def retry(self, message: Message, seconds: float, failure: BaseException | None) -> None:
        """Store the copy that will be handled next, after ``seconds``."""
        attempt = message.attempt + 1
        log.info("retry", seconds=seconds, next_attempt=attempt, error=shown(repr(failure)))
        text = "" if failure is None else f"{type(failure).__name__}: {failure}"
        copy = retry_copy(message, attempt=attempt, now=self._around.clock.time(), failure=text)
        await self._store(message, self._work.queue, copy, seconds)
        self._counts.retried += 1

    async def dead_letter(self, message: Message, reason: str, failure: BaseException | None = None) -> None:
        """Store the dead letter, then tell ``on_dead_letter``."""
        log.warning("dead-lettered", reason=shown(reason), error=shown(repr(failure)) if failure else None)
        names, now = ", ".join(handler.name for handler in self._work.handlers), self._around.clock.time()
        before = read_dead(message)  # what its copies carry of the attempts before this one
        dead = DeadMessage(
            message=message,
            queue=self._work.queue.name,
            reason=reason,
            attempt=message.attempt,
            handler=names,
            first_tried=before.first_tried or now,
            died=now,
            history=before.history,
        )
        if failure is not None:
            error_type, error, traceback = describe(failure)
            dead = replace(dead, error_type=error_type, error=error, traceback=traceback)
        target = self._work.queue.dead
        if target is not None:
            await self._store(message, target, dead_copy(dead, handler=names, now=now))
        self._counts.dead_lettered += 1
        if self._work.on_dead_letter is None:
            return
        try:
            result = self._work.on_dead_letter(dead)
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("on_dead_letter failed; the dead letter itself is stored")

    async def set_aside(self, message: Message, times: int | None) -> None:
        """Move a message that may have killed its process to where it is handled alone; it costs it no attempt.

        Its neighbours were handed out as often as it was: the count alone can't tell which of them did it.
        """
        log.warning("set aside: handed out repeatedly and never settled", times=times)
        await self._store_suspect(message, message.attempt)
        self._counts.set_aside += 1

    async def charge(self, message: Message) -> None:
        """Charge one attempt to a suspect that was handed out alone and never settled.

        Its process ended, or its connection did: whoever gets it next can't know which.
        """
        what = "handed out alone and never settled: its process died, or was cut off"
        if message.attempt >= self._work.retry.attempts:
            await self.dead_letter(message, f"{what}; attempt {message.attempt}")
        else:
            await self._store_suspect(message, message.attempt + 1, what)

    async def hand_on(self, message: Message, queue: Queue) -> None:
        """Leave it to the next process with nothing counted against it: this one stops, and not because of it."""
        if queue == self._work.queue:
            copy = retry_copy(message, attempt=message.attempt, now=self._around.clock.time())
            await self._store(message, queue, copy)
        else:
            await self._store_suspect(message, message.attempt)

    async def _store_suspect(self, message: Message, attempt: int, failure: str | None = None) -> None:
        suspects = self._work.queue.suspects
        if suspects is not None:
            copy = suspect_copy(message, attempt=attempt, now=self._around.clock.time(), failure=failure)
            await self._store(message, suspects, copy)

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
                raise NotStored
            self.trouble = (
                f"a copy can't be stored in queue {queue.name!r}: {verdict.kind.value} {verdict.reason}".rstrip()
            )
            log.error(shown(self.trouble), message_id=shown(message.id))
            await sleep(self._around.clock, pause)
            pause = min(2 * pause, longest)
