"""``running``: a pipe on a test's broker with its consumers, and a bus to ask what happened."""

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from ..clock import SystemClock
from ..codec import BATCH, codec_for, wire_type
from ..copies import read_dead
from ..errors import ConfigurationError
from ..message import NO_HEADERS, DeadMessage, Message, Properties
from ..pipe import EventPipe
from ..retry import Ack, Decision
from ..routing import Queue
from ..transports.base import Transport
from ..transports.memory import MemoryTransport
from .clock import ManualClock
from .recorder import Recorder

T = TypeVar("T")

QUIET_FOR = 3
"""How many looks in a row must find nothing to do until a broker that can't be seen into counts as settled."""


class Bus:
    """What happened on a pipe that is ``running``."""

    def __init__(self, pipe: EventPipe, clock: ManualClock | None) -> None:
        self._pipe, self._clock = pipe, clock
        self._recorder: Recorder | None = None
        self._handled: dict[str, list[Message]] = defaultdict(list)

    def published(self, event_type: type[T]) -> list[T]:
        """Give the events of a type that were published and confirmed, in order."""
        codec = codec_for(event_type)
        events: list[T] = []
        for outgoing in self._record.published:
            if outgoing.properties.type != wire_type(event_type):
                continue
            if outgoing.properties.content_type == BATCH:
                events += codec.decode_many(outgoing.body)
            else:
                events.append(codec.decode(outgoing.body, outgoing.properties.content_type))
        return events

    def handled(self, queue: Queue | str) -> list[Message]:
        """Give the messages of a queue whose handler ended well, in order."""
        return list(self._handled[queue if isinstance(queue, str) else queue.name])

    def dead_letters(self, queue: Queue | str) -> list[DeadMessage]:
        """Give what the consumer of a queue gave up on, in order, and why."""
        name = queue if isinstance(queue, str) else queue.name
        return [dead for outgoing in self._record.dead if (dead := _dead(outgoing)).queue == name]

    async def advance(self, seconds: float) -> None:
        """Let happen what is due, turn the memory broker's clock, and let happen what became due."""
        if self._clock is None:
            raise ConfigurationError("only the memory broker's clock can be turned; on RabbitMQ wait for bus.settled()")
        await self._until_idle(10.0, jump=False)
        self._clock.advance(seconds)
        await self._until_idle(10.0, jump=False)

    async def settled(self, *, within: float = 30.0) -> None:
        """Wait until nothing is in flight, waits or is delayed; on the memory broker, jump to what is delayed.

        Raises ``TimeoutError`` after ``within`` seconds, saying what is not settled.
        """
        await self._until_idle(within, jump=True)

    async def _until_idle(self, within: float, *, jump: bool) -> None:
        quiet = 0
        wanted = 1 if self._clock is not None else QUIET_FOR
        try:
            async with asyncio.timeout(within):
                while quiet < wanted:
                    await asyncio.sleep(0 if self._clock is not None else 0.03)
                    busy = await self._busy() or (jump and self._jump())
                    quiet = 0 if busy else quiet + 1
                    if busy and self._clock is not None:
                        await asyncio.sleep(0.0005)
        except TimeoutError:
            raise TimeoutError(f"not settled within {within} s: {self._pipe.health()}") from None

    async def _busy(self) -> bool:
        memory = _memory(self._record)
        if memory is not None:
            waiting = any(queue.channels and (queue.ready or queue.unacked) for queue in memory.broker.queues.values())
            return waiting or memory.pending or any(one.in_flight for one in self._pipe.health().consumers)
        health = self._pipe.health()
        if self._record.busy or any(one.unsettled or one.in_flight for one in health.consumers):
            return True
        depths = [await self._record.depth(one.queue) for one in health.consumers]
        return any(depths)

    def _jump(self) -> bool:
        """Turn the clock to the next delayed message of the memory broker, if there is one."""
        memory = _memory(self._record)
        if memory is None or self._clock is None or not memory.broker.delayed:
            return False
        self._clock.advance(memory.broker.next_due() or 0.0)
        return True

    @property
    def _record(self) -> Recorder:
        if self._recorder is None:
            raise ConfigurationError("the pipe is not running")
        return self._recorder

    def _wrap(self, transport: Transport) -> Transport:
        self._recorder = Recorder(transport)
        return self._recorder

    def _observe(self, message: Message, decision: Decision) -> None:
        if isinstance(decision, Ack):
            self._handled[message.queue].append(message)


@contextlib.asynccontextmanager
async def running(pipe: EventPipe, url: str = "memory://") -> AsyncIterator[Bus]:
    """Run a pipe with all its consumers on another broker, and give the bus to ask what happened.

    On the memory broker, time stands still but for ``bus.advance`` and ``bus.settled``.
    """
    clock = ManualClock() if url.startswith("memory:") else None
    bus = Bus(pipe, clock)
    with pipe.override(url, clock=clock or SystemClock(), wrap=bus._wrap, observe=bus._observe):  # noqa: SLF001  its own
        async with pipe, pipe.consuming():
            yield bus


def message(
    event: Any,
    *,
    attempt: int = 1,
    id: str | None = None,
    queue: str = "test",
    key: str = "",
    headers: Mapping[str, Any] = NO_HEADERS,
) -> Message:
    """Build the ``Message`` of an event, for unit tests that call a handler themselves."""
    codec = codec_for(type(event))
    properties = Properties(content_type=codec.content_type, headers=headers, type=wire_type(type(event)))
    return Message(
        id=id or secrets.token_hex(16),
        body=codec.encode(event),
        properties=properties,
        queue=queue,
        key=key,
        attempt=attempt,
    )


def _memory(recorder: Recorder) -> MemoryTransport | None:
    return recorder.inner if isinstance(recorder.inner, MemoryTransport) else None


def _dead(outgoing: Any) -> DeadMessage:
    properties = outgoing.properties
    return read_dead(Message(id=properties.message_id or "", body=outgoing.body, properties=properties))
