"""A transport that misbehaves as networks, brokers and machines do, by chance."""

import asyncio
import random
from collections.abc import Sequence

from eventpipe.routing import Queue, Topology
from eventpipe.transports.base import (
    OnLost,
    Outgoing,
    Sink,
    Subscription,
    Transport,
    TransportState,
    Verdict,
    VerdictKind,
)
from eventpipe.transports.memory import MemoryBroker


class Odds:
    """How likely each fault is, per publish or settlement; drawn once for a run, so that runs differ in kind."""

    def __init__(self, chance: random.Random) -> None:
        def draw(most: float) -> float:
            return chance.choice((0.0, 0.3, 1.0)) * most

        self.nack = draw(0.1)
        self.lost_confirm = draw(0.2)
        self.slow_verdict = draw(0.5)
        self.lost_ack = draw(0.1)
        self.disconnect = draw(0.05)


class Faulty:
    """A transport between a pipe and the memory broker. ``kill()`` makes it that of a process that is no more."""

    def __init__(self, inner: Transport, broker: MemoryBroker, chance: random.Random, odds: Odds) -> None:
        self._inner, self._broker, self._chance, self._odds = inner, broker, chance, odds
        self._inner_of: dict[asyncio.Future[Verdict], asyncio.Future[Verdict]] = {}
        self.dead = False
        self.faults = 0

    def kill(self) -> None:
        """Let nothing out any more, and have the broker take back what was not settled."""
        self.dead = True
        self._inner.disconnect()  # type: ignore[attr-defined]  # the memory transport's
        self._inner.forget()  # type: ignore[attr-defined]

    def hits(self, odds: float) -> bool:
        """Draw a lot, and count what it costs."""
        hit = self._chance.random() < odds
        self.faults += hit
        return hit

    @property
    def state(self) -> TransportState:
        return self._inner.state

    async def connect(self) -> None:
        await self._inner.connect()

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        await self._inner.declare(topology, passive=passive)

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> Subscription:
        return FaultySubscription(self, await self._inner.subscribe(queue, prefetch, sink, on_lost))

    def publish(self, outgoing: Outgoing) -> "asyncio.Future[Verdict]":
        return self.delay(outgoing, 0.0)

    def delay(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if self.dead:
            return answer
        if self.hits(self._odds.nack):
            answer.set_result(Verdict(VerdictKind.REFUSED, "simulated"))
            return answer
        if self.hits(self._odds.lost_confirm):  # stored; the confirm is lost with the connection, and it is sent again
            self._begin(outgoing, seconds)
            self.disconnect()
        inner = self._inner_of[answer] = self._begin(outgoing, seconds)
        inner.add_done_callback(lambda done: self._answer(done, answer))
        return answer

    def _begin(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        return self._inner.delay(outgoing, seconds) if seconds else self._inner.publish(outgoing)

    def _answer(self, done: "asyncio.Future[Verdict]", answer: "asyncio.Future[Verdict]") -> None:
        def give() -> None:
            if not self.dead and not answer.done() and not done.cancelled():
                answer.set_result(done.result())

        self._inner_of.pop(answer, None)
        if self.hits(self._odds.slow_verdict):
            asyncio.get_running_loop().call_later(self._chance.random(), give)
        else:
            give()

    def disconnect(self) -> None:
        """Break every connection to the broker, soon."""
        asyncio.get_running_loop().call_soon(self._broker.drop_connections)

    def withdraw(self, verdict: "asyncio.Future[Verdict]") -> bool:
        inner = self._inner_of.pop(verdict, None)
        return True if inner is None else self._inner.withdraw(inner)

    async def flush(self) -> None:
        if not self.dead:
            await self._inner.flush()

    async def depth(self, queue: str) -> int:
        return await self._inner.depth(queue)

    async def close(self) -> None:
        if not self.dead:
            await self._inner.close()


class FaultySubscription:
    """Loses acknowledgements: the broker delivers again what it never heard was settled."""

    def __init__(self, transport: Faulty, inner: Subscription) -> None:
        self._transport, self._inner = transport, inner

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self._inner.state

    def settle(self, epoch: int, tags: Sequence[int], *, multiple: bool = False, requeue: bool = False) -> bool:
        transport = self._transport
        if transport.dead:
            return False
        odds = transport._odds
        if transport.hits(odds.disconnect):
            transport.disconnect()
        if epoch == self.epoch and transport.hits(odds.lost_ack):
            transport.disconnect()
            return True
        return self._inner.settle(epoch, tags, multiple=multiple, requeue=requeue)

    async def flush(self) -> None:
        if not self._transport.dead:
            await self._inner.flush()

    def pause(self) -> None:
        self._inner.pause()

    def resume(self) -> None:
        self._inner.resume()

    async def cancel(self) -> None:
        if not self._transport.dead:
            await self._inner.cancel()

    async def close(self) -> None:
        if not self._transport.dead:
            await self._inner.close()
