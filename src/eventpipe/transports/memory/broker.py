"""The state of a memory broker, and what moves in it: publishes, dead letters, delays, and turns of the event loop."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

from ...errors import ConfigurationError, TopologyError, TopologyMissing
from ...routing import UNDELIVERABLE, Binding, Exchange, Queue, Topology, keeping
from ..base import CONFIRMED, Outgoing, Verdict, VerdictKind
from .client import Client
from .comparing import check_possible, compare_exchanges, compare_queues
from .deaths import dead_letter, in_circles
from .later import Later
from .queue import MemoryQueue, Stored
from .routes import Refusal, Routes, without_bcc

_shared: dict[str, "MemoryBroker"] = {}


def memory_broker(url: str) -> "MemoryBroker":
    """Give the broker of a ``memory://`` URL: with a name, one for all of this process; without, a new one."""
    scheme, separator, name = url.partition("://")
    if scheme != "memory" or not separator or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise ConfigurationError(f"{url!r} is no memory broker: write memory:// or memory://name")
    return _shared.setdefault(name, MemoryBroker()) if name else MemoryBroker()


class MemoryBroker:
    """Exchanges, queues and bindings, and what waits in them. ``queues[name]`` can be looked at.

    Publishes are taken and messages pushed in a later turn of the event loop, all that became due in between at once:
    a program that publishes in a loop would otherwise starve its consumers.

    Time is that of the transport that connected last and is still open. What is delayed stays with the broker when a
    transport closes, arrives as long as any is open, and otherwise as soon as one opens. Where the clock changes (a
    test's clock after the machine's), what is left of each wait stays the same.
    """

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self.blocked = False
        self.routes = Routes()
        self._clients: list[Client] = []
        self._later = Later()
        self._delayed = 0
        self._scheduled: set[asyncio.AbstractEventLoop] = set()
        self._touched: dict[MemoryQueue, None] = {}
        self._stuck: list[Outgoing] = []
        self._turning: asyncio.AbstractEventLoop | None = None
        self._taking: asyncio.AbstractEventLoop | None = None

    # --- to look at

    @property
    def exchanges(self) -> dict[str, Exchange]:
        """The exchanges by name."""
        return self.routes.exchanges

    @property
    def delayed(self) -> int:
        """How many delayed messages are held."""
        return self._delayed

    def next_due(self) -> float | None:
        """Give the seconds until the next held message, or the next expiry, is due."""
        return self._later.next_due()

    # --- faults, for tests

    def drop_connections(self) -> None:
        """Break every connection, as a restart of the broker would; transports reconnect in a later turn.

        Call it on the event loop of the transports: each subscription's ``on_lost`` is called before it returns.
        """
        self._forget_closed_loops()
        for client in list(self._clients):
            client.disconnect()
        self.wake_all()

    def block(self) -> None:
        """Take no more publishes, as under a memory alarm."""
        self.blocked = True

    def unblock(self) -> None:
        """Take publishes again."""
        self.blocked = False
        self.wake_all()

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all it holds; its consumers are cancelled. Nothing happens if there is none."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return
        queue.purge()
        self._touched.pop(queue, None)
        self.routes.unbind(name)
        for client in list(self._clients):
            client.cancelled(name)
        self.wake_all()

    # --- clients and turns

    def attach(self, client: Client) -> None:
        """Serve a transport."""
        self._forget_closed_loops()
        self._clients.append(client)
        self._later.follow(client.clock)
        self._later.arm(self._ring)
        self.wake(client.loop)

    def detach(self, client: Client) -> None:
        """Forget a transport, with its exclusive queues."""
        self._clients.remove(client)
        if self._clients:
            self._later.follow(self._clients[-1].clock)
        self._later.arm(self._ring, idle=not self._clients)
        self.delete_exclusive(client)

    def delete_exclusive(self, client: Client) -> None:
        """Delete the queues that end with a connection."""
        for name in [name for name, queue in self.queues.items() if queue.owner is client]:
            self.delete_queue(name)

    def wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Arrange for one turn on a loop, soon."""
        if loop not in self._scheduled and not loop.is_closed():
            self._scheduled.add(loop)
            loop.call_soon(self._turn, loop)

    def wake_all(self) -> None:
        """Arrange for a turn on every loop that has a transport."""
        for client in self._clients:
            self.wake(client.loop)

    def touch(self, queue: MemoryQueue) -> None:
        """Have a queue looked at in the coming turn, or in this one."""
        self._touched[queue] = None
        if self._turning is None:
            self.wake_all()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled.discard(loop)
        self._forget_closed_loops()
        self._release_due()
        self._turning = loop
        try:
            self._taking = loop
            for client in [one for one in self._clients if one.loop is loop]:
                client.turn()
            self._taking = None
            self._serve(loop)
        finally:
            self._turning = self._taking = None
        self._later.arm(self._ring, idle=not self._clients)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Push once from every queue that was touched, then let it give up what expired or is too much."""
        pushed: set[MemoryQueue] = set()
        left: dict[MemoryQueue, None] = {}
        while self._touched:
            queue = next(iter(self._touched))
            del self._touched[queue]
            if queue not in pushed:
                pushed.add(queue)
                queue.push(loop)
            for eager in queue.eager:  # on another loop, or for more than one turn should do
                left[queue] = None
                self.wake(eager)
            self._tidy(queue)
        self._touched |= left

    def _tidy(self, queue: MemoryQueue) -> None:
        while queue.refused and self._enqueue(queue, queue.refused[0]):
            queue.refused.popleft()
        queue.tidy(self._later.now())
        expires = queue.head_expires
        if expires is not None and (queue.alarm is None or expires < queue.alarm):
            queue.alarm = expires
            self._later.at(expires, partial(self._alarm, queue))

    def _forget_closed_loops(self) -> None:
        for client in [one for one in self._clients if one.loop.is_closed()]:
            self._scheduled.discard(client.loop)
            client.forget()
            self.detach(client)

    # --- what is due

    def _ring(self) -> None:
        self._release_due()
        self._later.arm(self._ring, idle=not self._clients)
        self.wake_all()

    def _release_due(self) -> None:
        """Do what is due, each at its moment; consumers get what comes of it in the coming turn."""
        while (due := self._later.pop()) is not None:
            waiting, self._touched = self._touched, {}
            due()
            while self._touched:
                queue = next(iter(self._touched))
                del self._touched[queue]
                waiting[queue] = None
                self._tidy(queue)
            self._touched = waiting

    def _alarm(self, queue: MemoryQueue) -> None:
        queue.alarm = None
        self.touch(queue)

    # --- messages

    def publish(self, outgoing: Outgoing) -> Verdict:
        """Route a message into its queues. Called in a turn."""
        try:
            names = self.routes.find(outgoing)
        except Refusal as refusal:
            return refusal.verdict
        queues = [self.queues[name] for name in names if name in self.queues]
        if not queues:
            return Verdict(VerdictKind.UNROUTABLE, "NO_ROUTE") if outgoing.mandatory else CONFIRMED
        outgoing = without_bcc(outgoing)
        full = [queue for queue in queues if not self._enqueue(queue, outgoing)]
        for queue in full:
            if queue.spec.overflow == "reject-publish-dlx":
                self._dead_letter(queue, Stored(0, outgoing), "maxlen")
        return Verdict(VerdictKind.REFUSED, f"queue {full[0].spec.name!r} is full") if full else CONFIRMED

    def delay(self, outgoing: Outgoing, seconds: float) -> Verdict | None:
        """Hold a message; ``None`` while its destination does not exist, for which RabbitMQ's ladder would wait."""
        if (outgoing.exchange or outgoing.key) not in (self.exchanges if outgoing.exchange else self.queues):
            return None
        self._delayed += 1
        self._later.at(self._later.now() + seconds, partial(self._release, outgoing))
        return CONFIRMED

    def _release(self, outgoing: Outgoing) -> None:
        self._delayed -= 1
        if (outgoing.exchange or outgoing.key) in (self.exchanges if outgoing.exchange else self.queues):
            self._store(outgoing)
        else:
            spec = keeping(UNDELIVERABLE)
            self._enqueue(self.queues.setdefault(UNDELIVERABLE, MemoryQueue(spec, self._dead_letter)), outgoing)

    def _enqueue(self, queue: MemoryQueue, outgoing: Outgoing) -> bool:
        """Put a message into a queue; ``False``: it rejects, being full."""
        size = len(outgoing.body)
        if queue.full(size):
            if self._taking is not None:
                queue.push(self._taking)  # RabbitMQ would have handed out before what can be handed out now
            if queue.full(size):
                return False
        ttl, expiration = queue.spec.message_ttl, outgoing.properties.expiration
        if expiration is not None:
            own = int(expiration) / 1000
            ttl = own if ttl is None else min(ttl, own)
        queue.put(outgoing, None if ttl is None else self._later.now() + ttl)
        self.touch(queue)
        return True

    def _store(self, outgoing: Outgoing, *, patient: bool = True) -> bool:
        """Route what the broker itself sends, but for circles; what is refused waits for room if it is ``patient``."""
        try:
            names = self.routes.find(outgoing)
        except Refusal:
            return False
        queues = [self.queues[name] for name in names if name in self.queues]
        for queue in queues:
            if not in_circles(outgoing, queue.spec.name) and not self._enqueue(queue, outgoing) and patient:
                queue.refused.append(outgoing)
        return bool(queues)

    def _dead_letter(self, queue: MemoryQueue, stored: Stored, reason: str) -> None:
        """Send on what a queue gave up; what is dead-lettered at least once is kept until it has somewhere to go."""
        arguments = queue.spec.wire_arguments
        if "x-dead-letter-exchange" not in arguments:
            return
        name, now = queue.spec.name, self._later.clock.time()
        dead = dead_letter(stored.outgoing, queue=name, reason=reason, now=now, arguments=arguments)
        patient = arguments.get("x-dead-letter-strategy") == "at-least-once"
        if not self._store(dead, patient=patient) and patient:
            self._stuck.append(dead)

    # --- topology

    def declare(self, topology: Topology, *, passive: bool, owner: Client) -> None:
        """Declare or check every object, then raise the first ``TopologyError`` with the others noted on it."""
        failures: list[TopologyError] = []
        for step in self._steps(topology, passive=passive, owner=owner):
            try:
                step()
            except TopologyError as error:
                failures.append(error)
        stuck, self._stuck = self._stuck, []
        self._stuck += [dead for dead in stuck if not self._store(dead)]
        self.wake_all()
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"and {other}")
            raise failures[0]

    def _steps(self, topology: Topology, *, passive: bool, owner: Client) -> Iterable[Callable[[], object]]:
        for exchange in topology.exchanges:
            yield partial(self._declare_exchange, exchange, passive=passive or not exchange.declare)
        for queue in topology.queues:
            yield partial(self._declare_queue, queue, owner, passive=passive or not queue.declare)
        for binding, target, kind in topology.bindings if not passive else ():
            yield partial(self._bind, binding, target, kind)

    def _declare_exchange(self, exchange: Exchange, *, passive: bool) -> None:
        known = self.exchanges.get(exchange.name)
        if known is None:
            if passive:
                raise TopologyMissing(f"exchange {exchange.name!r} does not exist; whoever owns it has to declare it")
            self.exchanges[exchange.name] = exchange
            self.routes.changed()
        elif not passive:
            compare_exchanges(exchange, known)

    def _declare_queue(self, queue: Queue, owner: Client, *, passive: bool) -> None:
        known = self.queues.get(queue.name)
        if known is None:
            if passive:
                raise TopologyMissing(f"queue {queue.name!r} does not exist; whoever owns it has to declare it")
            check_possible(queue)
            mine = owner if queue.exclusive else None
            self.queues[queue.name] = MemoryQueue(queue, self._dead_letter, owner=mine)
            return
        known.check_owner(owner)
        if not passive:
            compare_queues(queue, known.spec)

    def _bind(self, binding: Binding, target: str, kind: Literal["queue", "exchange"]) -> None:
        if target not in (self.queues if kind == "queue" else self.exchanges):
            raise TopologyMissing(f"can't bind {kind} {target!r}: it does not exist")
        self.routes.bind(binding, target, kind)
