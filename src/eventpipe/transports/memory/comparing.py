"""Whether an exchange or a queue is what somebody declares again."""

from typing import Any

from ...errors import ConfigurationError, TopologyMismatch
from ...routing import Exchange, Queue

_NOT_YET = ("x-single-active-consumer", "x-max-priority")


def check_possible(queue: Queue) -> None:
    """Refuse what the memory broker does not have. Raises ``ConfigurationError``."""
    for argument in _NOT_YET:
        if queue.wire_arguments.get(argument):
            raise ConfigurationError(
                f"queue {queue.name!r}: the memory broker does not have {argument} yet; use RabbitMQ for it"
            )


def compare_exchanges(declared: Exchange, existing: Exchange) -> None:
    """Raise ``TopologyMismatch`` for the first argument that differs."""
    _compare("exchange", declared.name, _exchange_facts(declared), _exchange_facts(existing))


def compare_queues(declared: Queue, existing: Queue) -> None:
    """Raise ``TopologyMismatch`` for the first argument that differs."""
    _compare("queue", declared.name, _queue_facts(declared), _queue_facts(existing))


def _exchange_facts(exchange: Exchange) -> dict[str, Any]:
    return {
        "type": exchange.kind,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        **exchange.wire_arguments,
    }


def _queue_facts(queue: Queue) -> dict[str, Any]:
    return {
        "durable": queue.durable,
        "exclusive": queue.exclusive,
        "auto_delete": queue.auto_delete,
        **queue.wire_arguments,
    }


def _compare(kind: str, name: str, declared: dict[str, Any], existing: dict[str, Any]) -> None:
    for argument in {**declared, **existing}:
        mine, theirs = _spell(declared.get(argument)), _spell(existing.get(argument))
        if mine != theirs:
            raise TopologyMismatch(kind=kind, name=name, argument=argument, declared=mine, existing=theirs)


def _spell(value: object) -> str:
    """Write a value as RabbitMQ's error texts do."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
