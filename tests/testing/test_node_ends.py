"""What is left of a private RabbitMQ node, or open to others, in the unlucky cases: nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventpipe.testing import BrokerUnavailable, RabbitNode, brokers

START = """
import time
from eventpipe.testing import RabbitNode
node = RabbitNode.start()
print(node.folder, node.pid, node.facts["keeper"], node.facts["mapper"], flush=True)
time.sleep(99)  # until it is killed
"""

LISTENS = "0A"


def test_a_node_ends_with_an_owner_that_nobody_reaps() -> None:
    """A killed owner counts as gone while it's still a zombie; node, port mapper, keeper and folder go."""
    with subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) as process:
        folder, pid, keeper, mapper = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
        _eventually(lambda: not Path(folder).exists())
        _eventually(lambda: _is_gone(int(pid)) and _is_gone(int(keeper)))
        assert int(mapper) not in {port for _, port in _listening()}


def test_a_node_serves_loopback_only_and_stops_twice() -> None:
    """AMQP, management, distribution and the port mapper listen on 127.0.0.1; stopping again is harmless."""
    before = _listening()
    with RabbitNode.start() as node:
        opened = _listening() - before
        assert {node.facts["port"], node.facts["management"], node.facts["mapper"]} <= {port for _, port in opened}
        own = int(node.facts["environment"]["RABBITMQ_DIST_PORT"])
        assert {address for address, port in opened if port == own} == {"0100007F"}
        assert "/" in node.ctl("list_vhosts").split()
        pid = node.pid
    assert _is_gone(pid)
    node.stop()


def test_a_node_that_cannot_start_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails ends with the node's log, long before the time is up, and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="failed_to_prepare_configuration"):
        RabbitNode.start(config="nonsense = 1")
    assert time.monotonic() - began < 30
    assert list(tmp_path.iterdir()) == []


def test_the_facts_of_a_node_that_has_ended_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the shared node has ended, the next process starts another."""
    monkeypatch.delenv("EVENTPIPE_TEST_URL", raising=False)
    first = brokers.find_broker(tmp_path, owner=os.getpid())
    again = brokers.find_broker(tmp_path, owner=os.getpid())
    assert first.node.url == again.node.url
    again.stop()  # attached, not started here: the other way to end it
    _eventually(lambda: _is_gone(first.node.facts["keeper"]))
    first.stop()
    second = brokers.find_broker(tmp_path, owner=os.getpid())
    try:
        assert second.node.folder != first.node.folder
        assert second.fresh().startswith(second.node.url)
    finally:
        second.stop()


def _listening() -> set[tuple[str, int]]:
    """Give address (as the kernel writes it) and port of all IPv4 listeners."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    local = [row[1].split(":") for row in rows if row[3] == LISTENS]
    return {(address, int(port, 16)) for address, port in local}


def _is_gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return "State:\tZ" in status


def _eventually(condition, within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # a sync test
