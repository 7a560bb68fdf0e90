"""Each intended difference between the memory broker and RabbitMQ, shown."""

import asyncio
from typing import Any

import pytest

from eventpipe import ConfigurationError, Queue
from eventpipe.routing import topology
from tests.contract.test_transport import consume, publish, to_queue
from tests.support import eventually


async def test_no_priorities(harness: Any) -> None:
    """RabbitMQ hands out higher priorities first; the memory broker refuses such a queue."""
    transport = await harness.open()
    queue = Queue("q", kind="classic", max_priority=5)
    if "no_priorities" in harness.differences:
        with pytest.raises(ConfigurationError, match="priorities"):
            await transport.declare(topology(queues=[queue]))
        return
    await transport.declare(topology(queues=[queue]))
    await publish(transport, to_queue(queue, b"low", priority=1), to_queue(queue, b"high", priority=5))
    inbox = await consume(transport, queue)
    await eventually(lambda: inbox.bodies == [b"high", b"low"])


async def test_no_single_active_consumer(harness: Any) -> None:
    """RabbitMQ serves one consumer and keeps the other waiting; the memory broker refuses such a queue."""
    transport = await harness.open()
    queue = Queue("q", single_active_consumer=True)
    if "no_single_active_consumer" in harness.differences:
        with pytest.raises(ConfigurationError, match="single active consumer"):
            await transport.declare(topology(queues=[queue]))
        return
    await transport.declare(topology(queues=[queue]))
    first, second = await consume(transport, queue), await consume(transport, queue)
    await publish(transport, *(to_queue(queue, b"%d" % number) for number in range(4)))
    await eventually(lambda: len(first.got) == 4)
    assert second.got == []


async def test_exact_delays(harness: Any) -> None:
    """RabbitMQ's ladder rounds 10 ms up to 100 ms; the memory broker waits just that."""
    transport = await harness.open()
    queue = Queue("q")
    await transport.declare(topology(consumed=[queue]))
    inbox = await consume(transport, queue)
    begin = asyncio.get_running_loop().time()
    await transport.delay(to_queue(queue), 0.01)
    await eventually(lambda: inbox.got)
    took = asyncio.get_running_loop().time() - begin
    assert (took < 0.09) == ("exact_delays" in harness.differences)


async def test_dead_letter_cycles_go_on(harness: Any) -> None:
    """Two queues that expire into each other: RabbitMQ drops the message after a round, the memory broker does not."""
    transport = await harness.open()
    there = Queue("there", message_ttl=0.05, dead_letter_exchange="", dead_letter_routing_key="back", kind="classic")
    back = Queue("back", message_ttl=0.05, dead_letter_exchange="", dead_letter_routing_key="there", kind="classic")
    await transport.declare(topology(queues=[there, back]))
    await publish(transport, to_queue(there))
    await asyncio.sleep(0.6)
    left = [await transport.depth(queue.name) for queue in (there, back)]
    assert (sum(left) == 1) == ("dead_letter_cycles_go_on" in harness.differences)
