"""What every transport keeps: one suite, run on each."""

import asyncio
from typing import Any

import pytest
from tests.support import eventually

from eventpipe import ConfigurationError, Exchange, Properties, Queue, TopologyMismatch, TopologyMissing
from eventpipe.errors import InvalidMessage, TopologyError
from eventpipe.routing import Topology, topology
from eventpipe.transports.base import CONFIRMED, Delivery, Outgoing, Subscription, Transport, VerdictKind


class Inbox:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.lost: list[int] = []
        self.subscription: Subscription

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]

    def ack(self, *deliveries: Delivery, multiple: bool = False) -> bool:
        tags = [delivery.tag for delivery in deliveries]
        return self.subscription.settle(deliveries[-1].epoch, tags, multiple=multiple)


async def consume(transport: Transport, queue: Queue, prefetch: int = 100) -> Inbox:
    inbox = Inbox()
    inbox.subscription = await transport.subscribe(queue, prefetch, inbox.got.append, inbox.lost.append)
    return inbox


def to_queue(queue: Queue, body: bytes = b"x", **properties: Any) -> Outgoing:
    return Outgoing("", queue.name, body, Properties(**{"message_id": f"id-{body!r}", **properties}))


def to_exchange(exchange: Exchange, key: str, body: bytes = b"x", **properties: Any) -> Outgoing:
    return Outgoing(exchange.name, key, body, Properties(**{"message_id": f"id-{body!r}-{key}", **properties}))


def wanted(*queues: Queue, consumed: tuple[Queue, ...] = ()) -> Topology:
    return topology(queues=queues, consumed=consumed)


async def publish(transport: Transport, *outgoings: Outgoing) -> list[VerdictKind]:
    async with asyncio.timeout(10):
        return [verdict.kind for verdict in await asyncio.gather(*map(transport.publish, outgoings))]


TOPIC, DIRECT, FANOUT = Exchange("topic"), Exchange("direct", kind="direct"), Exchange("fanout", kind="fanout")
HEADERS = Exchange("headers", kind="headers")


@pytest.mark.parametrize(
    ("exchange", "binding", "key", "headers", "arrives"),
    [
        (TOPIC, TOPIC.on("a.*"), "a.b", {}, True),
        (TOPIC, TOPIC.on("a.*"), "a.b.c", {}, False),
        (TOPIC, TOPIC.on("a.#"), "a", {}, True),
        (TOPIC, TOPIC.on("#.z"), "a.b.z", {}, True),
        (DIRECT, DIRECT.on("a.b"), "a.b", {}, True),
        (DIRECT, DIRECT.on("a.*"), "a.b", {}, False),
        (FANOUT, FANOUT.on(), "whatever", {}, True),
        (HEADERS, HEADERS.on(headers={"a": 1, "b": 2}), "", {"a": 1, "b": 2}, True),
        (HEADERS, HEADERS.on(headers={"a": 1, "b": 2}), "", {"a": 1}, False),
        (HEADERS, HEADERS.on(headers={"a": 1, "b": 2}, match="any"), "", {"a": 1}, True),
        (HEADERS, HEADERS.on(headers={"a": 1, "b": 2}, match="any"), "", {"a": 3}, False),
    ],
)
async def test_exchanges_route(
    harness: Any, exchange: Exchange, binding: Any, key: str, headers: dict[str, Any], arrives: bool
) -> None:
    """A message reaches the queues whose binding matches, and an unroutable mandatory one is told so."""
    transport = await harness.open()
    queue = Queue("q", bind=binding)
    await transport.declare(wanted(queue))
    (kind,) = await publish(transport, to_exchange(exchange, key, headers=headers))
    assert (VerdictKind.CONFIRMED if arrives else VerdictKind.UNROUTABLE) == kind
    assert int(arrives) == await transport.depth("q")


async def test_a_queue_gets_a_message_once(harness: Any) -> None:
    """Several matching bindings, also through another exchange, make one delivery."""
    transport = await harness.open()
    behind = Exchange("behind", bind=TOPIC.on("a.#"))
    queue = Queue("q", bind=[TOPIC.on("a.*"), TOPIC.on("#"), behind.on("*.b")])
    await transport.declare(wanted(queue))
    await publish(transport, to_exchange(TOPIC, "a.b"))
    assert await transport.depth("q") == 1


async def test_exchange_to_exchange(harness: Any) -> None:
    """A message goes through a bound exchange, which looks at the same key."""
    transport = await harness.open()
    behind = Exchange("behind", kind="direct", bind=TOPIC.on("a.#"))
    queue = Queue("q", bind=behind.on("a.b"))
    await transport.declare(wanted(queue))
    kinds = await publish(transport, to_exchange(TOPIC, "a.b"), to_exchange(TOPIC, "a.c"))
    assert [VerdictKind.CONFIRMED, VerdictKind.UNROUTABLE] == kinds


async def test_alternate_exchange(harness: Any) -> None:
    """What an exchange can't route goes to its alternate exchange."""
    transport = await harness.open()
    rest = Exchange("rest", kind="fanout")
    main = Exchange("main", kind="direct", alternate=rest)
    await transport.declare(wanted(Queue("a", bind=main.on("a")), Queue("others", bind=rest.on())))
    await publish(transport, to_exchange(main, "a"), to_exchange(main, "b"))
    assert (1, 1) == (await transport.depth("a"), await transport.depth("others"))


@pytest.mark.fault("F18", "F19", "F21")
async def test_verdicts_of_what_can_not_be_stored(harness: Any) -> None:
    """No queue and no exchange are unroutable, a full queue refuses, and none of it disturbs the good ones."""
    transport = await harness.open()
    full = Queue("full", max_length=1)
    good = Queue("good")
    await transport.declare(wanted(full, good))
    kinds = await publish(
        transport,
        to_queue(full, b"1"),
        to_queue(Queue("missing"), b"2"),
        to_exchange(Exchange("missing"), "k", b"3"),
        *(to_queue(good, b"g%d" % number) for number in range(20)),
    )
    assert [VerdictKind.CONFIRMED, VerdictKind.UNROUTABLE, VerdictKind.UNROUTABLE] == kinds[:3]
    assert [VerdictKind.CONFIRMED] * 20 == kinds[3:]
    # a quorum queue is a little late to notice that it is full
    await eventually(lambda: _is_refused(transport, full), within=10)


async def _is_refused(transport: Transport, queue: Queue) -> bool:
    return await publish(transport, to_queue(queue, b"more")) == [VerdictKind.REFUSED]


async def test_unroutable_is_confirmed_when_it_may_be(harness: Any) -> None:
    """Without ``mandatory`` a message that reaches no queue is confirmed, and gone."""
    transport = await harness.open()
    await transport.declare(topology(exchanges=[TOPIC]))
    assert CONFIRMED == await transport.publish(Outgoing("topic", "nobody", b"x", Properties(), mandatory=False))


@pytest.mark.fault("F20")
async def test_two_publishes_of_one_id_get_their_own_verdicts(harness: Any) -> None:
    """An unroutable and a routable message with the same id, both in flight, are told apart."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    for _ in range(10):
        bad, good = (to_queue(target, message_id="same") for target in (Queue("missing"), queue))
        kinds = await publish(transport, bad, good, bad)
        assert [VerdictKind.UNROUTABLE, VerdictKind.CONFIRMED, VerdictKind.UNROUTABLE] == kinds


async def test_deliveries_come_in_order_with_their_properties(harness: Any) -> None:
    """Body, key, exchange and properties arrive as they were published, in the queue's order."""
    transport = await harness.open()
    queue = Queue("q", bind=TOPIC.on("#"))
    await transport.declare(wanted(queue))
    sent = Properties(
        content_type="application/json",
        headers={"n": 1, "s": "text", "nested": {"list": [1, "2"]}, "none": None, "big": 2**40},
        priority=3,
        correlation_id="c",
        reply_to="r",
        message_id="m",
        timestamp=1_700_000_000,
        type="T",
        app_id="app",
    )
    await publish(transport, Outgoing("topic", "a.b", b"first", sent))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(50)))
    inbox = await consume(transport, queue)
    await eventually(lambda: len(inbox.got) == 51)
    first = inbox.got[0]
    assert (b"first", "topic", "a.b", False, 0) == (
        first.body,
        first.exchange,
        first.key,
        first.redelivered,
        first.delivery_count,
    )
    assert sent == first.properties
    assert [b"%d" % number for number in range(50)] == inbox.bodies[1:]


async def test_prefetch_bounds_what_is_unsettled(harness: Any) -> None:
    """At most a prefetch of deliveries is out, and each settled one makes room for one."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(10)))
    inbox = await consume(transport, queue, prefetch=3)
    await eventually(lambda: len(inbox.got) == 3)
    await asyncio.sleep(0.05)
    assert len(inbox.got) == 3
    assert inbox.ack(inbox.got[1])
    await eventually(lambda: len(inbox.got) == 4)
    assert inbox.ack(inbox.got[3], multiple=True)
    await eventually(lambda: len(inbox.got) == 7)


async def test_settling_in_any_order(harness: Any) -> None:
    """Odd ones, then even ones, one at a time and together: all are settled and none comes again."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(100)))
    inbox = await consume(transport, queue)
    await eventually(lambda: len(inbox.got) == 100)
    for number in (*range(1, 100, 2), *range(98, -1, -4)):
        inbox.ack(inbox.got[number])
        if number % 10 == 3:
            await asyncio.sleep(0.002)
    inbox.ack(*inbox.got[0:100:4])
    await transport.flush()
    await inbox.subscription.close()
    again = await consume(transport, queue)
    await publish(transport, to_queue(queue, b"end"))
    await eventually(lambda: again.got)
    assert [b"end"] == again.bodies
    assert inbox.lost == []


async def test_requeue_gives_back(harness: Any) -> None:
    """What is requeued comes again as redelivered, counted once more."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue, b"a"))
    inbox = await consume(transport, queue)
    await eventually(lambda: inbox.got)
    assert inbox.subscription.settle(inbox.got[0].epoch, [inbox.got[0].tag], requeue=True)
    await eventually(lambda: len(inbox.got) == 2)
    assert (b"a", True, 1) == (inbox.got[1].body, inbox.got[1].redelivered, inbox.got[1].delivery_count)


async def test_close_settles_and_gives_back_in_order(harness: Any) -> None:
    """What was settled before the close stays settled; the rest goes back in its places."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(6)))
    inbox = await consume(transport, queue, prefetch=4)
    await eventually(lambda: len(inbox.got) == 4)
    inbox.ack(inbox.got[1])
    await inbox.subscription.close()
    assert not inbox.subscription.settle(inbox.got[0].epoch, [inbox.got[0].tag])
    other = await consume(transport, queue)
    await eventually(lambda: len(other.got) == 5)
    assert [b"0", b"2", b"3", b"4", b"5"] == other.bodies
    assert [True, True, True, False] == [other.got[index].redelivered for index in (0, 1, 2, 4)]
    assert inbox.lost == []


async def test_a_lost_connection_ends_the_epoch(harness: Any) -> None:
    """The client hears of it first; then the same messages come again, and old tags settle nothing."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue, b"a"), to_queue(queue, b"b"))
    inbox = await consume(transport, queue)
    await eventually(lambda: len(inbox.got) == 2)
    old = inbox.got[:2]
    await harness.drop_connections()
    await eventually(lambda: len(inbox.got) == 4, within=10)
    assert [old[0].epoch] == inbox.lost
    assert [b"a", b"b"] == inbox.bodies[2:]
    assert all(delivery.redelivered and delivery.epoch > old[0].epoch for delivery in inbox.got[2:])
    assert inbox.ack(old[0]) is False
    assert inbox.ack(*inbox.got[2:])
    await eventually(lambda: inbox.subscription.state.consuming)


async def test_publishes_survive_a_lost_connection(harness: Any) -> None:
    """Everything published around a loss is confirmed in the end, and stored at least once."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    verdicts = []
    dropping = asyncio.create_task(harness.drop_connections())
    for number in range(200):
        verdicts.append(transport.publish(to_queue(queue, b"%d" % number)))
        await asyncio.sleep(0 if dropping.done() else 0.01)
    await dropping
    async with asyncio.timeout(15):
        kinds = {verdict.kind for verdict in await asyncio.gather(*verdicts)}
    assert {VerdictKind.CONFIRMED} == kinds
    inbox = await consume(transport, queue, prefetch=1000)
    await eventually(lambda: {b"%d" % number for number in range(200)} <= set(inbox.bodies))


async def test_pause_holds_and_resume_goes_on(harness: Any) -> None:
    """While paused nothing is pushed; then all comes, in order."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    inbox = await consume(transport, queue)
    inbox.subscription.pause()
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(5)))
    await asyncio.sleep(0.05)
    assert inbox.got == []
    inbox.subscription.resume()
    await eventually(lambda: len(inbox.got) == 5)
    assert [b"0", b"1", b"2", b"3", b"4"] == inbox.bodies


async def test_delays_to_queues(harness: Any) -> None:
    """A long delay does not hold up a short one, and only the named queue gets the message."""
    transport = await harness.open()
    first, second = Queue("a.b", bind=TOPIC.on("#")), Queue("b", bind=TOPIC.on("#"))
    await transport.declare(wanted(consumed=(first, second)))
    one, two = await consume(transport, first), await consume(transport, second)
    loop = asyncio.get_running_loop()
    assert CONFIRMED == await transport.delay(to_queue(second, b"long"), 60.0)
    start = loop.time()
    assert CONFIRMED == await transport.delay(to_queue(second, b"short"), 1.0)
    await eventually(lambda: two.got)
    took = loop.time() - start
    assert 0.99 < took < 1.5
    assert ([b"short"], []) == (two.bodies, one.bodies)


async def test_delays_to_exchanges(harness: Any) -> None:
    """A delayed message to an exchange is routed when the delay ends, by its own key."""
    transport = await harness.open()
    queue, other = Queue("q", bind=TOPIC.on("1.0.1")), Queue("other", bind=TOPIC.on("1.0.0"))
    await transport.declare(wanted(queue, other))
    inbox = await consume(transport, queue)
    assert CONFIRMED == await transport.delay(to_exchange(TOPIC, "1.0.1", b"x"), 0.3)
    assert 0 == await transport.depth("q")
    await eventually(lambda: inbox.got)
    await asyncio.sleep(0.2)
    assert ([b"x"], 0) == (inbox.bodies, await transport.depth("other"))


async def test_ttl_dead_letters(harness: Any) -> None:
    """What expires in a queue goes to its dead letters, with the broker's account of why."""
    transport = await harness.open()
    queue = Queue("q", message_ttl=0.1)
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue, b"x"))
    dead = queue.dead
    assert dead is not None
    inbox = await consume(transport, dead)
    await eventually(lambda: inbox.got)
    (death,) = inbox.got[0].properties.headers["x-death"]
    assert ("q", "expired", 1) == (death["queue"], death["reason"], death["count"])


async def test_drop_head_keeps_the_newest(harness: Any) -> None:
    """A queue that drops its head keeps the newest, and what it drops goes to its dead letters."""
    transport = await harness.open()
    queue = Queue("q", max_length=2, overflow="drop-head")
    await transport.declare(wanted(queue))
    for number in range(4):
        await publish(transport, to_queue(queue, b"%d" % number))
    inbox = await consume(transport, queue)
    await eventually(lambda: len(inbox.got) == 2)
    assert [b"2", b"3"] == inbox.bodies
    await eventually(lambda: _depth_is(transport, "q.dead", 2))


async def _depth_is(transport: Transport, queue: str, expected: int) -> bool:
    return await transport.depth(queue) == expected


async def test_delivery_limit(harness: Any) -> None:
    """What is given back more often than the limit goes to the dead letters."""
    transport = await harness.open()
    queue = Queue("q", delivery_limit=2)
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue, b"x"))
    inbox = await consume(transport, queue)
    for count in range(1, 4):
        await eventually(lambda count=count: len(inbox.got) == count)
        inbox.subscription.settle(inbox.got[-1].epoch, [inbox.got[-1].tag], requeue=True)
    await eventually(lambda: _depth_is(transport, "q.dead", 1))
    assert [0, 1, 2] == [delivery.delivery_count for delivery in inbox.got]


async def test_declaring_again_is_fine_and_a_difference_is_named(harness: Any) -> None:
    """The same declaration twice is nothing; a difference is named with both values, and harms nobody."""
    transport = await harness.open()
    queue = Queue("q", max_length=5, bind=TOPIC.on("#"))
    await transport.declare(wanted(queue))
    await transport.declare(wanted(queue))
    inbox = await consume(transport, queue)
    with pytest.raises(TopologyMismatch) as caught:
        await transport.declare(wanted(Queue("q", max_length=6)))
    found = caught.value
    assert ("queue", "q", "x-max-length", "6", "5") == (
        found.kind,
        found.name,
        found.argument,
        found.declared,
        found.existing,
    )
    with pytest.raises(TopologyMismatch) as caught:
        await transport.declare(topology(exchanges=[Exchange("topic", kind="fanout")]))
    assert ("exchange", "topic", "type") == (caught.value.kind, caught.value.name, caught.value.argument)
    await publish(transport, to_queue(queue, b"x"))
    await eventually(lambda: inbox.got)
    assert inbox.lost == []


async def test_what_is_missing_is_named(harness: Any) -> None:
    """A check, somebody else's object, and a subscription each name the queue or exchange that does not exist."""
    transport = await harness.open()
    with pytest.raises(TopologyMissing, match="'q'"):
        await transport.declare(wanted(Queue("q", dead_letter=False)), passive=True)
    with pytest.raises(TopologyMissing, match="'q'"):
        await transport.declare(wanted(Queue("q", dead_letter=False, declare=False)))
    with pytest.raises(TopologyMissing, match="'x'"):
        await transport.declare(topology(exchanges=[Exchange("x", declare=False)]))
    with pytest.raises(TopologyMissing, match="'q'"):
        await consume(transport, Queue("q"))
    await transport.declare(wanted(Queue("q")))
    await transport.declare(wanted(Queue("q")), passive=True)


async def test_a_queue_deleted_under_its_consumer(harness: Any) -> None:
    """The epoch ends, the queue is declared again, and the subscription goes on."""
    transport = await harness.open()
    queue = Queue("q", bind=TOPIC.on("a"))
    await transport.declare(wanted(consumed=(queue,)))
    inbox = await consume(transport, queue)
    await harness.delete_queue("q")
    await eventually(lambda: inbox.lost)
    await eventually(lambda: inbox.subscription.state.consuming, within=10)
    await publish(transport, to_exchange(TOPIC, "a", b"after"))
    await eventually(lambda: inbox.got)
    assert [b"after"] == inbox.bodies


async def test_two_transports_share_the_work(harness: Any) -> None:
    """Two consumers of one queue each get some of it, and what one leaves the other gets."""
    one, two = await harness.open(), await harness.open()
    queue = Queue("q")
    await one.declare(wanted(queue))
    first, second = await consume(one, queue, prefetch=5), await consume(two, queue, prefetch=5)
    await publish(one, *(to_queue(queue, b"%d" % number) for number in range(10)))
    await eventually(lambda: len(first.got) == len(second.got) == 5)
    second.ack(*second.got)
    await one.close()
    await eventually(lambda: len(second.got) == 10)
    assert {b"%d" % number for number in range(10)} == set(second.bodies)


async def test_streams_are_published_to_only(harness: Any) -> None:
    """A stream can be declared and published to; consuming it is refused."""
    transport = await harness.open()
    stream = Queue("s", kind="stream")
    await transport.declare(wanted(stream))
    assert [VerdictKind.CONFIRMED] == await publish(transport, to_queue(stream))
    with pytest.raises(ConfigurationError, match="stream"):
        await consume(transport, stream)


async def test_a_cancelled_subscription_settles_what_it_has(harness: Any) -> None:
    """It is pushed nothing more; what it gives back goes to others while it still holds the rest, and settles it."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    inbox = await consume(transport, queue, prefetch=3)
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(5)))
    await eventually(lambda: len(inbox.got) == 3)
    await inbox.subscription.cancel()
    assert not inbox.subscription.state.consuming
    other = await consume(transport, queue)
    await eventually(lambda: other.bodies == [b"3", b"4"])
    held, *rest = inbox.got
    for delivery in rest:
        assert inbox.subscription.settle(delivery.epoch, [delivery.tag], requeue=True)
    await eventually(lambda: other.bodies == [b"3", b"4", b"1", b"2"])
    assert inbox.subscription.settle(held.epoch, [held.tag])
    await inbox.subscription.close()
    other.ack(*other.got)
    await other.subscription.close()
    assert await transport.depth("q") == 0
    assert len(inbox.got) == 3


async def test_a_cancelled_subscription_ends_with_its_connection(harness: Any) -> None:
    """What it held goes to others; it is not consumed again."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    inbox = await consume(transport, queue)
    await publish(transport, to_queue(queue, b"x"))
    await eventually(lambda: inbox.got)
    await inbox.subscription.cancel()
    await harness.drop_connections()
    await eventually(lambda: inbox.lost)
    other = await consume(transport, queue)
    await eventually(lambda: other.got)
    assert len(inbox.got) == 1


@pytest.mark.fault("F56")
async def test_classic_queues_do_not_count(harness: Any) -> None:
    """A classic queue tells that a message is redelivered, not how often."""
    transport = await harness.open()
    queue = Queue("q", kind="classic")
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue))
    inbox = await consume(transport, queue)
    await eventually(lambda: inbox.got)
    inbox.subscription.settle(inbox.got[0].epoch, [inbox.got[0].tag], requeue=True)
    await eventually(lambda: len(inbox.got) == 2)
    assert [(False, None), (True, None)] == [(one.redelivered, one.delivery_count) for one in inbox.got]


async def test_closing_resolves_what_is_open(harness: Any) -> None:
    """Every verdict that was asked for is given when the transport closes, and after it too."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    verdicts = [transport.publish(to_queue(queue, b"%d" % number)) for number in range(20)]
    await transport.close()
    assert all(verdict.done() for verdict in verdicts)
    assert VerdictKind.NOT_SENT is transport.publish(to_queue(queue)).result().kind


async def test_withdrawing(harness: Any) -> None:
    """A withdrawn publish says whether it may have been sent."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    done = transport.publish(to_queue(queue))
    await done
    assert transport.withdraw(done) is True
    may_have_left = transport.withdraw(transport.publish(to_queue(queue)))
    assert may_have_left is ("sent_at_once" in harness.differences)  # test_difference_sent_at_once
    await transport.flush()


# --- where messages go


async def test_the_default_exchange_leads_to_the_queue_of_that_name(harness: Any) -> None:
    """A queue is reached by its name, and no other is."""
    transport = await harness.open()
    await transport.declare(wanted(Queue("a"), Queue("a.b")))
    await publish(transport, to_queue(Queue("a.b")))
    assert (0, 1) == (await transport.depth("a"), await transport.depth("a.b"))


async def test_copies_by_header(harness: Any) -> None:
    """CC and BCC are more routing keys; consumers see the one and not the other."""
    transport = await harness.open()
    a, b, c = (Queue(name, bind=DIRECT.on(name)) for name in "abc")
    await transport.declare(wanted(a, b, c))
    await publish(transport, to_exchange(DIRECT, "a", headers={"CC": ["b", "a"], "BCC": ["c"], "own": 1}))
    inboxes = [await consume(transport, queue) for queue in (a, b, c)]
    await eventually(lambda: all(inbox.got for inbox in inboxes))
    assert [1, 1, 1] == [len(inbox.got) for inbox in inboxes]
    assert [{"CC": ["b", "a"], "own": 1}] * 3 == [inbox.got[0].properties.headers for inbox in inboxes]
    assert ["a", "a", "a"] == [inbox.got[0].key for inbox in inboxes]


async def test_the_alternate_gets_only_what_no_key_leads_anywhere(harness: Any) -> None:
    """A message with several keys goes to the alternate exchange when none of them matches."""
    transport = await harness.open()
    rest = Exchange("rest", kind="fanout")
    main = Exchange("main", kind="direct", alternate=rest)
    await transport.declare(wanted(Queue("a", bind=main.on("a")), Queue("others", bind=rest.on())))
    await publish(transport, to_exchange(main, "b", b"1", headers={"CC": ["a"]}))
    await publish(transport, to_exchange(main, "b", b"2", headers={"CC": ["c"]}))
    assert (1, 1) == (await transport.depth("a"), await transport.depth("others"))


async def test_what_can_not_be_obeyed_is_refused(harness: Any) -> None:
    """A bad expiration, a bad CC header and an internal exchange refuse that publish and no other."""
    transport = await harness.open()
    queue, internal = Queue("q"), Exchange("inside", kind="fanout", internal=True)
    await transport.declare(topology(queues=[queue], exchanges=[internal]))
    bad = [
        to_queue(queue, b"1", expiration="soon"),
        to_queue(queue, b"2", headers={"CC": "q"}),
        to_exchange(internal, "", b"3"),
    ]
    for outgoing in bad:
        kinds = await publish(transport, outgoing, to_queue(queue, b"good"))
        assert [VerdictKind.REFUSED, VerdictKind.CONFIRMED] == kinds


@pytest.mark.fault("F21")
async def test_the_reason_names_a_missing_exchange(harness: Any) -> None:
    """Who publishes to an exchange that is not there reads its name."""
    transport = await harness.open()
    verdict = await transport.publish(to_exchange(Exchange("nowhere"), "k"))
    assert VerdictKind.UNROUTABLE is verdict.kind
    assert "nowhere" in verdict.reason


@pytest.mark.parametrize(("kind", "taken"), [("quorum", 3), ("classic", 2)])
async def test_how_much_a_rejecting_queue_takes(harness: Any, kind: Any, taken: int) -> None:
    """A classic queue takes its limit; a quorum queue notices only when it is over it."""
    transport = await harness.open()
    queue = Queue("q", kind=kind, max_length=2)
    await transport.declare(wanted(queue))
    kinds = [(await publish(transport, to_queue(queue, b"%d" % number)))[0] for number in range(4)]
    assert [VerdictKind.CONFIRMED] * taken + [VerdictKind.REFUSED] * (4 - taken) == kinds


async def test_bytes_fill_a_queue(harness: Any) -> None:
    """A limit in bytes counts bodies."""
    transport = await harness.open()
    queue = Queue("q", kind="classic", max_length_bytes=10)
    await transport.declare(wanted(queue))
    kinds = [(await publish(transport, to_queue(queue, b"12345")))[0] for _ in range(3)]
    assert [VerdictKind.CONFIRMED, VerdictKind.CONFIRMED, VerdictKind.REFUSED] == kinds


# --- what comes again


async def test_a_multiple_settles_all_up_to_a_tag(harness: Any) -> None:
    """The deliveries up to the tag are done; those after it come again."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(5)))
    inbox = await consume(transport, queue)
    await eventually(lambda: len(inbox.got) == 5)
    inbox.ack(inbox.got[2], multiple=True)
    await inbox.subscription.close()
    again = await consume(transport, queue)
    await eventually(lambda: len(again.got) == 2)
    assert [b"3", b"4"] == again.bodies


async def test_what_is_requeued_comes_before_what_waits(harness: Any) -> None:
    """Given back, a message is ahead of those behind it."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(4)))
    inbox = await consume(transport, queue, prefetch=2)
    await eventually(lambda: len(inbox.got) == 2)
    inbox.subscription.settle(inbox.got[0].epoch, [inbox.got[0].tag], requeue=True)
    await eventually(lambda: len(inbox.got) == 3)
    assert [b"0", b"1", b"0"] == inbox.bodies


async def test_paused_counts_what_it_was_handed(harness: Any) -> None:
    """While paused a consumer still takes up to its prefetch; closing gives it back."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    inbox = await consume(transport, queue, prefetch=2)
    inbox.subscription.pause()
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(5)))
    await eventually(lambda: _depth_is(transport, "q", 3))
    await inbox.subscription.close()
    await eventually(lambda: _depth_is(transport, "q", 5))
    assert [] == inbox.got


async def test_publishing_while_disconnected_waits(harness: Any) -> None:
    """What is published when the connection has just gone has its verdict once there is another."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    await harness.drop_connections()
    verdict = transport.publish(to_queue(queue, b"x"))
    assert not verdict.done()
    async with asyncio.timeout(10):
        assert CONFIRMED == await verdict
    await eventually(lambda: transport.state.connected)


async def test_flush_waits_for_every_verdict(harness: Any) -> None:
    """After a flush nothing is open, and what was settled stays so."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(queue))
    verdicts = [transport.publish(to_queue(queue, b"%d" % number)) for number in range(50)]
    async with asyncio.timeout(10):
        await transport.flush()
    assert [CONFIRMED] * 50 == [verdict.result() for verdict in verdicts]


async def test_a_queue_of_others_deleted_under_its_consumer(harness: Any) -> None:
    """The subscription waits until somebody else has declared it again."""
    owner, transport = await harness.open(), await harness.open()
    await owner.declare(wanted(Queue("q")))
    inbox = await consume(transport, Queue("q", declare=False))
    await harness.delete_queue("q")
    await eventually(lambda: inbox.lost)
    assert not inbox.subscription.state.consuming
    assert inbox.subscription.state.error
    await owner.declare(wanted(Queue("q")))
    await eventually(lambda: inbox.subscription.state.consuming, within=10)
    await publish(owner, to_queue(Queue("q"), b"after"))
    await eventually(lambda: inbox.bodies == [b"after"])


# --- what a queue gives up


async def test_what_the_broker_writes_on_a_dead_letter(harness: Any) -> None:
    """Queue, reason, count, exchange and keys of each death, the first one apart, and no expiration any more."""
    transport = await harness.open()
    queue = Queue("q", bind=TOPIC.on("#"))
    await transport.declare(wanted(queue))
    await publish(transport, to_exchange(TOPIC, "a.b", expiration="50", headers={"own": 1}))
    assert queue.dead is not None
    inbox = await consume(transport, queue.dead)
    await eventually(lambda: inbox.got)
    headers = dict(inbox.got[0].properties.headers)
    (death,) = headers.pop("x-death")
    assert {"own": 1} | {
        "x-first-death-queue": "q",
        "x-first-death-reason": "expired",
        "x-first-death-exchange": "topic",
    } == headers
    assert death.pop("time").tzinfo is not None
    assert {
        "queue": "q",
        "reason": "expired",
        "count": 1,
        "exchange": "topic",
        "routing-keys": ["a.b"],
        "original-expiration": "50",
    } == death
    assert (None, "", "q.dead") == (inbox.got[0].properties.expiration, inbox.got[0].exchange, inbox.got[0].key)


async def test_a_message_expires_at_the_head_only(harness: Any) -> None:
    """A short expiration behind a long one waits for it."""
    transport = await harness.open()
    queue = Queue("q", kind="classic")
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue, b"long", expiration="600"))
    await publish(transport, to_queue(queue, b"short", expiration="1"))
    await asyncio.sleep(0.1)
    assert 2 == await transport.depth("q")
    await eventually(lambda: _depth_is(transport, "q.dead", 2))


@pytest.mark.parametrize(
    ("queue", "reason"),
    [
        (Queue("q", max_length=1, overflow="drop-head"), "maxlen"),
        (Queue("q", kind="classic", max_length=1, overflow="reject-publish-dlx"), "maxlen"),
        (Queue("q", message_ttl=0.02), "expired"),
        (Queue("q", delivery_limit=0), "delivery_limit"),
    ],
    ids=["drop-head", "reject-publish-dlx", "ttl", "delivery-limit"],
)
async def test_why_a_queue_gave_up(harness: Any, queue: Queue, reason: str) -> None:
    """Each way to give a message up has its reason."""
    transport = await harness.open()
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue, b"1"))
    await publish(transport, to_queue(queue, b"2"))
    if reason == "delivery_limit":
        inbox = await consume(transport, queue)
        await eventually(lambda: inbox.got)
        inbox.subscription.settle(inbox.got[0].epoch, [inbox.got[0].tag], requeue=True)
    assert queue.dead is not None
    dead = await consume(transport, queue.dead)
    await eventually(lambda: dead.got)
    assert reason == dead.got[0].properties.headers["x-death"][0]["reason"]


async def test_without_dead_letters_what_is_given_up_is_gone(harness: Any) -> None:
    """A queue without a dead-letter queue drops what expires."""
    transport = await harness.open()
    queue = Queue("q", message_ttl=0.02, dead_letter=False)
    await transport.declare(wanted(queue))
    await publish(transport, to_queue(queue))
    await eventually(lambda: _depth_is(transport, "q", 0))


async def test_dead_letters_do_not_go_in_circles(harness: Any) -> None:
    """A message that only ever expired is dropped when it comes back to where it expired."""
    transport = await harness.open()
    there = Queue("there", kind="classic", message_ttl=0.05, dead_letter_exchange="", dead_letter_routing_key="back")
    back = Queue("back", kind="classic", message_ttl=0.05, dead_letter_exchange="", dead_letter_routing_key="there")
    await transport.declare(wanted(there, back))
    await publish(transport, to_queue(there))
    await asyncio.sleep(0.4)
    assert (0, 0) == (await transport.depth("there"), await transport.depth("back"))


# --- whose a queue is


async def test_an_exclusive_queue_is_its_connections_own(harness: Any) -> None:
    """Another connection can't declare it, and it ends with its own."""
    one, two = await harness.open(), await harness.open()
    queue = Queue("q", kind="classic", exclusive=True, dead_letter=False)
    await one.declare(wanted(queue))
    with pytest.raises(TopologyError, match="exclusive"):
        await two.declare(wanted(queue))
    await one.close()
    await eventually(lambda: _can_declare(two, queue))


async def _can_declare(transport: Transport, queue: Queue) -> bool:
    try:
        await transport.declare(wanted(queue))
    except TopologyError:
        return False
    return True


async def test_an_auto_delete_queue_goes_with_its_last_consumer(harness: Any) -> None:
    """One of two consumers may go; with the second the queue goes too."""
    transport = await harness.open()
    queue = Queue("q", kind="classic", auto_delete=True, dead_letter=False)
    await transport.declare(wanted(queue))
    first, second = await consume(transport, queue), await consume(transport, queue)
    await first.subscription.close()
    assert 0 == await transport.depth("q")
    await second.subscription.close()
    with pytest.raises(TopologyMissing):
        await transport.depth("q")


async def test_binding_what_is_missing(harness: Any) -> None:
    """A binding names the exchange, or the queue, that does not exist."""
    transport = await harness.open()
    await transport.declare(wanted(Queue("q")))
    for binding, target in ((Exchange("nowhere").on("k"), "q"), (Exchange("amq.topic").on("k"), "nowhere")):
        with pytest.raises(TopologyMissing, match="nowhere"):
            await transport.declare(Topology(bindings=((binding, target, "queue"),)))


async def test_one_failure_does_not_stop_a_declaration(harness: Any) -> None:
    """The rest is declared, and the error notes every other failure."""
    transport = await harness.open()
    await transport.declare(wanted(Queue("a", max_length=1), Queue("b", max_length=1)))
    with pytest.raises(TopologyMismatch) as caught:
        await transport.declare(wanted(Queue("a"), Queue("b"), Queue("c")))
    assert "a" == caught.value.name
    assert "'b'" in caught.value.__notes__[0]
    assert 0 == await transport.depth("c")


async def test_a_delay_that_is_too_long_is_refused(harness: Any) -> None:
    """More than 27.3 hours can't be held back, and nothing is sent."""
    transport = await harness.open()
    await transport.declare(wanted(Queue("q")))
    with pytest.raises(InvalidMessage, match="too long"):
        transport.delay(to_queue(Queue("q")), 100_000.0)


# --- where transports differ, on purpose


async def test_difference_exact_delays(harness: Any) -> None:
    """A delay is rounded up to a ladder's steps, but where ``exact_delays``."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(consumed=(queue,)))
    inbox = await consume(transport, queue)
    start = asyncio.get_running_loop().time()
    await transport.delay(to_queue(queue), 0.02)
    await eventually(lambda: inbox.got)
    took = asyncio.get_running_loop().time() - start
    assert ("exact_delays" in harness.differences) is (took < 0.095)


async def test_difference_delays_leave_no_trace(harness: Any) -> None:
    """A delayed message shows the ladder that it came down, but where ``delays_leave_no_trace``."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(wanted(consumed=(queue,)))
    inbox = await consume(transport, queue)
    await transport.delay(to_queue(queue), 0.05)
    await eventually(lambda: inbox.got)
    seen = (inbox.got[0].exchange, inbox.got[0].key, "x-death" in inbox.got[0].properties.headers)
    assert ("delays_leave_no_trace" in harness.differences) is (seen == ("", "q", False))


async def test_difference_any_key_is_delayed(harness: Any) -> None:
    """A key with a word that the ladder would obey is refused, but where ``any_key_is_delayed``."""
    transport = await harness.open()
    await transport.declare(topology(queues=[Queue("q", bind=TOPIC.on("#"))]))
    outgoing = to_exchange(TOPIC, ".".join("0" * 20))
    if "any_key_is_delayed" in harness.differences:
        assert CONFIRMED == await transport.delay(outgoing, 60.0)
    else:
        with pytest.raises(InvalidMessage, match="ladder"):
            transport.delay(outgoing, 60.0)


async def test_difference_requeued_keep_their_place(harness: Any) -> None:
    """Without a delivery limit a quorum queue requeues at its end, but where ``requeued_keep_their_place``."""
    transport = await harness.open()
    queue = Queue("q", dead_letter=False)
    await transport.declare(wanted(queue))
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(3)))
    inbox = await consume(transport, queue, prefetch=1)
    await eventually(lambda: inbox.got)
    inbox.subscription.settle(inbox.got[0].epoch, [inbox.got[0].tag], requeue=True)
    await eventually(lambda: len(inbox.got) == 2)
    assert (inbox.bodies[1] == b"0") is ("requeued_keep_their_place" in harness.differences)


@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("no_priorities", Queue("q", kind="classic", max_priority=3)),
        ("no_single_active_consumer", Queue("q", single_active_consumer=True)),
    ],
)
async def test_difference_queues_that_are_not_had(harness: Any, name: str, queue: Queue) -> None:
    """Priorities and single active consumers can be declared, but where they are not had."""
    transport = await harness.open()
    if name in harness.differences:
        with pytest.raises(ConfigurationError, match="memory broker does not have"):
            await transport.declare(wanted(queue))
    else:
        await transport.declare(wanted(queue))


async def test_difference_no_queue_expiry(harness: Any) -> None:
    """An unused queue that ``expires`` is deleted, but where ``no_queue_expiry``."""
    transport = await harness.open()
    await transport.declare(wanted(Queue("q", kind="classic", expires=0.1)))
    await asyncio.sleep(1.0)  # looking at it is using it: it can't be polled
    assert ("no_queue_expiry" in harness.differences) is not await _is_gone(transport, "q")


async def _is_gone(transport: Transport, queue: str) -> bool:
    try:
        await transport.depth(queue)
    except TopologyMissing:
        return True
    return False
