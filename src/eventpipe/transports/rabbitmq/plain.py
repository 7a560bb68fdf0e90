"""The plain path: the same two channels through aiormq's public calls only, a task and several queues per message.

Slower by a factor, and the fallback should aiormq change what ``fast.py`` builds on. A message whose properties do not
decode ends the connection here: aiormq reads them.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiormq.exceptions
from aiormq.abc import AbstractChannel, DeliveredMessage

from ..base import CONFIRMED, Outgoing, Verdict, VerdictKind
from .failures import LOST, aiormq_calls
from .hot import NACKED, UNENCODABLE, Entry, Feed, Names
from .properties import from_wire, to_wire

_WRITTEN_WITHIN = 3.0  # seconds


class PlainDeliveries:
    """A consuming channel."""

    def __init__(self, underlay: AbstractChannel, feed: Feed) -> None:
        self._underlay, self._feed = underlay, feed
        self._todo: list[tuple[int, bool, bool]] = []
        self._writing: asyncio.Task[None] | None = None

    async def consume(self, queue: str, tag: str) -> None:
        await self._underlay.basic_consume(queue, self._received, consumer_tag=tag)

    def acknowledge(self, acks: Sequence[tuple[int, bool]], given_back: Sequence[tuple[int, bool]]) -> None:
        self._todo += [(tag, multiple, False) for tag, multiple in acks]
        self._todo += [(tag, multiple, True) for tag, multiple in given_back]
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def written(self) -> None:
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_WRITTEN_WITHIN)

    def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    def _received(self, message: DeliveredMessage) -> Any:
        frame: Any = message.delivery
        properties = from_wire(message.header.properties)
        self._feed.deliver(
            frame.delivery_tag, frame.redelivered, frame.exchange, frame.routing_key, properties, message.body, None
        )

    async def _write(self) -> None:
        """Write until there is nothing left; what is settled meanwhile joins in."""
        try:
            while self._todo:
                todo, self._todo = self._todo, []
                with aiormq_calls():
                    for tag, multiple, back in todo:
                        if back:
                            await self._underlay.basic_nack(tag, multiple=multiple, requeue=True, wait=False)
                        else:
                            await self._underlay.basic_ack(tag, multiple=multiple, wait=False)
        except LOST:
            pass  # the channel is gone, and its epoch with it
        finally:
            self._writing = None


class PlainPublishes:
    """A publishing channel in confirm mode."""

    full = False

    def __init__(self, underlay: Any, names: Names, resolve: Callable[[Entry, Verdict], object]) -> None:
        self._underlay, self._names, self._resolve = underlay, names, resolve
        self._ids: dict[str, asyncio.Event] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def when_ready(self, call: Callable[[], object]) -> None:
        pass  # aiormq's own queue holds publishes back

    def send(self, entry: Entry) -> None:
        task = asyncio.get_running_loop().create_task(self._send(entry))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)

    async def _send(self, entry: Entry) -> None:
        outgoing = entry.outgoing
        message_id = outgoing.properties.message_id or ""
        # aiormq tells returned publishes by their message_id: two in flight with one id would swap their verdicts.
        while (gate := self._ids.get(message_id)) is not None:
            await gate.wait()
        if entry.future.done() or self._underlay.is_closed:
            return
        gate = self._ids[message_id] = asyncio.Event()
        entry.sent = True
        try:
            verdict = await self._verdict(outgoing)
        finally:
            del self._ids[message_id]
            gate.set()
        if verdict is not None:
            self._resolve(entry, verdict)

    async def _verdict(self, outgoing: Outgoing) -> Verdict | None:
        """Publish and give the broker's verdict; ``None`` when the channel was lost before."""
        try:
            with aiormq_calls():
                await self._underlay.basic_publish(
                    outgoing.body,
                    exchange=self._names(outgoing.exchange) if outgoing.exchange else "",
                    routing_key=outgoing.key if outgoing.exchange else self._names(outgoing.key),
                    properties=to_wire(outgoing.properties),
                    mandatory=outgoing.mandatory,
                    wait=False,
                )
        except aiormq.exceptions.PublishError as error:
            return Verdict(VerdictKind.UNROUTABLE, str(getattr(error.frame, "reply_text", "")))
        except aiormq.exceptions.DeliveryError:
            return NACKED
        except UNENCODABLE as error:
            return Verdict(VerdictKind.REFUSED, f"it can't be encoded: {error}")
        except LOST:
            return None
        return CONFIRMED
