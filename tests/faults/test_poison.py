"""Messages that no client library can read, published by a bare socket: each costs itself and nothing else."""

import asyncio
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.raw_amqp import RawPublisher
from tests.support import eventually

from eventpipe import EventPipe, Exchange, Options, Queue
from eventpipe.clock import SystemClock
from eventpipe.copies import REASON
from eventpipe.transports.base import Delivery
from eventpipe.transports.rabbitmq import RabbitTransport
from eventpipe.transports.rabbitmq.frames import RAW

BODY_LIMIT = 300_000
BAD_TEXT = (b"\xff", b"ab\x80", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80")
SHORTS = {"content_type": 15, "content_encoding": 14, "correlation_id": 10, "reply_to": 9, "message_id": 7}
SHORTS |= {"type": 5, "app_id": 3}


@dataclass
class Poison:
    name: str
    flags: int = 0
    properties: bytes = b""
    key: bytes = b"key"
    body: bytes = b"1"


def short(raw: bytes) -> bytes:
    return bytes((len(raw),)) + raw


def table(raw: bytes) -> Poison:
    return Poison("", 1 << 13, struct.pack(">I", len(raw)) + raw)


def nested(depth: int, kind: bytes) -> bytes:
    raw = b"V"
    for _ in range(depth):
        inside = raw if kind == b"A" else b"\1n" + raw
        raw = kind + struct.pack(">I", len(inside)) + inside
    return b"\1a" + raw


def corpus() -> Iterator[Poison]:
    """At least sixty; each is accepted by RabbitMQ."""
    for field, bit in SHORTS.items():
        for bad in BAD_TEXT:
            yield Poison(f"{field} {bad!r}", 1 << bit, short(bad))
    for bad in BAD_TEXT:
        yield Poison(f"routing key {bad!r}", key=bad)
        yield Poison(f"header name {bad!r}", **_headers(short(bad) + b"V"))
    for seconds in (253_402_300_800, 2**40, 2**63 - 1, 2**64 - 1):
        yield Poison(f"timestamp {seconds}", 1 << 6, struct.pack(">Q", seconds))
        yield Poison(f"header timestamp {seconds}", **_headers(b"\1t" + struct.pack(">cQ", b"T", seconds)))
    for depth in (17, 100, 500, 2000):
        yield Poison(f"tables nested {depth} deep", **_headers(nested(depth, b"F")))
        yield Poison(f"arrays nested {depth} deep", **_headers(nested(depth, b"A")))
    yield Poison("20,000 header values", **_headers(b"\1aV" * 20_000))
    yield Poison("an array of 60,000 values", **_headers(b"\1aA" + struct.pack(">I", 60_000) + b"V" * 60_000))
    yield Poison("a body over the limit", body=b"[" + b"1," * 200_000 + b"1]")
    yield Poison("no JSON", body=b"\xff\xfe")
    yield Poison("JSON nested 100,000 deep", body=b"[" * 100_000)
    yield Poison("a batch of nonsense", 1 << 15, short(b"application/vnd.eventpipe.batch+json"), body=b"[1, 2")


def _headers(raw: bytes) -> dict[str, Any]:
    made = table(raw)
    return {"flags": made.flags, "properties": made.properties}


class Longest:
    """The longest that any callback kept the event loop, in seconds of this thread's own processor time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            begin = time.thread_time()
            run(handle)
            self.seconds = max(self.seconds, time.thread_time() - begin)

        monkeypatch.setattr(asyncio.Handle, "_run", timed)


async def dead_letters(url: str, expected: int) -> list[Delivery]:
    transport = RabbitTransport([url], name="dead", clock=SystemClock(), chance=random.Random(1))
    await transport.connect()
    found: list[Delivery] = []
    subscription = await transport.subscribe(Queue("poison.dead"), 1000, found.append, lambda _epoch: None)
    await eventually(lambda: len(found) >= expected)
    await asyncio.sleep(0.2)
    await subscription.close()
    await transport.close()
    return found


@pytest.mark.fault("F44")
async def test_each_poison_is_dead_lettered_once_and_harms_nobody(
    eventpipe_rabbitmq: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between good messages: no reconnect, each good one handled once, each bad one kept with its raw bytes."""
    exchange = Exchange("poison", kind="fanout")
    queue = Queue("poison", bind=exchange.on(""))
    pipe = EventPipe(eventpipe_rabbitmq, name="poison", options=Options(body_limit=BODY_LIMIT))
    handled: list[int] = []

    @pipe.consumer(queue, concurrency=5)
    async def handle(number: int) -> None:
        handled.append(number)

    poisons = list(corpus())
    assert len(poisons) >= 60
    async with pipe:
        raw = RawPublisher(eventpipe_rabbitmq)
        for number, poison in enumerate(poisons):
            raw.publish(b"poison", b"", 0, b"", b"%d" % (number + 2))
            raw.publish(b"poison", poison.key, poison.flags, poison.properties, poison.body)
        raw.close()
        longest = Longest(monkeypatch)
        async with pipe.consuming():
            await eventually(lambda: pipe.health().consumers[0].dead_lettered == len(poisons))
            await eventually(lambda: len(handled) == len(poisons))
            (worker,) = pipe._session.workers.values()
            assert worker.intakes[0]._subscription.epoch == 1
        monkeypatch.undo()
    assert list(range(2, len(poisons) + 2)) == sorted(handled)
    assert longest.seconds < 0.010
    dead = await dead_letters(eventpipe_rabbitmq, len(poisons))
    assert len(dead) == len(poisons)
    assert sorted(poison.body for poison in poisons) == sorted(one.body for one in dead)
    reasons = [str(one.properties.headers[REASON]) for one in dead]
    for field in (
        *SHORTS,
        "routing key",
        "headers",
        "timestamp",
        "over the limit",
        "nested more than",
        "more than 1000",
    ):
        assert any(field in reason for reason in reasons), field
    kept = [one.properties.headers[RAW] for one in dead if RAW in one.properties.headers]
    for poison in poisons:
        if poison.flags and poison.flags != 1 << 15:
            bytes_of_it = (struct.pack(">H", poison.flags) + poison.properties)[:64_000]
            assert any(bytes_of_it == one for one in kept), poison.name
