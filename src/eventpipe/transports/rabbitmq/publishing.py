"""Publishing with confirms; what a lost channel leaves unconfirmed is sent again on the next one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiormq.exceptions

from ...errors import TopologyError
from ...permissions import DEFAULT
from ..base import CONFIRMED, Outgoing, Verdict, VerdictKind
from .failures import LOST, missing_exchange, refused_exchange
from .hot import NACKED, Entry, Names, Publishes
from .link import BACKOFF, Link, close_channel, when_closed

Future = asyncio.Future[Verdict]

DOUBTED_NACKS = 3
"""How many channels that have confirmed nothing yet may refuse a publish before the broker is believed.

Seen on RabbitMQ 3.10.8: a channel that was opened just after the death of a quorum queue's leader refused everything
while another leader served; a channel that was opened half a second later was served at once.
"""

REPLACE_AFTER = 5.0
"""Seconds after which a channel that refuses is replaced by a new one, for the same reason."""

SILENT_AFTER = 8.0
"""Seconds after which a channel that owes answers and gives none is replaced, unless the broker blocks publishing.

Seen once on RabbitMQ 3.10.8: a channel that had published while a quorum queue had no majority was silent for half a
minute after the majority was back.
"""

_LOOK_EVERY = 0.5  # seconds
_RETIRING = 5.0  # seconds that what is under way on a channel gets before the channel is replaced


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
        # Of the current channel: when it was opened, whether it has confirmed anything, since when it owes an answer.
        self._opened, self._proven, self._retired = 0.0, False, asyncio.Event()
        self._owes: float | None = None

    def start(self) -> None:
        """Begin to serve, as soon as the link is up."""
        self._task = asyncio.create_task(self._serve(), name="eventpipe publishing")

    def publish(self, outgoing: Outgoing, *, first: Callable[[], Awaitable[None]] | None = None) -> Future:
        """Send a message now, or once there is a channel; with ``first``, when that is done.

        It is refused if ``first`` raises ``TopologyError``.
        """
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
        try:
            await first()
        except TopologyError as error:
            self._resolve(entry, Verdict(VerdictKind.REFUSED, f"its delay can't be arranged: {error}"))
            return
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
            when_closed(channel, lost.set_result)
            publishes: Publishes | None = None
            try:
                publishes = self._link.publishes(channel, self._names, self._heard)
                self._opened, self._proven, self._retired = asyncio.get_running_loop().time(), False, asyncio.Event()
                self._owes = None
                await self._send_again(publishes, lost)
                await self._until_over(lost)
                if lost.done():
                    self._blame(lost.result())
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

    async def _until_over(self, lost: "asyncio.Future[BaseException | None]") -> None:
        """Wait until the channel is lost, or is to be replaced and has nothing under way."""
        retired = asyncio.ensure_future(self._retired.wait())
        waiting: list[asyncio.Future[Any]] = [lost, retired]
        try:
            while not lost.done() and not retired.done():
                await asyncio.wait(waiting, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
                self._look()
        finally:
            retired.cancel()
        end = asyncio.get_running_loop().time() + _RETIRING
        while not lost.done() and any(entry.sent for entry in self._pending.values()):
            if asyncio.get_running_loop().time() > end:
                return
            await asyncio.wait([lost], timeout=BACKOFF[0])
        if not lost.done():
            await asyncio.sleep(BACKOFF[1])  # a new leader needs a moment

    def _look(self) -> None:
        """Replace a channel that has been silent for long although it owes an answer, also one nobody waits for."""
        now = asyncio.get_running_loop().time()
        if self._link.blocked:
            self._owes = None
        elif self._owes is None:
            self._owes = now if any(entry.sent for entry in self._pending.values()) else None
        elif now - self._owes > SILENT_AFTER:
            self._replace()

    def _heard(self, entry: Entry, verdict: Verdict) -> None:
        """Take the broker's answer, unless it is one of a channel that may have gone wrong."""
        self._owes = None
        if verdict is CONFIRMED:
            self._proven = True
        elif verdict is NACKED:
            # What is doubted itself is sent alone, and somebody waits for its answer.
            if not self._proven and not entry.doubted and entry.nacks < DOUBTED_NACKS:
                entry.nacks += 1
                entry.sent = False
                self._replace()
                return
            if asyncio.get_running_loop().time() - self._opened > REPLACE_AFTER:
                self._replace()
        self._resolve(entry, verdict)

    def _replace(self) -> None:
        """Use a new channel from now on; what is under way ends on this one."""
        self._channel = None
        self._retired.set()

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
            elif (self._names(entry.outgoing.exchange) if entry.outgoing.exchange else DEFAULT) == culprit:
                self._resolve(entry, Verdict(kind, str(error)))

    def _resolve(self, entry: Entry, verdict: Verdict) -> None:
        self._pending.pop(entry.future, None)
        if not entry.future.done():
            entry.future.set_result(verdict)
