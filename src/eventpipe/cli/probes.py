"""``/live`` and ``/ready`` for whoever runs the processes, for example Kubernetes.

They are answered from a thread: an event loop that is stuck could not say so. ``/live`` is red when an event loop
has not turned for a while; a broker that is away is no reason to be restarted. ``/ready`` is red until every consumer
is served, while blocked, and while draining.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from ..errors import ConfigurationError
from ..pipe import EventPipe
from ..shown import shown

BEAT = 0.5
"""Seconds between two signs of life of an event loop."""

STUCK_AFTER = 10.0
"""Seconds without one after which it is stuck."""

LOOPBACK = "127.0.0.1"

STARTING = "not consuming yet"


class Signs:
    """The last sign of life of each process, and what kept it from being ready then; written and read by threads."""

    def __init__(self, processes: int) -> None:
        self.draining = False
        self._processes = processes
        self._signs: dict[int, tuple[float, str | None]] = {}

    def note(self, number: int, problem: str | None) -> None:
        """Note that a process lives, and what keeps it from being ready, if anything does."""
        self._signs[number] = time.monotonic(), problem

    def gone(self, number: int) -> None:
        """Note that a process has ended."""
        self._signs.pop(number, None)

    def stuck(self) -> str | None:
        """Say which process gives no sign of life; one that has not begun yet is no reason."""
        for number, (at, _) in list(self._signs.items()):
            if (silent := time.monotonic() - at) > STUCK_AFTER:
                return f"{self._name(number)} has been stuck for {silent:.0f} s"
        return None

    def unready(self) -> str | None:
        """Say what keeps the whole from being ready."""
        if self.draining:
            return "draining"
        for number in range(self._processes):
            _, problem = self._signs.get(number, (0.0, STARTING))
            if problem is not None:
                return f"{self._name(number)}: {problem}"
        return self.stuck()

    def _name(self, number: int) -> str:
        return "the event loop" if self._processes == 1 else f"worker {number}"


def problem_of(pipe: EventPipe) -> str | None:
    """Say what keeps a pipe from being ready; ``None`` when it is."""
    health = pipe.health()
    return health.problem or (None if health.consumers else STARTING)


@contextlib.asynccontextmanager
async def beating(problem: Callable[[], str | None], note: Callable[[str | None], object]) -> AsyncIterator[None]:
    """Give signs of life, with what keeps it from being ready, for as long as the event loop turns."""

    async def beat() -> None:
        while True:
            note(problem())
            await asyncio.sleep(BEAT)

    task = asyncio.create_task(beat(), name="eventpipe probes")
    try:
        yield
    finally:
        task.cancel()


@contextlib.contextmanager
def serving(address: str | None, signs: Signs) -> Iterator[None]:
    """Serve the probes of an address ``HOST:PORT`` inside the block, if there is one. Raises ``ConfigurationError``."""
    if address is None:
        yield
        return
    try:
        server = ThreadingHTTPServer(_parse(address), type("Probes", (_Handler,), {"signs": signs}))
    except OSError as error:
        raise ConfigurationError(f"--health {address}: {error.strerror or error}; choose another address") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535 or ":" in host:
        raise ConfigurationError(
            f"--health {address!r}: write HOST:PORT or PORT, for example 8080 (loopback) or 0.0.0.0:8080"
        )
    return host or LOOPBACK, int(port)


class _Handler(BaseHTTPRequestHandler):
    signs: ClassVar[Signs]
    timeout = 5  # seconds for a client to say what it wants

    def do_GET(self) -> None:
        asked = {"/live": self.signs.stuck, "/ready": self.signs.unready}.get(self.path)
        problem = "there are /live and /ready" if asked is None else asked()
        status = 404 if asked is None else 503 if problem else 200
        text = f"{shown(problem) if problem else 'ok'}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing: a probe comes every few seconds."""
