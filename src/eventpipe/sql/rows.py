"""A message as a row of the outbox, and back."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ..errors import InvalidMessage
from ..message import Properties
from ..transports.base import Outgoing

_SHORT = 255


def to_row(outgoing: Outgoing, *, delay: float, ordering: str | None, now: float) -> dict[str, Any]:
    """Make the row of a message. Raises ``InvalidMessage`` for what JSON or the table can't hold."""
    if ordering is not None and (not isinstance(ordering, str) or not 1 <= len(ordering) <= _SHORT):
        raise InvalidMessage(f"ordering={ordering!r}: must be text of 1 to {_SHORT} characters")
    properties = asdict(outgoing.properties) | {"headers": dict(outgoing.properties.headers)}
    try:
        json.dumps(properties)
    except (TypeError, ValueError) as error:
        raise InvalidMessage(f"headers {properties['headers']!r} can't be kept in an outbox: {error}") from error
    return {
        "id": outgoing.properties.message_id,
        "ordering": ordering,
        "exchange": outgoing.exchange,
        "routing_key": outgoing.key,
        "mandatory": outgoing.mandatory,
        "properties": {name: value for name, value in properties.items() if value is not None},
        "body": outgoing.body,
        "delay": delay,
        "created_at": moment(now),
    }


def to_outgoing(row: Any) -> Outgoing:
    """Make the message of a row."""
    return Outgoing(row.exchange, row.routing_key, row.body, Properties(**row.properties), row.mandatory)


def delay_of(row: Any, *, now: float) -> float:
    """Give what is left of a row's delay, in seconds."""
    if not row.delay:
        return 0.0
    created = row.created_at if row.created_at.tzinfo else row.created_at.replace(tzinfo=UTC)  # SQLite keeps no zone
    return float(max(0.0, created.timestamp() + row.delay - now))


def moment(seconds: float) -> datetime:
    """Give a moment, in seconds since 1970, as the tables have it."""
    return datetime.fromtimestamp(seconds, UTC)
