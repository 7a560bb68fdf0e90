"""Time and chance, as things that are handed in: a pipe gets both, and a simulation replaces them."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")


class Timer(Protocol):
    """A call that was arranged for later."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What time it is, and how to be called later; seconds everywhere."""

    def time(self) -> float:
        """Give the wall-clock time in seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Give a time that never jumps."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Timer:
        """Arrange for a call on the running event loop."""
        ...


class SystemClock:
    """The machine's clock and the running loop's timers."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


class Chance(Protocol):
    """Randomness: jitter and message ids."""

    def random(self) -> float:
        """Give a number in [0, 1)."""
        ...

    def getrandbits(self, bits: int, /) -> int:
        """Give that many random bits."""
        ...


def system_chance() -> Chance:
    """Give randomness that no other process shares."""
    return random.Random(secrets.randbits(128))  # noqa: S311  jitter and ids, not keys


def uuid7(clock: Clock, chance: Chance) -> str:
    """Make a time-ordered id as 32 hex digits (RFC 9562, section 5.7)."""
    bits = chance.getrandbits(74)
    high = (int(clock.time() * 1000) << 16) | 0x7000 | (bits >> 62)
    return f"{(high << 64) | (0x2 << 62) | (bits & 0x3FFF_FFFF_FFFF_FFFF):032x}"


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait on this clock."""
    woken = asyncio.Event()
    timer = clock.call_later(seconds, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()


class Deadlines(Generic[Item]):
    """Many deadlines on few timers: each is rounded up to a tick, and one timer serves a whole tick.

    A timer or a timeout object per message would cost more than handling the message does.
    """

    TICK = 0.02
    """Seconds: how late a deadline may be."""

    def __init__(self, clock: Clock, expire: Callable[[Item], object]) -> None:
        self._clock, self._expire = clock, expire
        self._ticks: dict[int, dict[Item, None]] = {}  # not sets: a simulation has to be the same each time
        self._timers: dict[int, Timer] = {}

    def add(self, item: Item, seconds: float) -> int:
        """Arrange that ``expire(item)`` is called after so many seconds; give the tick to ``discard`` it by."""
        now = self._clock.monotonic()
        tick = int((now + seconds) / self.TICK) + 1
        items = self._ticks.get(tick)
        if items is None:
            items = self._ticks[tick] = {}
            self._timers[tick] = self._clock.call_later(tick * self.TICK - now, lambda: self._ring(tick))
        items[item] = None
        return tick

    def discard(self, item: Item, tick: int) -> None:
        """Forget a deadline that was met."""
        items = self._ticks.get(tick)
        if items is not None:
            items.pop(item, None)

    def close(self) -> None:
        """Forget all of them."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ticks.clear()

    def _ring(self, tick: int) -> None:
        del self._timers[tick]
        for item in self._ticks.pop(tick):
            self._expire(item)
