"""Declare a topology object by object, on a channel that nobody else uses."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiormq.abc import AbstractChannel

from ...errors import ConnectError, TopologyError
from ...routing import Exchange, Queue, Topology
from .failures import LOST, aiormq_calls, topology_error
from .hot import Names
from .link import RPC_TIMEOUT, Link


@dataclass(frozen=True, slots=True)
class Step:
    """One call that declares, checks or binds one object."""

    kind: str
    name: str
    call: Callable[[AbstractChannel], Awaitable[Any]]


def steps(topology: Topology, names: Names, *, passive: bool) -> Iterable[Step]:
    """List the calls of a topology, targets before sources."""
    for exchange in topology.exchanges:
        yield _exchange(exchange, names, passive=passive or not exchange.declare)
    for queue in topology.queues:
        yield _queue(queue, names, passive=passive or not queue.declare)
    for binding, target, kind in () if passive else topology.bindings:
        yield _bind(names(target), names(binding.source.name), binding.key, kind, dict(binding.arguments))


async def carry_out(link: Link, wanted: Iterable[Step]) -> None:
    """Do every step, on a new channel after each failure; then raise the first failure, the others noted on it."""
    failures: list[TopologyError] = []
    todo = list(wanted)
    while todo:
        try:
            async with link.throwaway() as channel:
                failure = await _do(channel, todo, link)
        except ConnectError:
            raise
        except LOST as error:
            text = f"no channel to declare on: {error!r}; {link.error or 'the broker gave none'}"
            raise ConnectError(text) from error
        if failure is not None:
            failures.append(failure)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"and {other}")
        raise failures[0]


async def _do(channel: AbstractChannel, todo: list[Step], link: Link) -> TopologyError | None:
    """Take steps off the list until it is empty or one fails, which closes the channel."""
    while todo:
        step = todo.pop(0)
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                with aiormq_calls():
                    await step.call(channel)
        except LOST as error:
            if not link.connected:
                raise ConnectError(f"the connection was lost while declaring {step.name!r}") from error
            failure = topology_error(error, step.kind, step.name)
            failure.__cause__ = error
            return failure
    return None


def _bind(target: str, source: str, key: str, kind: str, arguments: dict[str, Any] | None = None) -> Step:
    """Bind a queue or an exchange to an exchange."""
    if kind == "queue":
        return Step(
            "queue",
            target,
            lambda channel: channel.queue_bind(target, exchange=source, routing_key=key, arguments=arguments),
        )
    return Step(
        "exchange",
        target,
        lambda channel: channel.exchange_bind(destination=target, source=source, routing_key=key, arguments=arguments),
    )


def _exchange(exchange: Exchange, names: Names, *, passive: bool) -> Step:
    arguments = exchange.wire_arguments
    if exchange.alternate is not None:
        arguments["alternate-exchange"] = names(exchange.alternate.name)
    return Step(
        "exchange",
        exchange.name,
        lambda channel: channel.exchange_declare(
            names(exchange.name),
            exchange_type=exchange.kind,
            passive=passive,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            internal=exchange.internal,
            arguments=arguments,
        ),
    )


def _queue(queue: Queue, names: Names, *, passive: bool) -> Step:
    arguments = queue.wire_arguments
    if names("") and "x-dead-letter-exchange" in arguments:
        place = "x-dead-letter-exchange" if arguments["x-dead-letter-exchange"] else "x-dead-letter-routing-key"
        arguments[place] = names(arguments[place])
    return Step(
        "queue",
        queue.name,
        lambda channel: channel.queue_declare(
            names(queue.name),
            passive=passive,
            durable=queue.durable,
            exclusive=queue.exclusive,
            auto_delete=queue.auto_delete,
            arguments=arguments,
        ),
    )
