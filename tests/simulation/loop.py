"""An event loop whose time is turned, not waited for: what takes a minute of it takes a moment, the same each time."""

import asyncio
import selectors
from collections.abc import Callable

from eventpipe.clock import Timer


class _NoWaiting(selectors.SelectSelector):
    """Turns the time forward instead of sleeping until the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is left that could ever happen")
        self.now += max(0.0, timeout)
        return []


class Deadlock(AssertionError):
    """Somebody waits, and nothing will ever wake them."""


TURNS_AT_MOST = 200_000


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in asyncio's own order. ``before(n, call)`` calls back in front of the n-th turn from now."""

    def __init__(self) -> None:
        self._turned = _NoWaiting()
        super().__init__(self._turned)
        self._turns = 0
        self._due: dict[int, list[Callable[[], object]]] = {}

    def time(self) -> float:
        return self._turned.now

    def before(self, turns: int, call: Callable[[], object]) -> None:
        self._due.setdefault(self._turns + turns, []).append(call)

    def _run_once(self) -> None:
        self._turns += 1
        if self._turns > TURNS_AT_MOST:
            raise Deadlock(f"it goes round in circles at {self.time()} s")
        for call in self._due.pop(self._turns, ()):
            self.call_soon(call)
        super()._run_once()  # type: ignore[misc]  # asyncio's own, the same since 3.4


class LoopClock:
    """A pipe's clock that is the simulated loop's."""

    BEGIN = 1_700_000_000.0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        return self.BEGIN + self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Timer:
        return self._loop.call_later(seconds, callback)
