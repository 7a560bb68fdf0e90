"""A private PostgreSQL server from Debian's package, on a free port in a temporary folder; it ends with its starter."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

HOW_TO_GET_ONE = "these tests need PostgreSQL's server: apt-get install postgresql (Debian and Ubuntu)"


class Postgres:
    """A running server; ``create`` makes a database and gives its URL."""

    def __init__(self, folder: Path, port: int, process: "subprocess.Popen[bytes]", programs: Path) -> None:
        self.port = port
        self._folder, self._process, self._programs = folder, process, programs

    @classmethod
    def start(cls, *settings: str) -> Self:
        """Make a cluster and start it; ``settings`` are ``name=value``."""
        programs = _programs()
        folder = Path(tempfile.mkdtemp(prefix="eventpipe-postgres-"))
        as_user: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        run = ["setpriv", *as_user, "--pdeathsig=INT"]  # a fast shutdown, should whoever started it be killed
        make = [*run, programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "eventpipe", "--no-sync"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        port = _free_port()
        options = [f"-c{one}" for one in (f"unix_socket_directories={folder}", "listen_addresses=127.0.0.1", *settings)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*run, programs / "postgres", "-D", folder / "data", "-p", str(port), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started = cls(folder, port, process, programs)
        started._wait()
        return started

    def create(self, driver: str = "asyncpg") -> str:
        """Create a database and give its URL for SQLAlchemy."""
        name = f"test_{secrets.token_hex(6)}"
        self._psql("postgres", f"CREATE DATABASE {name}")
        return f"postgresql+{driver}://eventpipe@127.0.0.1:{self.port}/{name}"

    def drop_connections(self) -> None:
        """Cut off every client, as a failover would."""
        self._psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def stop(self) -> None:
        """Stop it, and remove what it had."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        shutil.rmtree(self._folder)

    def _psql(self, database: str, statement: str) -> None:
        subprocess.run(
            [self._programs / "psql", "-qXh127.0.0.1", f"-p{self.port}", "-Ueventpipe", database, "-c", statement],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def _wait(self) -> None:
        until = time.monotonic() + 30
        ask = [self._programs / "pg_isready", "-q", "-h127.0.0.1", f"-p{self.port}"]
        while subprocess.run(ask, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)  # the server is driven from sync code


def _programs() -> Path:
    """Find the server's programs. Raises ``RuntimeError`` with what to do."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("postgres")
    if elsewhere is None:
        raise RuntimeError(HOW_TO_GET_ONE)
    return Path(elsewhere).resolve().parent


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
