"""Whether a message matches a binding: RabbitMQ's rules for each kind of exchange, as pure functions."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ...routing import Binding


def matches(binding: Binding, key: str, headers: Mapping[str, Any]) -> bool:
    """Tell whether the binding's exchange passes on a message with this key and these headers."""
    match binding.source.kind:
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
    """Match a routing key against a binding key: ``*`` is one word, ``#`` is any number of words."""
    words = key.split(".") if key else []
    # possible[i]: the pattern so far can match the first i words
    possible = [True] + [False] * len(words)
    for part in pattern.split(".") if pattern else []:
        if part == "#":
            first = possible.index(True) if True in possible else len(possible)
            possible = [index >= first for index in range(len(possible))]
        else:
            possible = [False] + [before and part in ("*", word) for before, word in zip(possible, words, strict=False)]
    return possible[-1]


def headers_match(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Match headers against a headers binding; ``x-match`` is all or any, other ``x-`` arguments don't count."""
    wanted = {name: value for name, value in arguments.items() if not name.startswith("x-")}
    hits = [name in headers and (value is None or headers[name] == value) for name, value in wanted.items()]
    return any(hits) if arguments.get("x-match") == "any" else all(hits)
