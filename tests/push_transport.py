"""A throw-away transport that shows what the protocol asks of one: it pushes synchronously, from inside a "read"."""

import asyncio
from collections.abc import Sequence

from eventpipe.message import Properties
from eventpipe.routing import Queue, Topology
from eventpipe.transports.base import (
    CONFIRMED,
    ConsumerState,
    Delivery,
    OnLost,
    Outgoing,
    Sink,
    TransportState,
    Verdict,
)


class PushSubscription:
    """Records what is settled; the test calls ``push`` and ``lose``."""

    def __init__(self, sink: Sink, on_lost: OnLost) -> None:
        self.epoch, self.state = 1, ConsumerState(consuming=True)
        self.settled: list[tuple[int, int]] = []
        self.given_back: list[int] = []
        self.stale = 0
        self.paused = self.cancelled = self.closed = False
        self._sink, self._on_lost, self._tag = sink, on_lost, 0

    def push(self, body: bytes, properties: Properties | None = None, **more: object) -> Delivery:
        self._tag += 1
        delivery = Delivery(self._tag, self.epoch, body, properties or Properties(message_id=f"m{self._tag}"), **more)
        self._sink(delivery)
        return delivery

    def lose(self) -> None:
        lost, self.epoch, self._tag = self.epoch, self.epoch + 1, 0
        self._on_lost(lost)

    def settle(self, epoch: int, tags: Sequence[int], *, multiple: bool = False, requeue: bool = False) -> bool:
        if epoch != self.epoch:
            self.stale += 1
            return False
        if requeue:
            self.given_back += tags
        else:
            self.settled += [(epoch, tag) for tag in tags]
        return True

    async def flush(self) -> None:
        """Nothing to do: it is written at once."""

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    async def cancel(self) -> None:
        self.cancelled = True

    async def close(self) -> None:
        self.closed = True


class PushTransport:
    """Confirms every publish with ``verdict``, or leaves it open while that is ``None``."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, PushSubscription] = {}
        self.published: list[tuple[Outgoing, float]] = []
        self.verdict: Verdict | None = CONFIRMED
        self.open: list[asyncio.Future[Verdict]] = []
        self.state = TransportState(connected=True)

    async def connect(self) -> None:
        """Nothing to do."""

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        """Nothing to do."""

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> PushSubscription:
        self.subscriptions[queue.name] = PushSubscription(sink, on_lost)
        return self.subscriptions[queue.name]

    def publish(self, outgoing: Outgoing) -> asyncio.Future[Verdict]:
        return self.delay(outgoing, 0.0)

    def delay(self, outgoing: Outgoing, seconds: float) -> asyncio.Future[Verdict]:
        self.published.append((outgoing, seconds))
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if self.verdict is None:
            self.open.append(future)
        else:
            future.set_result(self.verdict)
        return future

    def withdraw(self, verdict: asyncio.Future[Verdict]) -> bool:
        return True

    async def flush(self) -> None:
        """Nothing to do."""

    async def depth(self, queue: str) -> int:
        return 0

    async def close(self) -> None:
        """Nothing to do."""
