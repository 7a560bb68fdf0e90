"""One queue's subscription: its own channel, reopened whenever it is lost, and the acknowledgements written on it."""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import aiormq.exceptions
from aiormq.abc import AbstractChannel

from ...errors import ConnectError, TopologyError, TopologyMissing
from ...routing import Queue, Topology
from ..base import ConsumerState, Delivery, OnLost, Sink
from .acks import Acks
from .declaring import carry_out, steps
from .failures import LOST, aiormq_calls
from .hot import Deliveries, Feed, Names
from .link import BACKOFF, RPC_TIMEOUT, Link, close_channel, when_closed

LOOK_AGAIN = 5.0
"""Seconds, at most, between looks at a queue that somebody made otherwise: each declares the whole topology."""


class RabbitSubscription:
    """The pushes of one queue. ``redeclare`` makes a queue of ours exist again that somebody deleted."""

    def __init__(self, link: Link, names: Names, queue: Queue, prefetch: int, sink: Sink, on_lost: OnLost) -> None:
        self.epoch = 0
        self.stale = 0
        self.redeclare: Callable[[], Awaitable[None]] | None = None
        self._link, self._names, self._queue, self._prefetch = link, names, queue, prefetch
        self._sink, self._on_lost = sink, on_lost
        self._channel: AbstractChannel | None = None
        self._deliveries: Deliveries | None = None
        self._abandoned: list[tuple[AbstractChannel, Deliveries]] = []
        self._acks, self._nacks = Acks(), list[tuple[int, bool]]()
        self._held: deque[Delivery] = deque()
        self._paused = self._closed = False
        self._lost = asyncio.Event()
        self._consuming = False
        self._tag = ""
        self._gone = False  # the queue was deleted, or may be
        self._error: str | None = None
        self._flush_at = max(1, prefetch // 2)
        self._flushing: asyncio.Handle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it has ended for good."""
        return self._closed

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
        if self._acks.unwritten >= self._flush_at:
            self._write()
        elif self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self._write)
        return True

    def _write(self) -> None:
        """Write what is settled, as few acknowledgements as can be."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._deliveries is None:
            return
        acks, (given_back, self._nacks) = self._acks.take(), (self._nacks, [])
        if acks or given_back:
            self._deliveries.acknowledge(acks, given_back)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        while self._held and not self._paused:
            self._sink(self._held.popleft())

    async def cancel(self) -> None:
        await self._end_supervision()
        self.resume()
        self._consuming = False
        channel = self._channel
        if channel is not None:
            with contextlib.suppress(*LOST):
                async with asyncio.timeout(RPC_TIMEOUT):
                    with aiormq_calls():
                        await channel.basic_cancel(self._tag)

    async def close(self) -> None:
        self._closed = True
        await self._end_supervision()
        await self._written()
        self._abandon()
        await self._close_abandoned()

    async def _end_supervision(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def flush(self) -> None:
        await self._written()
        channel = self._channel
        if channel is None:
            return
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(RPC_TIMEOUT):
                with aiormq_calls():
                    # An answer to anything means that the broker has seen what was written before it.
                    await channel.basic_qos(prefetch_count=self._prefetch)

    async def _written(self) -> None:
        self._write()
        if self._deliveries is not None:
            await self._deliveries.written()

    def connection_lost(self, reason: str) -> None:
        """End the epoch: nothing of it can be settled any more."""
        if self._channel is None or self._closed:
            return
        self._abandon()
        self._consuming = False
        self._error = reason
        self._held.clear()
        self._on_lost(self.epoch)
        self._lost.set()

    def _abandon(self) -> None:
        """Use a channel no more; it may still be open, when only its consumer is gone."""
        if self._channel is not None and self._deliveries is not None:
            self._abandoned.append((self._channel, self._deliveries))
        self._channel = self._deliveries = None

    async def _close_abandoned(self) -> None:
        while self._abandoned:
            channel, deliveries = self._abandoned.pop()
            if not channel.is_closed:
                await close_channel(channel)
            deliveries.close()

    async def _supervise(self) -> None:
        pause = 0.0
        while True:
            await self._lost.wait()
            await self._close_abandoned()
            await self._link.until_up()
            try:
                if self._gone:
                    await self._restore()
                await self._open()
                pause, self._gone = 0.0, False
            except LOST as error:  # whatever it is, this task has to go on
                self._error = str(error) if isinstance(error, TopologyError) else f"queue {self._queue.name!r}: {error}"
                self._gone = self._gone or isinstance(error, aiormq.exceptions.ChannelNotFoundEntity)
                longest = LOOK_AGAIN if isinstance(error, TopologyError) else BACKOFF[1]
                pause = min(max(BACKOFF[0], 2 * pause), longest)
                await asyncio.sleep(pause)

    async def _restore(self) -> None:
        """Declare again what was deleted. Raises ``TopologyMismatch`` if somebody made another queue of that name."""
        if self.redeclare is None or not self._queue.declare:
            return
        with contextlib.suppress(TopologyError):  # of whatever object; this queue's own is looked at next
            await self.redeclare()
        await carry_out(self._link, steps(Topology(queues=(self._queue,)), self._names, passive=False))

    async def _open(self) -> None:
        channel = await self._link.channel()
        try:
            # A fresh tag each time: 3.10 confuses the deliveries of a tag that is used again.
            self._tag = f"eventpipe-{secrets.token_hex(8)}"
            async with asyncio.timeout(RPC_TIMEOUT):
                with aiormq_calls():
                    await channel.basic_qos(prefetch_count=self._prefetch)
                    deliveries = self._begin(channel)
                    await deliveries.consume(self._names(self._queue.name), self._tag)
        except BaseException:
            self._abandon()
            self._lost.set()
            await close_channel(channel)
            await self._close_abandoned()
            raise
        if channel is self._channel:  # unless it was lost again meanwhile
            self._consuming, self._error = True, None

    def _begin(self, channel: AbstractChannel) -> Deliveries:
        self.epoch += 1
        self._channel = channel
        self._acks, self._nacks = Acks(), []
        self._lost.clear()
        when_closed(channel, lambda error: self._ended(channel, f"channel closed: {error}"))
        channel.on_consumer_cancel_callbacks.add(lambda _frame: self._cancelled(channel))
        feed = Feed(self.epoch, self._names(""), self._queue.kind == "quorum", self._received)
        self._deliveries = self._link.deliveries(channel, feed)
        return self._deliveries

    def _cancelled(self, channel: AbstractChannel) -> None:
        if channel is self._channel:
            self._gone = True
        self._ended(channel, "the broker cancelled the consumer: was the queue deleted?")

    def _ended(self, channel: AbstractChannel, reason: str) -> None:
        if channel is self._channel:
            self.connection_lost(f"queue {self._queue.name!r}: {reason}")

    def _received(self, delivery: Delivery) -> None:
        if delivery.epoch != self.epoch or self._channel is None:
            return  # an epoch that is over: it comes again
        if self._paused:
            self._held.append(delivery)
        else:
            self._sink(delivery)
