"""The message that is being handled, for log lines and for what is published meanwhile.

One context variable holds the way to it; what a log line needs of it is read only when a line is logged.
"""

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol

import structlog

from .message import Message
from .shown import shown


class Carrier(Protocol):
    """Has the message that is being handled, and makes it only when it is asked for."""

    @property
    def message(self) -> Message: ...


current: ContextVar[Carrier | None] = ContextVar("eventpipe_message", default=None)
"""What is being handled in this context."""


def log_context(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what identifies the message being handled to a log line; a structlog processor.

    Keys: ``message_id``, ``message_type``, ``queue``, ``attempt``, ``correlation_id``. What the line has already wins.
    """
    carrier = current.get()
    if carrier is not None:
        message = carrier.message
        line.setdefault("message_id", shown(message.id))
        line.setdefault("message_type", shown(message.type))
        line.setdefault("queue", message.queue)
        line.setdefault("attempt", message.attempt)
        line.setdefault("correlation_id", shown(message.correlation_id))
    return line


def configure_unless_configured() -> None:
    """Put ``log_context`` into structlog's defaults, unless the application has configured structlog itself."""
    if not structlog.is_configured():
        structlog.configure(processors=[log_context, *structlog.get_config()["processors"]])
