"""Each peer as its documentation shows it, all with the same guarantees.

They are: persistent, confirmed, acknowledged after handling.

A peer is used in order: ``open``, the publishing cases, ``consume``; ``None`` for what it does not have.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.events import CALLERS, CONCURRENCY, PREFETCH, Counter, Tweet, arguments, parse, tweet
from eventpipe import EventPipe, Options, Pack, Queue

logging.disable(logging.CRITICAL)


class Peer:
    """What is asked of a peer; ``send`` publishes one event and returns once it is confirmed."""

    scale = 1.0
    typed = True

    def __init__(self, url: str, queue: str, kind: str, size: int) -> None:
        self.url, self.queue, self.kind, self.event = url, queue, kind, tweet(size)
        self.body = self.event.model_dump_json().encode()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, event: Tweet) -> Any: ...

    async def start(self, counter: Counter) -> None:
        """Begin to consume."""

    async def publish_concurrent(self, count: int) -> None:
        async def caller() -> None:
            for _ in range(count // CALLERS):
                await self.send(self.event)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def publish_many(self, count: int) -> None:
        for _ in range(count // CALLERS):
            await asyncio.gather(*(self.send(self.event) for _ in range(CALLERS)))

    async def publish_each(self, count: int) -> None:
        for _ in range(count):
            await self.send(self.event)


class Eventpipe(Peer):
    """eventpipe, typed."""

    scale, fast, pack = 10.0, True, None

    async def open(self) -> None:
        self.pipe = EventPipe(self.url, name="bench", options=Options(fast=self.fast))
        self.to = Queue(self.queue, kind=self.kind)
        self.publisher = self.pipe.publisher(Tweet, to=self.to, timeout=60.0, pack=self.pack)
        self.counter = Counter(0)

        @self.pipe.consumer(self.to, concurrency=CONCURRENCY, prefetch=PREFETCH)
        async def handle(event: Tweet) -> None:
            self.counter.see(event)

        await self.pipe.__aenter__()

    async def close(self) -> None:
        if hasattr(self, "consuming"):
            await self.consuming.__aexit__(None, None, None)
        await self.pipe.__aexit__(None, None, None)

    async def send(self, event: Tweet) -> None:
        await self.publisher.publish(event)

    async def publish_many(self, count: int) -> None:
        await self.publisher.publish_many([self.event] * count)

    async def start(self, counter: Counter) -> None:
        self.counter = counter
        self.consuming = self.pipe.consuming()
        await self.consuming.__aenter__()


class EventpipePlain(Eventpipe):
    """eventpipe through aiormq's calls only."""

    scale, fast = 1.0, False


class EventpipeMemory(Eventpipe):
    """eventpipe on its broker in memory."""

    scale = 20.0

    async def open(self) -> None:
        self.url = "memory://"
        await super().open()


class EventpipePacked(Eventpipe):
    """eventpipe with many events in a message."""

    scale, pack = 100.0, Pack()


class AioPika(Peer):
    """aio-pika: robust connection, ``queue.consume``; bodies are parsed by the user."""

    async def open(self) -> None:
        import aio_pika

        self.make = aio_pika.Message
        self.connection = await aio_pika.connect_robust(self.url)
        self.channel = await self.connection.channel()
        await self.channel.set_qos(PREFETCH)
        self.target = await self.channel.declare_queue(self.queue, durable=True, arguments=arguments(self.kind))

    async def close(self) -> None:
        await self.connection.close()

    async def send(self, event: Tweet) -> None:
        message = self.make(event.model_dump_json().encode(), delivery_mode=2)
        await self.channel.default_exchange.publish(message, self.queue)

    async def start(self, counter: Counter) -> None:
        async def handle(message: Any) -> None:
            counter.see(parse(message.body))
            await message.ack()

        await self.target.consume(handle)


class Aiormq(Peer):
    """aiormq: what aio-pika stands on."""

    async def open(self) -> None:
        import aiormq
        from pamqp.commands import Basic

        self.properties = Basic.Properties
        self.connection = await aiormq.connect(self.url)
        self.channel = await self.connection.channel()
        await self.channel.basic_qos(prefetch_count=PREFETCH)
        await self.channel.queue_declare(self.queue, durable=True, arguments=arguments(self.kind))

    async def close(self) -> None:
        await self.connection.close()

    async def send(self, event: Tweet) -> None:
        body = event.model_dump_json().encode()
        await self.channel.basic_publish(body, routing_key=self.queue, properties=self.properties(delivery_mode=2))

    async def start(self, counter: Counter) -> None:
        async def handle(message: Any) -> None:
            counter.see(parse(message.body))
            await self.channel.basic_ack(message.delivery_tag)

        await self.channel.basic_consume(self.queue, handle)


class FastStream(Peer):
    """FastStream, typed."""

    async def open(self) -> None:
        from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

        self.broker = RabbitBroker(self.url, default_channel=Channel(prefetch_count=PREFETCH), logger=None)
        kind = QueueType.QUORUM if self.kind == "quorum" else QueueType.CLASSIC
        queue = RabbitQueue(self.queue, durable=True, queue_type=kind)
        self.counter = Counter(0)

        @self.broker.subscriber(queue)
        async def handle(event: Tweet) -> None:
            self.counter.see(event)

        await self.broker.connect()
        await self.broker.declare_queue(queue)

    async def close(self) -> None:
        await self.broker.stop()

    async def send(self, event: Tweet) -> None:
        await self.broker.publish(event, self.queue, persist=True)

    async def start(self, counter: Counter) -> None:
        self.counter = counter
        await self.broker.start()


class Taskiq(Peer):
    """taskiq-aio-pika, typed; results are not kept."""

    async def open(self) -> None:
        from taskiq_aio_pika import AioPikaBroker
        from taskiq_aio_pika import Queue as TaskiqQueue
        from taskiq_aio_pika.queue import QueueType

        kind = QueueType.QUORUM if self.kind == "quorum" else QueueType.CLASSIC
        self.broker = AioPikaBroker(self.url, qos=PREFETCH).with_queue(TaskiqQueue(name=self.queue, type=kind))
        self.broker.is_worker_process = True  # it gets its consuming channel at startup only then
        self.counter = Counter(0)

        @self.broker.task
        async def handle(event: Tweet) -> None:
            self.counter.see(event)

        self.task = handle
        await self.broker.startup()

    async def close(self) -> None:
        if hasattr(self, "receiver"):
            self.receiver.cancel()
            await asyncio.wait([self.receiver], timeout=3)
        await self.broker.shutdown()

    async def send(self, event: Tweet) -> None:
        await self.task.kiq(event)

    async def start(self, counter: Counter) -> None:
        from taskiq.api import run_receiver_task

        self.counter = counter
        self.receiver = asyncio.ensure_future(
            run_receiver_task(self.broker, max_async_tasks=CONCURRENCY, run_startup=False)
        )


class Blocking(Peer):
    """A peer without asyncio: one caller, one publish after the other."""

    def publish(self) -> None:
        raise NotImplementedError

    def drain(self, count: int) -> None:
        raise NotImplementedError

    publish_concurrent = publish_many = None  # type: ignore[assignment]

    async def publish_each(self, count: int) -> None:
        for _ in range(count):
            self.publish()


class Pika(Blocking):
    """pika's BlockingConnection."""

    async def open(self) -> None:
        import pika

        self.connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self.channel = self.connection.channel()
        self.channel.basic_qos(prefetch_count=PREFETCH)
        self.channel.queue_declare(self.queue, durable=True, arguments=arguments(self.kind))
        self.channel.confirm_delivery()
        self.properties = pika.BasicProperties(delivery_mode=2)

    async def close(self) -> None:
        self.connection.close()

    def publish(self) -> None:
        self.channel.basic_publish("", self.queue, self.event.model_dump_json().encode(), self.properties)

    def drain(self, count: int) -> None:
        for method, _, body in self.channel.consume(self.queue):
            parse(body)
            self.channel.basic_ack(method.delivery_tag)
            count -= 1
            if not count:
                return


class Kombu(Blocking):
    """kombu over py-amqp, as Celery uses it, with confirms switched on."""

    async def open(self) -> None:
        import kombu

        self.connection = kombu.Connection(self.url, transport_options={"confirm_publish": True})
        self.target = kombu.Queue(self.queue, durable=True, queue_arguments=arguments(self.kind))
        self.producer = self.connection.Producer()
        self.target(self.connection.default_channel).declare()

    async def close(self) -> None:
        self.connection.release()

    def publish(self) -> None:
        self.producer.publish(self.event.model_dump(), routing_key=self.queue, delivery_mode=2)

    def drain(self, count: int) -> None:
        left = count

        def handle(body: Any, message: Any) -> None:
            nonlocal left
            Tweet(**body)
            message.ack()
            left -= 1

        with self.connection.Consumer(self.target, callbacks=[handle], prefetch_count=PREFETCH):
            while left:
                self.connection.drain_events(timeout=10)


PEERS: dict[str, type[Peer]] = {
    "eventpipe": Eventpipe,
    "eventpipe-plain": EventpipePlain,
    "eventpipe-memory": EventpipeMemory,
    "aio-pika": AioPika,
    "aiormq": Aiormq,
    "faststream": FastStream,
    "taskiq": Taskiq,
    "kombu": Kombu,
    "pika": Pika,
}


async def seconds(work: Callable[[int], Coroutine[Any, Any, None]], count: int) -> float:
    """Time one case."""
    begin = time.perf_counter()
    await work(count)
    return time.perf_counter() - begin


async def run(made: Peer, count: int, latency: float) -> dict[str, float]:
    """Run every case that a peer has; give events per second, and the latency's p99 in milliseconds."""
    results: dict[str, float] = {}
    await made.open()
    gc.collect()
    gc.freeze()  # for all peers alike: what is loaded by now is not walked again
    count = round(count * made.scale) // CALLERS * CALLERS
    total = 0
    for case, share in (("publish_concurrent", 1.0), ("publish_many", 1.0), ("publish_each", 0.2 / made.scale)):
        work, number = getattr(made, case), max(CALLERS, round(count * share))
        if work is not None:
            results[case] = number / await seconds(work, number)
            total += number
    if isinstance(made, Blocking):
        begin = time.perf_counter()
        made.drain(total)
    else:
        counter = Counter(total)
        begin = time.perf_counter()
        await made.start(counter)
        await asyncio.wait_for(counter.done.wait(), 120)
    results["consume_ack"] = total / (time.perf_counter() - begin)
    if latency and not isinstance(made, Blocking):
        results["latency_p99_ms"] = await _latency(made, counter, latency)
    await made.close()
    return results


async def _latency(made: Peer, counter: Counter, lasts: float) -> float:
    """Publish a thousand a second, evenly, and time each from before it is sent until it is in its handler."""
    counter.left, counter.delays = round(1000 * lasts), []
    counter.done.clear()
    begin, sending = time.perf_counter(), set()
    for number in range(counter.left):
        await asyncio.sleep(max(0.0, begin + number / 1000 - time.perf_counter()))
        event = made.event.model_copy(update={"at": time.perf_counter()})
        task = asyncio.ensure_future(made.send(event))
        sending.add(task)
        task.add_done_callback(sending.discard)
    await asyncio.wait_for(counter.done.wait(), 30)
    return sorted(counter.delays)[int(len(counter.delays) * 0.99)] * 1000
