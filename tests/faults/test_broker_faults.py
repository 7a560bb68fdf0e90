"""A broker that goes away in the middle of work."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest
from tests.chaos.service import Service
from tests.faults.conftest import ROUNDS
from tests.support import eventually

from eventpipe import AccessRefused, EventPipe, Message, PublishError, PublishTimeout, Queue, Receipt, Refused, Retry
from eventpipe.cli.probes import problem_of
from eventpipe.testing import RabbitNode


@pytest.fixture(scope="module")
def _node() -> Iterator[RabbitNode]:
    with RabbitNode.start(owner=os.getpid()) as started:
        yield started


@pytest.fixture
def node(_node: RabbitNode) -> Iterator[RabbitNode]:
    """A node of its own, since it is killed; it is up for the next test, whatever became of this one."""
    yield _node
    try:
        socket.create_connection(("127.0.0.1", _node.facts["port"]), 1.0).close()
    except OSError:
        _node.restart()


@pytest.mark.fault("F01", "F38")
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
        back = asyncio.Event()
        published = 0

        async def publish() -> None:
            nonlocal published
            while not back.is_set():
                await publisher.publish_many(range(published, published + 5_000), timeout=60.0)
                published += 5_000
                while published - len(handled) > 10_000:
                    await asyncio.sleep(0.01)

        publishing = asyncio.create_task(publish())
        await eventually(lambda: len(handled) > 500, within=20)
        await asyncio.to_thread(getattr(node, how))
        await eventually(lambda: not pipe.health().ok)
        await asyncio.to_thread(node.restart)
        back.set()
        await publishing
        await eventually(lambda: len(handled) == published, within=60)
        await eventually(lambda: pipe.health().ok)
        assert cancelled == 0


@pytest.mark.fault("F38")
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


@pytest.mark.fault("F02")
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


ALARMS = {
    "memory": (
        ("set_vm_memory_high_watermark", "absolute", "1MB"),
        ("set_vm_memory_high_watermark", "absolute", "1GB"),
    ),
    # What the disk monitor does when it finds too little; set_disk_free_limit fails where it can't measure the disk.
    "disk": (
        ("eval", "rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []})."),
        ("eval", "rabbit_alarm:clear_alarm({resource_limit, disk, node()})."),
    ),
}


@pytest.mark.fault("F15", "F16", "F51")
@pytest.mark.parametrize("alarm", ALARMS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_an_alarm(node: RabbitNode, alarm: str) -> None:
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
        raised, ended = ALARMS[alarm]
        await asyncio.to_thread(node.ctl, *raised)
        try:
            with pytest.raises(PublishTimeout, match="blocked publishing"):
                while True:  # the alarm takes a moment to reach the connection
                    await publisher.publish(99, timeout=1.0)
            assert pipe.health().transport.blocked
            assert not pipe.health().ok
            assert "blocked" in str(problem_of(pipe)), "/ready is red"
            release.set()
            await eventually(lambda: set(range(10)) <= set(seen))
            await eventually(lambda: pipe.health().consumers[0].unsettled == 0)
        finally:
            await asyncio.to_thread(node.ctl, *ended)
        await publisher.publish(100, timeout=20.0)
        await eventually(lambda: 100 in seen)
        assert pipe.health().ok


@pytest.mark.fault("F04")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_closed_by_the_broker(node: RabbitNode) -> None:
    """An operator closes all connections, again and again: back within a second each time, nothing lost."""
    service = Service(node.create_vhost())
    async with service.running():
        async with service.load():
            for _ in range(3 * ROUNDS):
                seen, epoch = len(service.handled), _epoch(service)
                await eventually(lambda seen=seen: len(service.handled) > seen + 100)
                await asyncio.to_thread(node.ctl, "close_all_connections", "--global", "chaos")
                await eventually(lambda epoch=epoch: _epoch(service) > epoch)
                await service.probe()
        await service.balanced()


@pytest.mark.fault("F05")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_the_application_in_the_node_restarts(node: RabbitNode) -> None:
    """stop_app and start_app leave the process and take the broker: all is back once it serves."""
    service = Service(node.create_vhost())
    async with service.running():
        async with service.load():
            await eventually(lambda: len(service.handled) > 100)
            await asyncio.to_thread(node.ctl, "stop_app")
            await eventually(lambda: not service.pipe.health().ok)
            await asyncio.to_thread(node.ctl, "start_app")
            await service.probe(within=20)
        await service.balanced()


@pytest.mark.fault("F22")
async def test_a_permission_that_is_taken_away(node: RabbitNode) -> None:
    """The publish is refused by name and at once, consuming goes on, and it is tried no more than it is called."""
    url = node.create_vhost()
    vhost = url.rpartition("/")[2]
    node.api("PUT", "users/app", {"password": "secret", "tags": ""})
    node.api("PUT", f"permissions/{vhost}/app", {"configure": ".*", "write": ".*", "read": ".*"})
    service = Service(url.replace("guest:guest", "app:secret"))
    async with service.running():
        await service.probe()
        node.api("PUT", f"permissions/{vhost}/app", {"configure": ".*", "write": "^$", "read": ".*"})
        with pytest.raises(Refused, match="ACCESS_REFUSED"):
            for _ in range(100):  # the broker caches what it allowed until the channel is opened anew
                await service.publisher.publish(1, timeout=5.0)
                await asyncio.to_thread(node.ctl, "close_all_connections", "--global", "permissions")
        await eventually(lambda: service.pipe.health().ok)
        node.api("PUT", f"permissions/{vhost}/app", {"configure": ".*", "write": ".*", "read": ".*"})
        await service.probe(within=15)


@pytest.mark.fault("F23")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiormq's own, when a socket dies
async def test_a_password_that_is_changed(node: RabbitNode) -> None:
    """At the start it is an error that names the user; later health is red with it, tries are rare, and it recovers."""
    url = node.create_vhost()
    vhost = url.rpartition("/")[2]
    node.api("PUT", "users/rotated", {"password": "first", "tags": ""})
    node.api("PUT", f"permissions/{vhost}/rotated", {"configure": ".*", "write": ".*", "read": ".*"})
    with pytest.raises(AccessRefused, match="user 'rotated'"):
        async with Service(url.replace("guest:guest", "rotated:wrong")).running():
            raise AssertionError("it can't have been entered")
    service = Service(url.replace("guest:guest", "rotated:first"))
    async with service.running():
        await service.probe()
        node.api("PUT", "users/rotated", {"password": "second", "tags": ""})
        await asyncio.to_thread(node.ctl, "close_all_connections", "--global", "rotation")
        await eventually(lambda: "refused the login" in (service.pipe.health().transport.error or ""))
        assert not service.pipe.health().ok
        node.api("PUT", "users/rotated", {"password": "first", "tags": ""})
        await service.probe(within=20)


@pytest.mark.fault("F26")
async def test_a_queue_that_is_deleted(node: RabbitNode) -> None:
    """It is declared again and consumed again, and so are its companions."""
    service = Service(node.create_vhost())
    async with service.running():
        await service.probe()
        vhost = service.pipe._url.rpartition("/")[2]
        for name in ("jobs", "jobs.suspects"):
            node.api("DELETE", f"queues/{vhost}/{name}")
        await eventually(lambda: not service.pipe.health().ok)
        await eventually(lambda: service.pipe.health().ok, within=10)
        await service.probe()


@pytest.mark.fault("F27")
async def test_a_queue_that_is_declared_otherwise(node: RabbitNode) -> None:
    """Health says which argument differs; the other queue is served as before, and this one again once it is mended."""
    url = node.create_vhost()
    vhost = url.rpartition("/")[2]
    service = Service(url)
    other, seen = Queue("other"), []
    others = service.pipe.publisher(int, to=other)

    @service.pipe.consumer(other)
    async def handle(number: int) -> None:
        seen.append(number)

    async with service.running():
        await service.probe()
        for _ in range(200):  # until ours has not been declared again in between
            node.api("DELETE", f"queues/{vhost}/jobs")
            try:
                node.api("PUT", f"queues/{vhost}/jobs", {"durable": True, "arguments": {"x-queue-type": "classic"}})
            except OSError:
                continue
            break
        await eventually(lambda: "exists with another" in str(_of(service, "jobs").error), within=10)
        await others.publish(1)
        await eventually(lambda: seen == [1])
        assert _of(service, "other").consuming
        node.api("DELETE", f"queues/{vhost}/jobs")
        await eventually(lambda: service.pipe.health().ok, within=15)
        await service.probe()


def _epoch(service: Service) -> int:
    return service.pipe._session.workers["jobs"].intakes[0]._subscription.epoch


def _of(service: Service, queue: str) -> object:
    return next(one for one in service.pipe.health().consumers if one.queue == queue)


@pytest.mark.fault("F53")
@pytest.mark.parametrize("how", ["missing", "full"])
async def test_a_dead_letter_queue_that_takes_nothing(node: RabbitNode, how: str) -> None:
    """The message stays with its queue, health says why; it is stored once the queue takes it, and nothing is lost."""
    url = node.create_vhost()
    vhost = url.rpartition("/")[2]
    pipe = EventPipe(url, name="dlq", retry=Retry(attempts=1))
    numbers = pipe.publisher(int, to=Queue("jobs"))

    @pipe.consumer(Queue("jobs"))
    async def handle(number: int) -> None:
        raise ValueError(number)

    async with pipe, pipe.consuming():
        if how == "missing":
            node.api("DELETE", f"queues/{vhost}/jobs.dead")
        else:
            policy = {"pattern": "dead$", "definition": {"max-length": 4, "overflow": "reject-publish"}}
            node.api("PUT", f"policies/{vhost}/full", {**policy, "apply-to": "queues"})
            await asyncio.sleep(1)
        count = 0
        while "can't be stored" not in str(pipe.health().consumers[0].error):
            assert count < 200
            await numbers.publish_many(range(5))  # a quorum queue notices a little late that it is full
            count += 5
            await asyncio.sleep(0.1)
        assert not pipe.health().ok
        if how == "missing":
            await pipe._session.transport.declare(pipe.topology)
        else:
            await eventually(lambda: _dealt_with(node, vhost, pipe, count), within=60)
        await eventually(lambda: pipe.health().consumers[0].dead_lettered == count, within=30)
        assert pipe.health().ok


async def _dealt_with(node: RabbitNode, vhost: str, pipe: EventPipe, count: int) -> bool:
    """Empty the dead letters, as somebody would who has seen to them; tell whether all have come."""
    await asyncio.to_thread(node.api, "DELETE", f"queues/{vhost}/jobs.dead/contents")
    await asyncio.sleep(0.5)
    return pipe.health().consumers[0].dead_lettered == count
