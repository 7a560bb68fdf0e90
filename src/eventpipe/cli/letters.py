"""Dead letters on a terminal, or as JSON. Whatever others chose is escaped first."""

import base64
import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import rich
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..message import DeadMessage
from ..shown import shown

LONG = 4_000
"""Characters of a body or a traceback that are shown; ``--json`` has them all."""


def as_table(letters: list[DeadMessage]) -> None:
    """Print one line for each."""
    table = Table("id", "died", "attempt", "reason", "exception", "key", "bytes")
    for dead in letters:
        message = dead.message
        cells = (message.id, _age(dead.died), dead.attempt, dead.reason, dead.error_type or "", message.key)
        table.add_row(*(_safe(cell, 60) for cell in cells), str(len(message.body)))
    if letters:
        rich.print(table)
    rich.print(f"{len(letters)} dead letter{'' if len(letters) == 1 else 's'}")


def as_story(letters: list[DeadMessage]) -> None:
    """Print everything that is known of each."""
    console = Console(soft_wrap=True)
    for dead in letters:
        for line in _story(dead):
            console.print(line)
    if not letters:
        console.print("0 dead letters")


def as_json(letters: list[DeadMessage]) -> None:
    """Print one JSON object a line; a body that is no text is in base64 (RFC 4648)."""
    for dead in letters:
        typer.echo(json.dumps(_plain(dead), default=repr))


def _story(dead: DeadMessage) -> Iterator[Text]:
    message = dead.message
    properties = message.properties
    kind = ", ".join(filter(None, (properties.type, properties.content_type)))
    came = f"exchange {message.exchange!r} with key {message.key!r}" if message.exchange else "the queue itself"
    yield Text.assemble(("dead letter ", "bold"), _safe(message.id))
    for name, value in (
        ("queue", f"{dead.queue} (lies in {message.queue})"),
        ("reason", dead.reason),
        ("died", _moment(dead.died)),
        ("handler", dead.handler),
        ("published", f"{_moment(message.timestamp)}, to {came}"),
        ("type", kind),
        ("correlation", properties.correlation_id or ""),
    ):
        if value:
            yield Text.assemble((f"  {name:<12}", "dim"), _safe(value))
    yield from _attempts(dead)
    if dead.traceback:
        yield Text("  traceback", style="dim")
        yield from _lines(dead.traceback[-LONG:])
    yield Text("  headers", style="dim")
    yield from _lines("\n".join(f"{name}: {value!r}" for name, value in _own(dead.message.headers.items())))
    yield Text(f"  body, {len(message.body)} bytes", style="dim")
    yield from _body(message.body)


def _attempts(dead: DeadMessage) -> Iterator[Text]:
    yield Text("  attempts", style="dim")
    for one in dead.history:
        yield Text(f"    {one.attempt}  {_moment(one.at)}  ").append(_safe(one.error))
    last = dead.reason if dead.error_type is None else f"{dead.error_type}: {dead.error}"
    yield Text(f"    {dead.attempt}  {_moment(dead.died)}  ").append(_safe(last))


def _body(body: bytes) -> Iterator[Text]:
    try:
        pretty = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        pretty = ""
    if pretty:
        yield from _lines(pretty[:LONG])
    raw = repr(body[:LONG])
    yield Text(f"    raw {raw}{'…' if len(body) > LONG else ''}")


def _lines(text: str) -> Iterator[Text]:
    """Escape line by line: the lines are ours, what is in them is not."""
    for line in text.split("\n"):
        yield Text("    ").append(_safe(line, LONG))


def _own(headers: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Leave out what is told above."""
    told = {"eventpipe-traceback", "eventpipe-history", "eventpipe-error", "eventpipe-reason"}
    return ((name, value) for name, value in headers if name not in told)


def _safe(value: Any, longest: int = 300) -> Text:
    return Text(shown(str(value), longest))


def _age(moment: float | None) -> str:
    if moment is None:
        return "?"
    passed = max(0.0, time.time() - moment)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if passed >= size:
            return f"{passed / size:.0f}{unit} ago"
    return f"{passed:.0f}s ago"


def _moment(moment: float | None) -> str:
    if moment is None:
        return "at a time that nobody noted"
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC ({_age(moment)})"
    except (OverflowError, ValueError, OSError):
        return f"at {moment} s"


def _plain(dead: DeadMessage) -> dict[str, Any]:
    message = dead.message
    try:
        body = {"body": message.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(message.body).decode()}
    return {
        "id": message.id,
        "queue": dead.queue,
        "in": message.queue,
        "reason": dead.reason,
        "attempt": dead.attempt,
        "died": dead.died,
        "first_tried": dead.first_tried,
        "handler": dead.handler,
        "error_type": dead.error_type,
        "error": dead.error,
        "traceback": dead.traceback,
        "history": [{"attempt": one.attempt, "at": one.at, "error": one.error} for one in dead.history],
        "exchange": message.exchange,
        "key": message.key,
        "type": message.properties.type,
        "headers": dict(message.headers),
        **body,
    }
