"""``eventpipe relay``, as an operator meets it: a process that publishes what others commit."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support import eventually

from eventpipe import EventPipe, Queue

SHOP = """
import os
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine
from eventpipe import EventPipe, Queue
from eventpipe.sql import Outbox

metadata = MetaData()
pipe = EventPipe(name="shop")
orders = pipe.publisher(int, to=Queue("orders"))
outbox = Outbox(metadata, pipe=pipe, engine=create_async_engine(os.environ["DATABASE"]))

@pipe.consumer(Queue("orders"))
async def handle(number: int):
    raise SystemExit("a relay consumes nothing")
"""


async def start(folder: Path, url: str, *arguments: str) -> asyncio.subprocess.Process:
    (folder / "shop.py").write_text(SHOP)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from eventpipe.cli import main; main()", "relay", *arguments),
        cwd=folder,
        env={**os.environ, "EVENTPIPE_URL": url, "DATABASE": f"sqlite+aiosqlite:///{folder}/shop.db"},
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )


async def _answers(port: int, path: str, status: int, says: str = "") -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return f" {status} " in answer and says in answer


async def test_it_publishes_and_ends_when_told(tmp_path: Path, eventpipe_rabbitmq: str) -> None:
    """It is not ready before it can read the table, then it is; SIGTERM ends it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    process = await start(tmp_path, eventpipe_rabbitmq, "shop:outbox", "--health", str(port))
    try:
        await eventually(lambda: _answers(port, "/ready", 503, "eventpipe_outbox"), within=20)
        assert await _answers(port, "/live", 200)
        from sqlalchemy import MetaData

        from eventpipe.sql import Outbox

        engine, metadata = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db"), MetaData()
        pipe = EventPipe(eventpipe_rabbitmq, name="request")
        publisher = pipe.publisher(int, to=Queue("orders"))
        outbox = Outbox(metadata, pipe=pipe, engine=engine)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await eventually(lambda: _answers(port, "/ready", 200), within=20)
        async with engine.begin() as connection:
            await outbox.add_many(connection, publisher, range(7))
        await engine.dispose()
        async with pipe:

            async def all_there() -> bool:
                return await pipe._session.transport.depth("orders") == 7

            await eventually(all_there, within=10)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("target", "says"),
    [("shop", "write module:outbox"), ("shop:pipe", "it has outbox"), ("nobody:outbox", "no module")],
)
async def test_what_can_not_be_is_said(tmp_path: Path, target: str, says: str) -> None:
    """In one line."""
    process = await start(tmp_path, "memory://", target)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert says in err.decode()
    assert "Traceback" not in err.decode()
