"""What a memory broker does later, on the clock of whichever transport is there."""

import heapq
import itertools
from collections.abc import Callable

from ...clock import Clock, SystemClock, Timer

SAME = 1e-6
"""Seconds: moments closer than this are the same. Sums of floats differ in their last bits, and a timer that rings a
bit too early, on a clock turned by hand, would be set again for ever."""


class Later:
    """Calls for later, of which one timer at a time knows.

    Its time goes on steadily when the clock is changed: what is left of each wait stays the same.
    """

    def __init__(self) -> None:
        self.clock: Clock = SystemClock()
        self._shift = 0.0
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._timer: Timer | None = None
        self._armed: float | None = None

    def now(self) -> float:
        """Give the broker's time, in seconds."""
        return self.clock.monotonic() + self._shift

    def follow(self, clock: Clock) -> None:
        """Tell time by another clock."""
        self._shift = self.now() - clock.monotonic()
        self.clock = clock
        self._armed = None

    def at(self, moment: float, callback: Callable[[], object]) -> None:
        """Note a call for a moment."""
        heapq.heappush(self._calls, (moment, next(self._numbers), callback))

    def pop(self) -> Callable[[], object] | None:
        """Take off the next call that is due."""
        if self._calls and self._calls[0][0] <= self.now() + SAME:
            return heapq.heappop(self._calls)[2]
        return None

    def next_due(self) -> float | None:
        """Give the seconds until the next call."""
        return max(0.0, self._calls[0][0] - self.now()) if self._calls else None

    def arm(self, ring: Callable[[], object], *, idle: bool = False) -> None:
        """Have ``ring`` called when the next call is due; ``idle``: nobody is there whose clock could do that."""
        due = None if idle or not self._calls else self._calls[0][0]
        if due == self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = due
        if due is not None:
            self._timer = self.clock.call_later(max(0.0, due - self.now()), lambda: self._rung(ring))

    def _rung(self, ring: Callable[[], object]) -> None:
        self._timer = self._armed = None
        ring()
