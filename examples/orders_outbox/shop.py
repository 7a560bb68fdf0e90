"""What the three processes share: tables, events, the pipe, the outbox and the inbox."""

import os
import uuid
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from eventpipe import EventPipe, Exchange, Queue
from eventpipe.sql import Inbox, Outbox


class OrderPlaced(BaseModel):
    """Somebody ordered something, and will have to pay for it."""

    order: uuid.UUID
    cents: int


metadata = MetaData()
orders = Table("orders", metadata, Column("id", String(36), primary_key=True), Column("cents", Integer, nullable=False))
payments = Table(
    "payments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("order", String(36), ForeignKey("orders.id"), nullable=False),
    Column("cents", Integer, nullable=False),
)

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///shop.db"), pool_pre_ping=True)
pipe = EventPipe(name="shop")  # the broker is $EVENTPIPE_URL
outbox = Outbox(metadata, pipe=pipe, engine=engine)
inbox = Inbox(metadata)

shop = Exchange("shop")
payable = Queue("payable", bind=shop.on("order.placed"))
order_placed = pipe.publisher(OrderPlaced, to=shop, key="order.placed")


async def transaction() -> AsyncIterator[AsyncSession]:
    """Open a transaction; commit it at the end, unless something fails."""
    async with AsyncSession(engine) as session, session.begin():
        yield session


# The endpoint and the handler take the same alias. ``scope="function"``: FastAPI commits before it answers.
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]
