"""With raw aio-pika as its documentation has it: a robust connection, confirms, ``process(requeue=True)``."""

import asyncio
import sys

import aio_pika
from tests.chaos.apps import PREFETCH, URLS, batches, book


async def _open():  # type: ignore[no-untyped-def]
    connection = await aio_pika.connect_robust(f"{URLS[0]}?heartbeat=2")
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.declare_queue("jobs", durable=True, arguments={"x-queue-type": "quorum"})
    return channel, queue


async def produce() -> None:
    """Publish until killed; whatever is raised means that it is not acknowledged."""
    mine = book("producer")
    channel, _ = await _open()

    async def publish(one: str) -> bool:
        try:
            message = aio_pika.Message(one.encode(), delivery_mode=2)
            await channel.default_exchange.publish(message, "jobs", timeout=20.0)
        except (Exception, asyncio.CancelledError):
            return False
        return True

    for pause, ids in batches():
        await asyncio.sleep(pause)
        mine.write("attempted", ids)
        said = await asyncio.gather(*map(publish, ids))
        mine.write("acknowledged", [one for one, good in zip(ids, said, strict=True) if good])


async def consume() -> None:
    """Handle until killed."""
    mine = book("consumer")
    _, queue = await _open()

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process(requeue=True):
            await mine.note("handled", message.body.decode())

    await queue.consume(handle)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(produce() if sys.argv[1] == "produce" else consume())
