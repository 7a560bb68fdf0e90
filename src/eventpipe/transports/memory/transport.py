"""The transport protocol on a memory broker."""

import asyncio

from ...clock import Clock
from ...errors import ConfigurationError, ConnectError, InvalidMessage, TopologyError, TopologyMissing
from ...retry import MAX_DELAY
from ...routing import Queue, Topology
from ..base import OnLost, Outgoing, Sink, TransportState, Verdict, VerdictKind
from .broker import MemoryBroker
from .subscription import MemorySubscription, try_reopen


class MemoryTransport:
    """A connection to a memory broker. What is published before ``connect`` waits for it."""

    def __init__(self, broker: MemoryBroker, *, clock: Clock) -> None:
        self.broker = broker
        self.clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = self._closed = False
        self._subscriptions: list[MemorySubscription] = []
        self._lost: list[MemorySubscription] = []
        self._topologies: list[Topology] = []
        self._outbox: dict[asyncio.Future[Verdict], tuple[Outgoing, float]] = {}
        self._flushing: list[asyncio.Future[None]] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it connected on."""
        if self._loop is None:
            raise ConnectError("this transport of the memory broker was never connected")
        return self._loop

    @property
    def pending(self) -> bool:
        """Whether something published waits for its verdict."""
        return bool(self._outbox)

    async def connect(self) -> None:
        if self._loop is not None:
            raise ConfigurationError("a memory transport is connected once; make another one")
        self._loop = asyncio.get_running_loop()
        self._connected = True
        self.broker.attach(self)

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        self._must_be_open()
        self.broker.declare(topology, passive=passive, owner=self)
        if not passive and topology not in self._topologies:
            self._topologies.append(topology)

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> MemorySubscription:
        self._must_be_open()
        if queue.kind == "stream":
            raise ConfigurationError(f"queue {queue.name!r} is a stream: it can be published to, not consumed yet")
        subscription = MemorySubscription(self.broker, self, queue, prefetch)
        if not subscription.start(sink, on_lost):
            raise TopologyMissing(f"queue {queue.name!r} does not exist; declare it first")
        self._subscriptions = [*(one for one in self._subscriptions if not one.closed), subscription]
        return subscription

    def publish(self, outgoing: Outgoing) -> "asyncio.Future[Verdict]":
        return self._send(outgoing, 0.0)

    def delay(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        if not seconds <= MAX_DELAY:  # not a number either
            raise InvalidMessage(f"a delay of {seconds} s is too long: at most {MAX_DELAY:.0f} s (27.3 hours)")
        return self._send(outgoing, seconds)

    def withdraw(self, verdict: "asyncio.Future[Verdict]") -> bool:
        sent = self._outbox.pop(verdict, None) is None
        self._wake_flushers()
        return sent

    async def flush(self) -> None:
        if self._outbox:
            done: asyncio.Future[None] = self.loop.create_future()
            self._flushing.append(done)
            await done

    async def depth(self, queue: str) -> int:
        if queue not in self.broker.queues:
            raise TopologyMissing(f"queue {queue!r} does not exist")
        return self.broker.queues[queue].ready

    @property
    def state(self) -> TransportState:
        return TransportState(connected=self._connected, blocked=self.broker.blocked)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for subscription in self._subscriptions:
            await subscription.close()
        outbox, self._outbox = self._outbox, {}
        for future in outbox:
            _resolve(future, Verdict(VerdictKind.NOT_SENT, "the transport was closed"))
        self._wake_flushers()
        self._connected = False
        if self._loop is not None:
            self.broker.detach(self)

    # --- what the broker calls

    def turn(self) -> None:
        """Reconnect, reopen what was lost, then hand the broker what was published."""
        self._connected = True
        if self._lost:
            self._reopen()
        if self.broker.blocked or not self._outbox:
            return
        publish, outbox, self._outbox = self.broker.publish, self._outbox, {}
        for future, (outgoing, seconds) in outbox.items():
            if future.done():
                continue  # cancelled: nobody waits for it any more
            verdict = self.broker.delay(outgoing, seconds) if seconds > 0 else publish(outgoing)
            if verdict is None:
                self._outbox[future] = (outgoing, seconds)
            else:
                future.set_result(verdict)
        self._wake_flushers()

    def disconnect(self) -> None:
        """Lose every subscription; what was not confirmed stays in the outbox and is sent again."""
        self._connected = False
        for subscription in list(self._subscriptions):
            self._lose(subscription, "the connection was lost")
        self.broker.delete_exclusive(self)

    def forget(self) -> None:
        """Give everything back without a word: the event loop is closed."""
        self._connected, self._closed = False, True
        for subscription in self._subscriptions:
            subscription.forget()
        self._outbox.clear()

    def cancelled(self, queue: str) -> None:
        """Lose the consumers of a deleted queue."""
        for subscription in list(self._subscriptions):
            if subscription.spec.name == queue:
                self._lose(subscription, f"queue {queue!r}: the broker cancelled the consumer: was the queue deleted?")

    def _lose(self, subscription: MemorySubscription, reason: str) -> None:
        if subscription.lose(reason):
            self._lost.append(subscription)

    def _reopen(self) -> None:
        """Begin new epochs, declaring again what was ours and is gone."""
        lost, self._lost = self._lost, []
        if any(one.spec.declare and one.spec.name not in self.broker.queues for one in lost):
            self._declare_again(lost)
        self._lost += [one for one in lost if not one.closed and not try_reopen(one)]

    def _declare_again(self, lost: list[MemorySubscription]) -> None:
        for topology in self._topologies:
            try:
                self.broker.declare(topology, passive=False, owner=self)
            except TopologyError as error:
                for one in lost:
                    one.error = str(error)

    def _send(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        loop = self._loop
        if loop is None:
            loop = asyncio.get_running_loop()
        future: asyncio.Future[Verdict] = loop.create_future()
        if self._closed:
            future.set_result(Verdict(VerdictKind.NOT_SENT, "the transport is closed"))
            return future
        self._outbox[future] = (outgoing, seconds)
        self.broker.wake(loop)
        return future

    def _must_be_open(self) -> None:
        if self._loop is None or self._closed:
            raise ConnectError("this transport of the memory broker is not connected")

    def _wake_flushers(self) -> None:
        if self._outbox:
            return
        flushing, self._flushing = self._flushing, []
        for done in flushing:
            if not done.done():
                done.set_result(None)


def _resolve(future: "asyncio.Future[Verdict]", verdict: Verdict) -> None:
    if not future.done():
        future.set_result(verdict)
