"""The same small application, written with eventpipe and with its peers: ``produce`` and ``consume`` with a ledger.

They read ``$URLS`` (separated by spaces; peers that take one use the first), ``$EVENTPIPE_LEDGER`` and ``$RATE``.
"""

import itertools
import os
import time
from collections.abc import Iterator

from tests.chaos.ledger import LEDGER, Book

URLS = os.environ.get("URLS", "").split()
RATE = float(os.environ.get("RATE", "500"))
"""Messages a second, of each producer."""

BATCH = 50
CONCURRENCY, PREFETCH = 100, 200


def book(name: str) -> Book:
    """Open this process's book."""
    return Book(os.environ[LEDGER], name)


def batches() -> Iterator[tuple[float, list[str]]]:
    """Give batches of fresh ids for ever, each with the seconds to wait before it."""
    begun, unique = time.monotonic(), f"{os.getpid()}-{time.time_ns():x}"
    for number in itertools.count():
        due = begun + number * BATCH / RATE
        late = time.monotonic() - due
        begun += max(0.0, late - 1.0)  # what an outage cost is not made up for in one burst
        yield max(0.0, -late), [f"{unique}-{number * BATCH + index}" for index in range(BATCH)]
