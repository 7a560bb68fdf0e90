"""The examples, run as their readers would run them."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import httpx
import pytest
from tests.support import eventually

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


async def _run(*command: str, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode, out.decode()


async def test_quickstart() -> None:
    """The README's first program says hello, in at most fifteen lines."""
    program = (EXAMPLES / "quickstart.py").read_text()
    assert program in (ROOT / "README.md").read_text()
    assert len(program.splitlines()) <= 15
    assert await _run(str(EXAMPLES / "quickstart.py")) == (0, "hello world\n")


async def test_dead_letters() -> None:
    """The one that was mended is handled in the end, the other one is parked."""
    code, out = await _run(str(EXAMPLES / "dead_letters.py"))
    told = [line for line in out.splitlines() if line.startswith(("price", "parked", "replayed"))]
    assert (code, told[0], told[1], sorted(told[2:])) == (0, "price 9.95", "parked 1", ["price 9.95", "replayed 1"]), (
        out
    )
    assert out.count("after 2 attempts") == 2


async def test_handlers() -> None:
    """Rolled back the first time, committed the second; each seen by the middleware."""
    code, out = await _run(str(EXAMPLES / "handlers.py"))
    told = [line.split(" (")[0] for line in out.splitlines() if line.startswith((" ", "orders"))]
    first = ["  begin", "  insert tea", "  roll back", "orders, attempt 1: RetryIn"]
    assert (code, told) == (0, [*first, "  begin", "  insert tea", "  commit", "orders, attempt 2: Ack"]), out


async def test_departures(eventpipe_broker: str) -> None:
    """The demo's counts are those of a plain loop over the file, on both brokers."""
    code, out = await _run(str(EXAMPLES / "departures/demo.py"), "--events", "3000", "--url", eventpipe_broker)
    assert (code, "every count is the same" in out) == (0, True), out


async def test_departures_notices_a_wrong_count(tmp_path: Path) -> None:
    """A consumer that counts wrongly ends the demo with exit code 1 and names the difference."""
    for file in (EXAMPLES / "departures").glob("*.py"):
        (tmp_path / file.name).write_text(
            file.read_text().replace("seen.late += 1", "seen.late += 2").replace("PATIENCE = 15.0", "PATIENCE = 2.0")
        )
    code, out = await _run(str(tmp_path / "demo.py"), "--events", "3000")
    assert (code, "wrong" in out and "late" in out) == (1, True), out


async def test_tweet_feed_as_two_processes(tmp_path: Path, eventpipe_rabbitmq: str) -> None:
    """A web process publishes and a worker process pushes: what ann posts reaches bob, also what waited meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "EVENTPIPE_URL": eventpipe_rabbitmq, "FEEDS": str(tmp_path / "feeds.sqlite")}
    web = await _start(environment, "-m", "uvicorn", "web:app", "--port", str(port), "--log-level", "warning")
    worker = None
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await eventually(lambda: _answers(client), within=20)
            await client.put("/users/ann/followers/bob")
            answer = await client.post("/tweets", json={"user": "ann", "text": "nobody works yet"})
            if answer.status_code != 202:  # the worker's queue is not declared yet: nothing is lost silently
                assert answer.json()["stored"] == "not_stored"
            worker = await _start(environment, "-c", "from eventpipe.cli import main; main()", "run", "service:pipe")
            await eventually(lambda: _posts(client), within=20)
            await eventually(lambda: _has(client, "ann: hi"), within=20)
    finally:
        for process in (web, worker):
            if process is not None:
                process.terminate()
                await asyncio.wait_for(process.wait(), 30)


async def _start(environment: dict[str, str], *command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=EXAMPLES / "tweet_feed", env=environment, stdout=asyncio.subprocess.DEVNULL
    )


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/feeds/bob")).status_code == 200
    except httpx.ConnectError:
        return False


async def _posts(client: httpx.AsyncClient) -> bool:
    return (await client.post("/tweets", json={"user": "ann", "text": "hi"})).status_code == 202


async def _has(client: httpx.AsyncClient, text: str) -> bool:
    return text in (await client.get("/feeds/bob")).json()


async def _migrated(database: str) -> None:
    """The committed migration makes what the metadata says, tables of outbox and inbox included."""
    environment = {"DATABASE_URL": database, "EVENTPIPE_URL": "memory://"}
    for command in ("upgrade head", "check"):
        configuration = str(EXAMPLES / "orders_outbox/alembic.ini")
        code, out = await _run("-m", "alembic", "-c", configuration, *command.split(), **environment)
        assert code == 0, out


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_orders_are_paid_once_whatever_is_killed(
    database: str, tmp_path: Path, eventpipe_rabbitmq: str, request: pytest.FixtureRequest
) -> None:
    """Web app, relay and payment services are killed at random, in the middle of everything."""
    if database == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    else:
        url = request.getfixturevalue("postgres").create()
    await _migrated(url)
    code, out = await _run(
        *(str(EXAMPLES / "orders_outbox/kill_everything.py"), "--orders", "30", "--seed", "7"),
        EVENTPIPE_URL=eventpipe_rabbitmq,
        DATABASE_URL=url,
    )
    assert (code, "paid: 30 of 30 orders, 0 of them more than once" in out) == (0, True), out
    assert out.count("kill -9") >= 2


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_examples_use_the_public_names_only(file: Path) -> None:
    """What readers copy does not reach inside."""
    assert "._" not in file.read_text().replace("__", ""), file
