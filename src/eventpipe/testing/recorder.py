"""A transport around a transport that writes down what passes: what the test kit asks about afterwards."""

import asyncio
import time

from ..copies import REASON
from ..message import ATTEMPT, Properties
from ..routing import Queue, Topology
from ..transports.base import (
    Delivery,
    OnLost,
    Outgoing,
    Sink,
    Subscription,
    Transport,
    TransportState,
    Verdict,
    VerdictKind,
)

_LATEST = 1.125  # a delay ladder is at most this much late
_GRACE = 2.0  # seconds on top, after which a delayed message is not waited for any more


class Recorder:
    """Forwards everything. ``published`` has what publishers sent and the broker confirmed, in order."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.published: list[Outgoing] = []
        self.dead: list[Outgoing] = []
        self._open: set[asyncio.Future[Verdict]] = set()
        self._delayed: dict[tuple[str | None, object], float] = {}

    @property
    def busy(self) -> bool:
        """Whether a verdict is due, or a delayed message has not arrived."""
        now = time.monotonic()
        return bool(self._open) or any(due > now for due in self._delayed.values())

    async def connect(self) -> None:
        await self.inner.connect()

    async def declare(self, topology: Topology, *, passive: bool = False) -> None:
        await self.inner.declare(topology, passive=passive)

    async def subscribe(self, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> Subscription:
        def arrived(delivery: Delivery) -> None:
            self._delayed.pop(_identity(delivery.properties), None)
            sink(delivery)

        return await self.inner.subscribe(queue, prefetch, arrived, on_lost)

    def publish(self, outgoing: Outgoing) -> "asyncio.Future[Verdict]":
        return self._watch(outgoing, self.inner.publish(outgoing))

    def delay(self, outgoing: Outgoing, seconds: float) -> "asyncio.Future[Verdict]":
        self._delayed[_identity(outgoing.properties)] = time.monotonic() + _LATEST * seconds + _GRACE
        return self._watch(outgoing, self.inner.delay(outgoing, seconds))

    def withdraw(self, verdict: "asyncio.Future[Verdict]") -> bool:
        self._open.discard(verdict)
        return self.inner.withdraw(verdict)

    async def flush(self) -> None:
        await self.inner.flush()

    async def depth(self, queue: str) -> int:
        return await self.inner.depth(queue)

    @property
    def state(self) -> TransportState:
        return self.inner.state

    async def close(self) -> None:
        await self.inner.close()

    def _watch(self, outgoing: Outgoing, verdict: "asyncio.Future[Verdict]") -> "asyncio.Future[Verdict]":
        self._open.add(verdict)
        verdict.add_done_callback(lambda _verdict: self._note(outgoing, verdict))
        return verdict

    def _note(self, outgoing: Outgoing, verdict: "asyncio.Future[Verdict]") -> None:
        self._open.discard(verdict)
        if verdict.cancelled() or verdict.result().kind is not VerdictKind.CONFIRMED:
            return
        headers = outgoing.properties.headers
        if REASON in headers:
            self.dead.append(outgoing)
        elif ATTEMPT not in headers:
            self.published.append(outgoing)


def _identity(properties: Properties) -> tuple[str | None, object]:
    return properties.message_id, properties.headers.get(ATTEMPT)
