"""The transport protocol on a memory broker."""

import asyncio
from collections.abc import Sequence

from ...clock import Clock
from ...errors import ConfigurationError, ConnectError, TopologyMissing
from ...routing import Queue, Topology
from ..base import (
    ConsumerState,
    OnLost,
    Outgoing,
    Sink,
    TransportState,
    Verdict,
    VerdictKind,
)
from .broker import MemoryBroker
from .queue import Channel, MemoryQueue, Stored


class MemorySubscription:
    """The pushes of one queue of a memory broker."""

    def __init__(self, broker: MemoryBroker, spec: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> None:
        self.epoch = 0
        self.spec = spec
        self.stale = 0
        self._broker, self._prefetch, self._sink, self._on_lost = broker, prefetch, sink, on_lost
        self._queue: MemoryQueue | None = None
        self._channel: Channel | None = None
        self._paused = self._closed = False

    @property
    def state(self) -> ConsumerState:
        if self._channel is not None:
            return ConsumerState(consuming=True)
        return ConsumerState(consuming=False, error=f"queue {self.spec.name!r} is gone, or the connection is lost")

    def attach(self) -> bool:
        """Begin an epoch, if there is none and the queue exists."""
        queue = self._broker.queues.get(self.spec.name)
        if self._closed or self._channel is not None or queue is None:
            return False
        self.epoch += 1
        self._channel = Channel(self._sink, self._prefetch, self.epoch, {}, paused=self._paused)
        self._queue = queue
        queue.channels.append(self._channel)
        return True

    def lose(self) -> None:
        """End the epoch: what is unsettled goes back, and the client hears of it."""
        if self._channel is not None:
            self._detach()
            self._on_lost(self.epoch)

    def settle(self, epoch: int, tags: Sequence[int], *, multiple: bool = False, requeue: bool = False) -> bool:
        channel, queue = self._channel, self._queue
        if channel is None or queue is None or epoch != channel.epoch:
            self.stale += 1
            return False
        unacked = channel.unacked
        if multiple:
            tags = [tag for tag in unacked if tag <= max(tags)]
        settled = [stored for tag in tags if (stored := unacked.pop(tag, None)) is not None]
        if requeue:
            queue.give_back(settled)
        if queue.ready:
            self._broker.wake()
        return True

    def pause(self) -> None:
        self._set_paused(paused=True)

    def resume(self) -> None:
        self._set_paused(paused=False)
        self._broker.wake()

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            self._detach()
            self._broker.wake()

    def _set_paused(self, *, paused: bool) -> None:
        self._paused = paused
        if self._channel is not None:
            self._channel.paused = paused

    def _detach(self) -> None:
        channel, queue = self._channel, self._queue
        self._channel = self._queue = None
        if channel is None or queue is None:
            return
        queue.channels.remove(channel)
        returned: list[Stored] = list(channel.unacked.values())
        channel.unacked.clear()
        queue.give_back(returned)
        if queue.spec.auto_delete and not queue.channels and self._broker.queues.get(self.spec.name) is queue:
            self._broker.delete_queue(self.spec.name)


class MemoryTransport:
    """A connection to a memory broker."""

    def __init__(self, broker: MemoryBroker, *, clock: Clock) -> None:
        self.broker = broker
        self._clock = clock
        self._connected = False
        self._subscriptions: list[MemorySubscription] = []
        self._topologies: list[Topology] = []
        self._outbox: dict[asyncio.Future[Verdict], tuple[Outgoing, float]] = {}
        self._flushing: list[asyncio.Future[None]] = []

    async def connect(self) -> None:
        self._connected = True
        self.broker.attach(self, self._clock)

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        self._must_be_connected()
        self.broker.declare(topology, passive=passive)
        if not passive:
            self._topologies.append(topology)

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> MemorySubscription:
        self._must_be_connected()
        if queue.kind == "stream":
            raise ConfigurationError(f"queue {queue.name!r} is a stream: it can be published to, not consumed yet")
        subscription = MemorySubscription(self.broker, queue, prefetch, sink, on_lost)
        if not subscription.attach():
            raise TopologyMissing(f"queue {queue.name!r} does not exist; declare it first")
        self._subscriptions.append(subscription)
        self.broker.wake()
        return subscription

    def publish(self, outgoing: Outgoing) -> "asyncio.Future[Verdict]":
        return self.delay(outgoing, 0.0)

    def delay(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if not self._connected:
            future.set_result(Verdict(VerdictKind.NOT_SENT, "the transport is closed"))
            return future
        self._outbox[future] = (outgoing, seconds)
        self.broker.wake()
        return future

    @property
    def pending(self) -> bool:
        """Whether something published waits for its verdict."""
        return bool(self._outbox)

    def withdraw(self, verdict: "asyncio.Future[Verdict]") -> bool:
        return self._outbox.pop(verdict, None) is None

    async def flush(self) -> None:
        while self._outbox:
            done = asyncio.get_running_loop().create_future()
            self._flushing.append(done)
            await done

    async def depth(self, queue: str) -> int:
        if queue not in self.broker.queues:
            raise TopologyMissing(f"queue {queue!r} does not exist")
        return len(self.broker.queues[queue].ready)

    @property
    def state(self) -> TransportState:
        return TransportState(connected=self._connected, blocked=self.broker.blocked)

    async def close(self) -> None:
        if not self._connected:
            return
        self._connected = False
        for subscription in self._subscriptions:
            await subscription.close()
        for future in self._outbox:
            _resolve(future, Verdict(VerdictKind.NOT_SENT, "the transport was closed"))
        self._outbox.clear()
        self._wake_flushers()
        self.broker.detach(self)
        for topology in self._topologies:
            for queue in topology.queues:
                if queue.exclusive:
                    self.broker.delete_queue(queue.name)

    # --- what the broker calls

    def turn(self) -> None:
        """Reopen what was lost, then hand the broker what was published."""
        for subscription in self._subscriptions:
            subscription.attach()
        if self.broker.blocked:
            return
        outbox, self._outbox = self._outbox, {}
        for future, (outgoing, seconds) in outbox.items():
            if not future.cancelled():
                _resolve(future, self.broker.delay(outgoing, seconds) if seconds > 0 else self.broker.publish(outgoing))
        self._wake_flushers()

    def disconnect(self) -> None:
        """Lose every subscription; what was not confirmed stays in the outbox and is sent again."""
        for subscription in self._subscriptions:
            subscription.lose()

    def cancelled(self, queue: str) -> None:
        """Lose the consumers of a deleted queue, and declare it again if it was ours."""
        lost = [subscription for subscription in self._subscriptions if subscription.spec.name == queue]
        for subscription in lost:
            subscription.lose()
        if any(subscription.spec.declare for subscription in lost):
            self.broker.call_later(0.0, self._declare_again)

    def _declare_again(self) -> None:
        for topology in self._topologies if self._connected else ():
            self.broker.declare(topology, passive=False)

    def _must_be_connected(self) -> None:
        if not self._connected:
            raise ConnectError("this transport of the memory broker is not connected")

    def _wake_flushers(self) -> None:
        flushing, self._flushing = self._flushing, []
        for done in flushing:
            if not done.done():
                done.set_result(None)


def _resolve(future: "asyncio.Future[Verdict]", verdict: Verdict) -> None:
    if not future.done():
        future.set_result(verdict)
