"""What is added to a transaction is published when it commits, once it commits, and only then."""

import asyncio
import json
from collections import defaultdict
from typing import Any

import pytest
from sqlalchemy import MetaData, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tests.sql.conftest import JOBS, Shop
from tests.support import eventually

from eventpipe import ConfigurationError, EventPipe, Exchange, InvalidMessage, Message, Queue
from eventpipe.sql import Outbox, relay


class Heard:
    """What the queue's consumer was given, in order."""

    def __init__(self, pipe: EventPipe) -> None:
        self.messages: list[Message] = []

        @pipe.consumer(JOBS, concurrency=1)
        async def handle(order: dict[str, Any], message: Message) -> None:
            self.messages.append(message)

    @property
    def numbers(self) -> list[int]:
        return [json.loads(message.body)["n"] for message in self.messages]


async def test_committed_is_published_and_rolled_back_is_not(shop: Shop) -> None:
    """Through a session or a connection; with the id that ``add`` gave."""
    heard = Heard(shop.pipe)
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying():
        async with AsyncSession(shop.engine) as session:
            await session.execute(shop.orders.insert().values(id=1))
            first = await shop.outbox.add(session, shop.publisher, {"n": 1}, headers={"tenant": "a"}, priority=3)
            await asyncio.sleep(0.1)
            assert heard.messages == []
            await session.commit()
        await eventually(lambda: heard.numbers == [1])
        async with AsyncSession(shop.engine) as session:
            await shop.outbox.add(session, shop.publisher, {"n": 2})
            await session.rollback()
        async with shop.engine.begin() as connection:
            await shop.outbox.add(connection, shop.publisher, {"n": 3}, id="mine")
        await eventually(lambda: heard.numbers == [1, 3])
    got = heard.messages[0]
    assert (first, "a", 3, first) == (got.id, got.headers["tenant"], got.priority, got.correlation_id)
    assert heard.messages[1].id == "mine"


async def test_the_pipe_need_not_be_entered_to_add(shop: Shop) -> None:
    """A request needs the database only; a relay elsewhere publishes, later."""
    async with shop.engine.begin() as connection:
        ids = await shop.outbox.add_many(connection, shop.publisher, ({"n": number} for number in range(3)))
    heard = Heard(shop.pipe)
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying():
        await eventually(lambda: len(heard.messages) == 3)
    assert ids == [message.id for message in heard.messages]
    assert [None] * 3 == [row.error for row in await shop.rows()]


async def test_a_key_is_in_order_past_refusals(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that the broker refuses holds up the later ones of its key, and nobody else."""
    monkeypatch.setattr(relay, "TRY_AGAIN", (0.3, 0.3))
    heard = Heard(shop.pipe)
    nowhere = shop.pipe.publisher(dict[str, Any], to=Exchange("nowhere"), key="a")
    async with shop.pipe, shop.pipe.consuming():
        async with shop.engine.begin() as connection:
            await shop.outbox.add(connection, nowhere, {"n": 0}, ordering="k")
            for number in (1, 2, 3):
                await shop.outbox.add(connection, shop.publisher, {"n": number}, ordering="k")
            for number in (4, 5):
                await shop.outbox.add(connection, shop.publisher, {"n": number}, ordering="other")
            await shop.outbox.add(connection, shop.publisher, {"n": 6})
        async with shop.outbox.relaying():
            await eventually(lambda: sorted(heard.numbers) == [4, 5, 6])
            assert heard.numbers.index(4) < heard.numbers.index(5)

            async def is_refused() -> bool:
                return ["reached no queue" in row.error for row in await shop.rows() if row.tries] == [True]

            await eventually(is_refused)
            await shop.pipe._session.transport.declare(
                _topology(Queue("bound", bind=Exchange("nowhere").on("a"), dead_letter=False))
            )
            await eventually(lambda: len(heard.numbers) == 6, within=10)
            assert [number for number in heard.numbers if number in (1, 2, 3)] == [1, 2, 3]


def _topology(queue: Queue) -> Any:
    pipe = EventPipe("memory://", name="x")
    pipe.publisher(dict, to=queue)
    return pipe.topology


async def test_a_delay_counts_from_the_adding(shop: Shop) -> None:
    """What the row has waited already is not waited again."""
    heard = Heard(shop.pipe)
    async with shop.engine.begin() as connection:
        await shop.outbox.add(connection, shop.publisher, {"n": 1}, delay=0.5)
    await asyncio.sleep(0.5)
    begun = asyncio.get_running_loop().time()
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying():
        await eventually(lambda: heard.messages)
    assert asyncio.get_running_loop().time() - begun < 0.4


@pytest.mark.parametrize("keep", [0.0, 0.2])
async def test_old_rows_are_deleted(database: str, keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, or after a while; never one that is not published."""
    monkeypatch.setattr(relay, "CLEAN_EVERY", 0.1)
    monkeypatch.setattr(relay, "LOOK_ANYHOW", 0.2)
    shop = Shop(database, "memory://", keep=keep)
    await shop.create()
    heard = Heard(shop.pipe)
    nowhere = shop.pipe.publisher(dict[str, Any], to=Exchange("nowhere"), key="a")
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying():
        async with shop.engine.begin() as connection:
            await shop.outbox.add_many(connection, shop.publisher, [{"n": number} for number in range(5)])
            await shop.outbox.add(connection, nowhere, {"n": 9})
        await eventually(lambda: len(heard.messages) == 5)

        async def only_the_refused() -> bool:
            return [row.body for row in await shop.rows()] == [b'{"n":9}']

        await eventually(only_the_refused, within=5)
    await shop.engine.dispose()


async def test_relays_side_by_side_do_nothing_twice(postgresql: str) -> None:
    """And keep each key's order, although each takes what it finds."""
    shop = Shop(postgresql, "memory://", batch=20)
    await shop.create()
    heard = Heard(shop.pipe)
    relaying = shop.outbox.relaying
    async with shop.pipe, shop.pipe.consuming(), relaying() as one, relaying() as two, relaying() as three:
        for number in range(0, 600, 6):
            async with shop.engine.begin() as connection:
                for more in range(6):
                    await shop.outbox.add(
                        connection, shop.publisher, {"n": number + more}, ordering=f"k{more % 3}" if more else None
                    )
        await eventually(lambda: len(heard.numbers) >= 600, within=30)
        await asyncio.sleep(0.2)
        assert sum(relay.published for relay in (one, two, three)) == 600
    assert sorted(heard.numbers) == list(range(600))
    by_key = defaultdict(list)
    for number in heard.numbers:
        if number % 6:
            by_key[number % 6 % 3].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    await shop.engine.dispose()


async def test_what_another_relay_has_is_not_overtaken(postgresql: str) -> None:
    """Rows behind one that is locked wait for it, whatever else of their key is there; other keys do not."""
    shop = Shop(postgresql, "memory://")
    await shop.create()
    heard = Heard(shop.pipe)
    async with shop.engine.begin() as connection:
        for number in range(6):
            await shop.outbox.add(connection, shop.publisher, {"n": number}, ordering=f"k{number % 2}")
    async with shop.pipe, shop.pipe.consuming(), shop.engine.connect() as other:
        second = shop.outbox.table.select().where(shop.outbox.table.c.position == 3)
        await other.execute(second.with_for_update())
        async with shop.outbox.relaying():
            await eventually(lambda: len(heard.numbers) == 4)
            await asyncio.sleep(0.2)
            assert sorted(heard.numbers) == [0, 1, 3, 5]
            await other.rollback()
            await eventually(lambda: len(heard.numbers) == 6, within=10)
    assert [number for number in heard.numbers if number % 2 == 0] == [0, 2, 4]
    await shop.engine.dispose()


async def test_a_stop_lets_the_round_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published is marked: else each stop of a relay would publish some rows twice."""
    begun = asyncio.Event()
    mark = relay.Relay._mark

    async def slow(self: relay.Relay, *arguments: Any) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        await mark(self, *arguments)

    monkeypatch.setattr(relay.Relay, "_mark", slow)
    async with shop.engine.begin() as connection:
        await shop.outbox.add_many(connection, shop.publisher, ({"n": number} for number in range(3)))
    async with shop.pipe:
        async with shop.outbox.relaying():
            await begun.wait()
        assert all(row.published_at for row in await shop.rows())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_commit_wakes_the_relay(postgres: Any, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a notification: it looks again by itself only much later; also after its connections were cut."""
    monkeypatch.setattr(relay, "LOOK_ANYHOW", 60.0)
    shop = Shop(postgres.create(driver), "memory://")
    await shop.create()
    heard = Heard(shop.pipe)
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying() as relaying:
        for number in range(2):
            await asyncio.sleep(0.8)  # it has begun to wait
            begun = asyncio.get_running_loop().time()
            async with shop.engine.begin() as connection:
                await shop.outbox.add(connection, shop.publisher, {"n": number})
            await eventually(lambda number=number: len(heard.numbers) > number, within=5)
            assert asyncio.get_running_loop().time() - begun < 0.5
            if not number:
                await shop.engine.dispose()
                await asyncio.to_thread(postgres.drop_connections)
                await eventually(lambda: relaying.problem is None and relaying._wake.heard, within=10)
    await shop.engine.dispose()


async def test_a_broker_that_is_away_is_waited_for(shop: Shop) -> None:
    """Nothing is held against the rows."""
    heard = Heard(shop.pipe)
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying():
        broker = shop.pipe._session.transport.broker
        broker.block()
        async with shop.engine.begin() as connection:
            await shop.outbox.add(connection, shop.publisher, {"n": 1})
        await asyncio.sleep(0.3)
        assert heard.numbers == []
        broker.unblock()
        await eventually(lambda: heard.numbers == [1], within=10)
    assert [0] == [row.tries for row in await shop.rows()]


async def test_a_database_that_is_away_is_waited_for(shop: Shop) -> None:
    """The table is not there yet: the relay says so, and goes on when it is."""
    async with shop.engine.begin() as connection:
        await connection.run_sync(shop.outbox.table.drop)
    heard = Heard(shop.pipe)
    async with shop.pipe, shop.pipe.consuming(), shop.outbox.relaying() as relaying:
        await eventually(lambda: relaying.problem is not None)
        assert "eventpipe_outbox" in str(relaying.problem)
        async with shop.engine.begin() as connection:
            await connection.run_sync(shop.outbox.table.create)
            await shop.outbox.add(connection, shop.publisher, {"n": 1})
        await eventually(lambda: heard.numbers == [1], within=10)
        await eventually(lambda: relaying.problem is None)


@pytest.mark.parametrize(
    "options",
    [{"headers": {"x": b"bytes"}}, {"ordering": ""}, {"ordering": "x" * 256}, {"id": "x" * 300}, {"priority": -1}],
)
async def test_what_can_not_be_added_is_said(shop: Shop, options: dict[str, Any]) -> None:
    """Before anything is written: the transaction can go on."""
    async with shop.engine.begin() as connection:
        with pytest.raises(InvalidMessage):
            await shop.outbox.add(connection, shop.publisher, {"n": 1}, **options)
        count = await connection.execute(select(func.count()).select_from(shop.outbox.table))
        assert count.scalar() == 0


@pytest.mark.parametrize("settings", [{"keep": -1}, {"batch": 0}, {"batch": 1.5}])
def test_settings_that_can_not_work(shop: Shop, settings: dict[str, Any]) -> None:
    """Are refused at once."""
    with pytest.raises(ConfigurationError):
        Outbox(MetaData(), pipe=shop.pipe, engine=shop.engine, **settings)
