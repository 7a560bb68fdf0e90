"""The life of a delivery, on a transport that pushes synchronously."""

import asyncio
import contextlib
import contextvars
import json
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.push_transport import PushTransport
from tests.support import eventually

from eventpipe import Message, Properties, Queue, Reject, Retry, RetryAfter
from eventpipe.clock import SystemClock
from eventpipe.codec import BATCH
from eventpipe.copies import ERROR_TYPE, REASON, TRACEBACK
from eventpipe.handler import plan
from eventpipe.message import ATTEMPT, EXPIRES, SUSPECT
from eventpipe.transports.base import CONFIRMED, Fault, Verdict, VerdictKind
from eventpipe.work import Surroundings, Work
from eventpipe.worker import Worker

QUEUE = Queue("orders")


class Bench:
    """A worker on a push transport, and what a test wants to see of both."""

    def __init__(self, worker: Worker, transport: PushTransport) -> None:
        self.worker, self.transport = worker, transport
        self.queue = transport.subscriptions["orders"]
        self.suspects = transport.subscriptions["orders.suspects"]

    @property
    def copies(self) -> list[tuple[str, float, dict[str, object]]]:
        return [(out.key, delay, dict(out.properties.headers)) for out, delay in self.transport.published]


@asynccontextmanager
async def bench(handler: object, **work: object) -> AsyncIterator[Bench]:
    """Run a worker with one handler; everything else is as in ``Work``."""
    transport = PushTransport()
    retry = Retry(attempts=3, delay=1.0, jitter=0.0)
    settings = {"queue": QUEUE, "concurrency": 10, "prefetch": 20, "retry": retry, **work}
    worker = Worker(
        Work(handlers=(plan(handler),), **settings),
        Surroundings(transport, SystemClock(), random.Random(1)),
    )
    await worker.start()
    try:
        yield Bench(worker, transport)
    finally:
        await worker.stop(1.0)


async def test_acks_what_was_handled() -> None:
    """A delivery whose handler returned is settled, once."""
    seen: list[int] = []

    async def handle(event: int) -> None:
        seen.append(event)

    async with bench(handle) as b:
        b.queue.push(b"7")
        await eventually(lambda: b.queue.settled)
        assert ([7], [(1, 1)], []) == (seen, b.queue.settled, b.copies)


async def test_a_packed_delivery_is_settled_once_after_its_last_event() -> None:
    """Two events in one delivery: it is settled when both ended; a failed one leaves as a message of its own."""
    order: list[str] = []
    release = asyncio.Event()

    async def handle(event: int, message: Message) -> None:
        order.append(f"{message.id}={event}")
        if event == 2:
            raise ValueError(event)
        await release.wait()

    async with bench(handle) as b:
        b.queue.push(b"[1, 2]", Properties(message_id="pack", content_type=BATCH))
        await eventually(lambda: b.copies)
        assert b.queue.settled == []
        release.set()
        await eventually(lambda: b.queue.settled)
        assert ["pack/0=1", "pack/1=2"] == order
        ((out, delay),) = b.transport.published
        assert (b"2", "pack/1", 1.0) == (out.body, out.properties.message_id, delay)
        assert [(1, 1)] == b.queue.settled


async def test_concurrency_counts_events() -> None:
    """A pack larger than the concurrency is handled a few events at a time."""
    running = most = 0

    async def handle(event: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with bench(handle, concurrency=3) as b:
        b.queue.push(json.dumps(list(range(20))).encode(), Properties(message_id="pack", content_type=BATCH))
        await eventually(lambda: b.queue.settled)
        assert most == 3


async def test_order_at_concurrency_one() -> None:
    """One at a time, in the queue's order."""
    seen: list[int] = []

    async def handle(event: int) -> None:
        await asyncio.sleep(0)
        seen.append(event)

    async with bench(handle, concurrency=1) as b:
        for number in range(20):
            b.queue.push(str(number).encode())
        await eventually(lambda: len(b.queue.settled) == 20)
        assert list(range(20)) == seen


@pytest.mark.parametrize(
    ("failure", "attempt", "expected"),
    [
        (ValueError("x"), 1, ("orders", 1.0)),
        (ValueError("x"), 2, ("orders", 2.0)),
        (ValueError("x"), 3, ("orders.dead", 0.0)),
        (Reject("no"), 1, ("orders.dead", 0.0)),
        (RetryAfter(7.5), 1, ("orders", 7.5)),
        (RetryAfter(7.5), 3, ("orders.dead", 0.0)),
        (SystemExit(1), 1, ("orders.dead", 0.0)),
        (KeyboardInterrupt(), 1, ("orders.dead", 0.0)),
        (asyncio.CancelledError(), 1, ("orders.dead", 0.0)),
        (GeneratorExit(), 1, ("orders.dead", 0.0)),
        (ExceptionGroup("several", [ValueError("x")]), 1, ("orders", 1.0)),
    ],
)
@pytest.mark.fault("F34")
async def test_whatever_a_handler_raises_is_decided_and_settled(
    failure: BaseException, attempt: int, expected: tuple[str, float]
) -> None:
    """Each way to fail ends in a copy, in the settled original, and in a free slot."""

    async def handle(event: int) -> None:
        if event == 1:
            raise failure

    async with bench(handle, concurrency=1) as b:
        b.queue.push(b"1", Properties(message_id="a", headers={ATTEMPT: attempt}))
        b.queue.push(b"2")
        await eventually(lambda: len(b.queue.settled) == 2)
        ((key, delay, _headers),) = b.copies
        assert expected == (key, delay)


async def test_a_copy_is_confirmed_before_the_original_is_settled() -> None:
    """While the retry copy has no verdict the original stays unsettled, and so does one that can't be stored."""

    async def handle(event: int) -> None:
        raise ValueError

    async with bench(handle) as b:
        b.transport.verdict = None
        b.queue.push(b"1")
        await eventually(lambda: b.transport.open)
        assert b.queue.settled == []
        b.transport.verdict = CONFIRMED
        b.transport.open[0].set_result(Verdict(VerdictKind.REFUSED, "full"))
        await eventually(lambda: b.worker.trouble)
        assert b.queue.settled == []
        await eventually(lambda: b.queue.settled)
        assert (2, None) == (len(b.copies), b.worker.trouble)


async def test_a_dead_letter_says_why() -> None:
    """A dead letter has the body and the error's type, text and traceback."""

    async def handle(event: int) -> None:
        raise ValueError("odd")

    dead = []
    async with bench(handle, retry=Retry(attempts=1), on_dead_letter=dead.append) as b:
        b.queue.push(b"1")
        await eventually(lambda: b.queue.settled)
        ((_key, _delay, headers),) = b.copies
        assert ("failed", "builtins.ValueError") == (headers[REASON], headers[ERROR_TYPE])
        assert 'raise ValueError("odd")' in headers[TRACEBACK]
        assert ["odd"] == [one.error for one in dead]


@pytest.mark.parametrize(
    ("body", "properties", "more", "reason"),
    [
        (b"", Properties(), {}, "undecodable: body: Invalid JSON"),
        (b'{"x"', Properties(), {}, "undecodable: body: Invalid JSON"),
        (b'"text"', Properties(), {}, "undecodable: body: Input should be a valid integer"),
        (b"\xff\xfe", Properties(), {}, "undecodable: body: Invalid JSON"),
        (b"[" * 100_000, Properties(), {}, "undecodable: body: Invalid JSON: recursion limit"),
        (b"9" * 5000, Properties(), {}, "undecodable: body: Invalid JSON: number out of range"),
        (b"NaN", Properties(), {}, "undecodable: ValueError"),
        (b"1", Properties(content_type="text/xml"), {}, "undecodable: content type 'text/xml' is not JSON"),
        (b"1", Properties(content_encoding="gzip"), {}, "undecodable: content encoding 'gzip'"),
        (b"1" * 101, Properties(), {}, "undecodable: a body of 101 bytes is over the limit of 100"),
        (b"1", Properties(), {"fault": Fault("message_id is not UTF-8")}, "undecodable: message_id is not UTF-8"),
        (b"1", Properties(headers={EXPIRES: 1000}), {}, "expired"),
        (b"nonsense", Properties(content_type=BATCH), {}, "undecodable: a batch that is not a JSON array"),
        (b"{}", Properties(content_type=BATCH), {}, "undecodable: a batch that is not a JSON array"),
        (b"[]", Properties(content_type=BATCH), {}, "undecodable: an empty batch"),
    ],
)
@pytest.mark.fault("F39", "F41", "F42")
async def test_what_can_not_be_handled_is_dead_lettered_at_once(
    body: bytes, properties: Properties, more: dict[str, object], reason: str
) -> None:
    """A body that is not the event is dead-lettered on its first attempt, raw, and the next is handled."""
    seen: list[int] = []

    async def handle(event: int) -> None:
        seen.append(event)

    limit = 100 if "over the limit" in reason else 1_000_000
    async with bench(handle, body_limit=limit) as b:
        b.queue.push(body, properties, **more)
        b.queue.push(b"2")
        await eventually(lambda: len(b.queue.settled) == 2)
        ((out, _delay),) = b.transport.published
        assert ("orders.dead", body) == (out.key, out.body)
        assert out.properties.headers[REASON].startswith(reason)
        assert [2] == seen


@pytest.mark.fault("F32")
async def test_a_handler_that_takes_too_long_is_retried() -> None:
    """The handler's timeout cancels it, counts as a failure and frees its slot."""

    async def handle(event: int) -> None:
        if event == 1:
            await asyncio.Event().wait()

    async with bench(handle, timeout=0.05, concurrency=1) as b:
        b.queue.push(b"1")
        b.queue.push(b"2")
        await eventually(lambda: len(b.queue.settled) == 2)
        assert [("orders", 1.0)] == [copy[:2] for copy in b.copies]


async def test_a_sync_handler_runs_in_a_thread_and_keeps_its_slot_until_it_ends() -> None:
    """A timed-out thread is settled at once, and the next message waits until the thread is gone."""
    release, seen = threading.Event(), []

    def handle(event: int) -> None:
        seen.append((event, threading.current_thread() is threading.main_thread()))
        if event == 1:
            release.wait(10)

    async with bench(handle, timeout=0.05, concurrency=1) as b:
        b.queue.push(b"1")
        b.queue.push(b"2")
        await eventually(lambda: b.queue.settled == [(1, 1)])
        await asyncio.sleep(0.05)
        assert [(1, False)] == seen
        release.set()
        await eventually(lambda: len(b.queue.settled) == 2)
        assert [(1, False), (2, False)] == seen


@pytest.mark.fault("F36")
async def test_a_handler_outlives_its_connection_and_does_not_run_again() -> None:
    """Work that was running when the connection broke ends, and its redelivery is settled without a second run."""
    runs, release = [], asyncio.Event()

    async def handle(event: int) -> None:
        runs.append(event)
        await release.wait()

    async with bench(handle) as b:
        for number in range(5):
            b.queue.push(b"%d" % number, Properties(message_id=f"m{number}"))
        await eventually(lambda: len(runs) == 5)
        b.queue.lose()
        for number in range(2):  # some come again while they still run
            b.queue.push(b"%d" % number, Properties(message_id=f"m{number}"), redelivered=True, delivery_count=1)
        release.set()
        await eventually(lambda: len(b.queue.settled) == 2)
        for number in range(2, 5):  # and some when they have ended
            b.queue.push(b"%d" % number, Properties(message_id=f"m{number}"), redelivered=True, delivery_count=1)
        await eventually(lambda: len(b.queue.settled) == 5)
        assert list(range(5)) == sorted(runs)


@pytest.mark.fault("F46")
async def test_an_ack_lost_on_the_wire_does_not_run_the_message_again() -> None:
    """A message settled just before the connection broke is settled again when it is redelivered."""
    runs = []

    async def handle(event: int) -> None:
        runs.append(event)

    async with bench(handle) as b:
        b.queue.push(b"1", Properties(message_id="a"))
        await eventually(lambda: b.queue.settled)
        b.queue.lose()
        b.queue.push(b"1", Properties(message_id="a"), redelivered=True, delivery_count=1)
        b.queue.push(b"1", Properties(message_id="a", headers={ATTEMPT: 2}), redelivered=True, delivery_count=1)
        await eventually(lambda: len(b.queue.settled) == 3)
        assert [1, 1] == runs, "another attempt of the same id is other work"


@pytest.mark.fault("F37")
async def test_waiting_deliveries_of_a_lost_epoch_are_not_run() -> None:
    """What waited when the connection broke is dropped here: it comes again."""
    runs, release = [], asyncio.Event()

    async def handle(event: int) -> None:
        runs.append(event)
        await release.wait()

    async with bench(handle, concurrency=1) as b:
        b.queue.push(b"1", Properties(message_id="a"))
        b.queue.push(b"2", Properties(message_id="b"))
        await eventually(lambda: runs)
        b.queue.lose()
        release.set()
        await asyncio.sleep(0.02)
        assert [1] == runs
        b.queue.push(b"2", Properties(message_id="b"), redelivered=True, delivery_count=1)
        await eventually(lambda: b.queue.settled)
        assert [1, 2] == runs


async def test_suspects_are_set_aside_uncharged_and_handled_alone() -> None:
    """Repeatedly unsettled messages move to the queue of suspects at no cost, and run there alone."""
    running, beside, release = set(), {}, asyncio.Event()

    async def handle(event: int) -> None:
        running.add(event)
        beside[event] = running - {event}
        if event < 3:
            await release.wait()
        running.discard(event)

    async with bench(handle) as b:
        b.queue.push(b"9", Properties(message_id="k"), redelivered=True, delivery_count=2)
        await eventually(lambda: b.queue.settled)
        ((key, delay, headers),) = b.copies
        assert ("orders.suspects", 0.0, 1, True) == (key, delay, headers[ATTEMPT], headers[SUSPECT])
        b.queue.push(b"1")
        b.queue.push(b"2")
        await eventually(lambda: len(running) == 2)
        b.suspects.push(b"9", Properties(message_id="k", headers=headers))
        b.queue.push(b"4")
        await asyncio.sleep(0.02)
        assert 9 not in beside
        assert 4 not in beside, "while a suspect waits, nothing else starts"
        release.set()
        await eventually(lambda: len(b.queue.settled) == 4)
        assert (set(), set()) == (beside[9], beside[4])
        assert [(1, 1)] == b.suspects.settled


async def test_a_suspect_that_comes_again_is_charged_and_ends_in_the_dead_letters() -> None:
    """One that ended its process while alone costs an attempt, until there are none left."""

    async def handle(event: int) -> None:
        raise AssertionError("must not run")

    async with bench(handle) as b:
        for attempt in (1, 2, 3):
            headers = {ATTEMPT: attempt, SUSPECT: True}
            b.suspects.push(b"9", Properties(message_id="k", headers=headers), redelivered=True, delivery_count=1)
        await eventually(lambda: len(b.suspects.settled) == 3)
        assert [("orders.suspects", 2), ("orders.suspects", 3), ("orders.dead", 3)] == [
            (key, headers[ATTEMPT]) for key, _delay, headers in b.copies
        ]


async def test_contexts_do_not_leak() -> None:
    """What one handler leaves in a context variable is not seen by the next."""
    mark, seen = contextvars.ContextVar("mark", default="none"), []

    async def handle(event: int) -> None:
        seen.append(mark.get())
        mark.set(f"left by {event}")

    async with bench(handle, concurrency=1) as b:
        for number in range(4):
            b.queue.push(b"%d" % number)
        await eventually(lambda: len(b.queue.settled) == 4)
        assert ["none"] * 4 == seen


async def test_draining_finishes_what_has_started_and_gives_the_rest_back() -> None:
    """A stop gives back what has not begun before it waits for running handlers, and settles those."""
    release, seen = asyncio.Event(), []

    async def handle(event: int) -> None:
        seen.append(event)
        await release.wait()

    async with bench(handle, concurrency=2) as b:
        for number in range(5):
            b.queue.push(b"%d" % number)
        await eventually(lambda: len(seen) == 2)
        stopping = asyncio.create_task(b.worker.stop(5.0))
        await asyncio.sleep(0.02)
        assert (True, [3, 4, 5], False) == (b.queue.cancelled, b.queue.given_back, b.queue.closed)
        release.set()
        await stopping
        assert ([0, 1], [(1, 1), (1, 2)], True) == (seen, b.queue.settled, b.queue.closed)


async def test_stopping_hands_on_what_was_given_back_before() -> None:
    """As a copy: given back again and again, by one process after another, it would be taken for what kills them."""
    release, seen = asyncio.Event(), []

    async def handle(event: int) -> None:
        seen.append(event)
        await release.wait()

    async with bench(handle, concurrency=1) as b:
        b.queue.push(b"0")
        b.queue.push(b"1", Properties(message_id="k", headers={ATTEMPT: 2}), redelivered=True, delivery_count=1)
        b.queue.push(b"2")
        await eventually(lambda: seen == [0])
        stopping = asyncio.create_task(b.worker.stop(5.0))
        await eventually(lambda: b.queue.given_back)
        ((out, delay),) = b.transport.published
        assert ("orders", "k", 2, 0.0) == (out.key, out.properties.message_id, out.properties.headers[ATTEMPT], delay)
        assert ([(1, 2)], [3]) == (b.queue.settled, b.queue.given_back)
        release.set()
        await stopping


async def test_stopping_hands_on_what_it_had_to_cancel() -> None:
    """A handler that takes longer than every drain is not what kills its process."""

    async def handle(event: int) -> None:
        await asyncio.get_running_loop().create_future()

    async with bench(handle) as b:
        b.queue.push(b"0")
        b.queue.push(b"1", redelivered=True, delivery_count=1)
        await eventually(lambda: b.worker.in_flight == 2)
        await b.worker.stop(0.05)
        assert ["orders"] == [key for key, _, _ in b.copies]
        assert [(1, 2)] == b.queue.settled


async def test_stopping_gives_back_what_it_can_not_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker says nothing of the copy: the original goes back, and the stop goes on."""
    monkeypatch.setattr("eventpipe.worker.CANCEL_GRACE", 0.05)
    release, seen = asyncio.Event(), []

    async def handle(event: int) -> None:
        seen.append(event)
        await release.wait()

    async with bench(handle, concurrency=1) as b:
        b.transport.verdict = None
        b.queue.push(b"0")
        b.queue.push(b"1", redelivered=True, delivery_count=1)
        await eventually(lambda: seen == [0])
        stopping = asyncio.create_task(b.worker.stop(5.0))
        await eventually(lambda: b.queue.given_back == [2])
        release.set()
        await stopping
        assert [(1, 1)] == b.queue.settled


@pytest.mark.parametrize(
    "queue", [Queue("orders", single_active_consumer=True), Queue("orders", kind="classic", auto_delete=True)]
)
async def test_some_consumers_give_back_when_they_end(queue: Queue) -> None:
    """Not before: the next one would overtake what runs here, or the queue would be deleted under it."""
    release, seen = asyncio.Event(), []

    async def handle(event: int) -> None:
        seen.append(event)
        await release.wait()

    async with bench(handle, queue=queue, concurrency=1) as b:
        b.queue.push(b"0")
        b.queue.push(b"1")
        await eventually(lambda: seen == [0])
        stopping = asyncio.create_task(b.worker.stop(5.0))
        await asyncio.sleep(0.02)
        assert (True, False, []) == (b.queue.paused, b.queue.cancelled, b.queue.given_back)
        release.set()
        await stopping
        assert ([(1, 1)], True) == (b.queue.settled, b.queue.closed)


@pytest.mark.fault("F33")
async def test_a_handler_that_ignores_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop ends within its time even then, and leaves the message to the broker."""
    monkeypatch.setattr("eventpipe.worker.CANCEL_GRACE", 0.05)
    stubborn = True

    async def handle(event: int) -> None:
        while stubborn:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async with bench(handle) as b:
        b.queue.push(b"1")
        await eventually(lambda: b.worker.in_flight)
        async with asyncio.timeout(2):
            await b.worker.stop(0.05)
        assert [] == b.queue.settled
        stubborn = False
        await eventually(lambda: not b.worker.in_flight)


async def test_what_is_pushed_before_subscribing_has_ended_is_settled() -> None:
    """A fast broker delivers before it has said that it will."""

    class Eager(PushTransport):
        async def subscribe(self, *args: object) -> object:
            made = await super().subscribe(*args)
            if len(self.subscriptions) == 1:
                made.push(b"7")
                for _ in range(5):
                    await asyncio.sleep(0)
            return made

    seen: list[int] = []

    async def handle(event: int) -> None:
        seen.append(event)

    transport = Eager()
    work = Work(queue=QUEUE, handlers=(plan(handle),), concurrency=1, prefetch=2, retry=Retry())
    worker = Worker(work, Surroundings(transport, SystemClock(), random.Random(1)))
    await worker.start()
    await eventually(lambda: transport.subscriptions["orders"].settled)
    await worker.stop(1.0)
    assert ([7], [(1, 1)]) == (seen, transport.subscriptions["orders"].settled)


@pytest.mark.fault("F31")
async def test_a_busy_worker_lets_the_loop_have_its_turn() -> None:
    """Handlers that never suspend, many of them waiting: timers are still served within a few slices."""
    gaps: list[float] = []
    loop = asyncio.get_running_loop()
    last = loop.time()

    def tick() -> None:
        nonlocal last
        gaps.append(loop.time() - last)
        last = loop.time()
        timer[0] = loop.call_later(0, tick)

    async def handle(event: int) -> None:
        end = loop.time() + 0.0005
        while loop.time() < end:
            pass

    timer = [loop.call_later(0, tick)]
    async with bench(handle, prefetch=500) as b:
        for number in range(200):
            b.queue.push(b"%d" % number)
        await eventually(lambda: len(b.queue.settled) == 200)
    timer[0].cancel()
    assert len(gaps) > 20


@pytest.mark.fault("F33")
async def test_a_handler_that_ignores_its_timeout_does_not_spoil_the_next() -> None:
    """Its slot goes on with a clean slate: the next event has its own timeout, and a real one."""
    seen: list[int] = []

    async def handle(event: int) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.2 if event == 1 else 0)
        if event == 3:
            await asyncio.sleep(0.2)
        seen.append(event)

    async with bench(handle, concurrency=1, timeout=0.05) as b:
        for number in (1, 2, 3, 4):
            b.queue.push(b"%d" % number)
        await eventually(lambda: len(b.queue.settled) == 4)
        ((out, _delay),) = b.transport.published
        assert ([1, 2, 4], b"3") == (seen, out.body)


@pytest.mark.parametrize("state", ["waits for others to end", "is handled"])
async def test_stopping_hands_a_suspect_on_uncharged(state: str) -> None:
    """As a copy with the same attempt: given back itself it would count as the death of a process."""
    running: list[int] = []

    async def handle(event: int) -> None:
        running.append(event)
        await asyncio.get_running_loop().create_future()

    async with bench(handle) as b:
        if state == "waits for others to end":
            b.queue.push(b"1")
            await eventually(lambda: running == [1])
        headers = {ATTEMPT: 2, SUSPECT: True}
        b.suspects.push(b"9", Properties(message_id="k", headers=headers))
        await asyncio.sleep(0.02)
        assert running == ([1] if state == "waits for others to end" else [9])
        await b.worker.stop(0.05)
        ((key, delay, headers),) = b.copies
        assert ("orders.suspects", 0.0, 2, True) == (key, delay, headers[ATTEMPT], headers[SUSPECT])
        assert [(1, 1)] == b.suspects.settled
        assert not b.queue.settled


async def test_a_suspect_that_could_not_be_settled_does_not_spin() -> None:
    """Its copy could not be stored: it stays with the broker, and the worker goes on with the others."""
    seen: list[int] = []

    async def handle(event: int) -> None:
        seen.append(event)
        if event == 9:
            raise ValueError(event)

    async with bench(handle) as b:
        b.transport.verdict = Verdict(VerdictKind.NOT_SENT)
        b.suspects.push(b"9", Properties(message_id="k", headers={SUSPECT: True}))
        await eventually(lambda: seen == [9])
        b.queue.push(b"1")
        await eventually(lambda: seen == [9, 1])
        assert [(1, 1)] == b.queue.settled
        assert not b.suspects.settled


async def test_a_faulty_message_is_never_a_suspect() -> None:
    """No handler sees it, so it can't have ended a process; it is dead-lettered however often it was handed out."""

    async def handle(event: int) -> None:
        raise AssertionError(event)

    async with bench(handle) as b:
        b.queue.push(b"1", Properties(), fault=Fault("message_id: bad"), redelivered=True, delivery_count=7)
        await eventually(lambda: b.queue.settled)
        ((out, _delay),) = b.transport.published
        assert ("orders.dead", "undecodable: message_id: bad") == (out.key, out.properties.headers[REASON])


async def test_stopping_ends_a_slot_that_was_called_and_has_not_begun() -> None:
    """It has nothing to end, and nobody would end it."""

    async def handle(event: int) -> None: ...

    before = asyncio.all_tasks()
    async with bench(handle) as b:
        b.queue.push(b"1")  # calls a slot, which begins in the next turn of the loop
    await eventually(lambda: asyncio.all_tasks() == before)
