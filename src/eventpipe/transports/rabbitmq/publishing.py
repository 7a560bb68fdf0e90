"""Publishing with confirms through aiormq's public call; what a lost channel leaves unconfirmed is sent again."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiormq.exceptions
from aio_pika import Channel
from aiormq.abc import AbstractChannel

from ..base import CONFIRMED, Outgoing, Verdict, VerdictKind
from .declaring import Names
from .failures import LOST, aiormq_calls, missing_exchange, refused_exchange
from .link import BACKOFF, Link, close_channel
from .properties import to_wire

Future = asyncio.Future[Verdict]

_UNENCODABLE = (struct.error, TypeError, ValueError, OverflowError)


@dataclass(slots=True, eq=False)
class Entry:
    """One publish without a verdict. ``doubted``: a channel was closed by an error while it was in flight."""

    outgoing: Outgoing
    future: Future
    held: bool = False
    sent: bool = False
    doubted: bool = False


class Publishing:
    """The publishing channel of a transport, over reconnects."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link, self._names = link, names
        self._pending: dict[Future, Entry] = {}
        self._ids: dict[str, asyncio.Event] = {}
        self._channel: AbstractChannel | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to serve, as soon as the link is up."""
        self._task = asyncio.create_task(self._serve(), name="eventpipe publishing")

    def publish(self, outgoing: Outgoing, *, first: Callable[[], Awaitable[None]] | None = None) -> Future:
        """Send a message now, or once there is a channel; with ``first``, when that is done."""
        future: Future = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_result(Verdict(VerdictKind.NOT_SENT, "the transport is closed"))
            return future
        entry = self._pending[future] = Entry(outgoing, future, held=first is not None)
        if first is not None:
            self._spawn(self._after(first, entry))
        elif self._channel is not None:
            self._spawn(self._send(self._channel, entry))
        return future

    def withdraw(self, future: Future) -> bool:
        """Forget a publish; tell whether it may have been sent."""
        entry = self._pending.pop(future, None)
        return entry is None or entry.sent

    async def flush(self) -> None:
        """Wait until there is nothing without a verdict."""
        while self._pending:
            await asyncio.wait(list(self._pending))

    async def close(self) -> None:
        """Stop, and give what has no verdict the last one."""
        self._closed = True
        tasks = [*self._sending, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for entry in list(self._pending.values()):
            kind = VerdictKind.UNKNOWN if entry.sent else VerdictKind.NOT_SENT
            self._resolve(entry, Verdict(kind, "the transport was closed"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return task

    async def _after(self, first: Callable[[], Awaitable[None]], entry: Entry) -> None:
        await first()
        entry.held = False
        if self._channel is not None:
            await self._send(self._channel, entry)

    async def _serve(self) -> None:
        while True:
            await self._link.until_up()
            try:
                channel = await self._link.channel(confirms=True)
            except LOST:
                await asyncio.sleep(BACKOFF[0])
                continue
            lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
            channel.close_callbacks.add(lambda _channel, error, lost=lost: lost.done() or lost.set_result(error))
            try:
                await self._send_again(await channel.get_underlay_channel(), lost)
                self._blame(await lost)
            except LOST:
                await asyncio.sleep(BACKOFF[0])
            finally:
                self._channel = None
                await self._abandon(channel)

    async def _abandon(self, channel: Channel) -> None:
        await close_channel(channel)
        for gate in self._ids.values():
            gate.set()
        self._ids.clear()

    async def _send_again(self, channel: AbstractChannel, lost: "asyncio.Future[BaseException | None]") -> None:
        """Send what has no verdict, in order; what may have closed a channel goes first, one at a time."""
        for entry in [one for one in self._pending.values() if one.doubted]:
            sending = self._spawn(self._send(channel, entry))
            waiting: list[asyncio.Future[Any]] = [sending, lost]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if entry.future in self._pending:  # no verdict: the channel is going, though we may not know it yet
                await lost
            if lost.done():
                if isinstance(lost.result(), aiormq.exceptions.AMQPChannelError):
                    self._resolve(entry, Verdict(VerdictKind.REFUSED, str(lost.result())))
                return
        self._channel = channel
        for entry in list(self._pending.values()):
            if not entry.held:
                self._spawn(self._send(channel, entry))

    def _blame(self, error: BaseException | None) -> None:
        """Find the publish that the broker closed the channel for; all others are sent again."""
        if not isinstance(error, aiormq.exceptions.AMQPChannelError):
            return
        missing, refused = missing_exchange(error), refused_exchange(error)
        kind = VerdictKind.UNROUTABLE if missing is not None else VerdictKind.REFUSED
        culprit = missing if missing is not None else refused
        for entry in [one for one in self._pending.values() if one.sent]:
            if culprit is None:
                entry.doubted = True
            elif self._names(entry.outgoing.exchange) == culprit:
                self._resolve(entry, Verdict(kind, str(error)))

    async def _send(self, channel: AbstractChannel, entry: Entry) -> None:
        outgoing = entry.outgoing
        message_id = outgoing.properties.message_id or ""
        # aiormq tells returned publishes by their message_id: two in flight with one id would swap their verdicts.
        while (gate := self._ids.get(message_id)) is not None:
            await gate.wait()
        if entry.future not in self._pending or channel.is_closed:
            return
        gate = self._ids[message_id] = asyncio.Event()
        entry.sent = True
        try:
            verdict = await self._verdict(channel, outgoing)
        finally:
            if self._ids.get(message_id) is gate:
                del self._ids[message_id]
            gate.set()
        if verdict is not None:
            self._resolve(entry, verdict)

    async def _verdict(self, channel: Any, outgoing: Outgoing) -> Verdict | None:
        """Publish on a channel and give the broker's verdict; ``None`` when the channel was lost before."""
        try:
            with aiormq_calls():
                await channel.basic_publish(
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
            return Verdict(VerdictKind.REFUSED, "the broker answered basic.nack")
        except _UNENCODABLE as error:
            return Verdict(VerdictKind.REFUSED, f"it can't be encoded: {error}")
        except LOST:
            return None
        return CONFIRMED

    def _resolve(self, entry: Entry, verdict: Verdict) -> None:
        self._pending.pop(entry.future, None)
        if not entry.future.done():
            entry.future.set_result(verdict)
