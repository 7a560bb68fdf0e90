"""Killed at every step between a transaction and the broker, nothing committed is lost and ids stay what they were."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Integer, select
from sqlalchemy.ext.asyncio import create_async_engine
from tests.faults.conftest import ROUNDS
from tests.support import eventually

from eventpipe import EventPipe, Message, Queue

APPLICATION = """
import asyncio, os, signal, sys
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, update
from sqlalchemy.ext.asyncio import create_async_engine
from eventpipe import EventPipe, Queue
from eventpipe.sql import Inbox, Outbox
from eventpipe.sql.relay import Relay

engine = create_async_engine(os.environ["DATABASE"])
metadata = MetaData()
accounts = Table("accounts", metadata, Column("id", Integer, primary_key=True), Column("paid", Integer, nullable=False))
pipe = EventPipe(name="application")
jobs = pipe.publisher(int, to=Queue("jobs"))
outbox = Outbox(metadata, pipe=pipe, engine=engine)
inbox = Inbox(metadata)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at(name, before=None, after=None):
    real = getattr(Relay, name)
    async def wrapped(*arguments):
        if before: before()
        result = await real(*arguments)
        if after: after()
        return result
    setattr(Relay, name, wrapped)

STEPS = {
    "3: claimed": lambda: at("_publish", before=die),
    "4: published": lambda: at("_publish", after=die),
    "5: marked, not committed": lambda: at("_mark", after=die),
    "6: marked and committed": lambda: at("_round", after=die),
}

async def add(step):
    async with engine.begin() as connection:
        for number in range(5):
            print(await outbox.add(connection, jobs, number), flush=True)
        if step == "1: not committed":
            die()
    if step == "2: committed":
        die()

async def relay(step):
    STEPS.get(step, lambda: None)()
    async with pipe, outbox.relaying():
        await asyncio.sleep(60)

asyncio.run({"add": add, "relay": relay}[sys.argv[1]](sys.argv[2]))
"""


@pytest.fixture(params=["sqlite", "asyncpg"])
def application(request: pytest.FixtureRequest, tmp_path: Path, eventpipe_rabbitmq: str) -> Any:
    if request.param == "sqlite":
        database = f"sqlite+aiosqlite:///{tmp_path}/test.db"
    else:
        database = request.getfixturevalue("postgres").create()
    (tmp_path / "application.py").write_text(APPLICATION)
    return Application(tmp_path, database, eventpipe_rabbitmq)


class Application:
    def __init__(self, folder: Path, database: str, url: str) -> None:
        self.folder, self.database, self.url = folder, database, url

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "application.py", *arguments),
            cwd=self.folder,
            env={**os.environ, "DATABASE": self.database, "EVENTPIPE_URL": self.url},
            stdout=asyncio.subprocess.PIPE,
        )

    async def create(self) -> None:
        """Make the tables, as a migration would."""
        from sqlalchemy import Column, MetaData, Table

        from eventpipe.sql.tables import inbox_table, outbox_table

        metadata = MetaData()
        columns = Column("id", Integer, primary_key=True), Column("paid", Integer, nullable=False)
        Table("accounts", metadata, *columns)
        outbox_table(metadata, "eventpipe_outbox", None)
        inbox_table(metadata, "eventpipe_inbox", None)
        engine = create_async_engine(self.database)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await engine.dispose()


STEPS = (
    *("1: not committed", "2: committed", "3: claimed", "4: published"),
    *("5: marked, not committed", "6: marked and committed"),
)


@pytest.mark.fault("F54")
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_a_step(application: Application, step: str) -> None:
    """What was committed is published, by whoever comes next, with its id; what was not is not."""
    await application.create()
    adding = await application.start("add", step)
    ids = (await adding.communicate())[0].decode().split()
    assert adding.returncode == (-signal.SIGKILL if step[0] in "12" else 0)
    if step[0] in "3456":
        dying = await application.start("relay", step)
        assert await asyncio.wait_for(dying.wait(), 20) == -signal.SIGKILL
    pipe = EventPipe(application.url, name="consumer")
    seen: list[tuple[str, int]] = []
    expected = 10 if step[0] in "45" else 5  # again only when nobody could know that it was published

    @pipe.consumer(Queue("jobs"), concurrency=1)
    async def handle(number: int, message: Message) -> None:
        seen.append((message.id, number))

    async with pipe, pipe.consuming():
        relaying = await application.start("relay", "")
        try:
            if step[0] == "1":
                await asyncio.sleep(2.0)
                assert seen == []
                return
            await eventually(lambda: len(seen) >= expected, within=20)
            await asyncio.sleep(0.5)
        finally:
            relaying.kill()
            await relaying.communicate()
    assert set(seen) == {(named, number) for number, named in enumerate(ids)}
    assert len(seen) == expected


SERVICE = (
    (
        APPLICATION.partition("async def add")[0]
        + """
die_at = os.environ.get("DIE_AT")

@pipe.consumer(Queue("jobs"), concurrency=5)
async def pay(number: int, message: Message):
    async with engine.begin() as connection:
        if await inbox.first(connection, message):
            await connection.execute(update(accounts).where(accounts.c.id == number).values(paid=accounts.c.paid + 1))
        if die_at == "before commit" and random.random() < 0.2:
            die()
    if random.random() < 0.1:
        die()
"""
    )
    .replace("import asyncio", "import random, asyncio")
    .replace("EventPipe, Queue", "EventPipe, Message, Queue, Retry")
)


@pytest.mark.fault("F54")
async def test_killed_between_commit_and_acknowledgement(application: Application) -> None:
    """Workers that die in the middle of everything: every effect is made, and made once."""
    await application.create()
    (application.folder / "service.py").write_text(
        SERVICE.replace('EventPipe(name="application")', 'EventPipe(name="application", retry=Retry(attempts=1000))')
    )
    count = 60 if ROUNDS == 1 else 120 * ROUNDS
    engine = create_async_engine(application.database)
    async with engine.begin() as connection:
        for number in range(count):
            from sqlalchemy import text

            await connection.execute(text("INSERT INTO accounts (id, paid) VALUES (:id, 0)"), {"id": number})
    pipe = EventPipe(application.url, name="sender")
    publisher = pipe.publisher(int, to=Queue("jobs"))

    async def paid() -> list[int]:
        from sqlalchemy import column, table

        async with engine.connect() as connection:
            found = await connection.execute(select(column("paid")).select_from(table("accounts")))
            return [row.paid for row in found]

    deaths = 0
    async with pipe:
        await publisher.publish_many(range(count))
        while sum(await paid()) < count or not await _empty(pipe):
            run = "import asyncio, service; asyncio.run(service.pipe.run())"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", run),
                cwd=application.folder,
                env={
                    **os.environ,
                    "DATABASE": application.database,
                    "EVENTPIPE_URL": application.url,
                    "DIE_AT": "before commit" if deaths % 2 else "",
                },
                stdout=asyncio.subprocess.DEVNULL,
            )
            waiting = asyncio.create_task(process.wait())
            while not waiting.done() and not (sum(await paid()) >= count and await _empty(pipe)):
                await asyncio.sleep(0.05)
            if not waiting.done():
                process.terminate()
            await waiting
            deaths += process.returncode == -signal.SIGKILL
        assert await paid() == [1] * count
        assert await pipe._session.transport.depth("jobs.dead") == 0
    await engine.dispose()
    print(f"{deaths} processes died")
    assert deaths >= (4 if ROUNDS == 1 else 10 * ROUNDS)


async def _empty(pipe: EventPipe) -> bool:
    depths = [await pipe._session.transport.depth(name) for name in ("jobs", "jobs.suspects")]
    return not any(depths)
