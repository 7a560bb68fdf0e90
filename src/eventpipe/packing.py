"""Many events in one message: one confirm, one delivery and one acknowledgement for all of them.

The body is a JSON array (content type ``application/vnd.eventpipe.batch+json``), so that a foreign consumer can read
it; the events' ids are ``<pack id>/<index>``. Only events that are equal in everything but their body share a pack.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .codec import Codec
from .errors import ConfigurationError, InvalidMessage, PublishError
from .outlet import Outlet, Receipt
from .transports.base import Outgoing
from .wish import Wish

_BRACKETS = 2  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """When a pack is full: at so many ``events`` or ``bytes``, or ``seconds`` after its first event."""

    events: int = 500
    bytes: int = 64 * 1024
    seconds: float = 0.005

    def __post_init__(self) -> None:
        if not isinstance(self.events, int) or not 1 <= self.events <= 100_000:
            raise ConfigurationError(f"Pack(events={self.events!r}): must be a whole number between 1 and 100,000")
        if not isinstance(self.bytes, int) or not self.bytes >= 1:
            raise ConfigurationError(f"Pack(bytes={self.bytes!r}): must be a whole number of bytes, 1 or more")
        if not 0 <= self.seconds <= 60:
            raise ConfigurationError(f"Pack(seconds={self.seconds!r}): must be between 0 and 60 seconds")


@dataclass(frozen=True, slots=True)
class Label:
    """What the events of a pack have in common, besides their publisher."""

    key: str
    wire_type: str
    cause: str | None
    options: Hashable


class Packer:
    """The packs of one publisher that are open: single publishes gather in them."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self._open: dict[Label, _Open] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def publish(
        self, body: bytes, label: Label, wrap: Callable[[bytes], Outgoing], outlet: Outlet, wish: Wish
    ) -> Receipt:
        """Put an event into the open pack of its kind, and wait for the pack's verdict; ``wrap`` makes the message.

        Raises ``PublishError``, or ``InvalidMessage`` for an event that is too large even for a pack of its own.
        """
        _check_size(len(body) + _BRACKETS, outlet.body_limit)
        limit = min(self.pack.bytes, outlet.body_limit)
        pack = self._open.get(label)
        if pack is not None and pack.size + len(body) + 1 > limit:
            self._send(label)
            pack = None
        if pack is None:
            pack = self._open[label] = _Open(wrap, outlet, wish)
            pack.timer = asyncio.get_running_loop().call_later(self.pack.seconds, self._send, label)
        verdict = pack.add(body)
        if len(pack.bodies) >= self.pack.events or pack.size >= limit:
            self._send(label)
        return await verdict

    async def close(self) -> None:
        """Send what is open, and wait for the verdicts."""
        for label in list(self._open):
            self._send(label)
        if self._sending:
            await asyncio.wait(self._sending)

    def _send(self, label: Label) -> None:
        pack = self._open.pop(label)
        if pack.timer is not None:
            pack.timer.cancel()
        task = asyncio.get_running_loop().create_task(pack.send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


class _Open:
    """A pack that still takes events."""

    def __init__(self, wrap: Callable[[bytes], Outgoing], outlet: Outlet, wish: Wish) -> None:
        self.bodies: list[bytes] = []
        self.size = 1  # bytes: a bracket, and a comma or a bracket after each
        self.timer: asyncio.TimerHandle | None = None
        self._wrap, self._outlet, self._wish = wrap, outlet, wish
        self._begun = outlet.clock.monotonic()
        self._verdicts: list[asyncio.Future[Receipt]] = []

    def add(self, body: bytes) -> "asyncio.Future[Receipt]":
        self.bodies.append(body)
        self.size += len(body) + 1
        # Each its own future: a caller that is cancelled cancels what it waits for.
        verdict: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._verdicts.append(verdict)
        return verdict

    async def send(self) -> None:
        waited = self._outlet.clock.monotonic() - self._begun
        try:
            outgoing = self._wrap(b"[" + b",".join(self.bodies) + b"]")
            wish = replace(self._wish, timeout=max(0.0, self._wish.timeout - waited))
            receipt = await self._outlet.send(outgoing, wish)
        except PublishError as error:
            for index, verdict in self._due():
                verdict.set_exception(_of_one(error, index))
        except Exception as error:  # noqa: BLE001  it is each caller's
            for _, verdict in self._due():
                verdict.set_exception(error)
        else:
            for index, verdict in self._due():
                verdict.set_result(receipt._replace(id=f"{receipt.id}/{index}"))

    def _due(self) -> "list[tuple[int, asyncio.Future[Receipt]]]":
        """List the events whose callers still wait."""
        return [(index, verdict) for index, verdict in enumerate(self._verdicts) if not verdict.done()]


def _of_one(error: PublishError, index: int) -> PublishError:
    """Give each event of a failed pack an error of its own, with its own id."""
    return type(error)(str(error), outcome=error.outcome, id=f"{error.id}/{index}")


def bodies_of(codec: Codec[Any], events: Sequence[Any], pack: Pack, body_limit: int) -> list[tuple[bytes, int]]:
    """Encode events into as few batches as the pack allows, as (body, number of events). Raises ``InvalidMessage``."""
    batches: list[tuple[bytes, int]] = []
    for start in range(0, len(events), pack.events):
        batches += _halved(codec, events[start : start + pack.events], min(pack.bytes, body_limit))
    for body, _ in batches:
        _check_size(len(body), body_limit)
    return batches


def _check_size(size: int, body_limit: int) -> None:
    if size > body_limit:
        raise InvalidMessage(f"a body of {size} bytes is over the limit of {body_limit}")


def _halved(codec: Codec[Any], events: Sequence[Any], limit: int) -> list[tuple[bytes, int]]:
    body = codec.encode_many(events)
    if len(body) <= limit or len(events) == 1:
        return [(body, len(events))]
    middle = len(events) // 2
    return _halved(codec, events[:middle], limit) + _halved(codec, events[middle:], limit)


def receipts_of(verdicts: Sequence[Receipt | PublishError], counts: Sequence[int]) -> list[Receipt | PublishError]:
    """Give each event of each batch its own verdict."""
    found: list[Receipt | PublishError] = []
    for verdict, count in zip(verdicts, counts, strict=True):
        if isinstance(verdict, Receipt):
            pack, exchange, key = verdict
            found += [Receipt(f"{pack}/{index}", exchange, key) for index in range(count)]
        else:
            found += [_of_one(verdict, index) for index in range(count)]
    return found
