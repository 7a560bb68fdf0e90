"""What RabbitMQ writes into the headers of a message that a queue gave up, and how it sees that one goes in circles."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..base import Outgoing


def dead_letter(outgoing: Outgoing, *, queue: str, reason: str, now: float, arguments: Mapping[str, Any]) -> Outgoing:
    """Address a message to the dead-letter exchange in the queue's ``arguments``; ``now`` is in seconds since 1970."""
    headers = _with_death(outgoing, queue, reason, now)
    key = arguments.get("x-dead-letter-routing-key")
    if key is not None:
        headers.pop("CC", None)
    properties = replace(outgoing.properties, headers=headers, expiration=None)
    return Outgoing(
        arguments["x-dead-letter-exchange"],
        outgoing.key if key is None else key,
        outgoing.body,
        properties,
        mandatory=False,
    )


def in_circles(outgoing: Outgoing, queue: str) -> bool:
    """Tell whether a dead letter comes to a queue where it died before, with nobody having rejected it since."""
    since: list[Mapping[str, Any]] = []
    for death in _deaths(outgoing):
        since.append(death)
        if death["queue"] == queue:
            return all(one["reason"] != "rejected" for one in since)
    return False


def _with_death(outgoing: Outgoing, queue: str, reason: str, now: float) -> dict[str, Any]:
    """Add the ``x-death`` entry: one for each queue and reason, the latest first."""
    headers = dict(outgoing.properties.headers)
    deaths = _deaths(outgoing)
    same = [one for one in deaths if (one["queue"], one["reason"]) == (queue, reason)]
    entry = {
        "count": (same[0].get("count", 0) if same else 0) + 1,
        "reason": reason,
        "queue": queue,
        "time": dt.datetime.fromtimestamp(int(now), tz=dt.UTC),
        "exchange": outgoing.exchange,
        "routing-keys": [outgoing.key, *headers.get("CC", ())],
    }
    if outgoing.properties.expiration is not None:
        entry["original-expiration"] = outgoing.properties.expiration
    headers["x-death"] = [entry, *(one for one in deaths if one not in same)]
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    headers.setdefault("x-first-death-exchange", outgoing.exchange)
    return headers


def _deaths(outgoing: Outgoing) -> list[Mapping[str, Any]]:
    """Read the deaths so far; a publisher may have put anything under that name."""
    found = outgoing.properties.headers.get("x-death")
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, Mapping) and "queue" in one and "reason" in one]
