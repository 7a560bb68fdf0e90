"""The message that is being handled, for log lines and for what is published meanwhile.

One context variable holds the message itself; what a log line needs of it is read only when a line is logged.
"""

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

from .message import Message

current: ContextVar[Message | None] = ContextVar("eventpipe_message", default=None)
"""The message whose handler runs in this context."""


def log_context(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what identifies the message being handled to a log line; a structlog processor.

    Keys: ``message_id``, ``message_type``, ``queue``, ``attempt``, ``correlation_id``. What the line has already wins.
    """
    message = current.get()
    if message is not None:
        line.setdefault("message_id", message.id)
        line.setdefault("message_type", message.type)
        line.setdefault("queue", message.queue)
        line.setdefault("attempt", message.attempt)
        line.setdefault("correlation_id", message.correlation_id)
    return line


def configure_unless_configured() -> None:
    """Put ``log_context`` into structlog's defaults, unless the application has configured structlog itself."""
    if not structlog.is_configured():
        structlog.configure(processors=[log_context, *structlog.get_config()["processors"]])
