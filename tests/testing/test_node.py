"""Private RabbitMQ nodes: started, killed, shared, and gone when their owner is."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import eventually

from eventpipe import EventPipe, Queue
from eventpipe.testing import BrokerUnavailable, RabbitNode, brokers


async def _publish(url: str) -> None:
    pipe = EventPipe(url, name="node")
    publisher = pipe.publisher(int, to=Queue("q"))
    async with pipe:
        await publisher.publish(1)


async def test_a_node_keeps_its_data_over_a_kill_and_leaves_nothing_behind() -> None:
    """A confirmed message survives kill -9 of the broker; after stop there is no process and no folder."""
    with await asyncio.to_thread(RabbitNode.start) as node:
        url = node.create_vhost()
        await _publish(url)
        await asyncio.sleep(1.0)  # RabbitMQ writes down where a new quorum queue is twice a second only
        node.kill()
        await asyncio.to_thread(node.restart)
        async with EventPipe(url, name="look") as pipe:
            await eventually(lambda: _depth_is_one(pipe), within=10)
        pid, keeper, folder = node.pid, node.facts["keeper"], node.folder
        assert "test-" in node.ctl("list_vhosts")
    assert not folder.exists()
    assert _is_gone(pid)
    assert _is_gone(keeper)


async def _depth_is_one(pipe: EventPipe) -> bool:
    return await pipe._session.transport.depth("q") == 1


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_parallel_test_processes_share_a_node(tmp_path: Path) -> None:
    """pytest-xdist workers get virtual hosts of one node, and the fixtures work under it."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_url(eventpipe_rabbitmq, n):\n"
        "    print('URL', eventpipe_rabbitmq)\n"
        "def test_both(eventpipe_broker):\n"
        "    print('URL', eventpipe_broker)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "2",
            "-rP",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
        check=False,
    )
    urls = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("URL amqp")]
    assert done.returncode == 0, done.stdout
    assert len(urls) == len(set(urls)) == 5
    assert len({url.rpartition("/")[0] for url in urls}) == 1


def test_the_environment_names_a_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``$EVENTPIPE_TEST_URL`` wins, and each test gets a name prefix of its own there."""
    monkeypatch.setenv("EVENTPIPE_TEST_URL", "amqp://h/v")
    broker = brokers.find_broker(tmp_path, owner=os.getpid())
    assert broker.fresh().startswith("amqp://h/v?name_prefix=t")
    assert broker.fresh() != broker.fresh()
    broker.stop()


def test_no_broker_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any way to a RabbitMQ, one line says what to do; nothing is skipped."""
    monkeypatch.delenv("EVENTPIPE_TEST_URL", raising=False)
    monkeypatch.setattr(brokers, "find_server", lambda: None)
    monkeypatch.setitem(sys.modules, "testcontainers.rabbitmq", None)
    with pytest.raises(BrokerUnavailable, match="install rabbitmq-server"):
        brokers.find_broker(tmp_path, owner=os.getpid())
