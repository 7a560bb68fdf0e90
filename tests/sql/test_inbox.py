"""An effect is made once, however often its message comes."""

import asyncio

import pytest
from sqlalchemy import MetaData, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tests.sql.conftest import Shop

from eventpipe import ConfigurationError, InvalidMessage, Message
from eventpipe.sql import Inbox
from eventpipe.testing import ManualClock, message


async def test_the_first_time_and_no_other(shop: Shop) -> None:
    """By queue and id; through a session or a connection."""
    got = message(1, id="k", queue="jobs")
    async with AsyncSession(shop.engine) as session:
        assert await shop.inbox.first(session, got)
        assert not await shop.inbox.first(session, got)
        await session.commit()
    async with shop.engine.begin() as connection:
        assert not await shop.inbox.first(connection, got)
        assert await shop.inbox.first(connection, message(1, id="k", queue="other"))
        assert await shop.inbox.first(connection, message(1, id="l", queue="jobs"))
        assert await shop.inbox.first(connection, got, key="another")


async def test_what_is_rolled_back_never_came(shop: Shop) -> None:
    """The note is part of the transaction of its effect."""
    got = message(1, id="k")
    async with AsyncSession(shop.engine) as session:
        assert await shop.inbox.first(session, got)
        await session.rollback()
    async with shop.engine.begin() as connection:
        assert await shop.inbox.first(connection, got)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_two_at_the_same_moment(postgresql: str, ends: str) -> None:
    """The second waits for the first's transaction, and is first itself if that is rolled back."""
    shop = Shop(postgresql, "memory://")
    await shop.create()
    got = message(1, id="k")
    async with AsyncSession(shop.engine) as one, AsyncSession(shop.engine) as two:
        assert await shop.inbox.first(one, got)
        second = asyncio.create_task(shop.inbox.first(two, got))
        await asyncio.sleep(0.2)
        assert not second.done()
        await (one.commit() if ends == "commit" else one.rollback())
        assert await second is (ends == "rollback")
    await shop.engine.dispose()


async def test_a_generated_id_is_refused(shop: Shop) -> None:
    """It holds for one delivery only: the same message would be another the next time."""
    nameless = Message(id="made-up", body=b"1", queue="jobs", id_generated=True)
    async with shop.engine.begin() as connection:
        with pytest.raises(InvalidMessage, match="key="):
            await shop.inbox.first(connection, nameless)
        assert await shop.inbox.first(connection, nameless, key="order 7")
        assert not await shop.inbox.first(connection, nameless, key="order 7")


async def test_old_rows_are_deleted(shop: Shop) -> None:
    """By age, when somebody asks for it."""
    clock = ManualClock()
    inbox = Inbox(MetaData(), name="eventpipe_inbox", keep=10.0, clock=clock)
    async with shop.engine.begin() as connection:
        await inbox.first(connection, message(1, id="old"))
        clock.advance(8)
        await inbox.first(connection, message(1, id="young"))
        clock.advance(3)
        assert await inbox.clean(connection) == 1
        assert not await inbox.first(connection, message(1, id="young"))
        assert await inbox.first(connection, message(1, id="old"))


async def test_other_databases_do_it_with_a_savepoint(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no ON CONFLICT: the transaction survives the conflict."""
    monkeypatch.setattr("eventpipe.sql.inbox.dialect_of", lambda _session: "mysql")
    got = message(1, id="k")
    async with shop.engine.begin() as connection:
        assert await shop.inbox.first(connection, got)
        assert not await shop.inbox.first(connection, got)
        await connection.execute(shop.orders.insert().values(id=1))
        count = await connection.execute(select(func.count()).select_from(shop.inbox.table))
        assert count.scalar() == 1


@pytest.mark.parametrize("keep", [0, -1, float("inf")])
def test_settings_that_can_not_work(keep: float) -> None:
    """Are refused at once."""
    with pytest.raises(ConfigurationError, match="keep"):
        Inbox(MetaData(), keep=keep)
