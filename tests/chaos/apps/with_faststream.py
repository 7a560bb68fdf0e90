"""With FastStream as its documentation has it: persistent, confirmed, acknowledged or given back."""

import asyncio
import sys

from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from tests.chaos.apps import PREFETCH, URLS, batches, book

broker = RabbitBroker(f"{URLS[0]}?heartbeat=2", default_channel=Channel(prefetch_count=PREFETCH))
jobs = RabbitQueue("jobs", durable=True, queue_type=QueueType.QUORUM)


async def produce() -> None:
    """Publish until killed; whatever is raised means that it is not acknowledged."""
    mine = book("producer")
    await broker.connect()
    await broker.declare_queue(jobs)

    async def publish(one: str) -> bool:
        try:
            await broker.publish(one, queue="jobs", persist=True, timeout=20.0)
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

    @broker.subscriber(jobs, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def handle(event: str) -> None:
        await mine.note("handled", event)

    async with broker:
        await broker.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(produce() if sys.argv[1] == "produce" else consume())
