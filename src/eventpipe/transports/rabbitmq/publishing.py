"""Publishing with confirms; what a lost channel leaves unconfirmed is sent again on the next one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiormq.exceptions

from ..base import Outgoing, Verdict, VerdictKind
from .failures import LOST, missing_exchange, refused_exchange
from .hot import Entry, Names, Publishes
from .link import BACKOFF, Link, close_channel

Future = asyncio.Future[Verdict]


class Publishing:
    """The publishing channel of a transport, over reconnects."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link, self._names = link, names
        self._pending: dict[Future, Entry] = {}
        self._waiting: dict[Future, Entry] = {}  # for the socket's buffer; those withdrawn meanwhile are gone
        self._channel: Publishes | None = None
        self._first: set[asyncio.Task[None]] = set()
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
            task = asyncio.get_running_loop().create_task(self._after(first, entry))
            self._first.add(task)
            task.add_done_callback(self._first.discard)
        elif self._channel is not None:
            self._send(self._channel, entry)
        return future

    def withdraw(self, future: Future) -> bool:
        """Forget a publish; tell whether it may have been sent."""
        entry = self._pending.pop(future, None)
        self._waiting.pop(future, None)
        return entry is None or entry.sent

    async def flush(self) -> None:
        """Wait until there is nothing without a verdict."""
        while self._pending:
            await asyncio.wait(list(self._pending))

    async def close(self) -> None:
        """Stop, and give what has no verdict the last one."""
        self._closed = True
        tasks = [*self._first, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for entry in list(self._pending.values()):
            kind = VerdictKind.UNKNOWN if entry.sent else VerdictKind.NOT_SENT
            self._resolve(entry, Verdict(kind, "the transport was closed"))

    async def _after(self, first: Callable[[], Awaitable[None]], entry: Entry) -> None:
        await first()
        entry.held = False
        if self._channel is not None:
            self._send(self._channel, entry)

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
            publishes: Publishes | None = None
            try:
                publishes = self._link.publishes(await channel.get_underlay_channel(), self._names, self._resolve)
                await self._send_again(publishes, lost)
                self._blame(await lost)
            except LOST:
                await asyncio.sleep(BACKOFF[0])
            finally:
                self._channel = None
                self._waiting.clear()
                await close_channel(channel)
                if publishes is not None:
                    await publishes.close()

    async def _send_again(self, channel: Publishes, lost: "asyncio.Future[BaseException | None]") -> None:
        """Send what has no verdict, in order; what may have closed a channel goes first, one at a time."""
        for entry in [one for one in self._pending.values() if one.doubted]:
            channel.send(entry)
            waiting: list[asyncio.Future[Any]] = [entry.future, lost]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                if isinstance(lost.result(), aiormq.exceptions.AMQPChannelError):
                    self._resolve(entry, Verdict(VerdictKind.REFUSED, str(lost.result())))
                return
        self._channel = channel
        channel.when_ready(self._drain)
        for entry in [one for one in self._pending.values() if not one.held]:
            self._send(channel, entry)

    def _send(self, channel: Publishes, entry: Entry) -> None:
        if channel.full or self._waiting:
            self._waiting[entry.future] = entry
        else:
            channel.send(entry)

    def _drain(self) -> None:
        """Send what has waited for the socket, until its buffer is full again."""
        channel = self._channel
        if channel is None:
            return
        for future in list(self._waiting):
            if channel.full:
                return
            channel.send(self._waiting.pop(future))

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

    def _resolve(self, entry: Entry, verdict: Verdict) -> None:
        self._pending.pop(entry.future, None)
        if not entry.future.done():
            entry.future.set_result(verdict)
