"""The least that a RabbitMQ user needs for a topology, as the patterns of ``rabbitmqctl set_permissions``.

What each operation asks for is in RabbitMQ's access control guide: declaring needs *configure*, publishing *write* on
the exchange, consuming *read* on the queue, binding *write* on the target and *read* on the source; a queue with a
dead-letter exchange *read* on itself and *write* on that exchange, an exchange with an alternate the same.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .routing import Exchange, Queue, Topology

DEFAULT = "amq.default"
"""What RabbitMQ's permissions and errors call the exchange without a name, which leads to every queue."""

RESERVED = "eventpipe\\..*"
"""The delay ladder: one for a virtual host, declared by whoever needs it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Three regular expressions; each matches whole names, and an empty one matches nothing but an empty name."""

    configure: str
    write: str
    read: str


def permissions(
    topology: Topology, *, publishes: Iterable[Exchange | Queue], consumes: Iterable[Queue], declares: bool = True
) -> Permissions:
    """Work out what an application needs that publishes to these targets and consumes these queues."""
    consumed = [one for queue in consumes for one in (queue, queue.suspects) if one is not None]
    targets = list(publishes)
    exchanges = {one.name for one in targets if isinstance(one, Exchange)}
    write, read, configure = set(exchanges), {queue.name for queue in consumed}, set[str]()
    if consumed or any(isinstance(one, Queue) for one in targets):
        write.add(DEFAULT)  # to queues: retries, dead letters, and publishers of a queue
    if declares:
        configure = {one.name for one in topology.exchanges if one.declare}
        configure |= {one.name for one in topology.queues if one.declare}
        for queue in topology.queues:
            exchange = queue.wire_arguments.get("x-dead-letter-exchange")
            if exchange is not None:
                read.add(queue.name)
                write.add(exchange or DEFAULT)
        for exchange in topology.exchanges:
            if exchange.alternate is not None:
                read.add(exchange.name)
                write.add(exchange.alternate.name)
        for binding, target, _ in topology.bindings:
            write.add(target)
            read.add(binding.source.name)
    ladder = [RESERVED] if topology.retried or targets else []
    returns = [f"{re.escape(name)}\\.(return|delayed)" for name in sorted({*topology.retried, *exchanges})]
    return Permissions(
        configure=_pattern(configure, [*ladder, *returns] if declares else []),
        write=_pattern(write, [*ladder, *(returns if declares else [])]),
        read=_pattern(read, [*ladder, *returns] if declares else []),
    )


def _pattern(names: set[str], more: list[str]) -> str:
    parts = [*map(re.escape, sorted(names)), *more]
    return f"^({'|'.join(parts)})$" if parts else "^$"
