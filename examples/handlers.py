"""A handler with a dependency that commits or rolls back, inside of a middleware that measures."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from eventpipe import Depends, EventPipe, Handle, Message, Queue, Retry


class Transaction:
    """A stand-in for a database's."""

    async def insert(self, row: str) -> None:
        """Write something."""
        print("  insert", row)


async def transaction() -> AsyncIterator[Transaction]:
    """Begin; commit at the end, unless the handler fails."""
    print("  begin")
    try:
        yield Transaction()
    except BaseException:
        print("  roll back")
        raise
    print("  commit")


async def measured(message: Message, handle: Handle) -> None:
    """Say how each handling ended, and how long it took."""
    begun = time.perf_counter()
    outcome = await handle()
    took = 1000 * (time.perf_counter() - begun)
    print(f"{message.queue}, attempt {message.attempt}: {type(outcome.decision).__name__}", f"({took:.0f} ms)")


pipe = EventPipe("memory://", name="handlers", retry=Retry(attempts=2, delay=0.0), middleware=[measured])
orders = Queue("orders")
order = pipe.publisher(str, to=orders)


@pipe.consumer(orders)
async def handle(name: str, message: Message, session: Annotated[Transaction, Depends(transaction)]) -> None:
    """Fail the first time, to show what becomes of it."""
    await session.insert(name)
    if message.attempt == 1:
        raise OSError("the database says no")


async def main() -> None:
    """Have one order handled."""
    async with pipe, pipe.consuming():
        await order.publish("tea")
        await asyncio.sleep(0.3)


asyncio.run(main())
