"""Whether a message matches a binding: RabbitMQ's rules for each kind of exchange, as pure functions."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ...routing import Binding


def matches(binding: Binding, kind: str, key: str, headers: Mapping[str, Any]) -> bool:
    """Tell whether an exchange of this kind passes on a message with this key and these headers."""
    match kind:
        case "fanout":
            return True
        case "direct":
            return binding.key == key
        case "topic":
            return topic_matches(binding.key, key)
        case _:
            return headers_match(binding.arguments, headers)


@lru_cache(maxsize=10_000)
def topic_matches(pattern: str, key: str) -> bool:
    """Match a routing key against a binding key: ``*`` is one word, ``#`` is any number of words.

    Words lie between dots and may be empty; only the empty key has no words at all.
    """
    words = _words(key)
    # possible[i]: the pattern so far can match the first i words
    possible = [True] + [False] * len(words)
    for part in _words(pattern):
        if part == "#":
            first = possible.index(True) if True in possible else len(possible)
            possible = [index >= first for index in range(len(possible))]
        else:
            possible = [False] + [before and part in ("*", word) for before, word in zip(possible, words, strict=False)]
    return possible[-1]


def headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Match headers against a headers binding; a wanted ``None`` is met by any value.

    Arguments that begin with ``x-`` count only where ``x-match`` is ``all-with-x`` or ``any-with-x``.
    """
    how = arguments.get("x-match", "all")
    with_x = how in ("all-with-x", "any-with-x")
    wanted = {
        name: value for name, value in arguments.items() if name != "x-match" and (with_x or not name.startswith("x-"))
    }
    hits = [name in headers and (value is None or _same(headers[name], value)) for name, value in wanted.items()]
    return any(hits) if how in ("any", "any-with-x") else all(hits)


def _words(text: str) -> list[str]:
    return text.split(".") if text else []


def _same(one: object, other: object) -> bool:
    """Compare as AMQP does, where true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
