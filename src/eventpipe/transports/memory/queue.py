"""One queue of the memory broker: what waits in it, who consumes it, and what it drops."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...message import Properties
from ...routing import DELIVERY_LIMIT, Queue
from ..base import Delivery, Sink


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue; ``place`` is its position, which it keeps when it is given back."""

    place: int
    body: bytes
    properties: Properties
    exchange: str
    key: str
    expires: float | None = None
    count: int = 0


@dataclass(slots=True, eq=False)
class Channel:
    """One consumer's side of a queue, for one epoch."""

    sink: Sink
    prefetch: int
    epoch: int
    unacked: dict[int, Stored]
    tag: int = 0
    paused: bool = False

    @property
    def credit(self) -> bool:
        return not self.paused and len(self.unacked) < self.prefetch


class MemoryQueue:
    """Messages in order. ``drop(stored, reason)`` is called for what the queue gives up."""

    def __init__(self, spec: Queue, drop: Callable[["MemoryQueue", Stored, str], None]) -> None:
        self.spec = spec
        self.ready: deque[Stored] = deque()
        self.channels: deque[Channel] = deque()
        self._drop = drop
        self._place = 0
        self._bytes = 0
        counts = spec.kind == "quorum" and spec.dead_letter
        limit = DELIVERY_LIMIT if spec.delivery_limit is None else spec.delivery_limit
        self._limit = limit if counts else None
        self._counts = spec.kind == "quorum"

    @property
    def unacked(self) -> int:
        """How many messages are with consumers."""
        return sum(len(channel.unacked) for channel in self.channels)

    def full(self, size: int) -> bool:
        """Tell whether one more message of ``size`` bytes is over a limit."""
        spec = self.spec
        return (spec.max_length is not None and len(self.ready) + 1 > spec.max_length) or (
            spec.max_length_bytes is not None and self._bytes + size > spec.max_length_bytes
        )

    def put(self, stored: Stored) -> None:
        """Append a message, dropping the oldest where the queue does that."""
        while self.spec.overflow == "drop-head" and self.ready and self.full(len(stored.body)):
            self._drop(self, self._pop(), "maxlen")
        self._place += 1
        stored.place = self._place
        self.ready.append(stored)
        self._bytes += len(stored.body)

    def expire(self, now: float) -> None:
        """Drop what has expired at the head; as in RabbitMQ, what waits behind it is not looked at."""
        while self.ready and self.ready[0].expires is not None and self.ready[0].expires <= now:
            self._drop(self, self._pop(), "expired")

    def push(self, now: float) -> None:
        """Hand out what there is credit for, to one consumer after the other."""
        idle = 0
        while self.ready and idle < len(self.channels):
            self.expire(now)
            if not self.ready:
                return
            channel = self.channels[0]
            self.channels.rotate(-1)
            if not channel.credit:
                idle += 1
                continue
            idle = 0
            self._hand_out(channel, self._pop())

    def give_back(self, returned: Iterable[Stored]) -> None:
        """Put messages back in their places; one handed out too often is given up."""
        back = []
        for stored in sorted(returned, key=lambda one: one.place):
            stored.count += 1
            if self._limit is not None and stored.count > self._limit:
                self._drop(self, stored, "delivery_limit")
            else:
                back.append(stored)
                self._bytes += len(stored.body)
        while back and self.ready and self.ready[0].place < back[-1].place:
            back.append(self.ready.popleft())
            back.sort(key=lambda one: one.place)
        self.ready.extendleft(reversed(back))

    def _pop(self) -> Stored:
        stored = self.ready.popleft()
        self._bytes -= len(stored.body)
        return stored

    def _hand_out(self, channel: Channel, stored: Stored) -> None:
        channel.tag += 1
        channel.unacked[channel.tag] = stored
        channel.sink(
            Delivery(
                channel.tag,
                channel.epoch,
                stored.body,
                stored.properties,
                stored.exchange,
                stored.key,
                redelivered=stored.count > 0,
                delivery_count=stored.count if self._counts else None,
            )
        )
