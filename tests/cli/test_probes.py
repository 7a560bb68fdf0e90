"""``eventpipe run --health``: what a supervisor of processes is told, by real processes on a real broker."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support import eventually

from eventpipe import ConfigurationError, EventPipe, Queue
from eventpipe.cli import probes
from eventpipe.testing import RabbitNode

SERVICE = """
import asyncio, os, pathlib, time
from eventpipe import EventPipe, Queue, Options
here = pathlib.Path(__file__).parent
pipe = EventPipe(name="service", drain=10.0, options=Options(heartbeat=1))

@pipe.consumer(Queue("jobs"))
async def handle(seconds: float):
    (here / "begun").write_text(str(os.getpid()))
    if seconds < 0:
        time.sleep(-seconds)  # it has to block its loop
    else:
        await asyncio.sleep(seconds)
"""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Run:
    """The command, its probes, and a publisher to its queue."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, folder: Path) -> None:
        self.process, self.port, self.folder = process, port, folder

    async def asks(self, path: str) -> tuple[int, str]:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return 0, "nobody listens"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = (await asyncio.wait_for(reader.read(), 5)).decode()
        writer.close()
        return int(answer.split()[1]), answer.rpartition("\r\n\r\n")[2].strip()

    async def is_(self, path: str, status: int, says: str = "") -> bool:
        found, text = await self.asks(path)
        return found == status and says in text


@asynccontextmanager
async def running(folder: Path, url: str, workers: str) -> AsyncIterator[Run]:
    (folder / "service.py").write_text(SERVICE)
    (folder / "sitecustomize.py").write_text("from eventpipe.cli import probes\nprobes.STUCK_AFTER = 1.5\n")
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from eventpipe.cli import main; main()", "run", "service:pipe"),
        *("--workers", workers, "--health", str(port)),
        cwd=folder,
        env={
            **os.environ,
            "EVENTPIPE_URL": url,
            "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Run(process, port, folder)
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 30)


async def send(url: str, *seconds: float) -> None:
    pipe = EventPipe(url, name="sender")
    publisher = pipe.publisher(float, to=Queue("jobs"))
    async with pipe:
        await publisher.publish_many(seconds)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_ready_until_it_drains(tmp_path: Path, eventpipe_rabbitmq: str, workers: str) -> None:
    """Green once all consumers are served, red at once while what has begun is finished; alive all the time."""
    async with running(tmp_path, eventpipe_rabbitmq, workers) as run:
        await eventually(lambda: run.is_("/ready", 200, "ok"), within=20)
        assert await run.is_("/live", 200, "ok")
        assert await run.is_("/metrics", 404, "/live and /ready")
        await send(eventpipe_rabbitmq, 4.0)
        await eventually((tmp_path / "begun").exists)
        run.process.terminate()
        await eventually(lambda: run.is_("/ready", 503, "draining"), within=2)
        assert await run.is_("/live", 200)
        assert await asyncio.wait_for(run.process.wait(), 20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stuck_event_loop_is_red(tmp_path: Path, eventpipe_rabbitmq: str, workers: str) -> None:
    """A handler that holds up its loop: not alive, not ready; both again when it is over."""
    async with running(tmp_path, eventpipe_rabbitmq, workers) as run:
        await eventually(lambda: run.is_("/ready", 200), within=20)
        await send(eventpipe_rabbitmq, -4.0)
        await eventually(lambda: run.is_("/live", 503, "stuck"), within=5)
        assert await run.is_("/ready", 503, "stuck")
        await eventually(lambda: run.is_("/live", 200), within=10)
        await eventually(lambda: run.is_("/ready", 200))


async def test_a_stopped_worker_process_is_red(tmp_path: Path, eventpipe_rabbitmq: str) -> None:
    """Frozen: not alive. Killed: not ready until another one has taken its place, and alive."""
    async with running(tmp_path, eventpipe_rabbitmq, "2") as run:
        await eventually(lambda: run.is_("/ready", 200), within=20)
        await send(eventpipe_rabbitmq, 0.0)
        await eventually((tmp_path / "begun").exists)
        worker = int((tmp_path / "begun").read_text())
        os.kill(worker, signal.SIGSTOP)
        await eventually(lambda: run.is_("/live", 503, "worker"), within=5)
        os.kill(worker, signal.SIGKILL)
        await eventually(lambda: run.is_("/live", 200), within=5)
        assert await run.is_("/ready", 503, "not consuming yet")
        await eventually(lambda: run.is_("/ready", 200), within=20)


async def test_a_broker_that_is_away_is_no_reason_to_be_restarted(tmp_path: Path) -> None:
    """Alive, not ready, with the reason; ready again when it is back."""
    with RabbitNode.start(owner=os.getpid()) as node:
        async with running(tmp_path, node.url, "1") as run:
            await eventually(lambda: run.is_("/ready", 200), within=20)
            await asyncio.to_thread(node.stop_broker)
            await eventually(lambda: run.is_("/ready", 503, "not connected"), within=10)
            assert await run.is_("/live", 200)
            await asyncio.to_thread(node.restart)
            await eventually(lambda: run.is_("/ready", 200), within=20)


@pytest.mark.parametrize("address", ["soon", "localhost:", "a:b:80", "70000", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    """With an example."""
    with pytest.raises(ConfigurationError, match="write HOST:PORT"), probes.serving(address, probes.Signs(1)):
        pass


def test_a_port_that_is_taken_is_said() -> None:
    """And which one."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"{port}: .*in use"),
            probes.serving(f"127.0.0.1:{port}", probes.Signs(1)),
        ):
            pass


def test_a_port_alone_is_loopbacks() -> None:
    """Nobody else is told anything unless that is asked for."""
    assert probes._parse("8080") == ("127.0.0.1", 8080)
    assert probes._parse(":8080") == ("127.0.0.1", 8080)
    assert probes._parse("0.0.0.0:8080") == ("0.0.0.0", 8080)
