"""What a memory broker asks of the transports that are connected to it."""

import asyncio
from typing import Protocol

from ...clock import Clock


class Client(Protocol):
    """A connected transport, as its broker sees it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it connected on."""
        ...

    @property
    def clock(self) -> Clock: ...

    def turn(self) -> None:
        """Reopen what was lost, and hand over what was published."""
        ...

    def disconnect(self) -> None:
        """Lose everything that belongs to the current connection."""
        ...

    def forget(self) -> None:
        """Give everything back without a word: the event loop is closed."""
        ...

    def cancelled(self, queue: str) -> None:
        """Lose the consumers of a queue that is gone."""
        ...
