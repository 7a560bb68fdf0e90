"""The transport protocol on RabbitMQ: two connections, one to publish and one to consume and declare.

Nothing here retries a message. A blocked publishing connection must not hold up acknowledgements, hence two.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import aiormq.exceptions

from ...clock import Chance, Clock
from ...errors import ConfigurationError, ConnectError, TopologyError, TopologyMissing
from ...routing import Queue, Topology
from ..base import OnLost, Outgoing, Sink, Subscription, TransportState, Verdict
from . import ladder
from .address import parse
from .consuming import RabbitSubscription
from .declaring import carry_out, steps
from .failures import LOST, aiormq_calls
from .link import BACKOFF, RPC_TIMEOUT, Link
from .publishing import Publishing


class RabbitTransport:
    """RabbitMQ at one of several URLs."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        name: str,
        clock: Clock,
        chance: Chance,
        connect_timeout: float = 10.0,
        heartbeat: int = 10,
        fast: bool = True,
    ) -> None:
        self._addresses = [parse(url, heartbeat=heartbeat, timeout=connect_timeout) for url in urls]
        prefixes = {address.prefix for address in self._addresses}
        if len(prefixes) > 1:
            raise ConfigurationError("several broker URLs have different name_prefix parameters")
        self._prefix = prefixes.pop()
        self._name, self._chance, self._fast = name, chance, fast
        self._subscriptions: list[RabbitSubscription] = []
        self._topologies: list[Topology] = []
        self._declared: set[str] = set()  # destinations of the ladder that a topology brought
        self._destinations: set[str] = set()  # and those that were bound since the connection was made
        self._binding = asyncio.Lock()

    async def connect(self) -> None:
        self._consuming = Link(self._addresses, f"{self._name} consume", self._chance, fast=self._fast)
        self._publishing_link = Link(self._addresses, f"{self._name} publish", self._chance, fast=self._fast)
        self._publishing = Publishing(self._publishing_link, self._names)
        self._consuming.lost = self._lost
        await self._consuming.start()
        self._publishing_link.fast = self._consuming.fast  # never one of each
        await self._publishing_link.start()
        self._publishing.start()

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        await carry_out(self._consuming, steps(topology, self._names, passive=passive))
        if topology.retried and passive:
            await carry_out(self._consuming, steps(ladder.objects(), self._names, passive=True))
        elif topology.retried:
            retried = [queue for queue in topology.queues if queue.name in topology.retried]
            await self._declare_ladder(ladder.destinations(retried, self._names))
        self._declared |= {f"q.{name}" for name in topology.retried}
        self._destinations |= self._declared
        if not passive and topology not in self._topologies:
            self._topologies.append(topology)

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> Subscription:
        if queue.kind == "stream":
            raise ConfigurationError(f"queue {queue.name!r} is a stream: it can be published to, not consumed yet")
        subscription = RabbitSubscription(self._consuming, self._names, queue, prefetch, sink, on_lost)
        subscription.redeclare = self._declare_again
        await subscription.start()
        self._subscriptions = [*(one for one in self._subscriptions if not one.closed), subscription]
        return subscription

    def publish(self, outgoing: Outgoing) -> "asyncio.Future[Verdict]":
        return self._publishing.publish(outgoing)

    def delay(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        units = ladder.round_up(seconds)
        target, properties = outgoing.exchange or outgoing.key, outgoing.properties
        if outgoing.exchange:
            ladder.check_key(units, outgoing.key)
            ladder.exchange_destination(target, self._names)  # raises, here and now, if the name can't be one
            key = ladder.key_to_exchange(units, self._names(target))
            properties = replace(properties, headers={**properties.headers, "CC": [outgoing.key]})
        else:
            key = ladder.key_to_queue(units, self._names(target))
        delayed = Outgoing(ladder.first_exchange(units), key, outgoing.body, properties)
        destination = f"{'x' if outgoing.exchange else 'q'}.{target}"
        if destination in self._destinations:
            return self._publishing.publish(delayed)
        return self._publishing.publish(delayed, first=lambda: self._bind(destination))

    def withdraw(self, verdict: "asyncio.Future[Verdict]") -> bool:
        return self._publishing.withdraw(verdict)

    async def flush(self) -> None:
        await self._publishing.flush()
        for subscription in self._subscriptions:
            await subscription.flush()

    async def depth(self, queue: str) -> int:
        try:
            async with self._consuming.throwaway() as channel, asyncio.timeout(RPC_TIMEOUT):
                with aiormq_calls():
                    found = await channel.queue_declare(self._names(queue), passive=True)
                return found.message_count or 0
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise TopologyMissing(f"queue {queue!r} does not exist") from error
        except LOST as error:
            raise ConnectError(f"queue {queue!r} can't be looked at: {error!r}") from error

    @property
    def state(self) -> TransportState:
        links = (self._publishing_link, self._consuming)
        return TransportState(
            connected=all(link.connected for link in links),
            blocked=any(link.blocked for link in links),
            error=next((link.error for link in links if link.error), None),
        )

    async def close(self) -> None:
        if not hasattr(self, "_publishing"):
            return
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await self._publishing.close()
        await asyncio.gather(self._publishing_link.close(), self._consuming.close())

    # --- names, the ladder, and what is ours

    def _names(self, name: str) -> str:
        return self._prefix + name

    def _lost(self, reason: str) -> None:
        self._destinations = set(self._declared)
        for subscription in self._subscriptions:
            subscription.connection_lost(reason)

    async def _declare_again(self) -> None:
        for topology in list(self._topologies):
            await self.declare(topology)

    async def _declare_ladder(self, extra: Topology) -> None:
        for part in (ladder.objects(), extra):
            await carry_out(self._consuming, steps(part, self._names, passive=False))

    async def _bind(self, destination: str) -> None:
        """Bind a destination that is not bound yet, however often it takes; its publish has a timeout.

        Raises ``TopologyError`` if this user may not.
        """
        kind, _, name = destination.partition(".")
        make = ladder.queue_destination if kind == "q" else ladder.exchange_destination
        async with self._binding:
            while destination not in self._destinations:
                try:
                    await self._declare_ladder(make(name, self._names))
                    self._destinations.add(destination)
                except (ConnectError, TopologyError) as error:
                    if isinstance(error.__cause__, aiormq.exceptions.ChannelAccessRefused):
                        raise  # no patience helps
                    await asyncio.sleep(BACKOFF[1])
