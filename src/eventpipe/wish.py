"""What a publisher, or one publish, asks for; and what AMQP can't carry of it."""

import datetime as dt
import decimal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .copies import HEADER_BUDGET, header_size
from .errors import InvalidMessage
from .message import NO_HEADERS, no_headers
from .retry import MAX_DELAY

PUBLISH_TIMEOUT = 5.0
"""Seconds until a publish without a verdict fails, unless said otherwise."""

SHORT = 255
"""Bytes of an AMQP short string: a routing key, an id."""

_HEADER_NAME = 128  # bytes; AMQP 0-9-1 allows no longer field names
_HEADER_TYPES = (type(None), int, float, str, bytes, dt.datetime, decimal.Decimal)
_HEADER_DEPTH = 16  # deeper than anybody means, and far from a decoder's recursion limit
_YEAR = 31_536_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a publisher is declared with, and what one publish may override. Times are in seconds."""

    key: Any = None
    id: Any = None
    headers: Mapping[str, Any] = field(default_factory=no_headers)
    priority: int | None = None
    expires: float | None = None
    delay: float = 0.0
    timeout: float = PUBLISH_TIMEOUT

    def check(self) -> None:
        """Refuse what AMQP or eventpipe can't carry. Raises ``InvalidMessage``."""
        _check_number("priority", self.priority, 0, 255, "a whole number")
        _check_number(
            "expires", self.expires, 0, 4_294_967, "seconds"
        )  # the broker's own limit: 2**32 - 1 milliseconds
        _check_number("delay", self.delay, 0, MAX_DELAY, "seconds")
        _check_number("timeout", self.timeout, 0, _YEAR, "seconds")
        if self.priority is not None and not isinstance(self.priority, int):
            raise InvalidMessage(f"priority={self.priority!r}: must be a whole number between 0 and 255")
        if self.headers is not NO_HEADERS:
            check_headers(self.headers)


def check_headers(headers: Mapping[str, Any]) -> None:
    """Refuse headers that AMQP can't carry. Raises ``InvalidMessage``."""
    if not isinstance(headers, Mapping):
        raise InvalidMessage(f"headers={headers!r}: must be a mapping of names to values")
    for name, value in headers.items():
        _check_header_name(name)
        _check_value(name, value)
    if header_size(headers) > HEADER_BUDGET:
        raise InvalidMessage(f"headers of about {header_size(headers)} bytes: at most {HEADER_BUDGET} fit a frame")


def _check_value(name: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, Mapping):
        for key in value:
            _check_header_name(key)
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        _check_scalar(name, value)
    elif depth == _HEADER_DEPTH:
        raise InvalidMessage(f"header {name!r} is nested more than {_HEADER_DEPTH} deep")
    else:
        for one in value:
            _check_value(name, one, depth + 1)


def _check_scalar(name: str, value: Any) -> None:
    if not isinstance(value, _HEADER_TYPES):
        raise InvalidMessage(f"header {name!r}: AMQP has no {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidMessage(f"header {name!r}: {value} does not fit 64 bits")
    if isinstance(value, str):
        _check_text(name, value)


def _check_header_name(name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= _HEADER_NAME:
        raise InvalidMessage(f"header name {str(name)[:60]!r}: must be text of 1 to {_HEADER_NAME} bytes")


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"header {name!r} is not UTF-8 text") from None


def _check_number(name: str, value: Any, low: float, high: float, unit: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidMessage(f"{name}={value!r}: must be {unit} between {low} and {high}")
