"""What can be published, and what each failure is told as."""

import asyncio
import random
from typing import Any, NotRequired

import pytest
from pydantic import BaseModel
from tests.push_transport import PushTransport
from typing_extensions import TypedDict

from eventpipe import (
    ConfigurationError,
    Disconnected,
    EventPipe,
    Exchange,
    InvalidMessage,
    Options,
    Publisher,
    PublishManyError,
    PublishTimeout,
    Queue,
    Receipt,
    Refused,
    Unroutable,
)
from eventpipe.clock import SystemClock
from eventpipe.message import Properties
from eventpipe.outlet import Outlet
from eventpipe.testing import running
from eventpipe.transports.base import Outgoing
from eventpipe.transports.memory import MemoryTransport
from eventpipe.wish import Wish


class Posted(BaseModel):
    user: str
    score: float = 0.0


class Renamed(BaseModel):
    __event__ = "user.renamed"
    user: str


class Form(TypedDict):
    a: int
    b: NotRequired[str]


events, queue = Exchange("events"), Queue("q")


@pytest.mark.parametrize(
    ("event", "options", "text"),
    [
        ("text", {}, "str is not the event that was declared"),
        ({"user": "ann"}, {}, "dict is not the event that was declared"),
        (Posted.model_construct(user=5), {}, "not the event that was declared"),
        (Posted.model_construct(user="\ud800"), {}, "not the event that was declared"),
        (Posted(user="x" * 2000), {}, "over the limit of 1000"),
        (Posted(user="a"), {"key": "k" * 256}, "at most 255 bytes"),
        (Posted(user="a"), {"key": 5}, "must be text"),
        (Posted(user="a"), {"id": "i" * 256}, "at most 255 bytes"),
        (Posted(user="a"), {"headers": {"h" * 129: 1}}, "1 to 128 bytes"),
        (Posted(user="a"), {"headers": {"": 1}}, "1 to 128 bytes"),
        (Posted(user="a"), {"headers": {"h": object()}}, "AMQP has no object"),
        (Posted(user="a"), {"headers": {"h": 2**63}}, "does not fit 64 bits"),
        (Posted(user="a"), {"headers": {"h": "\ud800"}}, "not UTF-8"),
        (Posted(user="a"), {"headers": {"h": {"n" * 200: 1}}}, "1 to 128 bytes"),
        (Posted(user="a"), {"headers": {"h": "x" * 120_000}}, "fit a frame"),
        (Posted(user="a"), {"headers": [1]}, "must be a mapping"),
        (Posted(user="a"), {"priority": -1}, "priority=-1"),
        (Posted(user="a"), {"priority": 256}, "priority=256"),
        (Posted(user="a"), {"priority": 1.5}, "whole number"),
        (Posted(user="a"), {"delay": -1.0}, "delay=-1.0"),
        (Posted(user="a"), {"delay": 100_000.0}, "delay=100000.0"),
        (Posted(user="a"), {"delay": float("nan")}, "delay=nan"),
        (Posted(user="a"), {"expires": -1.0}, "expires=-1.0"),
        (Posted(user="a"), {"timeout": -1.0}, "timeout=-1.0"),
        (Posted(user="a"), {"timeout": "5"}, "timeout='5'"),
    ],
)
@pytest.mark.fault("F39", "F40", "F45")
async def test_bad_input_is_refused_before_anything_is_sent(event: Any, options: dict[str, Any], text: str) -> None:
    """An event or an option that can't be published says so, and nothing leaves."""
    pipe = EventPipe("memory://", name="bad", options=Options(body_limit=1000))
    publisher = pipe.publisher(Posted, to=events)
    pipe.consumer(Queue("all", bind=events.on("#")), event=bytes)(lambda body: None)
    async with running(pipe) as bus:
        with pytest.raises(InvalidMessage, match=text):
            await publisher.publish(event, **options)
        await bus.settled()
        assert bus._record.published == []


async def test_bad_functions_of_the_event_are_told() -> None:
    """A key or an id function that fails is bad input as well; so is one bad event among many."""
    pipe = EventPipe("memory://", name="bad")
    bad_key = pipe.publisher(Posted, to=events, key=lambda event: event.nothing)
    bad_id = pipe.publisher(Posted, to=queue, id=lambda event: 5)
    async with running(pipe) as bus:
        with pytest.raises(InvalidMessage, match="key= failed"):
            await bad_key.publish(Posted(user="a"))
        with pytest.raises(InvalidMessage, match="id '5'"):
            await bad_id.publish(Posted(user="a"))
        with pytest.raises(InvalidMessage):
            await bad_key.publish_many([Posted(user="a")])
        assert bus._record.published == []
        with pytest.raises(InvalidMessage, match="needs none"):
            await bad_id.publish(Posted(user="a"), id="x", key="k")


@pytest.mark.parametrize(
    "make",
    [
        lambda pipe: pipe.publisher(Posted, to="events"),
        lambda pipe: pipe.publisher(Posted, to=queue, key="k"),
        lambda pipe: pipe.publisher(Posted, to=Exchange("x", internal=True)),
        lambda pipe: pipe.publisher(Posted, to=events, key="k" * 256),
        lambda pipe: pipe.publisher(Posted, to=events, timeout=-1.0),
        lambda pipe: pipe.publisher(EventPipe, to=events),
    ],
)
def test_what_can_not_work_is_refused_at_declaration(make: Any) -> None:
    """A publisher that can never publish is an error where it is made."""
    with pytest.raises(ConfigurationError):
        make(EventPipe("memory://", name="bad"))


async def test_wire_properties(eventpipe_broker: str) -> None:
    """Id, type, content type, time and correlation are on the wire as documented."""
    pipe = EventPipe("memory://", name="wire")
    either: Publisher[Posted | Renamed] = pipe.publisher(Posted | Renamed, to=queue)
    many = pipe.publisher(list[int], to=queue)
    raw = pipe.publisher(bytes, to=queue)
    typed = pipe.publisher(Form, to=queue, id=lambda event: f"id-{event['a']}")
    async with running(pipe, url=eventpipe_broker) as bus:
        await either.publish(Renamed(user="ann"), priority=5, expires=60.0, headers={"mine": "x"})
        await either.publish(Posted(user="ann"))
        await many.publish([1, 2])
        await raw.publish(b"\xff")
        receipt = await typed.publish({"a": 1})
        first, *others = [outgoing.properties for outgoing in bus._record.published]
    assert receipt == Receipt("id-1", "", "q")
    assert [one.type for one in (first, *others)] == ["user.renamed", "Posted", "list[int]", "bytes", "Form"]
    assert [one.content_type for one in others] == ["application/json"] * 2 + [
        "application/octet-stream",
        "application/json",
    ]
    assert (first.priority, first.expiration, first.headers["mine"], first.delivery_mode) == (5, "60000", "x", 2)
    assert len(first.message_id) == 32
    assert first.correlation_id == first.message_id
    assert first.headers["eventpipe-time"] // 1000 == first.timestamp
    assert first.headers["eventpipe-expires"] - first.headers["eventpipe-time"] == 60_000


async def test_verdicts_become_errors(eventpipe_broker: str) -> None:
    """Unroutable and refused are errors that say not stored; in a batch, one verdict per event, in order."""
    full = Queue("full", max_length=1)
    pipe = EventPipe("memory://", name="verdicts")
    routed = pipe.publisher(int, to=events, key=lambda number: "even" if number % 2 == 0 else "odd")
    to_full = pipe.publisher(int, to=full)
    lenient = pipe.publisher(int, to=events, key="nobody", mandatory=False)
    pipe.publisher(int, to=Queue("even", bind=events.on("even")))
    async with running(pipe, url=eventpipe_broker):
        with pytest.raises(Unroutable, match="exchange 'events' with key 'odd' reached no queue") as caught:
            await routed.publish(1)
        assert caught.value.outcome == "not_stored"
        with pytest.raises(PublishManyError) as many:
            await routed.publish_many(range(20))
        kinds = [type(verdict) for verdict in many.value.verdicts]
        assert kinds == [Receipt, Unroutable] * 10
        assert len(many.value.exceptions) == 10
        await lenient.publish(1)
        with pytest.raises(Refused, match="queue 'full' was refused") as refused:
            for number in range(100):
                await to_full.publish(number)
        assert refused.value.outcome == "not_stored"


async def test_a_blocked_broker_is_named_in_the_timeout() -> None:
    """Under a memory alarm a publish ends at its timeout, says why, and works again afterwards."""
    pipe = EventPipe("memory://", name="blocked")
    publisher = pipe.publisher(int, to=queue)
    async with pipe:
        broker = _broker(pipe)
        broker.block()
        with pytest.raises(PublishTimeout, match="blocked publishing") as caught:
            await publisher.publish(1, timeout=0.05)
        assert caught.value.outcome == "not_stored"
        assert pipe.health().transport.blocked
        broker.unblock()
        await publisher.publish(2)
        assert await pipe._session.transport.depth("q") == 1


async def test_the_window_bounds_what_is_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the window, publishes wait for room within their timeout; cancelled ones give theirs back."""
    monkeypatch.setattr("eventpipe.outlet.Window.__init__.__defaults__", (4, 1000))
    pipe = EventPipe("memory://", name="window")
    publisher = pipe.publisher(int, to=queue)
    async with pipe:
        broker = _broker(pipe)
        broker.block()
        waiting = [asyncio.create_task(publisher.publish(number, timeout=30.0)) for number in range(6)]
        await asyncio.sleep(0.01)
        assert len(pipe._session.transport._outbox) == 4
        with pytest.raises(PublishTimeout, match="no room in the window"):
            await publisher.publish(7, timeout=0.05)
        waiting[0].cancel()
        waiting[4].cancel()
        await asyncio.sleep(0.01)
        assert len(pipe._session.transport._outbox) == 4
        broker.unblock()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results].count(Receipt) == 4
        assert len(await publisher.publish_many(range(20))) == 20


async def test_leaving_the_pipe_ends_a_waiting_publish() -> None:
    """A publish that has no verdict when the pipe closes is told so."""
    pipe = EventPipe("memory://", name="left", drain=0.05)
    publisher = pipe.publisher(int, to=queue)
    async with pipe:
        _broker(pipe).block()
        publishing = asyncio.create_task(publisher.publish(1, timeout=30.0))
        await asyncio.sleep(0.01)
    with pytest.raises(Disconnected) as caught:
        await publishing
    assert caught.value.outcome == "not_stored"


def _broker(pipe: EventPipe) -> Any:
    transport = pipe._session.transport
    assert isinstance(transport, MemoryTransport)
    return transport.broker


@pytest.mark.fault("F17")
@pytest.mark.parametrize(("left", "outcome"), [(True, "unknown"), (False, "not_stored")])
async def test_a_verdict_that_does_not_come_says_what_is_known(*, left: bool, outcome: str) -> None:
    """Whether the message had left when its time was up: only then it may be stored."""
    transport = PushTransport()
    transport.verdict = None
    transport.withdraw = lambda _verdict: left  # type: ignore[method-assign]
    outlet = Outlet(transport, SystemClock(), random.Random(1))
    with pytest.raises(PublishTimeout) as caught:
        await outlet.send(Outgoing("", "q", b"1", Properties(message_id="m")), Wish(timeout=0.05))
    assert caught.value.outcome == outcome
    outlet.close()
