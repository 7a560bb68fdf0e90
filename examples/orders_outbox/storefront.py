"""The web app: an order and its event are one transaction. It needs the database, and no broker."""

import uuid

from fastapi import FastAPI
from pydantic import BaseModel, PositiveInt
from shop import OrderPlaced, Transaction, order_placed, orders, outbox

app = FastAPI()


class NewOrder(BaseModel):
    """What a customer sends."""

    cents: PositiveInt


@app.put("/orders/{id}", status_code=201)
async def place_order(id: uuid.UUID, order: NewOrder, session: Transaction) -> str:
    """Write the order, and that it has to be paid. The id is the customer's: asking again is not ordering again."""
    if (await session.execute(orders.select().where(orders.c.id == str(id)))).first() is None:
        await session.execute(orders.insert().values(id=str(id), cents=order.cents))
        await outbox.add(session, order_placed, OrderPlaced(order=id, cents=order.cents))
    return "placed"
