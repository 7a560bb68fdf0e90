"""A subscription with a bounded deque of raw deliveries: what a worker, a flow or a store draws from.

Its client decides when to settle; nothing here decodes or handles. The bound is the prefetch, which the broker keeps.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .clock import Clock
from .message import Message
from .routing import Queue
from .transports.base import ConsumerState, Delivery, Subscription, Transport


class Intake:
    """The deliveries of one queue, in the order in which the broker pushed them.

    ``arrived()`` is called, synchronously, for each push; ``lost(intake)`` when an epoch ended, after its waiting
    deliveries were dropped (they come again).
    """

    def __init__(
        self,
        queue: Queue,
        prefetch: int,
        *,
        clock: Clock,
        arrived: Callable[[], object],
        lost: Callable[["Intake"], object],
    ) -> None:
        self.queue, self.prefetch = queue, prefetch
        self.waiting: deque[Delivery] = deque()
        self._unsettled: dict[Delivery, float] = {}
        self._clock, self._arrived, self._lost = clock, arrived, lost
        self._subscription: Subscription | None = None

    async def open(self, transport: Transport) -> None:
        """Subscribe. Raises ``TopologyMissing`` or ``ConnectError``."""
        self._subscription = await transport.subscribe(self.queue, self.prefetch, self._sink, self._on_lost)
        if self.waiting:  # pushed before there was anything to settle them on
            self._arrived()

    @property
    def state(self) -> ConsumerState:
        """Whether the broker is pushing."""
        return ConsumerState(consuming=False) if self._subscription is None else self._subscription.state

    @property
    def unsettled(self) -> int:
        """How many deliveries are not settled, waiting ones included."""
        return len(self._unsettled)

    def oldest(self) -> float | None:
        """Give the age of the oldest unsettled delivery, in seconds."""
        first = next(iter(self._unsettled.values()), None)
        return None if first is None else self._clock.monotonic() - first

    def older(self, seconds: float) -> Iterator[tuple[Delivery, float]]:
        """List the unsettled deliveries that were here longer than this, with their ages, the oldest first."""
        now = self._clock.monotonic()
        for delivery, since in self._unsettled.items():
            if now - since < seconds:
                return
            yield delivery, now - since

    def holds(self, delivery: Delivery) -> bool:
        """Tell whether it is unsettled, and its epoch goes on."""
        return delivery in self._unsettled

    def settle(self, delivery: Delivery) -> bool:
        """Acknowledge one delivery; ``False`` if its epoch is over, so that it will come again."""
        self._unsettled.pop(delivery, None)
        if self._subscription is None:
            return False
        return self._subscription.settle(delivery.epoch, (delivery.tag,))

    async def flush(self) -> None:
        """Wait until the broker has what was settled."""
        if self._subscription is not None:
            await self._subscription.flush()

    async def cancel(self) -> list[Delivery]:
        """Take no more pushes; give what waits and may be somebody else's at once, for the caller to give back.

        With a single active consumer that is nothing: the next one would overtake what is still in hand here; nor with
        a queue that goes with its last consumer. What waits is then given back by closing.
        """
        subscription = self._subscription
        if subscription is None:
            return []
        if self.queue.single_active_consumer or self.queue.auto_delete:
            subscription.pause()
            self.waiting.clear()
            return []
        try:
            await subscription.cancel()
        finally:
            waiting = list(self.waiting)
            self.waiting.clear()
        return waiting

    def give_back(self, delivery: Delivery) -> None:
        """Have the broker hand it out again, and count that."""
        if self._unsettled.pop(delivery, None) is not None and self._subscription is not None:
            self._subscription.settle(delivery.epoch, (delivery.tag,), requeue=True)

    async def close(self) -> None:
        """Write what is settled and give the rest back, in order."""
        subscription, self._subscription = self._subscription, None
        self.waiting.clear()
        if subscription is not None:
            await subscription.close()
        self._unsettled.clear()

    def _sink(self, delivery: Delivery) -> None:
        self._unsettled[delivery] = self._clock.monotonic()
        self.waiting.append(delivery)
        if self._subscription is not None:
            self._arrived()

    def _on_lost(self, _epoch: int) -> None:
        self.waiting.clear()
        self._unsettled.clear()
        self._lost(self)


@dataclass(slots=True, eq=False)
class Parcel:
    """A delivery on its way through a client, and how far its events are.

    ``begun`` counts the events that have begun, ``open`` those that have not ended. A batch has ``bodies``, one for
    each event, and ``events`` if all of them could be decoded at once. ``refusal`` says why it can't be handled.
    """

    intake: Intake
    delivery: Delivery
    size: int = 1
    open: int = 1
    begun: int = 0
    events: list[Any] | None = None
    bodies: list[bytes] | None = None
    whole: Message | None = None
    refusal: str | None = None
    move: Callable[["Parcel"], Awaitable[None]] | None = None

    @property
    def queue(self) -> str:
        return self.intake.queue.name

    def empty(self) -> None:
        """Let go of its events: what is remembered of a settled delivery is the delivery."""
        self.events = self.bodies = self.whole = None

    @property
    def batch(self) -> bool:
        """Whether it is a batch of events, be it of one."""
        return self.events is not None or self.bodies is not None
