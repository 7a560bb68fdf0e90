"""Know when rows may have been added: by LISTEN where the database has it, else by looking again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

LISTENING = {"asyncpg", "psycopg"}
"""The PostgreSQL drivers whose notifications are understood here."""


class Wake:
    """Something to wait for; ``heard`` tells whether anybody would call."""

    def __init__(self) -> None:
        self.heard = self._lost = False
        self._event = asyncio.Event()

    def begin(self) -> None:
        """Note that somebody calls from now on."""
        self.heard, self._lost = True, False

    def lose(self, *_: object) -> None:
        """Note that whoever called is gone."""
        self._lost = self.heard
        self.heard = False
        self._event.set()

    def call(self, *_: object) -> None:
        """Wake whoever waits."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait to be woken, at most so long; a call since the last wait counts.

        Raises ``ConnectionResetError`` once whoever called is gone.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()
        if self._lost:
            raise ConnectionResetError("the connection that listens was lost")


@contextlib.asynccontextmanager
async def listening(engine: AsyncEngine, channel: str, wake: Wake) -> AsyncIterator[None]:
    """Have ``wake`` called at each notification, on a connection of its own, where the driver can do that.

    Raises whatever the driver raises when the connection can't be made.
    """
    if engine.dialect.name != "postgresql" or engine.dialect.driver not in LISTENING:
        yield
        return
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        raw: Any = (await connection.get_raw_connection()).driver_connection
        listen = _asyncpg if engine.dialect.driver == "asyncpg" else _psycopg
        async with listen(raw, channel, wake):
            wake.begin()
            try:
                yield
            finally:
                wake.heard = False
                await connection.invalidate()  # it listens: it must not go back to the pool


@contextlib.asynccontextmanager
async def _asyncpg(raw: Any, channel: str, wake: Wake) -> AsyncIterator[None]:
    await raw.add_listener(channel, wake.call)
    raw.add_termination_listener(wake.lose)
    yield


@contextlib.asynccontextmanager
async def _psycopg(raw: Any, channel: str, wake: Wake) -> AsyncIterator[None]:
    async def hear() -> None:
        try:
            async for _ in raw.notifies():
                wake.call()
        finally:
            wake.lose()

    await raw.execute(f'LISTEN "{channel}"')
    task = asyncio.create_task(hear(), name="eventpipe outbox listening")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
