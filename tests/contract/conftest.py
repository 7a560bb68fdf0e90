"""The transports that keep the contract, each behind a small harness."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.differences import DIFFERENCES

from eventpipe.clock import SystemClock
from eventpipe.transports.base import Transport
from eventpipe.transports.memory import MemoryTransport, memory_broker
from eventpipe.transports.rabbitmq import RabbitTransport


class MemoryHarness:
    """Opens transports on one memory broker, and breaks it."""

    def __init__(self) -> None:
        self.name = "memory"
        self.broker = memory_broker("memory://")
        self.opened: list[Transport] = []

    async def open(self) -> Transport:
        transport: Transport = MemoryTransport(self.broker, clock=SystemClock())
        await transport.connect()
        self.opened.append(transport)
        return transport

    async def drop_connections(self) -> None:
        self.broker.drop_connections()

    async def delete_queue(self, name: str) -> None:
        self.broker.delete_queue(name)


class RabbitHarness:
    """Opens transports in one virtual host of a real broker, and breaks their connections."""

    def __init__(self, url: str, node: Any, *, fast: bool) -> None:
        self.name, self.fast = "rabbitmq", fast
        self.url, self.node = url, node
        self.vhost = url.rpartition("/")[2]
        self.opened: list[Transport] = []

    async def open(self) -> Transport:
        transport: Transport = RabbitTransport(
            [self.url], name="test", clock=SystemClock(), chance=random.Random(1), fast=self.fast
        )
        await transport.connect()
        self.opened.append(transport)
        return transport

    async def drop_connections(self) -> None:
        # The management API learns of a connection some five seconds later; the broker itself knows.
        found = f'rabbit_connection_tracking:list(<<"{self.vhost}">>)'
        close = f'[rabbit_networking:close_connection(element(6, Each), "dropped") || Each <- {found}].'
        await asyncio.to_thread(self.node.ctl, "eval", close)

    async def delete_queue(self, name: str) -> None:
        self.node.api("DELETE", f"queues/{self.vhost}/{name}")


@pytest.fixture(params=["memory", "rabbitmq", "rabbitmq-plain"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A harness around each kind of transport; what a test opened is closed after it."""
    made: Any
    if request.param == "memory":
        made = MemoryHarness()
    else:
        url = request.getfixturevalue("eventpipe_rabbitmq")
        made = RabbitHarness(url, request.getfixturevalue("rabbit_node"), fast=request.param == "rabbitmq")
    made.differences = DIFFERENCES[request.param]
    yield made
    for transport in made.opened:
        await transport.close()
