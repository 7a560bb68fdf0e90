"""Typed event <-> bytes.

A body is decoded as what the *consumer* declared, never by a class name from the wire, and nothing but JSON and raw
bytes is ever read: no pickle, no YAML.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import pydantic
import pydantic_core

from .errors import ConfigurationError, EventPipeError, InvalidMessage

T = TypeVar("T")

JSON = "application/json"
BYTES = "application/octet-stream"
BATCH = "application/vnd.eventpipe.batch+json"
"""Several events in one message: the body is a JSON array of them."""

BODY_LIMIT = 16 * 1024 * 1024
"""The largest body, in bytes, that is published or handled unless the pipe says otherwise."""

_SHOWN = 1000  # characters of a validation error that go into a dead letter's reason


_BEGIN = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*(\][ \t\n\r]*)?")
_SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")


class Undecodable(EventPipeError):
    """A body that is not the declared event; it is dead-lettered, never retried."""


class Codec(Protocol[T]):
    """Turns events of one type into bodies and back."""

    content_type: str

    def encode(self, event: T, /) -> bytes:
        """Give the body of an event. Raises ``InvalidMessage``."""
        ...

    def decode(self, body: bytes, content_type: str | None, /) -> T:
        """Give the event of a body that claims to be ``content_type``. Raises ``Undecodable``."""
        ...

    def encode_many(self, events: Sequence[T], /) -> bytes:
        """Give the body of a batch. Raises ``InvalidMessage``."""
        ...

    def decode_many(self, body: bytes, /) -> list[T]:
        """Give the events of a batch, if each of them is one. Raises ``Undecodable``."""
        ...


class JsonCodec(Generic[T]):
    """JSON (RFC 8259), checked by pydantic on the way in and on the way out."""

    content_type = JSON

    def __init__(self, event_type: Any) -> None:
        self._many: pydantic.TypeAdapter[list[T]] | None = None
        self._type = event_type
        try:
            self._adapter: pydantic.TypeAdapter[T] = pydantic.TypeAdapter(event_type)
        except (pydantic.PydanticUserError, NameError) as error:
            raise ConfigurationError(
                f"{type_name(event_type)} is not a type that pydantic can check: {error}"
            ) from error

    def encode(self, event: T, /) -> bytes:
        try:
            return self._adapter.dump_json(event, warnings="error")
        except Exception as error:  # a user's serializer may raise anything
            raise InvalidMessage(f"{type(event).__name__} is not the event that was declared: {error}") from error

    def decode(self, body: bytes, content_type: str | None, /) -> T:
        if not is_json(content_type):
            raise Undecodable(f"content type {content_type!r} is not JSON")
        try:
            if b"NaN" in body or b"Infinity" in body:  # pydantic takes them, JSON has no such numbers
                pydantic_core.from_json(body, allow_inf_nan=False)
            return self._adapter.validate_json(body)
        except pydantic.ValidationError as error:
            raise Undecodable(_explain(error)) from error
        except Exception as error:  # a user's validator may raise anything
            raise Undecodable(f"{type(error).__name__}: {error}"[:_SHOWN]) from error

    def encode_many(self, events: Sequence[T], /) -> bytes:
        try:
            return self._list().dump_json(list(events), warnings="error")
        except Exception:  # a user's serializer may raise anything
            for event in events:
                self.encode(event)  # names the one that it is
            raise

    def decode_many(self, body: bytes, /) -> list[T]:
        try:
            if b"NaN" in body or b"Infinity" in body:
                pydantic_core.from_json(body, allow_inf_nan=False)
            return self._list().validate_json(body)
        except Exception as error:
            raise Undecodable(f"{type(error).__name__}: {error}"[:_SHOWN]) from error

    def _list(self) -> "pydantic.TypeAdapter[list[T]]":
        if self._many is None:  # made when it is needed: few types are ever packed
            self._many = pydantic.TypeAdapter(list[self._type])  # type: ignore[name-defined]
        return self._many


class BytesCodec:
    """Raw bodies, untouched, of whatever content type."""

    content_type = BYTES

    def encode(self, event: bytes, /) -> bytes:
        if not isinstance(event, bytes):
            raise InvalidMessage(f"{type(event).__name__} is not bytes")
        return event

    def decode(self, body: bytes, content_type: str | None, /) -> bytes:
        return body

    def encode_many(self, events: Sequence[bytes], /) -> bytes:
        raise InvalidMessage("raw bytes can't be packed: a batch is a JSON array")

    def decode_many(self, body: bytes, /) -> list[bytes]:
        return split(body)


def codec_for(event_type: Any) -> Codec[Any]:
    """Give the codec of a declared event type: raw for ``bytes``, else JSON."""
    return BytesCodec() if event_type is bytes else JsonCodec(event_type)


def split(body: bytes) -> list[bytes]:
    """Cut the JSON array of a batch into the bodies of its events, each as it stands there. Raises ``Undecodable``."""
    try:
        return _split(body.decode())
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"a batch that is not a JSON array: {error}"[:_SHOWN]) from error


def _split(text: str) -> list[bytes]:
    begin = _BEGIN.match(text)
    if begin is None:
        raise ValueError("no [ at its beginning")
    bodies: list[bytes] = []
    at, more = begin.end(), begin[1] is None
    while more:
        end = _DECODER.raw_decode(text, at)[1]
        bodies.append(text[at:end].encode())
        separator = _SEPARATOR.match(text, end)
        if separator is None:
            raise ValueError(f"neither a comma nor the end at character {end}")
        at, more = separator.end(), separator[1] == ","
    if at < len(text):
        raise ValueError(f"text after the array, at character {at}")
    return bodies


def _no_such_number(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


# Only where a value ends is asked: a number stays text, however long it is.
_DECODER = json.JSONDecoder(parse_constant=_no_such_number, parse_int=str, parse_float=str)


def is_json(content_type: str | None) -> bool:
    """Tell whether a content type means JSON; none means JSON too."""
    if content_type is None or content_type == JSON:
        return True
    plain = content_type.partition(";")[0].strip().lower()
    return plain in {"", JSON, "text/json"} or plain.endswith("+json")


def wire_type(event_type: Any) -> str:
    """Give the name that goes into AMQP's ``type``: the class's ``__event__`` if it has one, else its name."""
    return str(getattr(event_type, "__event__", None) or type_name(event_type))


def type_name(event_type: Any) -> str:
    """Give a type's plain name, also of ``list[A]`` or ``A | B``, which have none."""
    named = isinstance(event_type, type) and not hasattr(event_type, "__origin__")
    return event_type.__name__ if named else str(event_type)


def _explain(error: pydantic.ValidationError) -> str:
    lines = [
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(lines)[:_SHOWN]
