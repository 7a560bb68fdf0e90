"""A pipe as its users meet it, on both brokers."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

import eventpipe
from eventpipe import (
    ConfigurationError,
    Consumer,
    DeadMessage,
    EventPipe,
    Exchange,
    Message,
    Queue,
    Reject,
    Retry,
    RetryAfter,
)
from eventpipe.publisher import output_id
from eventpipe.testing import message, running


class Created(BaseModel):
    id: int


class Cancelled(BaseModel):
    __event__ = "order.cancelled"
    id: int


orders = Exchange("orders")
queue = Queue("orders.q", bind=orders.on("#"))


@pytest.mark.fault("F43")
async def test_dispatch_by_type(eventpipe_broker: str) -> None:
    """Several handlers of one queue get their own types; an unknown or missing type is dead-lettered."""
    pipe = EventPipe("memory://", name="types")
    created, cancelled = pipe.publisher(Created, to=orders), pipe.publisher(Cancelled, to=orders)
    unknown = pipe.publisher(int, to=orders)
    seen: list[str] = []
    consumer = pipe.consumer(queue)

    @consumer
    async def on_created(event: Created) -> None:
        seen.append(f"created {event.id}")

    @consumer
    async def on_cancelled(event: Cancelled) -> None:
        seen.append(f"cancelled {event.id}")

    async with running(pipe, url=eventpipe_broker) as bus:
        await created.publish(Created(id=1))
        await cancelled.publish(Cancelled(id=2))
        await unknown.publish(3)
        await bus.settled()
        assert sorted(seen) == ["cancelled 2", "created 1"]
        assert [dead.reason for dead in bus.dead_letters(queue)] == ["undecodable: no handler for the type 'int'"]


async def test_outputs_make_a_graph(eventpipe_broker: str) -> None:
    """What handlers return is published; ids derive from the input, correlation flows, nothing is acked before."""
    pipe = EventPipe("memory://", name="dag")
    halves, done = Queue("halves"), Queue("done")
    start = pipe.publisher(int, to=queue)
    to_halves, to_done = pipe.publisher(int, to=halves), pipe.publisher(str, to=done)
    seen: list[tuple[str, str]] = []

    @pipe.consumer(queue, output=to_halves, retry=Retry(attempts=2, delay=0.05))
    async def split(number: int, message: Message) -> AsyncIterator[int]:
        yield number // 2
        if message.attempt == 1:
            raise ValueError("half way")
        yield number - number // 2

    @pipe.consumer(halves, output=to_done)
    def show(number: int) -> Any:
        return None if number == 3 else [f"{number}a", f"{number}b"]

    @pipe.consumer(done)
    async def collect(text: str, message: Message) -> None:
        seen.append((text, message.correlation_id))

    async with running(pipe, url=eventpipe_broker) as bus:
        receipt = await start.publish(7)
        await bus.settled()
        ids = [out.properties.message_id for out in bus._record.published if out.properties.type == "int"]
    assert sorted(set(seen)) == [("4a", receipt.id), ("4b", receipt.id)]
    assert ids == [receipt.id, *(output_id(Message(id=receipt.id, body=b"", queue="orders.q"), n) for n in (0, 1))]


@pytest.mark.fault("F35")
async def test_an_output_that_can_not_be_published_is_a_failure(eventpipe_broker: str) -> None:
    """A handler that returns something else than its output's event fails, by the policy."""
    pipe = EventPipe("memory://", name="output")
    start, target = pipe.publisher(int, to=queue), pipe.publisher(int, to=Queue("target"))

    @pipe.consumer(queue, output=target, retry=Retry(attempts=1))
    async def wrong(number: int) -> str:
        return "text"

    async with running(pipe, url=eventpipe_broker) as bus:
        await start.publish(1)
        await bus.settled()
        (dead,) = bus.dead_letters(queue)
        assert dead.error_type == "eventpipe.errors.InvalidMessage"


async def test_signals_and_policies(eventpipe_broker: str) -> None:
    """Reject dead-letters at once, RetryAfter sets the delay, ``on`` decides what is retried and how soon."""
    pipe = EventPipe("memory://", name="signals")
    start = pipe.publisher(str, to=queue)
    runs: list[tuple[str, int]] = []
    dead: list[DeadMessage] = []

    async def note(given_up: DeadMessage) -> None:
        dead.append(given_up)

    policy = Retry(attempts=3, delay=0.05, on=lambda error: 0.1 if isinstance(error, KeyError) else False)

    @pipe.consumer(queue, retry=policy, on_dead_letter=note)
    async def handle(what: str, message: Message) -> None:
        runs.append((what, message.attempt))
        if what == "after" and message.attempt == 1:
            raise RetryAfter(0.1)
        errors = {"reject": Reject("no"), "covered": KeyError("x"), "not": ValueError("y")}
        if what in errors:
            raise errors[what]

    async with running(pipe, url=eventpipe_broker) as bus:
        for what in ("reject", "after", "covered", "not"):
            await start.publish(what)
        await bus.settled()
    expected = [("after", 1), ("after", 2), *(("covered", n) for n in (1, 2, 3)), ("not", 1), ("reject", 1)]
    assert sorted(runs) == expected
    assert {one.message.body: one.reason for one in dead} == {
        b'"reject"': "no",
        b'"covered"': "failed 3 times",
        b'"not"': "ValueError is not retried",
    }
    (covered,) = [one for one in dead if one.message.body == b'"covered"']
    assert [(one.attempt, one.error) for one in covered.history] == [(1, "KeyError: 'x'"), (2, "KeyError: 'x'")]
    assert covered.died is not None
    assert covered.first_tried is not None
    assert covered.first_tried <= covered.died
    assert "handle" in covered.handler


async def test_class_form_and_foreign_messages(eventpipe_broker: str) -> None:
    """A Consumer object handles with what it was given; ``decode`` turns a foreign body into an event."""
    pipe = EventPipe("memory://", name="class")
    start, legacy = pipe.publisher(Created, to=queue), pipe.publisher(bytes, to=Queue("legacy"))
    store: list[Any] = []

    class Keep(Consumer[Created]):
        def __init__(self, where: list[Any]) -> None:
            self.where = where

        async def handle(self, event: Created, message: Message) -> None:
            self.where.append((event.id, message.queue))

    pipe.add(queue, Keep(store), concurrency=1)

    @pipe.consumer(Queue("legacy"), decode=lambda message: Created(id=int(message.body)))
    async def handle(event: Created) -> None:
        store.append(event.id)

    async with running(pipe, url=eventpipe_broker) as bus:
        await start.publish(Created(id=1))
        await legacy.publish(b"2")
        await legacy.publish(b"two")
        await bus.settled()
        (dead,) = bus.dead_letters("legacy")
    assert sorted(map(str, store)) == ["(1, 'orders.q')", "2"]
    assert (b"two", True) == (dead.message.body, dead.reason.startswith("undecodable: decode= failed: ValueError"))


async def test_half_an_hour_of_backoff_takes_no_time() -> None:
    """On the memory broker ``advance`` turns the clock: a retry comes when it is due, not before."""
    pipe = EventPipe("memory://", name="backoff")
    start = pipe.publisher(int, to=queue)
    attempts: list[int] = []

    @pipe.consumer(queue, retry=Retry(attempts=2, delay=1800.0, max_delay=1800.0, jitter=0.0))
    async def handle(number: int, message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise ValueError

    async with running(pipe) as bus:
        await start.publish(1)
        await bus.advance(1799.0)
        assert attempts == [1]
        await bus.advance(1.0)
        assert attempts == [1, 2]
        await start.publish(2, delay=3600.0)
        await bus.settled()
        assert attempts == [1, 2, 1, 2]
        assert [done.body for done in bus.handled(queue)] == [b"1", b"2"]


async def test_expired_messages_are_not_handled() -> None:
    """A message that expires while its retry is delayed goes to the dead letters unhandled."""
    pipe = EventPipe("memory://", name="expiry")
    start = pipe.publisher(int, to=queue)

    @pipe.consumer(queue, retry=Retry(delay=60.0, jitter=0.0))
    async def handle(number: int) -> None:
        raise ValueError

    async with running(pipe) as bus:
        await start.publish(1, expires=30.0)
        await bus.settled()
        (dead,) = bus.dead_letters(queue)
        assert (dead.reason, dead.attempt) == ("expired", 2)


async def test_log_lines_say_which_message(eventpipe_broker: str) -> None:
    """Every line of a handler has the message's context, also from a thread, and none outside has."""
    lines: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, line: Any) -> Any:
        lines.append(dict(line))
        raise structlog.DropEvent

    structlog.configure(processors=[eventpipe.log_context, keep])
    try:
        pipe = EventPipe("memory://", name="logs")
        start = pipe.publisher(int, to=queue)
        logger = structlog.get_logger()

        @pipe.consumer(queue)
        async def handle(number: int) -> None:
            await asyncio.to_thread(logger.info, "inside", number=number)

        async with running(pipe, url=eventpipe_broker) as bus:
            receipts = await start.publish_many([1, 2])
            await bus.settled()
            logger.info("outside")
    finally:
        structlog.reset_defaults()
    inside = sorted((line for line in lines if line["event"] == "inside"), key=lambda line: line["number"])
    assert [line["message_id"] for line in inside] == [receipt.id for receipt in receipts]
    assert {key: inside[0][key] for key in ("queue", "attempt", "message_type", "correlation_id")} == {
        "queue": "orders.q",
        "attempt": 1,
        "message_type": "int",
        "correlation_id": receipts[0].id,
    }
    assert "message_id" not in next(line for line in lines if line["event"] == "outside")


async def test_a_pipe_is_entered_consumed_and_entered_again(eventpipe_broker: str) -> None:
    """Consumers run inside ``consuming`` only, all or the named ones, and a pipe that was left can be entered again."""
    pipe = EventPipe(eventpipe_broker, name="again")
    one, two = Queue("one"), Queue("two")
    to_one, to_two = pipe.publisher(int, to=one), pipe.publisher(int, to=two)
    seen: list[int] = []
    pipe.consumer(one)(_append_to(seen))
    pipe.consumer(two)(_append_to(seen))
    for _ in range(2):
        seen.clear()
        async with pipe:
            await to_one.publish(1)
            await to_two.publish(2)
            await asyncio.sleep(0.05)
            assert seen == []
            async with pipe.consuming(two):
                await _until(lambda: 2 in seen)
                assert pipe.health().ok
                assert [one.queue for one in pipe.health().consumers] == ["two"]
                with pytest.raises(ConfigurationError, match="consumed by this pipe already"):
                    async with pipe.consuming("two"):
                        pass
            async with pipe.consuming():
                await _until(lambda: 1 in seen)
        assert not pipe.health().ok


def _append_to(seen: list[int]) -> Any:
    async def handle(number: int) -> None:
        seen.append(number)

    return handle


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_one_loop_after_another() -> None:
    """A module-level pipe serves one event loop per test; a named memory broker keeps what was published."""
    pipe = EventPipe("memory://loops", name="loops")
    publisher = pipe.publisher(int, to=queue)

    async def publish() -> int:
        async with pipe:
            await publisher.publish(1)
            return await pipe._session.transport.depth("orders.q")

    assert [asyncio.run(publish()) for _ in range(3)] == [1, 2, 3]


async def test_the_wrong_place_is_told() -> None:
    """Publishing outside, entering twice, another loop, and a forked child each say what to do."""
    pipe = EventPipe("memory://", name="place")
    publisher = pipe.publisher(int, to=queue)
    with pytest.raises(ConfigurationError, match="is not entered"):
        await publisher.publish(1)
    async with pipe:
        with pytest.raises(ConfigurationError, match="entered already"):
            await pipe.__aenter__()
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, publisher.publish(1))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                pipe._entered()
            except ConfigurationError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"before a fork" in os.read(read, 1000)
        os.close(read)
        os.close(write)


async def test_a_pipe_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL anywhere, entering names both places; the variable is read at connect."""
    monkeypatch.delenv("EVENTPIPE_URL", raising=False)
    pipe = EventPipe(name="none")
    with pytest.raises(ConfigurationError, match=r"EventPipe\(url=…\) or set \$EVENTPIPE_URL"):
        async with pipe:
            pass
    monkeypatch.setenv("EVENTPIPE_URL", "memory://")
    async with pipe:
        assert pipe.health().transport.connected


@pytest.mark.parametrize("url", ["http://x", "amqp://", "memory:/x", "memory://a/b", ["memory://", "amqp://x"]])
async def test_bad_urls(url: Any) -> None:
    """A URL that can't be one says what to write."""
    with pytest.raises(ConfigurationError):
        async with EventPipe(url, name="bad"):
            pass


def test_two_declarations_of_one_queue() -> None:
    """Two consumers of a queue, two handlers of a type, and two shapes of a queue name both places."""
    pipe = EventPipe("memory://", name="twice")
    consumer = pipe.consumer(queue)

    @consumer
    async def first(event: Created) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"has two consumers: at .*test_pipe\.py:\d+ and at .*test_pipe\.py:\d+"
    ):
        pipe.consumer(queue)
    with pytest.raises(ConfigurationError, match=r"two handlers of type 'Created': .*first.*second"):

        @consumer
        async def second(event: Created) -> None: ...

    pipe.publisher(int, to=Queue("orders.q", max_length=3))
    with pytest.raises(ConfigurationError, match="declared in two different ways"):
        pipe.topology  # noqa: B018  it is worked out when it is asked for


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"prefetch": 70_000}, "prefetch=70000"),
        ({"timeout": 0}, "timeout=0"),
        ({"retry": 5}, "retry=5"),
        ({"output": 5}, "output=5"),
    ],
)
def test_bad_consumer_options(options: dict[str, Any], text: str) -> None:
    """An option that can't work is an error where the consumer is made, for both forms."""
    with pytest.raises(ConfigurationError, match=text):
        EventPipe("memory://", name="bad").consumer(queue, **options)


def test_queues_that_can_not_be_consumed() -> None:
    """Streams and queues without dead letters are refused, and so is a mere name."""
    pipe = EventPipe("memory://", name="bad")
    with pytest.raises(ConfigurationError, match="stream"):
        pipe.consumer(Queue("s", kind="stream"))
    with pytest.raises(ConfigurationError, match="dead_letter=False"):
        pipe.consumer(Queue("q", dead_letter=False))
    with pytest.raises(ConfigurationError, match=r"write Queue\('q'\)"):
        pipe.consumer("q")
    with pytest.raises(ConfigurationError, match="unexpected keyword"):
        pipe.add(queue, _Good(), speed=5)
    with pytest.raises(ConfigurationError, match="instance of a subclass of Consumer"):
        pipe.add(queue, _Good)
    with pytest.raises(ConfigurationError, match="does not say what it consumes"):
        pipe.add(queue, _Nothing())


class _Good(Consumer[int]):
    async def handle(self, event: int, message: Message) -> None: ...


class _Nothing(Consumer):  # type: ignore[type-arg]
    async def handle(self, event: Any, message: Message) -> None: ...


async def test_run_serves_until_cancelled() -> None:
    """``run`` enters, consumes, and drains when it is cancelled."""
    pipe = EventPipe("memory://run", name="run")
    publisher = pipe.publisher(int, to=queue)
    seen: list[int] = []
    pipe.consumer(queue)(functools.partial(_note, seen))
    started = asyncio.Event()
    running_ = asyncio.create_task(pipe.run(started=started.set))
    await started.wait()
    await publisher.publish(1)
    await _until(lambda: seen)
    running_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_
    assert not pipe.health().transport.connected


async def _note(seen: list[int], number: int) -> None:
    seen.append(number)


async def test_check_declares_nothing(eventpipe_broker: str) -> None:
    """``topology="check"`` raises where something is missing, and declares nothing itself."""
    shared = "memory://check" if eventpipe_broker == "memory://" else eventpipe_broker
    maker, checker = EventPipe(shared, name="maker"), EventPipe(shared, name="checker", topology="check")
    for pipe in (maker, checker):
        pipe.consumer(queue)(_append_to([]))
    with pytest.raises(eventpipe.TopologyMissing):
        async with checker:
            pass
    async with maker, checker, checker.consuming():
        assert checker.health().ok


def test_a_message_for_unit_tests() -> None:
    """``message`` builds what a handler would get."""
    made = message(Created(id=1), attempt=2, id="x", headers={"a": 1})
    assert (made.id, made.attempt, made.body, made.type, made.headers["a"]) == ("x", 2, b'{"id":1}', "Created", 1)
    with pytest.raises(AttributeError):
        made.attempt = 3  # type: ignore[misc]
