"""A broker that goes away in the middle of work."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from tests.faults.conftest import ROUNDS
from tests.support import eventually

from eventpipe import EventPipe, Message, PublishError, PublishTimeout, Queue, Receipt, Retry
from eventpipe.testing import RabbitNode


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitNode]:
    """A node of its own, since it is killed."""
    with RabbitNode.start(owner=os.getpid()) as started:
        yield started


@pytest.mark.parametrize("how", ["kill", "stop_broker"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_a_restart_in_the_middle_of_publishing_and_consuming(node: RabbitNode, how: str) -> None:
    """Everything confirmed is handled, publishing goes on by itself, and no handler is cancelled."""
    for _ in range(ROUNDS):
        await _restart(node, how)


async def _restart(node: RabbitNode, how: str) -> None:
    pipe = EventPipe(node.create_vhost(), name="restart", retry=Retry(attempts=3, delay=0.1))
    queue = Queue("jobs")
    publisher = pipe.publisher(int, to=queue)
    handled: set[int] = set()
    cancelled = 0

    @pipe.consumer(queue, concurrency=50)
    async def handle(number: int) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        handled.add(number)

    async with pipe, pipe.consuming():
        publishing = asyncio.create_task(publisher.publish_many(range(40_000), timeout=60.0))
        await eventually(lambda: len(handled) > 500, within=20)
        await asyncio.to_thread(getattr(node, how))
        assert not publishing.done(), "the fault has to hit it in the middle"
        await eventually(lambda: not pipe.health().ok)
        await asyncio.to_thread(node.restart)
        receipts = await publishing
        assert len(receipts) == 40_000
        await eventually(lambda: len(handled) == 40_000, within=60)
        await eventually(lambda: pipe.health().ok)
        assert cancelled == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_publishing_while_the_broker_is_away(node: RabbitNode) -> None:
    """A publish waits up to its timeout and then says what is known; one with time left succeeds after the restart."""
    pipe = EventPipe(node.create_vhost(), name="away")
    publisher = pipe.publisher(int, to=Queue("jobs"))
    async with pipe:
        await asyncio.to_thread(node.stop_broker)
        await eventually(lambda: not pipe.health().ok)
        with pytest.raises(PublishTimeout, match=r"no verdict from the broker within 0\.3 s") as caught:
            await publisher.publish(1, timeout=0.3)
        assert caught.value.outcome == "not_stored"
        patient = asyncio.create_task(publisher.publish(2, timeout=60.0))
        await asyncio.to_thread(node.restart)
        assert isinstance(await patient, Receipt)
        await eventually(lambda: pipe.health().ok)
        assert await pipe._session.transport.depth("jobs") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_a_frozen_broker(node: RabbitNode) -> None:
    """While it is frozen a publish fails within its timeout as possibly stored; when it thaws, all goes on."""
    pipe = EventPipe(node.create_vhost(), name="frozen")
    queue, seen = Queue("jobs"), []
    publisher = pipe.publisher(int, to=queue)

    @pipe.consumer(queue)
    async def handle(number: int, message: Message) -> None:
        seen.append(number)

    async with pipe, pipe.consuming():
        await publisher.publish(1)
        node.pause()
        try:
            with pytest.raises(PublishError) as caught:
                await publisher.publish(2, timeout=0.5)
            assert caught.value.outcome == "unknown"
        finally:
            node.unpause()
        await publisher.publish(3, timeout=20.0)
        await eventually(lambda: {1, 3} <= set(seen), within=20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_a_memory_alarm(node: RabbitNode) -> None:
    """While the broker blocks publishers, health and the timeout say so, and consumers go on and settle."""
    pipe = EventPipe(node.create_vhost(), name="alarm")
    queue, seen = Queue("jobs"), []
    publisher = pipe.publisher(int, to=queue)
    release = asyncio.Event()

    @pipe.consumer(queue, concurrency=1)
    async def handle(number: int) -> None:
        await release.wait()
        seen.append(number)

    async with pipe, pipe.consuming():
        await publisher.publish_many(range(10))
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            with pytest.raises(PublishTimeout, match="blocked publishing"):
                while True:  # the alarm takes a moment to reach the connection
                    await publisher.publish(99, timeout=1.0)
            assert pipe.health().transport.blocked
            assert not pipe.health().ok
            release.set()
            await eventually(lambda: set(range(10)) <= set(seen))
            await eventually(lambda: pipe.health().consumers[0].unsettled == 0)
        finally:
            await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "1GB")
        await publisher.publish(100, timeout=20.0)
        await eventually(lambda: 100 in seen)
        assert pipe.health().ok
