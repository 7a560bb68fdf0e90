"""Databases to test with: SQLite, and PostgreSQL through both of its drivers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tests.postgres import Postgres

from eventpipe import EventPipe, Queue
from eventpipe.sql import Inbox, Outbox


@pytest.fixture(params=["sqlite", "asyncpg", "psycopg"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/test.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(request.param)


@pytest.fixture
def postgresql(postgres: Postgres) -> str:
    """The URL of an empty PostgreSQL database."""
    return postgres.create()


JOBS = Queue("jobs")


class Shop:
    """An application: a table of orders, an outbox, an inbox, a pipe."""

    def __init__(self, database: str, url: str, **settings: Any) -> None:
        self.engine: AsyncEngine = create_async_engine(database)
        self.metadata = MetaData()
        self.orders = Table(
            "orders", self.metadata, Column("id", Integer, primary_key=True), Column("state", String(20))
        )
        self.pipe = EventPipe(url, name="shop")
        self.publisher = self.pipe.publisher(dict[str, Any], to=JOBS)
        self.outbox = Outbox(self.metadata, pipe=self.pipe, engine=self.engine, **settings)
        self.inbox = Inbox(self.metadata)

    async def create(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(self.metadata.create_all)

    async def rows(self) -> list[Any]:
        async with self.engine.connect() as connection:
            return list((await connection.execute(self.outbox.table.select().order_by("position"))).all())


@pytest.fixture
async def shop(database: str) -> AsyncIterator[Shop]:
    """On the memory broker."""
    made = Shop(database, "memory://")
    await made.create()
    try:
        yield made
    finally:
        await made.engine.dispose()
