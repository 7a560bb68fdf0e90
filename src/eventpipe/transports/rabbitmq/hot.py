"""What the two kinds of channels have in common: ``fast.py`` at the socket, ``plain.py`` through aiormq's calls."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...message import Properties
from ..base import Delivery, Fault, Outgoing, Verdict, VerdictKind

UNENCODABLE = (struct.error, TypeError, ValueError, OverflowError)
"""What an encoder raises for a message that AMQP can't carry."""

NACKED = Verdict(VerdictKind.REFUSED, "the broker answered basic.nack")

Names = Callable[[str], str]
"""Puts the prefix of a shared virtual host before a name."""


@dataclass(slots=True, eq=False)
class Entry:
    """One publish without a verdict. ``doubted``: a channel was closed by an error while it was in flight.

    ``nacks``: how many new channels have refused it.
    """

    outgoing: Outgoing
    future: "asyncio.Future[Verdict]"
    held: bool = False
    sent: bool = False
    doubted: bool = False
    nacks: int = 0


@dataclass(frozen=True, slots=True)
class Feed:
    """Makes deliveries of what arrives on a channel of one epoch, and pushes them to ``receive``."""

    epoch: int
    prefix: str
    quorum: bool
    receive: Callable[[Delivery], object]

    def deliver(
        self,
        tag: int,
        redelivered: object,
        exchange: str,
        key: str,
        properties: Properties,
        body: bytes,
        fault: Fault | None,
    ) -> None:
        """Push one message."""
        if self.prefix:
            key = key if exchange else key.removeprefix(self.prefix)
            exchange = exchange.removeprefix(self.prefix)
        count: object = 0
        if redelivered or not self.quorum:
            # Except on a redelivery by a quorum queue the header is a publisher's claim.
            count = properties.headers.get("x-delivery-count") if self.quorum else None
        self.receive(
            Delivery(
                tag,
                self.epoch,
                body,
                properties,
                exchange,
                key,
                redelivered=bool(redelivered),
                delivery_count=count if isinstance(count, int) else None,
                fault=fault,
            )
        )


class Deliveries(Protocol):
    """A consuming channel."""

    async def consume(self, queue: str, tag: str) -> None:
        """Start the pushes. Raises what aiormq raises."""
        ...

    def acknowledge(self, acks: Sequence[tuple[int, bool]], given_back: Sequence[tuple[int, bool]]) -> None:
        """Write acknowledgements as (tag, multiple), then what is given back."""
        ...

    async def written(self) -> None:
        """Wait, in bounded time, until what was acknowledged is on its way."""
        ...

    def close(self) -> None:
        """Let go of a channel that is closed."""
        ...


class Publishes(Protocol):
    """A publishing channel in confirm mode."""

    @property
    def full(self) -> bool:
        """Whether publishes have to wait."""
        ...

    def when_ready(self, call: Callable[[], object]) -> None:
        """Have ``call`` called each time that it is full no longer."""
        ...

    def send(self, entry: Entry) -> None:
        """Send one publish; its verdict comes later."""
        ...

    async def close(self) -> None:
        """Let go of a channel that is closed."""
        ...
