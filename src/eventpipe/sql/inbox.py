"""Make the effect of a handler happen once, however often its message comes."""

from typing import Any

from sqlalchemy import MetaData, Table, delete, insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from ..clock import Clock, SystemClock
from ..errors import ConfigurationError, InvalidMessage
from ..message import Message
from .rows import moment
from .tables import dialect_of, inbox_table


class Inbox:
    """A table of the messages whose effect is in the database, committed in the same transaction as the effect.

    ``metadata`` gets the table: create it as your own, by a migration. A row is kept for ``keep`` seconds, which has to
    be longer than a message may come again: replayed dead letters included. Raises ``ConfigurationError``.
    """

    def __init__(
        self,
        metadata: MetaData,
        *,
        name: str = "eventpipe_inbox",
        schema: str | None = None,
        keep: float = 7 * 86_400.0,
        clock: Clock | None = None,
    ) -> None:
        if not 0 < keep < float("inf"):
            raise ConfigurationError(f"Inbox(keep={keep!r}): must be more than 0 seconds")
        self.table = inbox_table(metadata, name, schema)
        self.keep = keep
        self._clock = clock or SystemClock()

    async def first(self, session: AsyncSession | AsyncConnection, message: Message, *, key: str | None = None) -> bool:
        """Tell whether this message's effect is still to be made, and note in the transaction that it is.

        Commit the effect in the same transaction. If another process handles the same message at this moment, wait for
        its transaction to end. ``key`` takes the place of the message's id, within the queue.

        Raises:
            InvalidMessage: the message came without an id, so that nobody can know it again; give ``key``.
        """
        if key is None and message.id_generated:
            raise InvalidMessage(
                f"a message of queue {message.queue!r} came without an id: the one it has holds for this delivery only "
                f"and can't be known again; give inbox.first(…, key=…) something of the event that names it"
            )
        row = {"queue": message.queue, "key": key or message.id, "handled_at": moment(self._clock.time())}
        return await _insert_new(session, self.table, row)

    async def clean(self, session: AsyncSession | AsyncConnection) -> int:
        """Delete rows that are older than ``keep``, and count them; call it now and then, and commit."""
        old = self.table.c.handled_at < moment(self._clock.time() - self.keep)
        result: Any = await session.execute(delete(self.table).where(old))
        return int(result.rowcount)


async def _insert_new(session: AsyncSession | AsyncConnection, table: Table, row: dict[str, Any]) -> bool:
    """Insert a row unless there is one with its key; tell whether it was."""
    dialect = dialect_of(session)
    if dialect in ("postgresql", "sqlite"):
        made = (postgresql if dialect == "postgresql" else sqlite).insert(table).values(row).on_conflict_do_nothing()
        # Not by the row count: with psycopg that is -1 here, whatever was done.
        return (await session.execute(made.returning(table.c.key))).first() is not None
    try:
        async with session.begin_nested():
            await session.execute(insert(table).values(row))
    except IntegrityError:
        return False
    return True
