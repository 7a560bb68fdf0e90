"""One queue of the memory broker: what waits in it, who consumes it, and what it gives up."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ...errors import TopologyError
from ...routing import Queue
from ..base import Delivery, Outgoing, Sink

BURST = 1_000
"""Messages that one queue hands out in one turn of the loop: consumers that settle at once must not keep it."""


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue; ``place`` is its position, which it keeps when it is given back."""

    place: int
    outgoing: Outgoing
    expires: float | None = None
    count: int = 0


@dataclass(slots=True, eq=False)
class Channel:
    """One consumer's side of a queue, for one epoch; its sink is called on ``loop`` only.

    While it is paused it still takes up to ``prefetch`` messages, as a RabbitMQ client does, and holds them.
    """

    sink: Sink
    prefetch: int
    epoch: int
    loop: asyncio.AbstractEventLoop
    paused: bool = False
    tag: int = 0
    unacked: dict[int, Stored] = field(default_factory=dict)
    held: deque[Delivery] = field(default_factory=deque)


Drop = Callable[["MemoryQueue", Stored, str], object]
"""Takes what a queue gives up, and why."""


class MemoryQueue:
    """Messages in order. ``owner`` is the connection that an exclusive queue belongs to."""

    def __init__(self, spec: Queue, drop: Drop, *, owner: object = None) -> None:
        self.spec, self.owner = spec, owner
        self.channels: deque[Channel] = deque()
        self.refused: deque[Outgoing] = deque()
        """Delayed messages and dead letters that must not be lost and found no room; they come in when there is."""
        self.alarm: float | None = None
        """The moment for which the broker has arranged to look at what expires."""
        self._drop = drop
        self._ready: deque[Stored] = deque()
        self._place = self._bytes = 0
        self._counts = spec.kind == "quorum"
        self._limit: int | None = spec.wire_arguments.get("x-delivery-limit")

    # --- to look at

    @property
    def ready(self) -> int:
        """How many messages wait for a consumer."""
        return len(self._ready)

    @property
    def unacked(self) -> int:
        """How many messages are with consumers."""
        return sum(len(channel.unacked) for channel in self.channels)

    def messages(self) -> list[Outgoing]:
        """Give what is ready, in order, without consuming it: each has body, properties, exchange and key."""
        return [stored.outgoing for stored in self._ready]

    @property
    def eager(self) -> set[asyncio.AbstractEventLoop]:
        """The loops on which a consumer would take what is ready."""
        if not self._ready:
            return set()
        return {channel.loop for channel in self.channels if len(channel.unacked) < channel.prefetch}

    @property
    def head_expires(self) -> float | None:
        """When the message at the head expires; as in RabbitMQ, what waits behind it is not looked at."""
        return self._ready[0].expires if self._ready else None

    def full(self, size: int) -> bool:
        """Tell whether a queue that rejects has no room for a message of ``size`` bytes.

        A quorum queue notices only when it is over its limit: it takes one message more.
        """
        if self.spec.overflow == "drop-head":
            return False
        more, size = (0, 0) if self._counts else (1, size)
        return self._over(len(self._ready) + more, self._bytes + size)

    def check_owner(self, client: object) -> None:
        """Refuse another connection's exclusive queue. Raises ``TopologyError``."""
        if self.owner not in (None, client):
            raise TopologyError(f"queue {self.spec.name!r} is exclusive to another connection")

    # --- what moves

    def purge(self) -> None:
        """Forget everything: the queue is deleted."""
        self._ready.clear()
        self.refused.clear()
        self._bytes = 0

    def put(self, outgoing: Outgoing, expires: float | None) -> None:
        """Append a message."""
        self._place += 1
        self._ready.append(Stored(self._place, outgoing, expires))
        self._bytes += len(outgoing.body)

    def push(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand out what the consumers on this loop have credit for, one after the other."""
        channels = self.channels
        for channel in list(channels):
            while channel.held and channel.loop is loop and not channel.paused:
                channel.sink(channel.held.popleft())
        idle = burst = 0
        while self._ready and idle < len(channels) and burst < BURST:
            channel = channels[0]
            channels.rotate(-1)
            if channel.loop is loop and len(channel.unacked) < channel.prefetch:
                self._hand_out(channel, self._pop())
                idle, burst = 0, burst + 1
            else:
                idle += 1

    def tidy(self, now: float) -> None:
        """Give up what has expired at the head or is over a limit.

        Not while a consumer has credit: it gets the message first, as if it had been handed out at once.
        """
        while not self.eager and (expires := self.head_expires) is not None and expires <= now:
            self._drop(self, self._pop(), "expired")
        if self.spec.overflow == "drop-head":
            while not self.eager and self._ready and self._over(len(self._ready), self._bytes):
                self._drop(self, self._pop(), "maxlen")

    def give_back(self, returned: Iterable[Stored]) -> None:
        """Put messages back in their places; one that was handed out too often is given up."""
        back: list[Stored] = []
        for stored in sorted(returned, key=_place):
            stored.count += 1
            if self._limit is not None and stored.count > self._limit:
                self._drop(self, stored, "delivery_limit")
            else:
                back.append(stored)
                self._bytes += len(stored.outgoing.body)
        before: list[Stored] = []
        while back and self._ready and self._ready[0].place < back[-1].place:
            before.append(self._ready.popleft())
        self._ready.extendleft(reversed(list(heapq.merge(back, before, key=_place))))

    def _over(self, count: int, size: int) -> bool:
        spec = self.spec
        return (spec.max_length is not None and count > spec.max_length) or (
            spec.max_length_bytes is not None and size > spec.max_length_bytes
        )

    def _pop(self) -> Stored:
        stored = self._ready.popleft()
        self._bytes -= len(stored.outgoing.body)
        return stored

    def _hand_out(self, channel: Channel, stored: Stored) -> None:
        channel.tag = tag = channel.tag + 1
        channel.unacked[tag] = stored
        outgoing, count = stored.outgoing, stored.count
        properties = outgoing.properties
        if count and self._counts:
            properties = replace(properties, headers={**properties.headers, "x-delivery-count": count})
        delivery = Delivery(
            tag,
            channel.epoch,
            outgoing.body,
            properties,
            outgoing.exchange,
            outgoing.key,
            count > 0,
            count if self._counts else None,
        )
        if channel.paused:
            channel.held.append(delivery)
        else:
            channel.sink(delivery)


def _place(stored: Stored) -> int:
    return stored.place
