"""A loop that is held up, and deliveries that are kept too long."""

import asyncio
import random
import time

import pytest
from structlog.testing import capture_logs
from tests.push_transport import PushTransport
from tests.support import eventually

from eventpipe import EventPipe, Options, Queue, Retry
from eventpipe.handler import plan
from eventpipe.message import Properties
from eventpipe.testing import ManualClock
from eventpipe.watch import Ages, watching
from eventpipe.work import Surroundings, Work
from eventpipe.worker import Worker


@pytest.mark.fault("F31")
async def test_a_handler_that_holds_up_the_loop_is_named_with_its_stack() -> None:
    """Once each time, while it still does."""
    pipe = EventPipe("memory://", name="held", options=Options(stall=0.1))
    numbers = pipe.publisher(int, to=Queue("jobs"))
    said_meanwhile: list[int] = []

    with capture_logs() as logs:

        @pipe.consumer(Queue("jobs"))
        async def holding(number: int) -> None:
            time.sleep(0.5)  # noqa: ASYNC251  it has to block
            said_meanwhile.append(len([line for line in logs if line["event"] == "the event loop is held up"]))

        async with pipe, pipe.consuming():
            await numbers.publish(1)
            await eventually(lambda: said_meanwhile)
            await asyncio.sleep(0.2)
            await numbers.publish(2)
            await eventually(lambda: len(said_meanwhile) == 2)
    assert said_meanwhile == [1, 2]
    held = [line for line in logs if line["event"] == "the event loop is held up"]
    assert held[0]["handler"].endswith("holding")
    assert "time.sleep(0.5)" in held[0]["stack"]


async def test_a_loop_that_turns_is_not_complained_of() -> None:
    """However long a handler takes that suspends; and no thread is left."""
    pipe = EventPipe("memory://", name="turning", options=Options(stall=0.1))
    numbers = pipe.publisher(int, to=Queue("jobs"))
    done: list[int] = []

    @pipe.consumer(Queue("jobs"))
    async def patient(number: int) -> None:
        await asyncio.sleep(0.4)
        done.append(number)

    with capture_logs() as logs:
        async with pipe, pipe.consuming():
            await numbers.publish(1)
            await eventually(lambda: done)
    assert not [line for line in logs if line["event"] == "the event loop is held up"]


@pytest.mark.fault("F32")
async def test_a_delivery_that_is_kept_for_long_is_warned_of_twice() -> None:
    """At 50 % and at 80 % of the broker's consumer_timeout, with its age, queue, id and handlers; ids are escaped."""
    transport, clock = PushTransport(), ManualClock()

    async def never(_number: int) -> None:
        await asyncio.get_running_loop().create_future()

    work = Work(queue=Queue("jobs"), handlers=(plan(never),), concurrency=1, prefetch=2, retry=Retry())
    worker = Worker(work, Surroundings(transport, clock, random.Random(1)))
    await worker.start()
    transport.subscriptions["jobs"].push(b"1", Properties(message_id="a\x1b[31m"))
    ages = Ages([worker], 100.0)
    warned: list[tuple[float, str]] = []
    for _ in range(11):
        clock.advance(10.0)
        with capture_logs() as logs:
            ages.look()
        warned += [(line["seconds"], line["message_id"]) for line in logs]
        assert all(line["queue"] == "jobs" and line["handler"].endswith("never") for line in logs)
    assert warned == [(50.0, "a\\x1b[31m"), (80.0, "a\\x1b[31m")]
    await worker.stop(0.0)


async def test_both_watches_can_be_turned_off() -> None:
    """0 means no thread and no timer."""
    loop = asyncio.get_running_loop()
    before = len(loop._scheduled)  # type: ignore[attr-defined]
    with watching([], stall=0, consumer_timeout=0):
        assert len(loop._scheduled) == before  # type: ignore[attr-defined]
