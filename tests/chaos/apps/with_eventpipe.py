"""With eventpipe: ``python -m tests.chaos.apps.with_eventpipe`` produces, ``eventpipe run`` consumes."""

import asyncio
import functools
import os

from tests.chaos.apps import CONCURRENCY, PREFETCH, URLS, batches, book
from tests.chaos.ledger import Book

from eventpipe import DeadMessage, EventPipe, Options, PublishManyError, Queue, Receipt, Retry

pipe = EventPipe(
    URLS or "amqp://localhost",
    name="soak",
    retry=Retry(attempts=10, delay=0.1),
    drain=10.0,
    options=Options(heartbeat=2, connect_timeout=3.0, fast=os.environ.get("FAST") != "0"),
)
jobs = Queue("jobs")
events = pipe.publisher(str, to=jobs)


def given_up(dead: DeadMessage) -> None:
    """Explain a dead letter in the ledger."""
    book("dead").write("dead", [dead.message.body.decode().strip('"')])


@pipe.consumer(jobs, concurrency=CONCURRENCY, prefetch=PREFETCH, on_dead_letter=given_up)
async def handle(event: str) -> None:
    """Write it down before it is acknowledged."""
    await _consumed().note("handled", event)


@functools.cache
def _consumed() -> Book:
    return book("consumer")


async def produce() -> None:
    """Publish until killed."""
    mine = book("producer")
    async with pipe:
        for pause, ids in batches():
            await asyncio.sleep(pause)
            mine.write("attempted", ids)
            try:
                verdicts = await events.publish_many(ids, timeout=20.0)
            except PublishManyError as error:
                verdicts = error.verdicts
            mine.write(
                "acknowledged", [one for one, said in zip(ids, verdicts, strict=True) if isinstance(said, Receipt)]
            )


if __name__ == "__main__":
    asyncio.run(produce())
