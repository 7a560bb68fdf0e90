"""Publish the committed rows of an outbox, with confirms, and note which the broker has.

A round is one transaction: lock rows that no other relay has locked (``FOR UPDATE SKIP LOCKED``), publish them, mark
those that are confirmed, commit. A relay that dies in between has marked nothing: its rows are published again, with
the same ids. Rows of one ordering key go out one after the other, and none while an earlier one is elsewhere or waits.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Self

import structlog
from sqlalchemy import Table, bindparam, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..errors import Disconnected, EventPipeError, PublishError, PublishTimeout
from ..outlet import Outlet
from ..pipe import EventPipe
from ..shown import shown
from ..wish import Wish
from .rows import delay_of, moment, to_outgoing
from .waking import Wake, listening

log = structlog.get_logger("eventpipe")

LOOK_AGAIN = (0.02, 0.5)
"""Seconds between looks at a database that can't notify: after there was something, and at most."""

LOOK_ANYHOW = 5.0
"""Seconds between looks at one that can: for rows that wait to be tried again, and notifications that were lost."""

TRY_AGAIN = (0.5, 60.0)
"""Seconds until a row that the broker refused is tried again: at first, and at most."""

RECOVER = (0.1, 5.0)
"""Seconds between tries while database or broker is away: at first, and at most."""

CLEAN_EVERY = 10.0
"""Seconds between deletions of old rows."""

AWAY = (PublishTimeout, Disconnected)
"""What a publish raises when the broker is away, which is not the row's fault."""


class Relay:
    """Publishes an outbox's rows inside ``async with``; ``published`` counts them, ``problem`` says what is amiss."""

    def __init__(self, table: Table, engine: AsyncEngine, pipe: EventPipe, *, keep: float, batch: int) -> None:
        self.published = 0
        self.problem: str | None = None
        self._table, self._engine, self._pipe = table, engine, pipe
        self._keep, self._batch = keep, batch
        self._wake = Wake()
        self._told = asyncio.Event()  # to stop
        self._cleaned = 0.0
        self._due = float("inf")  # monotonic: when the next row that was put off is tried again

    async def __aenter__(self) -> Self:
        outlet = self._pipe._outlet()  # noqa: SLF001  a relay is a client of the pipe's own
        self._task = asyncio.create_task(self._run(outlet), name=f"eventpipe relay of {self._table.name}")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Let the round that has begun end, within the pipe's ``drain``; rolled back, it would be published again."""
        self._told.set()
        self._wake.call()
        await asyncio.wait([self._task], timeout=self._pipe.drain)
        self._task.cancel()
        await asyncio.wait([self._task])

    # --- rounds

    async def _run(self, outlet: Outlet) -> None:
        pause = RECOVER[0]
        while not self._told.is_set():
            try:
                async with listening(self._engine, self._table.name, self._wake):
                    pause = RECOVER[0]
                    await self._rounds(outlet)
            except Exception as error:  # noqa: BLE001  drivers raise past SQLAlchemy; whatever it is, this has to go on
                self.problem = f"outbox {self._table.name!r}: {type(error).__name__}: {error}"
                log.warning("a round of the relay failed; trying again", error=shown(self.problem), seconds=pause)
                await self._rest(pause)
            pause = min(2 * pause, RECOVER[1])

    async def _rounds(self, outlet: Outlet) -> None:
        """Publish until something fails: at once while there is something, else when woken, else now and then."""
        idle = LOOK_AGAIN[0]
        while not self._told.is_set():
            if (problem := self._pipe.health().transport.problem) is not None:
                self.problem = problem
                await self._rest(RECOVER[0])
                continue
            found, moved = await self._round(outlet)
            self.problem = None
            if time.monotonic() - self._cleaned > CLEAN_EVERY:
                await self._clean(outlet)
            if moved:
                idle = LOOK_AGAIN[0]
            if found < self._batch or not moved:
                pause = LOOK_ANYHOW if self._wake.heard and not found else idle
                await self._wake.wait(min(pause, max(0.0, self._due - time.monotonic())))
                idle = min(2 * idle, LOOK_AGAIN[1])

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told.wait()

    async def _round(self, outlet: Outlet) -> tuple[int, int]:
        """Publish what can be; tell how many rows there were, and how many of them the broker has now."""
        now = outlet.clock.time()
        if time.monotonic() >= self._due:
            self._due = float("inf")
        async with self._engine.begin() as connection:
            rows = await self._claim(connection, now)
            ready = await self._in_turn(connection, rows)
            if not ready:
                return len(rows), 0
            failures = await self._publish(ready, outlet)
            done = [row.position for row in ready if row.position not in failures]
            await self._mark(connection, done, moment(outlet.clock.time()))
            await self._put_off(connection, ready, failures, outlet.clock.time())
        self.published += len(done)
        return len(rows), len(done)

    async def _claim(self, connection: AsyncConnection, now: float) -> Sequence[Any]:
        """Lock the first rows that nobody else has locked, but for keys of which a row was put off."""
        one = self._table.c
        waits = one.published_at.is_(None)
        put_off = select(one.ordering).where(waits, one.ordering.is_not(None), one.try_at > moment(now))
        statement = (
            select(self._table)
            .where(
                waits,
                or_(one.try_at.is_(None), one.try_at <= moment(now)),
                or_(one.ordering.is_(None), one.ordering.not_in(put_off)),
            )
            .order_by(one.position)
            .limit(self._batch)
            .with_for_update(skip_locked=True)
        )
        return (await connection.execute(statement)).all()

    async def _in_turn(self, connection: AsyncConnection, rows: Sequence[Any]) -> list[Any]:
        """Leave out rows that have an earlier one of their key elsewhere: another relay has it."""
        keys = {row.ordering for row in rows if row.ordering is not None}
        if not keys:
            return list(rows)
        one = self._table.c
        statement = select(one.position, one.ordering).where(
            one.published_at.is_(None), one.ordering.in_(keys), one.position <= rows[-1].position
        )
        mine = {row.position for row in rows}
        first_elsewhere: dict[str, int] = {}
        for position, key in (await connection.execute(statement)).all():
            if position not in mine:
                first_elsewhere[key] = min(position, first_elsewhere.get(key, position))
        return [row for row in rows if row.position < first_elsewhere.get(row.ordering, row.position + 1)]

    async def _mark(self, connection: AsyncConnection, positions: list[int], now: Any) -> None:
        if not positions:
            return
        meant = self._table.c.position.in_(positions)
        if self._keep:
            await connection.execute(update(self._table).where(meant).values(published_at=now, error=None))
        else:
            await connection.execute(delete(self._table).where(meant))

    async def _put_off(
        self, connection: AsyncConnection, rows: Iterable[Any], failures: dict[int, EventPipeError], now: float
    ) -> None:
        """Note when a row that was refused is tried again; the broker's absence is not its fault."""
        first, longest = TRY_AGAIN
        refused: list[dict[str, Any]] = []
        for row in rows:
            error = failures.get(row.position)
            if error is not None and not isinstance(error, (*AWAY, _Behind)):
                log.warning("an outbox row is refused", id=shown(row.id), error=shown(str(error)), tries=row.tries + 1)
                wait = min(first * 2.0 ** min(row.tries, 20), longest)
                self._due = min(self._due, time.monotonic() + wait)
                refused.append({"at": row.position, "n": row.tries + 1, "when": moment(now + wait), "why": str(error)})
        if refused:
            table = self._table
            statement = update(table).where(table.c.position == bindparam("at"))
            await connection.execute(
                statement.values(tries=bindparam("n"), try_at=bindparam("when"), error=bindparam("why")), refused
            )

    # --- publishing

    async def _publish(self, rows: list[Any], outlet: Outlet) -> dict[int, EventPipeError]:
        """Publish rows, those of one key in turn, and give what failed by position."""
        failures: dict[int, EventPipeError] = {}
        together = [row for row in rows if row.ordering is None and not row.delay]
        chains: dict[Any, list[Any]] = defaultdict(list)
        for row in rows:
            if row.ordering is not None or row.delay:
                chains[row.ordering or row.position].append(row)
        async with asyncio.TaskGroup() as group:
            for chain in chains.values():
                group.create_task(_in_turn(chain, outlet, failures))
            verdicts = await outlet.send_many(map(to_outgoing, together), Wish())
        for row, verdict in zip(together, verdicts, strict=True):
            if isinstance(verdict, PublishError):
                failures[row.position] = verdict
        return failures

    # --- cleaning

    async def _clean(self, outlet: Outlet) -> None:
        """Delete rows that were published long ago, some thousands at a time."""
        one = self._table.c
        old = select(one.position).where(one.published_at < moment(outlet.clock.time() - self._keep))
        statement = delete(self._table).where(one.position.in_(old.order_by(one.published_at).limit(5_000)))
        deleted = 5_000
        while deleted >= 5_000:
            async with self._engine.begin() as connection:
                deleted = (await connection.execute(statement)).rowcount
        self._cleaned = time.monotonic()


class _Behind(EventPipeError):
    """An earlier row of the same key failed: this one was not tried."""


async def _in_turn(chain: list[Any], outlet: Outlet, failures: dict[int, EventPipeError]) -> None:
    """Publish rows one after the other; behind one that fails, none is tried."""
    for number, row in enumerate(chain):
        try:
            await outlet.send(to_outgoing(row), Wish(delay=delay_of(row, now=outlet.clock.time())))
        except EventPipeError as error:
            failures[row.position] = error
            failures.update((behind.position, _Behind()) for behind in chain[number + 1 :])
            return
