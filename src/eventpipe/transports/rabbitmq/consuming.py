"""One queue's subscription: its own channel, reopened whenever it is lost, and the acknowledgements written on it."""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiormq.exceptions
from aio_pika import Channel
from aiormq.abc import AbstractChannel, DeliveredMessage

from ...errors import ConnectError, TopologyError, TopologyMissing
from ...routing import Queue
from ..base import ConsumerState, Delivery, OnLost, Sink
from .acks import Acks
from .declaring import Names
from .failures import LOST, aiormq_calls
from .link import BACKOFF, CLOSE_TIMEOUT, RPC_TIMEOUT, Link, close_channel
from .properties import from_wire


class RabbitSubscription:
    """The pushes of one queue. ``redeclare`` makes a queue of ours exist again that somebody deleted."""

    def __init__(self, link: Link, names: Names, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> None:
        self.epoch = 0
        self.stale = 0
        self.redeclare: Callable[[], Awaitable[None]] | None = None
        self._link, self._names, self._queue, self._prefetch = link, names, queue, prefetch
        self._sink, self._on_lost = sink, on_lost
        self._channel: Channel | None = None
        self._underlay: AbstractChannel | None = None
        self._acks, self._nacks = Acks(), list[tuple[int, bool]]()
        self._held: deque[Delivery] = deque()
        self._paused = self._closed = False
        self._lost = asyncio.Event()
        self._consuming = False
        self._error: str | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ConsumerState:
        return ConsumerState(consuming=self._consuming, error=self._error)

    async def start(self) -> None:
        """Consume, or raise ``TopologyMissing`` or ``ConnectError``; from then on keep consuming."""
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                while not self._consuming:
                    await self._first_open()
        except TimeoutError:
            raise ConnectError(f"queue {self._queue.name!r} can't be consumed: {self._error or 'no answer'}") from None
        self._task = asyncio.create_task(self._supervise(), name=f"eventpipe consuming {self._queue.name}")

    async def _first_open(self) -> None:
        await self._link.until_up()
        try:
            await self._open()
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise TopologyMissing(f"queue {self._queue.name!r} does not exist; declare it first") from error
        except aiormq.exceptions.AMQPChannelError as error:
            raise TopologyError(f"queue {self._queue.name!r} can't be consumed: {error}") from error
        except LOST as error:
            self._error = repr(error)
            await asyncio.sleep(BACKOFF[0])

    def settle(self, epoch: int, tags: Sequence[int], *, multiple: bool = False, requeue: bool = False) -> bool:
        if self._channel is None or epoch != self.epoch:
            self.stale += 1
            return False
        if requeue:
            self._nacks.extend((tag, multiple) for tag in tags)
            self._acks.written(tags, multiple=multiple)
        else:
            self._acks.settle(tags, multiple=multiple)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(self._underlay))
        return True

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        while self._held and not self._paused:
            self._sink(self._held.popleft())

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._written()
        channel, self._channel, self._underlay = self._channel, None, None
        if channel is not None:
            await close_channel(channel)

    async def flush(self) -> None:
        await self._written()
        underlay = self._underlay
        if underlay is None:
            return
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(RPC_TIMEOUT):
                with aiormq_calls():
                    # An answer to anything means that the broker has seen what was written before it.
                    await underlay.basic_qos(prefetch_count=self._prefetch)

    async def _written(self) -> None:
        if self._flushing is not None:
            await asyncio.wait([self._flushing], timeout=CLOSE_TIMEOUT)

    def connection_lost(self, reason: str) -> None:
        """End the epoch: nothing of it can be settled any more."""
        if self._channel is None or self._closed:
            return
        self._channel = self._underlay = None
        self._consuming = False
        self._error = reason
        self._held.clear()
        self._on_lost(self.epoch)
        self._lost.set()

    async def _supervise(self) -> None:
        pause = 0.0
        while True:
            await self._lost.wait()
            await self._link.until_up()
            try:
                await self._open()
                pause = 0.0
            except LOST as error:
                self._error = f"queue {self._queue.name!r}: {error}"
                pause = min(max(BACKOFF[0], 2 * pause), BACKOFF[1])
                await asyncio.sleep(pause)
                if isinstance(error, aiormq.exceptions.ChannelNotFoundEntity):
                    await self._declare_again()

    async def _declare_again(self) -> None:
        if self.redeclare is not None and self._queue.declare:
            try:
                await self.redeclare()
            except LOST as error:  # whatever it is, this task has to go on
                self._error = str(error)

    async def _open(self) -> None:
        channel = await self._link.channel()
        try:
            underlay = await channel.get_underlay_channel()
            # A fresh tag each time: 3.10 confuses the deliveries of a tag that is used again.
            tag = f"eventpipe-{secrets.token_hex(8)}"
            async with asyncio.timeout(RPC_TIMEOUT):
                with aiormq_calls():
                    await underlay.basic_qos(prefetch_count=self._prefetch)
                    self._begin(channel, underlay)
                    receive = self._receiver(underlay)
                    await underlay.basic_consume(self._names(self._queue.name), receive, consumer_tag=tag)
        except BaseException:
            self._channel = self._underlay = None
            self._lost.set()
            await close_channel(channel)
            raise
        if channel is self._channel:  # unless it was lost again meanwhile
            self._consuming, self._error = True, None

    def _begin(self, channel: Channel, underlay: AbstractChannel) -> None:
        self.epoch += 1
        self._channel, self._underlay = channel, underlay
        self._acks, self._nacks, self._flushing = Acks(), [], None
        self._lost.clear()
        channel.close_callbacks.add(lambda _channel, error: self._ended(channel, f"channel closed: {error}"))
        underlay.on_consumer_cancel_callbacks.add(
            lambda _frame: self._ended(channel, "the broker cancelled the consumer: was the queue deleted?")
        )

    def _ended(self, channel: Channel, reason: str) -> None:
        if channel is self._channel:
            self.connection_lost(f"queue {self._queue.name!r}: {reason}")

    def _receiver(self, underlay: AbstractChannel) -> Callable[[DeliveredMessage], Any]:
        epoch = self.epoch

        def receive(message: DeliveredMessage) -> None:
            if underlay is not self._underlay:
                return  # an epoch that is over: it comes again
            delivery = self._delivery(message, epoch)
            if self._paused:
                self._held.append(delivery)
            else:
                self._sink(delivery)

        return receive

    def _delivery(self, message: DeliveredMessage, epoch: int) -> Delivery:
        frame: Any = message.delivery
        properties = from_wire(message.header.properties)
        prefix = self._names("")
        return Delivery(
            frame.delivery_tag,
            epoch,
            message.body,
            properties,
            frame.exchange.removeprefix(prefix),
            frame.routing_key.removeprefix(prefix) if not frame.exchange else frame.routing_key,
            redelivered=frame.redelivered,
            delivery_count=self._count(
                redelivered=frame.redelivered, header=properties.headers.get("x-delivery-count")
            ),
        )

    def _count(self, redelivered: object, header: object) -> int | None:
        """Read the broker's count; except on a redelivery by a quorum queue it is a publisher's claim."""
        if self._queue.kind != "quorum":
            return None
        if not redelivered:
            return 0
        return header if isinstance(header, int) else None

    async def _flush(self, underlay: AbstractChannel | None) -> None:
        """Write acknowledgements until there are none; what is settled meanwhile joins in."""
        acks, nacks = self._acks, self._nacks
        try:
            while underlay is not None and underlay is self._underlay:
                todo = acks.take()
                given_back, nacks[:] = list(nacks), []
                if not todo and not given_back:
                    break
                with aiormq_calls():
                    for tag, multiple in todo:
                        await underlay.basic_ack(tag, multiple=multiple, wait=False)
                    for tag, multiple in given_back:
                        await underlay.basic_nack(tag, multiple=multiple, requeue=True, wait=False)
        except LOST:
            pass  # the channel is gone, and its epoch with it
        finally:
            if acks is self._acks:
                self._flushing = None
