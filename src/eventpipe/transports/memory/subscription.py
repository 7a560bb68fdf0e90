"""One consumer of a memory broker's queue, over its epochs."""

from collections.abc import Sequence

from ...errors import TopologyError
from ...routing import Queue
from ..base import ConsumerState, OnLost, Sink
from .broker import MemoryBroker
from .client import Client
from .queue import Channel, MemoryQueue


class MemorySubscription:
    """The pushes of one queue. ``stale`` counts what was settled too late."""

    def __init__(self, broker: MemoryBroker, client: Client, spec: Queue, prefetch: int) -> None:
        self.epoch = 0
        self.stale = 0
        self.spec = spec
        self.error: str | None = None
        self._broker, self._client, self._prefetch = broker, client, prefetch
        self._sink: Sink | None = None
        self._on_lost: OnLost | None = None
        self._queue: MemoryQueue | None = None
        self._channel: Channel | None = None
        self._paused = self._cancelled = False

    @property
    def state(self) -> ConsumerState:
        consuming = self._channel is not None and not self._cancelled
        return ConsumerState(consuming=consuming, error=self.error)

    @property
    def closed(self) -> bool:
        """Whether it has ended for good: nothing is pushed and nothing can be settled any more."""
        return self._sink is None or (self._cancelled and self._channel is None)

    def start(self, sink: Sink, on_lost: OnLost) -> bool:
        """Begin the first epoch; ``False`` when there is no such queue. Raises ``TopologyError``."""
        self._sink, self._on_lost = sink, on_lost
        return self.reopen()

    def reopen(self) -> bool:
        """Begin an epoch if there is none; ``False``: closed for good, or no such queue. Raises ``TopologyError``."""
        if self._sink is None or self._cancelled or self._channel is not None:
            return self._channel is not None
        queue = self._broker.queues.get(self.spec.name)
        if queue is None:
            return False
        queue.check_owner(self._client)
        self.epoch += 1
        self.error = None
        self._queue = queue
        self._channel = Channel(self._sink, self._prefetch, self.epoch, self._client.loop, self._paused)
        queue.channels.append(self._channel)
        self._broker.touch(queue)
        return True

    def lose(self, reason: str) -> bool:
        """End the epoch, if there is one: what is unsettled goes back, and the client hears of it."""
        if self._channel is None:
            return False
        self.error = reason
        self._give_back()
        if self._on_lost is not None:
            self._on_lost(self.epoch)
        return True

    def forget(self) -> None:
        """End for good, without a word."""
        self._sink = self._on_lost = None
        self._give_back()

    def settle(self, epoch: int, tags: Sequence[int], *, multiple: bool = False, requeue: bool = False) -> bool:
        channel, queue = self._channel, self._queue
        if channel is None or queue is None or epoch != channel.epoch:
            self.stale += 1
            return False
        unacked = channel.unacked
        if multiple:
            highest = max(tags, default=0)
            tags = [tag for tag in unacked if tag <= highest]
        settled = [stored for tag in tags if (stored := unacked.pop(tag, None)) is not None]
        if requeue:
            queue.give_back(settled)
        if queue.ready or queue.refused:
            self._broker.touch(queue)
        return True

    async def flush(self) -> None:
        """Nothing to wait for: the broker is here."""

    def pause(self) -> None:
        self._set_paused(paused=True)

    def resume(self) -> None:
        self._set_paused(paused=False)

    async def cancel(self) -> None:
        self._cancelled = True
        if self._channel is not None and self._queue is not None:
            self._channel.prefetch = 0
            self.resume()  # what was pushed before is in hand

    async def close(self) -> None:
        self.forget()

    def _set_paused(self, *, paused: bool) -> None:
        self._paused = paused
        if self._channel is not None and self._queue is not None:
            self._channel.paused = paused
            self._broker.touch(self._queue)

    def _give_back(self) -> None:
        channel, queue = self._channel, self._queue
        self._channel = self._queue = None
        if channel is None or queue is None:
            return
        queue.channels.remove(channel)
        if self._broker.queues.get(self.spec.name) is not queue:
            return  # it was deleted with all it held
        queue.give_back(channel.unacked.values())
        self._broker.touch(queue)
        if queue.spec.auto_delete and not queue.channels:
            self._broker.delete_queue(self.spec.name)


def try_reopen(subscription: MemorySubscription) -> bool:
    """Begin an epoch if that is possible, and note on the subscription why it is not."""
    try:
        return subscription.reopen()
    except TopologyError as error:
        subscription.error = str(error)
        return False
