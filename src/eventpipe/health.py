"""Whether a pipe does its work now, put together from what its transport and its workers know."""

from collections.abc import Iterable
from dataclasses import dataclass

from .transports.base import Transport, TransportState
from .worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerHealth:
    """How the consumer of one queue is doing; ``oldest`` is the age of its oldest unsettled delivery, in seconds."""

    queue: str
    consuming: bool
    draining: bool
    in_flight: int
    unsettled: int
    oldest: float | None
    handled: int
    retried: int
    dead_lettered: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a pipe does its work now: connected, not blocked, and every started consumer is served, not draining."""

    ok: bool
    transport: TransportState
    consumers: tuple[ConsumerHealth, ...]

    @property
    def problem(self) -> str | None:
        """What keeps it from being ``ok``, in a few words."""
        if self.transport.problem is not None:
            return self.transport.problem
        for one in self.consumers:
            if one.draining:
                return f"queue {one.queue!r}: draining"
            if one.error is not None or not one.consuming:
                return f"queue {one.queue!r}: {one.error or 'not consuming yet'}"
        return None


def health_of(transport: Transport, workers: Iterable[Worker]) -> Health:
    """Ask everybody."""
    consumers = tuple(map(_consumer, workers))
    state = transport.state
    served = all(one.consuming and not one.draining and one.error is None for one in consumers)
    return Health(ok=state.problem is None and served, transport=state, consumers=consumers)


def _consumer(worker: Worker) -> ConsumerHealth:
    states = [intake.state for intake in worker.intakes]
    ages = [age for intake in worker.intakes if (age := intake.oldest()) is not None]
    return ConsumerHealth(
        queue=worker.work.queue.name,
        consuming=all(state.consuming for state in states),
        draining=worker.draining,
        in_flight=worker.in_flight,
        unsettled=sum(intake.unsettled for intake in worker.intakes),
        oldest=max(ages, default=None),
        handled=worker.counts.handled,
        retried=worker.counts.retried,
        dead_lettered=worker.counts.dead_lettered,
        error=worker.trouble or next((state.error for state in states if state.error), None),
    )
