"""How a user of eventpipe tests a service with an outbox: the app, the relay and the consumer, on both brokers."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import shop
from payment import take_payment
from shop import OrderPlaced, metadata, outbox, payable, payments, pipe
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from storefront import app

from eventpipe.testing import message, running


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    """A database of its own for each test."""
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    monkeypatch.setattr(shop, "engine", made)
    monkeypatch.setattr(outbox, "engine", made)
    async with made.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield made
    await made.dispose()


async def paid(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return [row.cents for row in await connection.execute(payments.select())]


async def test_an_order_is_paid_once(engine: AsyncEngine, eventpipe_broker: str) -> None:
    """Ordered twice with one id, which is one order and one payment."""
    order = uuid.uuid4()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as web:
        for _ in range(2):
            assert (await web.put(f"/orders/{order}", json={"cents": 995})).status_code == 201
        assert (await web.put(f"/orders/{order}", json={"cents": -1})).status_code == 422
    async with running(pipe, url=eventpipe_broker) as bus, outbox.relaying() as relay:
        while not relay.published:
            await bus.advance(0.01) if eventpipe_broker.startswith("memory:") else await bus.settled()
        await bus.settled()
        assert bus.published(OrderPlaced) == [OrderPlaced(order=order, cents=995)]
        assert len(bus.handled(payable)) == 1
    assert await paid(engine) == [995]


async def test_the_handler_alone(engine: AsyncEngine) -> None:
    """Delivered twice, paid once."""
    event = OrderPlaced(order=uuid.uuid4(), cents=995)
    delivered = message(event, id="1")
    for _ in range(2):
        async with AsyncSession(engine) as session, session.begin():
            await take_payment(event, delivered, session)
    assert await paid(engine) == [995]
