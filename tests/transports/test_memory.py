"""What only the memory broker has: names, event loops, a clock that is turned by hand, and the rules of matching."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import eventually

from eventpipe import ConfigurationError, Exchange, Properties, Queue
from eventpipe.clock import SystemClock
from eventpipe.routing import Topology, topology
from eventpipe.testing.clock import ManualClock
from eventpipe.transports.base import CONFIRMED, Delivery, Outgoing, VerdictKind
from eventpipe.transports.memory import MemoryBroker, MemoryTransport, memory_broker
from eventpipe.transports.memory.broker import UNDELIVERABLE
from eventpipe.transports.memory.later import Later
from eventpipe.transports.memory.matching import headers_match, topic_matches
from eventpipe.transports.memory.queue import BURST

Q = Queue("q")
ONLY_Q = topology(queues=[Q])


def to(queue: str, body: bytes = b"x", **properties: Any) -> Outgoing:
    return Outgoing("", queue, body, Properties(**properties))


async def connected(broker: MemoryBroker, clock: Any = None) -> MemoryTransport:
    transport = MemoryTransport(broker, clock=clock or SystemClock())
    await transport.connect()
    return transport


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def broker() -> MemoryBroker:
    return memory_broker("memory://")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def transport(broker: MemoryBroker, clock: ManualClock) -> AsyncIterator[MemoryTransport]:
    made = await connected(broker, clock)
    await made.declare(ONLY_Q)
    yield made
    await made.close()


# --- names and loops


def test_names_are_shared_and_no_name_is_private() -> None:
    """One name is one broker of this process; without a name each is another. No event loop is needed."""
    assert memory_broker("memory://shared-name") is memory_broker("memory://shared-name")
    assert memory_broker("memory://shared-name") is not memory_broker("memory://other-name")
    assert memory_broker("memory://") is not memory_broker("memory://")
    MemoryTransport(memory_broker("memory://"), clock=SystemClock())


@pytest.mark.parametrize("url", ["memory:", "memory://a/b", "memory://a?b=c", "amqp://localhost"])
def test_other_urls_are_refused(url: str) -> None:
    """What is no name is an error that says what to write."""
    with pytest.raises(ConfigurationError, match="memory://name"):
        memory_broker(url)


def test_a_closed_loop_breaks_nothing(broker: MemoryBroker) -> None:
    """What a transport held on a loop that is closed goes back, and a transport on the next loop gets it."""
    lost: list[int] = []

    async def leave_open() -> None:
        transport = await connected(broker)
        await transport.declare(ONLY_Q)
        got: list[Delivery] = []
        await transport.subscribe(Q, 10, got.append, lost.append)
        await transport.publish(to("q"))
        await eventually(lambda: got)

    async def take_over() -> list[Delivery]:
        transport = await connected(broker)
        got: list[Delivery] = []
        await transport.subscribe(Q, 10, got.append, lost.append)
        await transport.publish(to("q", b"y"))
        await eventually(lambda: len(got) == 2)
        await transport.close()
        return got

    asyncio.run(leave_open())
    found = asyncio.run(take_over())
    assert [(b"x", True), (b"y", False)] == [(one.body, one.redelivered) for one in found]
    assert [] == lost


def test_two_loops_take_turns(broker: MemoryBroker) -> None:
    """A consumer is pushed to on its own loop only, whichever loop published."""
    with asyncio.Runner() as one, asyncio.Runner() as other:
        publisher, consumer = one.run(connected(broker)), other.run(connected(broker))
        one.run(publisher.declare(ONLY_Q))
        loops: list[asyncio.AbstractEventLoop] = []
        other.run(consumer.subscribe(Q, 10, lambda _: loops.append(asyncio.get_running_loop()), lambda _: None))

        async def publish() -> None:
            assert await publisher.publish(to("q")) == CONFIRMED

        one.run(publish())
        one.run(turns())
        assert [] == loops
        other.run(turns())
        assert [other.get_loop()] == loops
        one.run(publisher.close())
        other.run(consumer.close())


# --- turns


async def test_nothing_is_pushed_from_inside_publish(transport: MemoryTransport) -> None:
    """Verdicts and deliveries come in a later turn of the loop, and one call of the loop serves many publishes."""
    got: list[Delivery] = []
    await transport.subscribe(Q, 1000, got.append, lambda _: None)
    await turns()
    loop, calls = asyncio.get_running_loop(), []
    plain = loop.call_soon
    loop.call_soon = lambda *given, **more: calls.append(given) or plain(*given, **more)  # type: ignore[method-assign]
    try:
        verdicts = [transport.publish(to("q")) for _ in range(100)]
    finally:
        loop.call_soon = plain  # type: ignore[method-assign]
    assert 1 == len(calls)
    assert ([], False) == (got, any(verdict.done() for verdict in verdicts))
    await asyncio.sleep(0)
    assert (100, True) == (len(got), all(verdict.done() for verdict in verdicts))


async def test_a_consumer_that_settles_at_once_leaves_others_a_turn(
    transport: MemoryTransport, broker: MemoryBroker
) -> None:
    """However fast it is, one turn hands out a bounded number."""
    for _ in range(BURST + 10):
        transport.publish(to("q"))
    await transport.flush()
    got: list[Delivery] = []

    def settle(delivery: Delivery) -> None:
        got.append(delivery)
        subscription.settle(delivery.epoch, [delivery.tag])

    subscription = await transport.subscribe(Q, 10, settle, lambda _: None)
    await asyncio.sleep(0)
    assert BURST == len(got)
    await eventually(lambda: len(got) == BURST + 10)
    assert (0, 0) == (broker.queues["q"].ready, broker.queues["q"].unacked)


async def test_looking_without_consuming(transport: MemoryTransport, broker: MemoryBroker) -> None:
    """A queue tells how much is ready and unacknowledged, and shows what is ready in order."""
    for number in range(3):
        await transport.publish(to("q", b"%d" % number, message_id=f"m{number}"))
    got: list[Delivery] = []
    await transport.subscribe(Q, 1, got.append, lambda _: None)
    await eventually(lambda: got)
    queue = broker.queues["q"]
    assert (2, 1) == (queue.ready, queue.unacked)
    assert [("m1", b"1", "", "q"), ("m2", b"2", "", "q")] == [
        (one.properties.message_id, one.body, one.exchange, one.key) for one in queue.messages()
    ]
    assert 2 == queue.ready


# --- faults


async def test_dropped_connections(transport: MemoryTransport, broker: MemoryBroker) -> None:
    """The epoch ends at once, the connection is down until a later turn, and stale settles are counted."""
    got: list[Delivery] = []
    lost: list[int] = []
    subscription = await transport.subscribe(Q, 10, got.append, lost.append)
    await transport.publish(to("q"))
    await eventually(lambda: got)
    broker.drop_connections()
    assert ([1], 1, False) == (lost, broker.queues["q"].ready, transport.state.connected)
    assert (False, 1) == (subscription.settle(1, [1]), subscription.stale)
    assert not subscription.state.consuming
    verdict = transport.publish(to("q", b"y"))
    assert CONFIRMED == await verdict
    assert [(1, False), (2, True), (2, False)] == [(one.epoch, one.redelivered) for one in got]
    assert transport.state.connected


async def test_blocked(transport: MemoryTransport, broker: MemoryBroker) -> None:
    """While blocked, publishes wait and deliveries go on; withdrawing the last lets a flush end."""
    await transport.publish(to("q", b"before"))
    broker.block()
    verdict = transport.publish(to("q", b"after"))
    got: list[Delivery] = []
    await transport.subscribe(Q, 10, got.append, lambda _: None)
    await turns()
    assert (True, False, [b"before"]) == (transport.state.blocked, verdict.done(), [one.body for one in got])
    broker.unblock()
    assert CONFIRMED == await verdict
    broker.block()
    flushing = asyncio.create_task(transport.flush())
    withdrawn = transport.publish(to("q", b"withdrawn"))
    await turns()
    assert not transport.withdraw(withdrawn)
    await asyncio.wait_for(flushing, 1)
    broker.unblock()


# --- time


async def test_delays_on_a_clock(transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock) -> None:
    """A minute does not hold up a second, to a queue or to an exchange, and both can be counted."""
    exchange = Exchange("x")
    await transport.declare(topology(queues=[Queue("r", bind=exchange.on("a.*"))]))
    assert CONFIRMED == await transport.delay(to("q", b"minute"), 60.0)
    assert CONFIRMED == await transport.delay(Outgoing("x", "a.b", b"second", Properties()), 1.0)
    assert (2, 1.0) == (broker.delayed, broker.next_due())
    clock.advance(0.999)
    assert (0, 0) == (broker.queues["q"].ready, broker.queues["r"].ready)
    clock.advance(0.001)
    assert (0, 1) == (broker.queues["q"].ready, broker.queues["r"].ready)
    assert "a.b" == broker.queues["r"].messages()[0].key
    clock.advance(59.0)
    assert (1, 0, None) == (broker.queues["q"].ready, broker.delayed, broker.next_due())


async def test_what_follows_from_a_delay_has_its_moment(
    transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock
) -> None:
    """Turned by a minute at once, a delay of ten seconds and a TTL of five still die at the fifteenth second."""
    await transport.declare(topology(queues=[Queue("short", message_ttl=5.0)]))
    await transport.delay(to("short"), 10.0)
    start = clock.time()
    clock.advance(60.0)
    (dead,) = broker.queues["short.dead"].messages()
    (death,) = dead.properties.headers["x-death"]
    assert int(start + 15.0) == death["time"].timestamp()


async def test_a_closed_transports_delays_arrive(broker: MemoryBroker, clock: ManualClock) -> None:
    """The broker holds what is delayed: another transport's clock releases it, or the next one's."""
    first, second = await connected(broker, clock), await connected(broker, clock)
    await first.declare(ONLY_Q)
    await first.delay(to("q", b"1"), 1.0)
    await first.delay(to("q", b"2"), 2.0)
    await first.close()
    clock.advance(1.0)
    assert [b"1"] == [one.body for one in broker.queues["q"].messages()]
    await second.close()
    clock.advance(5.0)
    assert 1 == broker.delayed
    third = await connected(broker, clock)
    await turns()
    assert [b"1", b"2"] == [one.body for one in broker.queues["q"].messages()]
    await third.close()


async def test_another_clock_keeps_what_is_left_of_a_wait(broker: MemoryBroker, clock: ManualClock) -> None:
    """A delay begun on one clock ends on another, after what was left of it."""
    first = await connected(broker, clock)
    await first.declare(ONLY_Q)
    await first.delay(to("q"), 60.0)
    clock.advance(20.0)
    await first.close()
    other = ManualClock()
    other.advance(1_000_000.0)
    second = await connected(broker, other)
    assert broker.next_due() == pytest.approx(40.0)
    other.advance(39.0)
    assert 0 == broker.queues["q"].ready
    other.advance(1.0)
    assert 1 == broker.queues["q"].ready
    await second.close()


async def test_a_delay_waits_for_its_destination(
    transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock
) -> None:
    """As on RabbitMQ, a delay to what does not exist is not confirmed until it does."""
    verdict = transport.delay(to("late"), 1.0)
    await turns()
    assert not verdict.done()
    await transport.declare(topology(queues=[Queue("late")]))
    assert CONFIRMED == await verdict
    clock.advance(1.0)
    assert 1 == broker.queues["late"].ready


async def test_a_delay_whose_queue_was_deleted_is_kept(
    transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock
) -> None:
    """It goes where RabbitMQ's ladder puts what is undeliverable."""
    await transport.delay(to("q"), 1.0)
    broker.delete_queue("q")
    clock.advance(1.0)
    assert 1 == await transport.depth(UNDELIVERABLE)


async def test_a_delay_into_a_full_queue_waits_for_room(
    transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock
) -> None:
    """What was confirmed is not lost because its queue is full when the delay ends."""
    full = Queue("full", kind="classic", max_length=1)
    await transport.declare(topology(queues=[full]))
    await transport.delay(to("full", b"late"), 1.0)
    await transport.publish(to("full", b"first"))
    clock.advance(1.0)
    await turns()
    assert (1, 1) == (broker.queues["full"].ready, len(broker.queues["full"].refused))
    got: list[Delivery] = []
    await transport.subscribe(full, 10, got.append, lambda _: None)
    await eventually(lambda: [one.body for one in got] == [b"first", b"late"])


async def test_a_dead_letter_waits_for_its_queue(
    transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock
) -> None:
    """At-least-once dead-lettering keeps what has no target, until there is one."""
    await transport.declare(Topology(queues=(Queue("lone", message_ttl=1.0),)))
    await transport.publish(to("lone"))
    clock.advance(1.0)
    assert 0 == broker.queues["lone"].ready
    await transport.declare(topology(queues=[Queue("lone", message_ttl=1.0)]))
    assert 1 == broker.queues["lone.dead"].ready


async def test_no_time_to_live_is_enough_for_who_waits(
    transport: MemoryTransport, broker: MemoryBroker, clock: ManualClock
) -> None:
    """A TTL of 0 drops what can't be handed out at once, and nothing else."""
    spec = Queue("now", message_ttl=0.0)
    await transport.declare(topology(queues=[spec]))
    got: list[Delivery] = []
    await transport.subscribe(spec, 1, got.append, lambda _: None)
    await transport.publish(to("now", b"1"))
    await transport.publish(to("now", b"2"))
    await turns()
    clock.advance(0.0)
    assert ([b"1"], [b"2"]) == (
        [one.body for one in got],
        [one.body for one in broker.queues["now.dead"].messages()],
    )


async def test_a_consumer_with_credit_comes_before_a_length_limit(
    transport: MemoryTransport, broker: MemoryBroker
) -> None:
    """What can be handed out at once does not count as waiting."""
    dropping = Queue("dropping", max_length=2, overflow="drop-head")
    rejecting = Queue("rejecting", kind="classic", max_length=2)
    await transport.declare(topology(queues=[dropping, rejecting]))
    got: list[Delivery] = []
    for spec in (dropping, rejecting):
        await transport.subscribe(spec, 5, got.append, lambda _: None)
        verdicts = [transport.publish(to(spec.name)) for _ in range(8)]
        await transport.flush()
        refused = [verdict.result().kind is VerdictKind.REFUSED for verdict in verdicts]
        assert (5, 2) == (broker.queues[spec.name].unacked, broker.queues[spec.name].ready)
        assert [False] * (8 if spec is dropping else 7) + [True] * (spec is rejecting) == refused
    assert 1 == broker.queues["dropping.dead"].ready


def test_a_clock_stands_at_each_moment_that_it_passes() -> None:
    """What becomes due is called in order of its moment, also what is arranged on the way; a cancelled call is not."""
    clock = ManualClock(start=1000.0)
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, clock.time()))

    clock.call_later(3.0, lambda: note("three"))
    clock.call_later(1.0, lambda: (note("one"), clock.call_later(1.0, lambda: note("two"))))
    clock.call_later(1.5, lambda: note("never")).cancel()
    assert 1.0 == clock.next_due()
    clock.advance(2.5)
    assert [("one", 1001.0), ("two", 1002.0)] == seen
    assert (1002.5, 2.5, 0.5) == (clock.time(), clock.monotonic(), clock.next_due())


# --- matching

TOPICS = [  # each was tried on RabbitMQ 3.10.8
    ("#", "", True),
    ("*", "", False),
    ("", "", True),
    ("", "a", False),
    ("#.a", "a", True),
    ("a.#", "a", True),
    ("a.#.b", "a.b", True),
    ("a.#.#.b", "a.x.b", True),
    ("#.b.#.c", "b.x.b.c", True),
    ("#.#", "", True),
    ("*.#", "", False),
    ("*.#", "a", True),
    ("#.*", "", False),
    ("#.*", "a.b", True),
    ("a.*", "a.", True),
    ("a", "a.", False),
    ("a..b", "a..b", True),
    ("a.*.b", "a..b", True),
    ("*", ".", False),
    ("*.*", ".", True),
    (".", ".", True),
    ("a#", "a#", True),
]


@pytest.mark.parametrize(("pattern", "key", "expected"), TOPICS)
def test_topics(pattern: str, key: str, expected: bool) -> None:
    """A binding key matches a routing key, or does not."""
    assert expected is topic_matches(pattern, key)


def naive(pattern: str, key: str) -> bool:
    """Match by a regular expression over words that each end in a dot."""
    parts = {"#": r"(?:[^.]*\.)*", "*": r"[^.]*\."}
    words = pattern.split(".") if pattern else []
    expression = "".join(parts.get(word, re.escape(word) + r"\.") for word in words)
    return re.fullmatch(expression, f"{key}." if key else "") is not None


words = st.sampled_from(["a", "b", "", "a1"])


@given(
    st.lists(st.one_of(words, st.sampled_from(["#", "*"])), max_size=6).map(".".join),
    st.lists(words, max_size=6).map(".".join),
)
def test_topics_match_as_a_naive_reference_does(pattern: str, key: str) -> None:
    """Any pattern and key."""
    assert naive(pattern, key) is topic_matches(pattern, key)


HEADERS = [  # each was tried on RabbitMQ 3.10.8
    ({"a": 1}, {"a": 1}, True),
    ({"a": 1}, {"a": True}, False),
    ({"a": 1}, {"a": "1"}, False),
    ({"a": None}, {"a": 5}, True),
    ({"x-match": "any"}, {"a": 5}, False),
    ({"x-match": "all"}, {}, True),
    ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
    ({"x-match": "all", "a": 1, "x-b": 2}, {"a": 1}, True),
    ({"x-match": "all-with-x", "x-b": 2}, {"x-b": 2}, True),
]


@pytest.mark.parametrize(("arguments", "headers", "expected"), HEADERS)
def test_headers(arguments: dict[str, Any], headers: dict[str, Any], expected: bool) -> None:
    """A binding's arguments match a message's headers, or do not."""
    assert expected is headers_match(arguments, headers)


@given(shift=st.floats(0, 1e9), waits=st.lists(st.floats(0.001, 1e5), min_size=1, max_size=5))
def test_floats_do_not_set_a_timer_for_ever(shift: float, waits: list[float]) -> None:
    """Whatever the numbers, a clock that is turned to each next moment comes to an end."""
    clock, later, rung = ManualClock(), Later(), []
    clock.advance(shift)
    later.follow(clock)
    start = later.now()
    for wait in waits:
        later.at(start + wait, lambda: rung.append(1))

    def ring() -> None:
        while (call := later.pop()) is not None:
            call()

    for _ in waits:
        clock.advance(later.next_due() or 0.0)
        ring()
    assert len(rung) == len(waits)
