"""Alembic's environment: the shop's own metadata, which has the outbox's and the inbox's tables in it."""

import asyncio

from alembic import context
from shop import engine, metadata
from sqlalchemy import Connection


def migrate(connection: Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def connect() -> None:
    """Connect with the application's own engine."""
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(connect())
