"""The transport protocol: everything that eventpipe asks of a broker.

Delivering and settling are synchronous pushes: a transport calls ``sink(delivery)`` from its reader and never awaits
it, a worker calls ``settle`` and never waits for the wire. Whoever buffers is bounded by the prefetch. A new broker is
one class that keeps these comments; ``tests/contract`` is the suite that says whether it does.

The life of a subscription is a sequence of **epochs**, one for each time that the broker knows of it. Tags mean
something within their epoch only: what was unsettled when an epoch ended is delivered again in a later one.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..message import Properties
from ..routing import Queue, Topology


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a message can't be read at all, found below any handler; ``reason`` goes into its dead letter."""

    reason: str


@dataclass(slots=True, eq=False)
class Delivery:
    """One hand-over of one message, which holds one event or, packed, several; it is settled once, as a whole.

    ``delivery_count`` is how often the broker handed it out before without an acknowledgement (0 at first), or ``None``
    where the broker does not count. ``fault`` is set when the properties could not be read; ``body`` is then raw.
    """

    tag: int
    epoch: int
    body: bytes
    properties: Properties
    exchange: str = ""
    key: str = ""
    redelivered: bool = False
    delivery_count: int | None = 0
    fault: Fault | None = None


class VerdictKind(Enum):
    """What the broker said of one publish."""

    CONFIRMED = "confirmed"
    UNROUTABLE = "unroutable"
    REFUSED = "refused"
    NOT_SENT = "not sent"  # the transport closed before the message left
    UNKNOWN = "unknown"  # it left, and the transport closed before the broker answered


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one publish, and the broker's words about it."""

    kind: VerdictKind
    reason: str = ""


CONFIRMED = Verdict(VerdictKind.CONFIRMED)


@dataclass(slots=True, eq=False)  # frozen ones cost four times as much to make
class Outgoing:
    """An encoded message on its way: to an exchange with a key, or to a queue (exchange ``""``, key its name)."""

    exchange: str
    key: str
    body: bytes
    properties: Properties
    mandatory: bool = True


Sink = Callable[[Delivery], object]
"""Takes a delivery, at once; it must not raise and can't wait."""

OnLost = Callable[[int], object]
"""Hears that an epoch ended (the connection, the channel or the consumer is gone), before any delivery of the next."""


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """Whether the broker is pushing to a subscription now, and if not, why."""

    consuming: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TransportState:
    """The truth about a transport's connections.

    ``blocked``: the broker takes no publishes now (memory or disk alarm).
    """

    connected: bool
    blocked: bool = False
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """What keeps it from publishing, in a few words."""
        if not self.connected:
            return f"not connected: {self.error or 'reconnecting'}"
        return "the broker has blocked publishing: a memory or disk alarm" if self.blocked else None


class Subscription(Protocol):
    """The pushes of one queue, up to ``prefetch`` unsettled ones, over reconnects, until it is closed."""

    @property
    def epoch(self) -> int:
        """The current epoch."""
        ...

    @property
    def state(self) -> ConsumerState:
        """Whether it is being served."""
        ...

    def settle(self, epoch: int, tags: Sequence[int], *, multiple: bool = False, requeue: bool = False) -> bool:
        """Acknowledge deliveries, or ``requeue`` them; ``multiple`` takes all up to the highest tag.

        Never blocks; writes are coalesced. ``False``: the epoch is over, nothing was written, they will come again.
        """
        ...

    async def flush(self) -> None:
        """Wait until the broker has what was settled, or the epoch is over; in bounded time."""
        ...

    def pause(self) -> None:
        """Push nothing more to the sink, from now on; the broker keeps counting what it has handed out."""
        ...

    def resume(self) -> None:
        """Push again, what was held first."""
        ...

    async def cancel(self) -> None:
        """Ask for no more pushes, for good, and wait until the broker has heard; in bounded time.

        What it has handed out can still be settled. It is not consumed again when the epoch ends.
        """
        ...

    async def close(self) -> None:
        """Write what is settled, then give everything else back, in order. Nothing is pushed after it."""
        ...


class Transport(Protocol):
    """A broker, over reconnects, until it is closed.

    Opened on one event loop and used on that one only. No method runs user code.
    """

    async def connect(self) -> None:
        """Connect, or raise ``ConnectError`` within the connect timeout. From then on it reconnects by itself."""
        ...

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        """Make exchanges, queues and bindings exist, and what delays need; ``passive`` only checks that they do.

        Raises ``TopologyMismatch``, ``TopologyMissing`` or ``ConnectError``. Objects with ``declare=False`` are only
        checked. Never disturbs other channels.
        """
        ...

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> Subscription:
        """Start the pushes of a queue. Raises ``TopologyMissing`` or ``ConnectError``."""
        ...

    def publish(self, outgoing: Outgoing) -> "asyncio.Future[Verdict]":
        """Send a message, now or once connected; give the future of the broker's verdict, which does not fail.

        What is unconfirmed when a connection is lost is sent again, with the same id, on the next one.
        """
        ...

    def delay(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        """Send a message that arrives after so many seconds at the earliest; confirmed once the wait itself is safe.

        Raises ``InvalidMessage`` for a delay or a key that this broker can't hold back.
        """
        ...

    def withdraw(self, verdict: "asyncio.Future[Verdict]") -> bool:
        """Forget a publish that nobody waits for any more; tell whether it may have been sent."""
        ...

    async def flush(self) -> None:
        """Wait until everything published has its verdict and everything settled is written."""
        ...

    async def depth(self, queue: str) -> int:
        """Count the messages that are ready in a queue. Raises ``TopologyMissing`` or ``ConnectError``."""
        ...

    @property
    def state(self) -> TransportState:
        """How its connections are."""
        ...

    async def close(self) -> None:
        """Close subscriptions and connections, in bounded time; verdicts that are still due are given as not known."""
        ...
