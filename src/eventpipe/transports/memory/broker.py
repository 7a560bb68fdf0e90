"""The state of a memory broker and the rules by which messages move through it."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ...clock import Clock, SystemClock, Timer
from ...errors import ConfigurationError, TopologyMismatch, TopologyMissing
from ...routing import Binding, Exchange, Queue, Topology
from ..base import CONFIRMED, Outgoing, Verdict, VerdictKind
from .matching import matches
from .queue import MemoryQueue, Stored

_shared: dict[str, "MemoryBroker"] = {}


def memory_broker(url: str) -> "MemoryBroker":
    """Give the broker of a ``memory://`` URL: with a name, one for all of this process; without, a new one."""
    scheme, separator, name = url.partition("://")
    if scheme != "memory" or not separator or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise ConfigurationError(f"{url!r} is no memory broker: write memory:// or memory://name")
    return _shared.setdefault(name, MemoryBroker()) if name else MemoryBroker()


class Client(Protocol):
    """A transport, as its broker sees it."""

    def turn(self) -> None:
        """Send what waits in its outbox and serve its subscriptions."""

    def disconnect(self) -> None:
        """Lose everything that belongs to the current connection."""

    def cancelled(self, queue: str) -> None:
        """Lose the consumers of a queue that is gone."""


class MemoryBroker:
    """Exchanges, queues and bindings, and what waits in them.

    Publishes are taken and messages pushed in a later turn of the event loop, all that became due in between at once:
    a program that publishes in a loop would otherwise starve its consumers.
    """

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, MemoryQueue] = {}
        self.blocked = False
        self.clock: Clock = SystemClock()
        self._bindings: dict[str, list[tuple[Binding, str, str]]] = {}
        self._routes: dict[tuple[str, str], list[MemoryQueue]] = {}
        self._clients: list[Client] = []
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._delayed = 0
        self._timer: Timer | None = None
        self._scheduled: asyncio.AbstractEventLoop | None = None

    # --- clients and turns

    def attach(self, client: Client, clock: Clock) -> None:
        """Serve a transport; time is told by the clock of the latest one."""
        self.clock = clock
        self._clients.append(client)
        self._arm()

    def detach(self, client: Client) -> None:
        """Forget a transport; what it delayed stays and goes on as soon as another one is there."""
        self._clients.remove(client)
        self._arm()

    def wake(self) -> None:
        """Arrange for one turn, soon."""
        loop = asyncio.get_running_loop()
        if self._scheduled is not loop:
            self._scheduled = loop
            loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = None
        for client in list(self._clients):
            client.turn()
        now = self.clock.monotonic()
        for queue in list(self.queues.values()):
            if queue.ready and queue.channels:
                queue.push(now)

    # --- faults, for tests

    def drop_connections(self) -> None:
        """Break every connection, as a restart of the broker would; transports reconnect in a later turn."""
        for client in list(self._clients):
            client.disconnect()
        self.wake()

    def block(self) -> None:
        """Take no more publishes, as under a memory alarm."""
        self.blocked = True

    def unblock(self) -> None:
        """Take publishes again."""
        self.blocked = False
        self.wake()

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all it holds; its consumers are cancelled."""
        self.queues.pop(name, None)
        for found in self._bindings.values():
            found[:] = [one for one in found if one[1:] != (name, "queue")]
        self._routes.clear()
        for client in list(self._clients):
            client.cancelled(name)

    # --- topology

    def declare(self, topology: Topology, *, passive: bool) -> None:
        """Declare or check every object. Raises ``TopologyMismatch`` or ``TopologyMissing``."""
        for exchange in topology.exchanges:
            self._declare_exchange(exchange, passive=passive or not exchange.declare)
        for queue in topology.queues:
            self._declare_queue(queue, passive=passive or not queue.declare)
        for binding, target, kind in topology.bindings if not passive else ():
            self._bind(binding, target, kind)
        self._routes.clear()

    def _declare_exchange(self, exchange: Exchange, *, passive: bool) -> None:
        known = self.exchanges.get(exchange.name)
        if known is None:
            if passive:
                raise TopologyMissing(f"exchange {exchange.name!r} does not exist; whoever owns it has to declare it")
            self.exchanges[exchange.name] = exchange
        elif not passive:
            _compare("exchange", exchange.name, _exchange_facts(exchange), _exchange_facts(known))

    def _declare_queue(self, queue: Queue, *, passive: bool) -> None:
        known = self.queues.get(queue.name)
        if known is None:
            if passive:
                raise TopologyMissing(f"queue {queue.name!r} does not exist; whoever owns it has to declare it")
            if queue.single_active_consumer or queue.max_priority is not None:
                raise ConfigurationError(
                    f"queue {queue.name!r}: the memory broker has no single active consumer and no priorities yet; "
                    f"use RabbitMQ for it"
                )
            self.queues[queue.name] = MemoryQueue(queue, self._dead_letter)
        elif not passive:
            _compare("queue", queue.name, _queue_facts(queue), _queue_facts(known.spec))

    def _bind(self, binding: Binding, target: str, kind: str) -> None:
        there = self.queues if kind == "queue" else self.exchanges
        if binding.source.name not in self.exchanges or target not in there:
            raise TopologyMissing(
                f"can't bind {kind} {target!r} to exchange {binding.source.name!r}: one does not exist"
            )
        entries = self._bindings.setdefault(binding.source.name, [])
        if (binding, target, kind) not in entries:
            entries.append((binding, target, kind))

    # --- messages

    def publish(self, outgoing: Outgoing) -> Verdict:
        """Route a message into its queues."""
        if outgoing.exchange and outgoing.exchange not in self.exchanges:
            return Verdict(VerdictKind.UNROUTABLE, f"no exchange {outgoing.exchange!r}")
        queues = self._route(outgoing)
        if not queues:
            return Verdict(VerdictKind.UNROUTABLE, "NO_ROUTE") if outgoing.mandatory else CONFIRMED
        refused = [queue for queue in queues if not self._enqueue(queue, outgoing)]
        if refused:
            return Verdict(VerdictKind.REFUSED, f"queue {refused[0].spec.name!r} is full")
        return CONFIRMED

    def delay(self, outgoing: Outgoing, seconds: float) -> Verdict:
        """Hold a message for so long, then route it."""
        self._delayed += 1
        self.call_later(seconds, lambda: self._release(outgoing))
        return CONFIRMED

    @property
    def delayed(self) -> int:
        """How many delayed messages are held."""
        return self._delayed

    def next_due(self) -> float | None:
        """Give the seconds until the next held message or expiry is due."""
        return max(0.0, self._later[0][0] - self.clock.monotonic()) if self._later else None

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Do something later on the broker's time, whichever transport is connected then."""
        heapq.heappush(self._later, (self.clock.monotonic() + seconds, next(self._numbers), callback))
        self._arm()

    def _release(self, outgoing: Outgoing) -> None:
        self._delayed -= 1
        self.publish(replace(outgoing, mandatory=False))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.next_due()
        if due is not None and self._clients:
            self._timer = self.clock.call_later(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self.clock.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        self._arm()
        self.wake()

    def _route(self, outgoing: Outgoing) -> list[MemoryQueue]:
        headers = outgoing.properties.headers
        copies = [*headers.get("CC", ()), *headers.get("BCC", ())] if headers else []
        if not copies:
            return self._queues(outgoing.exchange, outgoing.key, headers)
        found = {q: None for key in (outgoing.key, *copies) for q in self._queues(outgoing.exchange, key, headers)}
        return list(found)

    def _queues(self, exchange: str, key: str, headers: Mapping[str, Any]) -> list[MemoryQueue]:
        """Find the queues of a key, each once. Known routes are kept, unless headers decided."""
        known = self._routes.get((exchange, key))
        if known is not None:
            return known
        found: dict[MemoryQueue, None] = {}
        by_headers = self._visit(exchange, key, headers, found, set())
        if not by_headers:
            if len(self._routes) > 10_000:  # keys may be made from events
                self._routes.clear()
            self._routes[exchange, key] = list(found)
        return list(found)

    def _visit(
        self, exchange: str, key: str, headers: Mapping[str, Any], found: dict[MemoryQueue, None], seen: set[str]
    ) -> bool:
        """Walk from an exchange to its queues; tell whether a headers exchange had a say."""
        if not exchange:
            if key in self.queues:
                found[self.queues[key]] = None
            return False
        seen.add(exchange)
        spec = self.exchanges[exchange]
        by_headers, matched = spec.kind == "headers", False
        for binding, target, kind in self._bindings.get(exchange, ()):
            if not matches(binding, key, headers):
                continue
            matched = True
            if kind == "queue":
                found[self.queues[target]] = None
            elif target not in seen:
                by_headers |= self._visit(target, key, headers, found, seen)
        if not matched and spec.alternate is not None and spec.alternate.name not in seen:
            by_headers |= self._visit(spec.alternate.name, key, headers, found, seen)
        return by_headers

    def _enqueue(self, queue: MemoryQueue, outgoing: Outgoing) -> bool:
        spec, properties = queue.spec, outgoing.properties
        if spec.overflow != "drop-head" and queue.full(len(outgoing.body)):
            if spec.overflow == "reject-publish-dlx":
                self._dead_letter(queue, self._stored(queue, outgoing), "maxlen")
            return False
        if "BCC" in properties.headers:
            headers = {name: value for name, value in properties.headers.items() if name != "BCC"}
            outgoing = replace(outgoing, properties=replace(properties, headers=headers))
        stored = self._stored(queue, outgoing)
        queue.put(stored)
        if stored.expires is not None:
            self.call_later(stored.expires - self.clock.monotonic(), lambda: queue.expire(self.clock.monotonic()))
        return True

    def _stored(self, queue: MemoryQueue, outgoing: Outgoing) -> Stored:
        expiration = outgoing.properties.expiration
        own = int(expiration) / 1000 if expiration is not None else None
        ttls = [seconds for seconds in (queue.spec.message_ttl, own) if seconds is not None]
        expires = self.clock.monotonic() + min(ttls) if ttls else None
        return Stored(0, outgoing.body, outgoing.properties, outgoing.exchange, outgoing.key, expires)

    def _dead_letter(self, queue: MemoryQueue, stored: Stored, reason: str) -> None:
        """Route what a queue gave up to its dead-letter exchange, if it has one."""
        arguments = queue.spec.wire_arguments
        exchange = arguments.get("x-dead-letter-exchange")
        if exchange is None or (exchange and exchange not in self.exchanges):
            return
        properties = replace(stored.properties, headers=_with_death(stored, queue.spec.name, reason), expiration=None)
        key = arguments.get("x-dead-letter-routing-key", stored.key)
        self.publish(Outgoing(exchange, key, stored.body, properties, mandatory=False))


def _with_death(stored: Stored, queue: str, reason: str) -> dict[str, Any]:
    """Add the ``x-death`` entry that RabbitMQ adds: one for each queue and reason, the latest first."""
    headers = dict(stored.properties.headers)
    deaths = [dict(one) for one in headers.get("x-death", ())]
    same = [one for one in deaths if (one["queue"], one["reason"]) == (queue, reason)]
    others = [one for one in deaths if one not in same]
    entry = {
        "queue": queue,
        "reason": reason,
        "exchange": stored.exchange,
        "routing-keys": [stored.key],
        "count": (same[0]["count"] if same else 0) + 1,
        "time": int(time.time()),
    }
    headers["x-death"] = [entry, *others]
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    headers.setdefault("x-first-death-exchange", stored.exchange)
    return headers


def _exchange_facts(exchange: Exchange) -> dict[str, Any]:
    return {
        "type": exchange.kind,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        **exchange.wire_arguments,
    }


def _queue_facts(queue: Queue) -> dict[str, Any]:
    return {
        "durable": queue.durable,
        "exclusive": queue.exclusive,
        "auto_delete": queue.auto_delete,
        **queue.wire_arguments,
    }


def _compare(kind: str, name: str, declared: dict[str, Any], existing: dict[str, Any]) -> None:
    for argument in {**declared, **existing}:
        mine, theirs = declared.get(argument, "none"), existing.get(argument, "none")
        if mine != theirs:
            raise TopologyMismatch(kind=kind, name=name, argument=argument, declared=str(mine), existing=str(theirs))
