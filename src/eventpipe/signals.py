"""Serve until the process is told to stop."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def until_told() -> Iterator[asyncio.Event]:
    """Turn the first SIGTERM or SIGINT into an event, where the platform and the thread allow it.

    A second one ends the process at once.
    """
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    installed: list[signal.Signals] = []

    def stop() -> None:
        stopped.set()
        while installed:
            loop.remove_signal_handler(installed.pop())

    try:
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            for one in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(one, stop)
                installed.append(one)
        yield stopped
    finally:
        while installed:
            loop.remove_signal_handler(installed.pop())
