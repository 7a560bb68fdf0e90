"""Worker processes: started, restarted when they crash, drained together."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from dataclasses import dataclass

import structlog

from .probes import Signs, serving

log = structlog.get_logger("eventpipe")

BACKOFF = (0.5, 30.0)
"""Seconds until a crashed worker is started again: at first, and at most."""

HEALTHY_AFTER = 60.0
"""Seconds after which a worker's crash counts as its first again."""

KILL_AFTER = 5.0
"""Seconds beyond the drain until a worker that does not end is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What each worker process runs."""

    target: str
    workers: int
    only: tuple[str, ...] = ()
    drain: float
    health: str | None = None


class Supervisor:
    """Keeps ``workers`` processes running until SIGTERM or SIGINT. Processes are spawned, never forked."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stopping = asyncio.Event()
        self._failed = False
        self._processes: set[Process] = set()
        self._signs = Signs(plan.workers)
        self._ready: set[int] = set()
        self._life, self._alive = os.pipe()  # closed with this process, which its workers notice

    async def run(self) -> int:
        """Supervise; give the exit code: 1 if a worker's first start failed."""
        loop = asyncio.get_running_loop()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, self._stopping.set)
        with serving(self._plan.health, self._signs):
            await self._supervise()
        return 1 if self._failed else 0

    async def _supervise(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._plan.workers):
                group.create_task(self._keep(number))
            await self._stopping.wait()
            await self._drain()
        os.close(self._life)
        os.close(self._alive)

    async def _keep(self, number: int) -> None:
        """Start one worker, again and again, longer apart each time."""
        pause, first = BACKOFF[0], True
        while not self._stopping.is_set():
            began = time.monotonic()
            ready, code = await self._live(number)
            if self._stopping.is_set():
                return
            if first and not ready:
                self._failed = True
                self._stopping.set()
                return
            first = False
            pause = BACKOFF[0] if time.monotonic() - began > HEALTHY_AFTER else pause
            log.error("a worker ended; it is started again", worker=number, exit_code=code, seconds=pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, BACKOFF[1])

    async def _live(self, number: int) -> tuple[bool, int]:
        """Run one worker process to its end; tell whether it ever consumed, and its exit code."""
        read, write = os.pipe()
        options = [part for name in self._plan.only for part in ("--only", name)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "eventpipe.cli.worker", self._plan.target, *options),
            *("--drain", str(self._plan.drain), "--report", str(write), "--life", str(self._life)),
            pass_fds=(write, self._life),
            start_new_session=True,  # Ctrl-C reaches the supervisor, which tells the workers once
        )
        os.close(write)
        self._processes.add(process)
        if self._stopping.is_set():  # it was not there yet when the others were told
            process.send_signal(signal.SIGTERM)
        listening = asyncio.create_task(self._listen(number, read))
        code = await process.wait()
        self._processes.discard(process)
        # A child of its own may still hold the other end; what the worker wrote is here by then.
        await asyncio.wait([listening], timeout=1.0)
        listening.cancel()
        ready = number in self._ready
        self._ready.discard(number)
        self._signs.gone(number)
        return ready, code

    async def _listen(self, number: int, read: int) -> None:
        """Note a worker's signs of life until it ends."""
        reader = asyncio.StreamReader()
        with os.fdopen(read, "rb") as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            try:
                async for line in reader:
                    problem = line.decode().strip() or None
                    self._signs.note(number, problem)
                    if problem is None:
                        self._ready.add(number)
            finally:
                transport.close()

    async def _drain(self) -> None:
        self._signs.draining = True
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        waiting = [asyncio.ensure_future(process.wait()) for process in self._processes]
        if waiting:
            await asyncio.wait(waiting, timeout=self._plan.drain + KILL_AFTER)
        for process in self._processes:
            log.error("a worker did not end in time and is killed", pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
