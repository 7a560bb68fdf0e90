"""A clock that is turned by hand: half an hour of backoff passes in microseconds."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class ManualTimer:
    """A call that was arranged for later."""

    callback: Callable[[], object] | None

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A ``Clock`` that stands still until it is turned; ``start`` is in seconds since 1970."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start, self._passed = start, 0.0
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._start + self._passed

    def monotonic(self) -> float:
        return self._passed

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self._passed + max(0.0, seconds), next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Turn the clock; what becomes due is called in order, with the clock standing at its moment."""
        end = self._passed + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._passed = max(self._passed, due)
            if timer.callback is not None:
                timer.callback()
        self._passed = end

    def next_due(self) -> float | None:
        """Give the seconds until the next call, or ``None``."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] - self._passed if self._timers else None
