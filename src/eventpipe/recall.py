"""Which deliveries were dealt with already, when a lost connection brings them again.

A handler outlives its connection, and an acknowledgement may be lost on the wire. The broker then delivers the message
again, marked as redelivered, although its work is done or still running here (the idea is NServiceBus's). Nothing is
looked up for a message that is not redelivered, so this costs the ordinary path one append.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from .intake import Parcel
from .message import ATTEMPT, TIME

FORGET_AFTER = 300.0
"""Seconds after which finished work is forgotten, so that a later replay of the same message runs."""

Key = tuple[Any, ...]


class Recall:
    """Remembers what was settled last, finished unsettled, or is still running."""

    def __init__(self, prefetch: int) -> None:
        # Broker-side, at most a prefetch of acknowledgements can be missing when a connection is lost.
        self._recent: deque[Parcel] = deque(maxlen=prefetch)
        self._finished: dict[Key, float] = {}
        self._running: dict[Key, Parcel] = {}
        self._limit = 4 * prefetch

    @property
    def armed(self) -> bool:
        """Whether there is anything to recall."""
        return bool(self._finished or self._running)

    def concluded(self, parcel: Parcel, *, settled: bool, now: float) -> None:
        """Note that the work is done; ``settled`` unless its epoch was over; ``now`` is monotonic."""
        if settled:
            self._recent.append(parcel)
            return
        key = _key(parcel)
        self._running.pop(key, None)
        self._finish(key, now)

    def lost(self, running: Iterable[Parcel], now: float) -> None:
        """Note that an epoch ended while these were running."""
        while self._recent:
            self._finish(_key(self._recent.popleft()), now)
        self._running.update((_key(parcel), parcel) for parcel in running)

    def match(self, parcel: Parcel, now: float) -> Parcel | None:
        """Find what a redelivered parcel was before: itself if it is finished, the older one if that still runs."""
        key = _key(parcel)
        finished = self._finished.pop(key, None)
        if finished is not None and now - finished < FORGET_AFTER:
            return parcel
        return self._running.pop(key, None)

    def fresh(self, parcel: Parcel) -> None:
        """Forget what equals a message that is delivered for the first time: it is another one."""
        self._finished.pop(_key(parcel), None)

    def _finish(self, key: Key, now: float) -> None:
        self._finished[key] = now
        while len(self._finished) > self._limit:
            del self._finished[next(iter(self._finished))]


def _key(parcel: Parcel) -> Key:
    properties, body = parcel.delivery.properties, parcel.delivery.body
    headers = properties.headers
    # An id alone would skip a second attempt, or another event of a publisher that is careless with ids.
    return parcel.queue, properties.message_id, headers.get(ATTEMPT), headers.get(TIME), hash(body)
