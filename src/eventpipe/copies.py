"""What a copy of a message carries: when it is retried, set aside as a suspect, or dead-lettered.

Body, id and properties stay. What the broker would obey or believe on the way is taken off or moved
(broker-side ``CC`` routing, death counters, a foreign ``user_id``, an ``expiration`` that would cut a delay short).
"""

import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from .message import (
    ATTEMPT,
    EXCHANGE,
    EXPIRES,
    KEY,
    ORIGINAL,
    PREFIX,
    SUSPECT,
    TIME,
    DeadMessage,
    FailedAttempt,
    Message,
    Properties,
    attempt_of,
)

REASON = PREFIX + "reason"
ERROR_TYPE = PREFIX + "error-type"
ERROR = PREFIX + "error"
TRACEBACK = PREFIX + "traceback"
DEAD_AT = PREFIX + "dead-at"
QUEUE = PREFIX + "queue"
HANDLER = PREFIX + "handler"
FIRST_TRIED = PREFIX + "first-tried-at"
CUT = PREFIX + "cut-header"

HEADER_BUDGET = 100_000
"""Bytes: all headers of a copy. A header frame has to fit RabbitMQ's default ``frame_max`` of 131,072 bytes."""

HISTORY = PREFIX + "history"
"""How the attempts before ended: a list of tables with ``attempt``, ``at`` (milliseconds since 1970) and ``error``."""

_TRIED = (ATTEMPT, SUSPECT, EXPIRES, FIRST_TRIED, HISTORY)
_DEAD = (REASON, QUEUE, HANDLER, DEAD_AT, ERROR_TYPE, ERROR, TRACEBACK)
_REMEMBERED = 10  # attempts
_LINE = 200  # characters of how an attempt ended
_DROPPED = ("CC", "BCC", "x-delivery-count", "x-death")
_TEXT = 2_000  # characters of an exception's text
_TRACEBACK = 8_000  # characters of its traceback, from the end, where the cause is


def retry_copy(message: Message, *, attempt: int, now: float, failure: str | None = None) -> Properties:
    """Give the properties of the copy that will be handled as the ``attempt``-th; ``now`` is in seconds since 1970.

    ``failure`` says how this attempt ended.
    """
    added = {**_origin(message), QUEUE: message.queue, ATTEMPT: attempt, SUSPECT: None}
    return _copy(message, added | _history(message, failure, now), now=now)


def suspect_copy(message: Message, *, attempt: int, now: float, failure: str | None = None) -> Properties:
    """Give the properties of a copy that must be handled alone."""
    added = {**_origin(message), ATTEMPT: attempt, SUSPECT: True}
    return _copy(message, added | _history(message, failure, now), now=now)


def replay_copy(message: Message) -> Properties:
    """Give the properties of a dead letter that is to be handled again, as if for the first time.

    Whoever replays it wants it handled: it does not expire any more.
    """
    return _copy(message, {**_origin(message), **dict.fromkeys(_TRIED + _DEAD)})


def dead_copy(dead: DeadMessage, *, handler: str, now: float) -> Properties:
    """Give the properties of a dead letter: why, where from, and after how many attempts."""
    message = dead.message
    added = {
        REASON: dead.reason[:_TEXT],
        **_origin(message),
        QUEUE: dead.queue,
        HANDLER: handler,
        ATTEMPT: dead.attempt,
        DEAD_AT: round(now * 1000),
        ERROR_TYPE: dead.error_type,
        ERROR: dead.error,
        TRACEBACK: dead.traceback,
        EXPIRES: None,
        SUSPECT: None,
    }
    return _copy(message, added, now=now)


def parked_copy(dead: DeadMessage) -> Properties:
    """Give the properties of a dead letter that moves to another queue; why it died, only the broker may have said."""
    died = None if dead.died is None else round(dead.died * 1000)
    return _copy(dead.message, {REASON: dead.reason, QUEUE: dead.queue, DEAD_AT: died})


def describe(failure: BaseException) -> tuple[str, str, str]:
    """Describe an exception for a dead letter: its type, its text, and the end of its traceback."""
    lines = traceback.format_exception(failure)
    name = f"{type(failure).__module__}.{type(failure).__qualname__}"
    return name, str(failure)[:_TEXT], "".join(lines)[-_TRACEBACK:]


def read_dead(message: Message) -> DeadMessage:
    """Read a dead letter back, also one that the broker itself made (its reason is then in ``x-death``)."""
    headers = message.headers
    deaths = headers.get("x-death")
    by_broker = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
    when = by_broker.get("time")
    return DeadMessage(
        message=message,
        queue=str(headers.get(QUEUE) or by_broker.get("queue", "")),
        reason=str(headers.get(REASON) or by_broker.get("reason", "")),
        error_type=_text(headers.get(ERROR_TYPE)),
        error=_text(headers.get(ERROR)),
        traceback=_text(headers.get(TRACEBACK)),
        attempt=attempt_of(headers, sys.maxsize),
        handler=str(headers.get(HANDLER, "")),
        first_tried=_seconds(headers.get(FIRST_TRIED)),
        died=_seconds(headers.get(DEAD_AT)) or (when.timestamp() if isinstance(when, datetime) else None),
        history=tuple(_attempts(headers.get(HISTORY))),
    )


def _history(message: Message, failure: str | None, now: float) -> dict[str, Any]:
    """Add how this attempt ended to how the ones before did."""
    if failure is None:
        return {}
    known = message.headers.get(HISTORY)
    this = {"attempt": message.attempt, "at": round(now * 1000), "error": failure[:_LINE]}
    return {HISTORY: [*(known if isinstance(known, list) else []), this][-_REMEMBERED:]}


def _attempts(history: Any) -> Iterator[FailedAttempt]:
    """Read the history; whoever published the message may have written anything there."""
    for one in history if isinstance(history, list) else ():
        attempt, at = (one.get("attempt"), one.get("at")) if isinstance(one, Mapping) else (None, None)
        if isinstance(attempt, int) and isinstance(at, int):
            yield FailedAttempt(attempt=attempt, at=at / 1000, error=str(one.get("error", "")))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int) else None


def _copy(message: Message, added: Mapping[str, Any], *, now: float | None = None) -> Properties:
    old = message.properties
    headers = {name: value for name, value in old.headers.items() if not _dropped(name)}
    if now is not None:
        headers.setdefault(FIRST_TRIED, round(now * 1000))
    headers |= _moved(old)
    while header_size(headers) > HEADER_BUDGET:  # a frame that is too large would close the connection, for ever
        largest = max(headers, key=lambda name: header_size(headers[name]))
        del headers[largest]
        headers[CUT] = largest
    left = HEADER_BUDGET - header_size(headers)
    for name, value in added.items():
        headers.pop(name, None)
        if value is None:
            continue
        headers[name] = _cut(value, left) if isinstance(value, str) else value
        left -= header_size({name: headers[name]})
    return replace(old, headers=headers, message_id=message.id, user_id=None, expiration=None, delivery_mode=2)


def _origin(message: Message) -> dict[str, str]:
    """Keep where the message came from: a copy comes from elsewhere."""
    return {EXCHANGE: message.exchange, KEY: message.key}


def _moved(old: Properties) -> dict[str, Any]:
    """Keep what has to leave the properties: ``user_id``, and ``expiration`` with the moment at which it ends."""
    moved: dict[str, Any] = {}
    if old.user_id is not None:
        moved[ORIGINAL + "user-id"] = old.user_id
    if old.expiration is not None:
        moved[ORIGINAL + "expiration"] = old.expiration
        published = old.headers.get(TIME, old.timestamp and old.timestamp * 1000)
        if isinstance(published, int) and old.expiration.isdecimal() and EXPIRES not in old.headers:
            moved[EXPIRES] = published + int(old.expiration)
    return moved


def _cut(text: str, size: int) -> str:
    return text.encode(errors="backslashreplace")[: max(0, size)].decode(errors="ignore")


def _dropped(name: str) -> bool:
    return name in _DROPPED or name.startswith(("x-first-death-", "x-last-death-"))


def header_size(value: Any) -> int:
    """Estimate the bytes of a header value on the wire, from above."""
    if isinstance(value, Mapping):
        return 5 + sum(2 + 4 * len(str(name)) + header_size(one) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return 5 + sum(map(header_size, value))
    if isinstance(value, str):
        return 5 + len(value.encode(errors="replace"))
    return 5 + len(value) if isinstance(value, (bytes, bytearray)) else 20
