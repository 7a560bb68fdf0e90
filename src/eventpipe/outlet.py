"""Where the publishers of an entered pipe send: a window of unconfirmed messages, deadlines, verdicts as errors."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from .clock import Chance, Clock, Deadlines
from .codec import BODY_LIMIT
from .errors import Disconnected, PublishError, PublishTimeout, Refused, Unroutable
from .transports.base import CONFIRMED, Outgoing, Transport, Verdict, VerdictKind
from .wish import Wish

WINDOW = (4096, 64 * 1024 * 1024)
"""Messages and bytes that may be unconfirmed at once; further publishes wait, within their timeout."""


class Receipt(NamedTuple):
    """The broker has the message: it confirmed it."""

    id: str
    exchange: str
    key: str


class Stamp(Protocol):
    """What a message is made with: time, chance, and the bytes that a body may have."""

    @property
    def clock(self) -> Clock: ...
    @property
    def chance(self) -> Chance: ...
    @property
    def body_limit(self) -> int: ...


class Window:
    """How much may be unconfirmed at once, in messages and bytes; shared by the publishers of a pipe."""

    def __init__(self, messages: int = WINDOW[0], size: int = WINDOW[1]) -> None:
        self._messages, self._bytes, self._size = messages, size, size
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def admit(self, size: int) -> bool:
        """Take room for one message of ``size`` bytes, if there is any and nobody waits for it."""
        if self._waiting or not self._fits(size):
            return False
        self._take(size)
        return True

    async def wait(self, size: int, timeout: float) -> None:
        """Wait for room, in the order of asking. Raises ``TimeoutError``."""
        future = asyncio.get_running_loop().create_future()
        entry = (future, size)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout):
                await future
        except BaseException:
            if future.done() and not future.cancelled():
                self.release(size)
            else:
                self._waiting.remove(entry)
                self._wake()
            raise

    def release(self, size: int) -> None:
        """Give room back."""
        self._messages += 1
        self._bytes += size
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            future, size = self._waiting.popleft()
            if not future.cancelled():
                self._take(size)
                future.set_result(None)

    def _fits(self, size: int) -> bool:
        # A message larger than the whole window goes alone.
        return self._messages > 0 and (self._bytes >= size or self._bytes >= self._size)

    def _take(self, size: int) -> None:
        self._messages -= 1
        self._bytes -= size


class Outlet:
    """Where the publishers of an entered pipe send: transport, window and deadlines."""

    def __init__(self, transport: Transport, clock: Clock, chance: Chance, body_limit: int = BODY_LIMIT) -> None:
        self.clock, self.chance, self.body_limit = clock, chance, body_limit
        self._transport = transport
        self._window = Window()
        self._deadlines: Deadlines[asyncio.Future[Verdict]] = Deadlines(clock, self._expire)

    async def send(self, outgoing: Outgoing, wish: Wish) -> Receipt:
        """Publish and wait for the verdict. Raises ``PublishError``."""
        timeout = wish.timeout
        if not self._window.admit(len(outgoing.body)):
            begun = asyncio.get_running_loop().time()
            await self._room(outgoing, wish)
            timeout = max(0.0, timeout - (asyncio.get_running_loop().time() - begun))
        outcome = await self._verdict(self._begin(outgoing, wish, timeout))
        if isinstance(outcome, PublishError):
            raise outcome
        return outcome

    async def send_many(self, outgoings: Iterable[Outgoing], wish: Wish) -> list[Receipt | PublishError]:
        """Publish many with their confirms pipelined; give one verdict for each, in order."""
        verdicts: list[Receipt | PublishError] = []
        sent: deque[_Sent] = deque()
        try:
            for outgoing in outgoings:
                while not self._window.admit(len(outgoing.body)):
                    if not sent:
                        await self._room(outgoing, wish)
                        break
                    verdicts.append(await self._verdict(sent.popleft()))
                sent.append(self._begin(outgoing, wish, wish.timeout))
            while sent:
                verdicts.append(await self._verdict(sent.popleft()))
        finally:  # cancelled: nobody will ask for the rest
            for one in sent:
                self._forget(one)
        return verdicts

    def close(self) -> None:
        """Let go of the timers."""
        self._deadlines.close()

    async def _verdict(self, sent: "_Sent") -> Receipt | PublishError:
        try:
            if not sent.future.done():
                await sent.future
        finally:
            self._forget(sent)
        verdict, outgoing = sent.future.result(), sent.outgoing
        if verdict is CONFIRMED:
            return Receipt(outgoing.properties.message_id or "", outgoing.exchange, outgoing.key)
        return self._error(verdict, outgoing, sent.timeout)

    async def _room(self, outgoing: Outgoing, wish: Wish) -> None:
        try:
            await self._window.wait(len(outgoing.body), wish.timeout)
        except TimeoutError:
            text = f"no room in the window of unconfirmed messages for {wish.timeout} s{self._why()}"
            raise PublishTimeout(text, outcome="not_stored", id=outgoing.properties.message_id or "") from None

    def _begin(self, outgoing: Outgoing, wish: Wish, timeout: float) -> "_Sent":
        delayed = wish.delay > 0
        try:
            future = self._transport.delay(outgoing, wish.delay) if delayed else self._transport.publish(outgoing)
        except BaseException:
            self._window.release(len(outgoing.body))
            raise
        return _Sent(outgoing, future, self._deadlines.add(future, timeout), wish.timeout)

    def _forget(self, sent: "_Sent") -> None:
        self._deadlines.discard(sent.future, sent.tick)
        self._window.release(len(sent.outgoing.body))
        if not sent.future.done() or sent.future.cancelled():
            self._transport.withdraw(sent.future)

    def _expire(self, future: "asyncio.Future[Verdict]") -> None:
        if not future.done():
            future.set_result(_LATE if self._transport.withdraw(future) else _LATE_UNSENT)

    def _error(self, verdict: Verdict, outgoing: Outgoing, timeout: float) -> PublishError:
        what = f"message {outgoing.properties.message_id} to {_target(outgoing)}"
        because = f": {verdict.reason}" if verdict.reason else ""
        message_id = outgoing.properties.message_id or ""
        if verdict in (_LATE, _LATE_UNSENT):
            text = f"{what}: no verdict from the broker within {timeout} s{self._why()}"
            return PublishTimeout(text, outcome="unknown" if verdict is _LATE else "not_stored", id=message_id)
        match verdict.kind:
            case VerdictKind.UNROUTABLE:
                return Unroutable(f"{what} reached no queue{because}", outcome="not_stored", id=message_id)
            case VerdictKind.REFUSED:
                return Refused(f"{what} was refused by the broker{because}", outcome="not_stored", id=message_id)
            case VerdictKind.NOT_SENT:
                return Disconnected(f"{what} was not sent{because}", outcome="not_stored", id=message_id)
            case _:
                return Disconnected(f"{what} may be stored or not{because}", outcome="unknown", id=message_id)

    def _why(self) -> str:
        problem = self._transport.state.problem
        return "" if problem is None else f" ({problem})"


class _Sent(NamedTuple):
    outgoing: Outgoing
    future: "asyncio.Future[Verdict]"
    tick: int
    timeout: float


_LATE = Verdict(VerdictKind.UNKNOWN, "timeout")
_LATE_UNSENT = Verdict(VerdictKind.NOT_SENT, "timeout")


def _target(outgoing: Outgoing) -> str:
    if outgoing.exchange:
        return f"exchange {outgoing.exchange!r} with key {outgoing.key!r}"
    return f"queue {outgoing.key!r}"
