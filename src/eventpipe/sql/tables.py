"""The tables of outbox and inbox."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only as INTEGER
_NAME = String(255)  # an AMQP short string


def outbox_table(metadata: MetaData, name: str, schema: str | None) -> Table:
    """Add the outbox's table: one row for each event, in the order of adding.

    ``published_at`` is set once the broker has it. ``ordering`` is the key within which order is kept. ``try_at`` is
    when a row that the broker refused is tried again, ``error`` why it was.
    """
    table = Table(
        name,
        metadata,
        Column("position", _NUMBER, primary_key=True, autoincrement=True),
        Column("id", _NAME, nullable=False),
        Column("ordering", _NAME),
        Column("exchange", _NAME, nullable=False),
        Column("routing_key", _NAME, nullable=False),
        Column("mandatory", Boolean, nullable=False),
        Column("properties", JSON, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("delay", Float, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Column("published_at", DateTime(timezone=True)),
        Column("tries", Integer, nullable=False, default=0, server_default="0"),
        Column("try_at", DateTime(timezone=True)),
        Column("error", Text),
        schema=schema,
    )
    waiting = table.c.published_at.is_(None)
    Index(f"ix_{name}_waiting", table.c.position, postgresql_where=waiting, sqlite_where=waiting)
    Index(f"ix_{name}_ordering", table.c.ordering, table.c.position, postgresql_where=waiting, sqlite_where=waiting)
    Index(f"ix_{name}_published_at", table.c.published_at)
    return table


def inbox_table(metadata: MetaData, name: str, schema: str | None) -> Table:
    """Add the inbox's table: one row for each message of a queue whose effect was committed."""
    table = Table(
        name,
        metadata,
        Column("queue", _NAME, primary_key=True),
        Column("key", _NAME, primary_key=True),
        Column("handled_at", DateTime(timezone=True), nullable=False),
        schema=schema,
    )
    Index(f"ix_{name}_handled_at", table.c.handled_at)
    return table


def dialect_of(session: AsyncSession | AsyncConnection) -> str:
    """Give the name of the database's dialect."""
    return session.dialect.name if isinstance(session, AsyncConnection) else session.get_bind().dialect.name
