"""The process that keeps a private RabbitMQ node, and ends it when its owner is gone, even killed.

Run as a script: ``keeper.py OWNER_PID FOLDER SERVER``. SIGUSR1 starts the node (again), SIGTERM ends everything.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


class Keeper:
    """Owns the node's process group and its port mapper."""

    def __init__(self, owner: int, folder: Path, server: Path) -> None:
        self._owner, self._folder, self._server = owner, folder, server
        self._node: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None
        self._wanted = self._ended = False

    def run(self) -> None:
        """Serve signals until told to end, or until the owner is gone."""
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "_wanted", True))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_ended", True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which then stops us
        (self._folder / "keeper.pid").write_text(str(os.getpid()))
        while not self._ended and self._owner_lives():
            if self._wanted and (self._node is None or self._node.poll() is not None):
                self._wanted = False
                self._start()
            time.sleep(0.05)
        self._stop()

    def _owner_lives(self) -> bool:
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
            self._mapper = subprocess.Popen(["epmd", "-address", "127.0.0.1"], stdin=subprocess.DEVNULL)  # noqa: S607
        with (self._folder / "output.log").open("ab") as output:
            self._node = subprocess.Popen(
                [self._server], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _stop(self) -> None:
        if self._node is not None:
            # Its data goes with it: nothing would be gained by a stop in good order, which takes seconds.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._node.pid, signal.SIGKILL)
            self._node.wait()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


if __name__ == "__main__":
    Keeper(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])).run()
