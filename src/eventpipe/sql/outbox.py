"""Add events to the transaction that they belong to; they are published when, and only when, it commits."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy import MetaData, func, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from ..errors import ConfigurationError
from ..pipe import EventPipe
from ..publisher import Publisher
from ..signals import until_told
from .relay import Relay
from .rows import to_row
from .tables import dialect_of, outbox_table

T = TypeVar("T")


class Outbox:
    """A table of events that wait to be published, in the database that holds what they are about.

    ``metadata`` gets the table: create it as your own, by a migration. ``pipe`` publishes, ``engine`` is for the relay;
    neither is used before a relay runs. A row is deleted ``keep`` seconds after it was published. ``batch`` is how many
    rows a relay takes at a time.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def __init__(
        self,
        metadata: MetaData,
        *,
        pipe: EventPipe,
        engine: AsyncEngine,
        name: str = "eventpipe_outbox",
        schema: str | None = None,
        keep: float = 3600.0,
        batch: int = 1000,
    ) -> None:
        if not 0 <= keep < float("inf"):
            raise ConfigurationError(f"Outbox(keep={keep!r}): must be a number of seconds, 0 or more")
        if not isinstance(batch, int) or not 1 <= batch <= 10_000:
            raise ConfigurationError(f"Outbox(batch={batch!r}): must be a whole number between 1 and 10000")
        self.table = outbox_table(metadata, name, schema)
        self.pipe, self.engine, self.keep, self.batch = pipe, engine, keep, batch

    async def add(
        self,
        session: AsyncSession | AsyncConnection,
        publisher: Publisher[T],
        event: T,
        *,
        ordering: str | None = None,
        **options: Any,
    ) -> str:
        """Add an event to the transaction of ``session``, and give its message id.

        Events with one ``ordering`` are published in the order in which they were added, one after the other; others in
        about that order. ``options`` are those of ``Publisher.publish`` but for ``timeout``.

        Raises:
            InvalidMessage: the event or an option can't be published; the transaction is as it was.
        """
        prepared = publisher.prepare(event, **options)
        row = to_row(prepared.outgoing, delay=prepared.delay, ordering=ordering, now=publisher.stamp().clock.time())
        await self._insert(session, [row])
        return str(row["id"])

    async def add_many(
        self,
        session: AsyncSession | AsyncConnection,
        publisher: Publisher[T],
        events: Iterable[T],
        *,
        ordering: str | None = None,
    ) -> list[str]:
        """Add many events, with one statement, and give their message ids. Raises ``InvalidMessage``."""
        now = publisher.stamp().clock.time()
        prepared = [publisher.prepare(event) for event in events]
        rows = [to_row(one.outgoing, delay=one.delay, ordering=ordering, now=now) for one in prepared]
        if rows:
            await self._insert(session, rows)
        return [str(row["id"]) for row in rows]

    @contextlib.asynccontextmanager
    async def relaying(self) -> AsyncIterator[Relay]:
        """Publish what is committed, inside the block; its pipe has to be entered. Several may do so, anywhere."""
        async with Relay(self.table, self.engine, self.pipe, keep=self.keep, batch=self.batch) as relay:
            yield relay

    async def run(self, *, started: Callable[[Relay], object] | None = None) -> None:
        """Enter the pipe and publish what is committed until SIGTERM, SIGINT or cancellation.

        The pipe's consumers are not run. ``started`` is called with the relay. A second signal ends it at once.
        """
        with until_told() as told:
            async with self.pipe, self.relaying() as relay:
                if started is not None:
                    started(relay)
                await told.wait()

    async def _insert(self, session: AsyncSession | AsyncConnection, rows: list[dict[str, Any]]) -> None:
        statement: Any = insert(self.table)
        if dialect_of(session) == "postgresql":
            # Heard when the transaction commits, and once, however many rows it adds.
            statement = statement.returning(func.pg_notify(self.table.name, ""))
        await session.execute(statement, rows)
