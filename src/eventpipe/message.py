"""What a message is: AMQP properties, header names, and the read-only view that handlers get."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

PREFIX = "eventpipe-"
ATTEMPT = "eventpipe-attempt"
"""Which handling this is, from 1; set on retry copies only."""
TIME = "eventpipe-time"
"""When the message was published, in milliseconds since 1970 (AMQP's own timestamp has seconds only)."""
EXPIRES = "eventpipe-expires"
"""When the message stops being worth handling, in milliseconds since 1970."""
SUSPECT = "eventpipe-suspect"
"""Set on the copy of a message that may have killed its process: it is handled alone."""
EXCHANGE = "eventpipe-exchange"
KEY = "eventpipe-key"
"""Where a copy, or a delayed message, was published first."""
ORIGINAL = "eventpipe-original-"
"""Prefix under which copies keep ``user_id`` and ``expiration``, which the broker would act upon."""

NO_HEADERS: Mapping[str, Any] = MappingProxyType({})


def no_headers() -> Mapping[str, Any]:
    """Give the empty headers that all messages without any share."""
    return NO_HEADERS


@dataclass(slots=True, kw_only=True)
class Properties:
    """The basic properties of an AMQP 0-9-1 message, as they are on the wire; to be read, not changed.

    ``expiration`` is text in milliseconds and ``timestamp`` is in whole seconds, as AMQP has them.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] = field(default_factory=no_headers)
    delivery_mode: int | None = 2
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as its handler sees it: read-only, and with no way to settle it.

    How the handler ends is the outcome: it returns, raises ``Reject`` or ``RetryAfter``, or fails.
    ``attempt`` counts handlings from 1, over all processes. ``id_generated`` tells that a foreign publisher gave no id
    and that this one holds for this delivery only.
    """

    id: str
    body: bytes
    properties: Properties = field(default_factory=Properties)
    queue: str = ""
    exchange: str = ""
    key: str = ""
    attempt: int = 1
    redelivered: bool = False
    id_generated: bool = False

    @property
    def headers(self) -> Mapping[str, Any]:
        return self.properties.headers

    @property
    def type(self) -> str | None:
        return self.properties.type

    @property
    def correlation_id(self) -> str:
        """The id of the message that began this chain; a root message's is its own id."""
        return self.properties.correlation_id or self.id

    @property
    def reply_to(self) -> str | None:
        return self.properties.reply_to

    @property
    def priority(self) -> int | None:
        return self.properties.priority

    @property
    def timestamp(self) -> float | None:
        """When it was published, in seconds since 1970; ``None`` when its publisher did not say."""
        milliseconds = self.headers.get(TIME)
        if isinstance(milliseconds, int):
            return milliseconds / 1000
        return self.properties.timestamp


def attempt_of(headers: Mapping[str, Any], attempts: int) -> int:
    """Read which handling this is, clamped to [1, attempts]: a forger can only shorten its own message's life."""
    value = headers.get(ATTEMPT, 1)
    if not isinstance(value, int):
        return 1
    return max(1, min(value, attempts))


def expired(properties: Properties, now: float) -> bool:
    """Tell whether the message's absolute expiry lies before ``now``, in seconds since 1970."""
    deadline = properties.headers.get(EXPIRES)
    return isinstance(deadline, int) and deadline <= now * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """One handling that failed; ``at`` is in seconds since 1970."""

    attempt: int
    at: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadMessage:
    """A message that was given up on: where it came from and why.

    ``message`` has the untouched body. ``reason`` is eventpipe's or the broker's word, or the text of ``Reject``;
    ``error_type``, ``error`` and ``traceback`` describe the last exception, if there was one; ``history`` is of the
    attempts before, the last ten at most. Times are in seconds since 1970.
    """

    message: Message
    queue: str
    reason: str
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    attempt: int = 1
    handler: str = ""
    first_tried: float | None = None
    died: float | None = None
    history: tuple[FailedAttempt, ...] = ()
