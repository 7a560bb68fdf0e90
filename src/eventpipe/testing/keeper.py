"""The process that keeps a private RabbitMQ node, and ends it when its owner is gone, even killed.

Run as a script: ``keeper.py OWNER_PID FOLDER SERVER``. SIGUSR1 starts the node (again), SIGTERM ends everything.
The n-th start leaves a file ``started-n`` in the folder, and its end, for whatever reason, ``ended-n``.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Keeper:
    """Owns the node's process group and its port mapper."""

    def __init__(self, owner: int, folder: Path, server: Path) -> None:
        self._owner, self._folder, self._server = owner, folder, server
        self._node: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None
        self._wanted = self._ended = False
        self._starts = 0
        self._handle = _open_process(owner)

    def run(self) -> None:
        """Serve signals until told to end, or until the owner is gone."""
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "_wanted", True))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_ended", True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which then stops us
        (self._folder / "keeper.pid").write_text(str(os.getpid()))
        while not self._ended and self._owner_lives():
            self._look_after_node()
            time.sleep(0.05)  # a process of its own, without a loop
        self._stop()

    def _look_after_node(self) -> None:
        runs = self._node is not None and self._node.poll() is None
        if self._starts and not runs:
            (self._folder / f"ended-{self._starts}").touch()
        if self._wanted and not runs:
            self._wanted = False
            self._start()

    def _owner_lives(self) -> bool:
        if self._handle is not None:
            # Readable once the process has ended, even while its parent has not reaped it or its number is used again.
            return not select.select([self._handle], [], [], 0)[0]
        try:
            os.kill(self._owner, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _start(self) -> None:
        if self._mapper is None or self._mapper.poll() is not None:
            # A private port mapper: one that a node starts by itself would outlive it.
            self._mapper = subprocess.Popen(
                ["epmd", "-address", "127.0.0.1"],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # it remarks on every connection that says nothing
            )
            # A node that finds no mapper starts one by itself, and that one wins the port.
            _wait(_mapper_serves, 5.0)
        with (self._folder / "output.log").open("ab") as output:
            self._node = subprocess.Popen(
                [self._server],
                cwd=self._folder,  # where a crash dump goes
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._starts += 1
        (self._folder / f"started-{self._starts}").touch()

    def _stop(self) -> None:
        if self._node is not None:
            # Its data goes with it: nothing would be gained by a stop in good order, which takes seconds.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._node.pid, signal.SIGKILL)
            self._node.wait()
            _wait(self._machine_ended, 5.0)
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _machine_ended(self) -> bool:
        # The start script is the child; the Erlang machine is its child, and may go a moment later.
        try:
            os.kill(int((self._folder / "pid").read_text()), 0)
        except (OSError, ValueError):
            return True
        return False


def _open_process(pid: int) -> int | None:
    """Give a handle that tells of the end of a process, where the system has such."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


def _mapper_serves() -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(os.environ["ERL_EPMD_PORT"])), 1):
        return True
    return False


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)  # the same


if __name__ == "__main__":
    Keeper(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])).run()
