"""A private, throw-away RabbitMQ node from the ``rabbitmq-server`` that is installed on this machine."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from . import keeper

START_WITHIN = 60.0
"""Seconds that a node gets to start."""

STOP_WITHIN = 15.0
"""Seconds that the keeper gets to end a node."""

_PLACES = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")

_ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
"""Without it, Erlang's distribution listens on every interface."""


class BrokerUnavailable(RuntimeError):
    """There is no RabbitMQ to test with; the text says what to do."""


def find_server() -> Path | None:
    """Find the node's own start script. Debian's wrapper in /usr/sbin would change the user, and is not used."""
    for place in _PLACES:
        script = Path(place) / "rabbitmq-server"
        if script.exists():
            return script
    return None


class RabbitNode:
    """A running node on loopback, with the management plugin; everything of it is in one temporary folder.

    It ends with the process ``owner`` (by default the one that starts it), even if that is killed.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts

    @classmethod
    def start(cls, *, config: str = "", owner: int | None = None, beside: "RabbitNode | None" = None) -> Self:
        """Start a node and wait until it serves. Raises ``BrokerUnavailable``.

        One that is started ``beside`` another shares its port mapper and its cookie, so that ``rabbitmqctl
        join_cluster`` can put it into the other's cluster.
        """
        server = find_server()
        if server is None:
            raise BrokerUnavailable(
                "no rabbitmq-server is installed here (Debian and Ubuntu: apt-get install rabbitmq-server)"
            )
        folder = Path(tempfile.mkdtemp(prefix="eventpipe-rabbitmq-"))
        port, management, distribution, mapper = _free_ports(4)
        name = f"eventpipe-{secrets.token_hex(4)}@localhost"
        _configure(folder, port, management, config)
        if beside is not None:
            mapper = beside.facts["mapper"]
            shutil.copy2(beside.folder / "home" / ".erlang.cookie", folder / "home")
        facts = {"port": port, "management": management, "name": name, "mapper": mapper, "tools": str(server.parent)}
        facts["environment"] = _environment(folder, facts, distribution)
        node = cls(folder, facts)
        keeping = subprocess.Popen(
            [sys.executable, keeper.__file__, str(owner or os.getpid()), str(folder), str(server)],
            env=node._env(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        node.facts["keeper"] = keeping.pid
        node._keeping = keeping
        try:
            _until((folder / "keeper.pid").exists, 10.0, node)
            node.restart()
        except BaseException:  # Ctrl-C as well: nobody else knows of the node yet
            node.stop()
            raise
        return node

    _keeping: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """The AMQP URL of the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.facts['port']}/"

    @property
    def pid(self) -> int:
        """The process id of the Erlang machine."""
        return int((self.folder / "pid").read_text())

    def restart(self) -> None:
        """Start the broker, again on the same ports and data, and wait until it serves."""
        starts = len(list(self.folder.glob("started-*")))
        ended = self.folder / f"ended-{starts + 1}"
        os.kill(self.facts["keeper"], signal.SIGUSR1)
        _until(lambda: ended.exists() or self._serves(), START_WITHIN, self)
        if ended.exists():
            raise BrokerUnavailable(f"a private RabbitMQ node ended while it started; {_tail(self)}")

    def kill(self) -> None:
        """Kill the broker (-9); its data stays for ``restart``."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        _until(lambda: not _lives(pid), 10.0, self)

    def stop_broker(self) -> None:
        """Stop the broker in good order; its data stays for ``restart``."""
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        _until(lambda: not _lives(pid), 30.0, self)

    def pause(self) -> None:
        """Freeze the broker (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def unpause(self) -> None:
        """Let a frozen broker go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the node, its port mapper and its folder; nothing is left when this returns."""
        if self._keeping is not None:
            self._keeping.terminate()
            self._keeping.wait(STOP_WITHIN)
        elif self.folder.exists():  # else it has ended before, and its number may be another process's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.facts["keeper"], signal.SIGTERM)
            # The folder is the last to go; the keeper itself stays a zombie until the one that started it reaps it.
            _until(lambda: not self.folder.exists(), STOP_WITHIN, self)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` against this node and give what it prints."""
        tool = Path(self.facts["tools"]) / "rabbitmqctl"
        command = [str(tool), "-q", "-n", self.facts["name"], *arguments]
        return subprocess.run(command, env=self._env(), check=True, capture_output=True, text=True, timeout=60).stdout

    def create_vhost(self, name: str | None = None) -> str:
        """Make a fresh virtual host and give its URL."""
        name = name or f"test-{secrets.token_hex(6)}"
        self.api("PUT", f"vhosts/{quote(name, safe='')}")
        return f"{self.url}{quote(name, safe='')}"

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it."""
        self.api("DELETE", f"vhosts/{quote(name, safe='')}")

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Call the management API; give its answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.facts['management']}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            content = answer.read()
        return json.loads(content) if content else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.facts["environment"]}

    def _serves(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.facts["port"]), timeout=1):
                pass
            return bool(self.api("GET", "whoami"))
        except (OSError, urllib.error.URLError):
            return False


def _configure(folder: Path, port: int, management: int, config: str) -> None:
    lines = (
        f"listeners.tcp.1 = 127.0.0.1:{port}",
        f"management.tcp.port = {management}",
        "management.tcp.ip = 127.0.0.1",
        "vm_memory_high_watermark.absolute = 1GB",
        "disk_free_limit.absolute = 50MB",
        "log.file.level = warning",
        config,
    )
    (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
    (folder / "plugins").write_text("[rabbitmq_management].\n")
    (folder / "home").mkdir()


def _environment(folder: Path, facts: dict[str, Any], distribution: int) -> dict[str, str]:
    """Keep everything of the node in its folder: data, logs, cookie; and its port mapper on a port of its own."""
    return {
        "HOME": str(folder / "home"),
        "RABBITMQ_NODENAME": facts["name"],
        "RABBITMQ_NODE_PORT": str(facts["port"]),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ON_LOOPBACK,
        "RABBITMQ_CTL_ERL_ARGS": _ON_LOOPBACK,
        "ERL_EPMD_PORT": str(facts["mapper"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition: Any, seconds: float, node: RabbitNode) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"a private RabbitMQ node did not do as told within {seconds} s; {_tail(node)}")
        time.sleep(0.05)  # the node is driven from sync code


def _tail(node: RabbitNode) -> str:
    logs = [*sorted(node.folder.glob("log/*.log")), node.folder / "output.log"]
    return "its log ends:\n" + "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())
