"""The command, as an operator meets it: real processes, on a real broker."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support import eventually

from eventpipe import EventPipe, Queue

SERVICE = """
import asyncio, os, pathlib
from eventpipe import EventPipe, Queue, Exchange
here = pathlib.Path(__file__).parent
pipe = EventPipe(name="service")
jobs, other = Queue("jobs", bind=Exchange("x").on("a.*")), Queue("other")

def note(line):
    with (here / "log").open("a") as log:
        log.write(line + "\\n")

@pipe.consumer(jobs, concurrency=4, prefetch=4)
async def handle(seconds: float):
    note(f"begin {os.getpid()}")
    await asyncio.sleep(seconds)
    note(f"end {os.getpid()}")

@pipe.consumer(other)
async def handle_other(seconds: float):
    note("other")
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A folder with a service in it."""
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "broken.py").write_text("1 / 0")
    return tmp_path


@asynccontextmanager
async def command(folder: Path, *arguments: str, url: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "EVENTPIPE_URL": url, "COLUMNS": "160"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from eventpipe.cli import main; main()", *arguments),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.communicate(), 30)


async def output(folder: Path, *arguments: str, url: str = "") -> tuple[int | None, str, str]:
    async with command(folder, *arguments, url=url) as process:
        out, err = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode, out.decode(), err.decode()


def lines(folder: Path, start: str) -> Callable[[], list[str]]:
    log = folder / "log"
    return lambda: [line for line in log.read_text().splitlines() if line.startswith(start)] if log.exists() else []


async def send(url: str, *seconds: float, queue: str = "jobs") -> None:
    pipe = EventPipe(url, name="sender")
    publisher = pipe.publisher(float, to=Queue(queue, bind=()))
    async with pipe:
        await publisher.publish_many(seconds)


async def test_workers_share_the_work_and_a_killed_one_is_started_again(service: Path, eventpipe_rabbitmq: str) -> None:
    """Two processes handle; after kill -9 of one, a new one takes its place and its message is handled."""
    async with command(service, "run", "service:pipe", "--workers", "2", url=eventpipe_rabbitmq) as process:
        begun, ended = lines(service, "begin"), lines(service, "end")
        await eventually(lambda: process.returncode is None and _ready(eventpipe_rabbitmq), within=20)
        await send(eventpipe_rabbitmq, *[0.2] * 12)
        await eventually(lambda: len(ended()) >= 12, within=20)
        assert len({line.split()[1] for line in begun()}) == 2
        await send(eventpipe_rabbitmq, 1.0)
        await eventually(lambda: len(begun()) >= 13)
        killed = begun()[-1].split()[1]
        os.kill(int(killed), signal.SIGKILL)
        await eventually(lambda: len(ended()) >= 13, within=20)
        await send(eventpipe_rabbitmq, *[0.2] * 12)
        await eventually(lambda: len({line.split()[1] for line in begun()}) >= 3, within=20)
        process.terminate()
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0


async def _ready(url: str) -> bool:
    pipe = EventPipe(url, name="probe", topology="check")
    pipe.publisher(float, to=Queue("jobs"))
    try:
        async with pipe:
            return True
    except Exception:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.fault("F30")
async def test_sigterm_drains(service: Path, eventpipe_rabbitmq: str, workers: str) -> None:
    """What has begun when SIGTERM comes is finished and settled, and the command exits 0."""
    async with command(service, "run", "service:pipe", "--workers", workers, url=eventpipe_rabbitmq) as process:
        await eventually(lambda: _ready(eventpipe_rabbitmq), within=20)
        await send(eventpipe_rabbitmq, 1.0)
        await eventually(lines(service, "begin"), within=20)
        process.terminate()
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert (0, 1) == (process.returncode, len(lines(service, "end")())), err
    async with EventPipe(eventpipe_rabbitmq, name="look") as pipe:
        assert await pipe._session.transport.depth("jobs") == 0


async def test_only_consumes_what_is_named(service: Path, eventpipe_rabbitmq: str) -> None:
    """With --only, the other queues are declared and not consumed."""
    async with command(service, "run", "service:pipe", "--only", "other", url=eventpipe_rabbitmq):
        await eventually(lambda: _ready(eventpipe_rabbitmq), within=20)
        await send(eventpipe_rabbitmq, 0.0)
        await send(eventpipe_rabbitmq, 0.0, queue="other")
        await eventually(lines(service, "other"), within=20)
        assert lines(service, "begin")() == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: "amqp://guest:hidden@127.0.0.1:1/", "nothing listens there"),
        (lambda url: url.replace("guest:guest", "guest:hidden"), "refused the login"),
        (lambda url: url.rpartition("/")[0] + "/nowhere", "virtual host 'nowhere' does not exist"),
    ],
)
async def test_a_first_start_that_fails(
    service: Path, eventpipe_rabbitmq: str, workers: str, change: Callable[[str], str], text: str
) -> None:
    """An unreachable broker and a refused login exit 1 with a line that names the address and no password."""
    code, _, err = await output(service, "run", "service:pipe", "--workers", workers, url=change(eventpipe_rabbitmq))
    assert (1, True, True, False, False) == (
        code,
        text in err,
        "amqp://guest@127.0.0.1:" in err,
        "hidden" in err,
        "Traceback" in err and "aiormq" not in err,
    ), err


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("service", "names no pipe: write module:pipe"),
        ("nowhere:pipe", "there is no module 'nowhere'"),
        ("broken:pipe", "module 'broken' fails on import: ZeroDivisionError"),
        ("service:nothing", "module 'service' has no 'nothing'; it has pipe"),
        ("service:jobs", "has no EventPipe called 'jobs'"),
    ],
)
async def test_bad_import_paths(service: Path, target: str, text: str) -> None:
    """Each way to name a pipe wrongly says what to do."""
    code, _, err = await output(service, "topology", target)
    assert (1, True) == (code, text in err), err


async def test_memory_with_several_workers_is_refused(service: Path) -> None:
    """Processes can't share a broker that lives in one of them; a pipe without any URL says so too."""
    code, _, err = await output(service, "run", "service:pipe", "--workers", "2", url="memory://")
    assert (1, True) == (code, "memory:// lives inside one process" in err)
    code, _, err = await output(service, "run", "service:pipe")
    assert (1, True) == (code, "$EVENTPIPE_URL" in err)


async def test_topology_and_version(service: Path) -> None:
    """Tables, a Mermaid picture, the permissions, and the version."""
    _, out, err = await output(service, "topology", "service:pipe")
    assert all(word in out for word in ("jobs.dead", "jobs.suspects", "a.*", "x-delivery-limit=100")), (out, err)
    _, out, _ = await output(service, "topology", "service:pipe", "--mermaid")
    assert out.startswith("flowchart LR")
    assert '-- "a.*" -->' in out
    _, out, _ = await output(service, "permissions", "service:pipe", "--user", "app")
    assert out.startswith("rabbitmqctl set_permissions -p / app '^(jobs|jobs")
    code, out, _ = await output(service, "version")
    assert (0, "0.1.0\n") == (code, out)
