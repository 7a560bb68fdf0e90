"""``eventpipe dead``: list, show, replay, park and drop dead letters."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, NamedTuple

import typer

from ..deadletters import DeadLetters
from ..errors import ConfigurationError
from ..message import DeadMessage
from ..pipe import URL_VARIABLE, EventPipe
from ..where import Where
from .failing import errors
from .letters import as_json, as_story, as_table

app = typer.Typer(no_args_is_help=True, help="Look at dead letters, and have them handled again, parked, or dropped.")

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="The consumer's queue, or eventpipe.undeliverable.")]
Url = Annotated[str | None, typer.Option(envvar=URL_VARIABLE, help="The broker, e.g. amqp://localhost")]
Id = Annotated[str | None, typer.Option(help="Its message id.")]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Part of its reason.")]
Raised = Annotated[str | None, typer.Option("--exception", metavar="TEXT", help="Part of its exception's type.")]
Key = Annotated[str | None, typer.Option(metavar="PATTERN", help="Its routing key; * stands for any text.")]
Header = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header of it; repeatable.")]
Older = Annotated[str | None, typer.Option(metavar="AGE", help="Died this long ago or longer: 90s, 10m, 2h, 3d.")]
Newer = Annotated[str | None, typer.Option(metavar="AGE", help="Died less long ago than this.")]
Parked = Annotated[bool, typer.Option("--parked", help="The parked ones instead.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many, the first ones.")]
Rate = Annotated[float | None, typer.Option(help="At most so many per second.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the ones that are meant.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


class Call(NamedTuple):
    """What a command was given."""

    url: str | None
    queue: str
    where: Where
    limit: int | None
    parked: bool
    json: bool
    rate: float | None = None


Move = Callable[[DeadLetters, Call], Awaitable[int]]


def looking(name: str, text: str, limit: int, show: Callable[[list[DeadMessage]], None]) -> None:
    """Make a command that only looks."""

    @app.command(name, help=text)
    def command(  # noqa: PLR0913  each is an option of the command
        queue: Name,
        *,
        url: Url = None,
        id: Id = None,
        reason: Reason = None,
        exception: Raised = None,
        key: Key = None,
        header: Header = None,
        older: Older = None,
        newer: Newer = None,
        limit: Limit = limit,
        parked: Parked = False,
        json: Json = False,
    ) -> None:
        with errors():
            where = condition(
                id=id, reason=reason, exception=exception, key=key, header=header, older=older, newer=newer
            )
            found = asyncio.run(_found(Call(url, queue, where, limit, parked, json)))
        (as_json if json else show)(found)


def moving(name: str, done: str, text: str, move: Move) -> None:
    """Make a command that moves what is meant, and says how many it ``done``."""

    @app.command(name, help=text)
    def command(  # noqa: PLR0913  each is an option of the command
        queue: Name,
        *,
        url: Url = None,
        id: Id = None,
        reason: Reason = None,
        exception: Raised = None,
        key: Key = None,
        header: Header = None,
        older: Older = None,
        newer: Newer = None,
        limit: Limit = None,
        rate: Rate = None,
        parked: Parked = False,
        dry_run: DryRun = False,
        json: Json = False,
        yes: Yes = False,
    ) -> None:
        with errors():
            where = condition(
                id=id, reason=reason, exception=exception, key=key, header=header, older=older, newer=newer
            )
            call = Call(url, queue, where, limit, parked, json, rate)
            if dry_run:
                (as_json if json else as_table)(asyncio.run(_found(call)))
                return
            if name == "drop" and not yes:
                typer.confirm(f"Remove dead letters of {queue} for ever?", abort=True, err=True)
            count = asyncio.run(_moved(call, move))
        typer.echo(f'{{"{done}": {count}}}' if json else f"{count} {done}")


looking("list", "List dead letters, the oldest first, with what became undeliverable.", 50, as_table)
looking("show", "Tell the whole story of dead letters: the first one's, unless told otherwise.", 1, as_story)
moving(
    "replay",
    "replayed",
    "Have dead letters handled again by their queue's consumer, each as a first attempt with the same id.",
    lambda letters, call: letters.replay(call.where, limit=call.limit, rate=call.rate),
)
moving(
    "park",
    "parked",
    "Move dead letters to QUEUE.parked, out of the way; --parked looks at them there.",
    lambda letters, call: letters.park(call.where, limit=call.limit, rate=call.rate),
)
moving(
    "drop",
    "dropped",
    "Remove dead letters for ever.",
    lambda letters, call: letters.drop(call.where, limit=call.limit, rate=call.rate),
)


def condition(
    id: str | None,
    reason: str | None,
    exception: str | None,
    key: str | None,
    header: list[str] | None,
    older: str | None,
    newer: str | None,
) -> Where:
    """Make the condition of what a command was given. Raises ``ConfigurationError``."""
    headers: dict[str, str] = {}
    for one in header or ():
        name, separator, value = one.partition("=")
        if not separator:
            raise ConfigurationError(f"--header {one!r}: write NAME=VALUE")
        headers[name] = value
    return Where(
        id=id,
        reason=reason,
        exception=exception,
        key=key,
        headers=headers,
        older=None if older is None else seconds(older),
        newer=None if newer is None else seconds(newer),
    )


def seconds(age: str) -> float:
    """Read an age such as ``90s``, ``10m``, ``2h`` or ``3d``. Raises ``ConfigurationError``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", age.strip())
    if found is None:
        raise ConfigurationError(f"age {age!r}: write a number with s, m, h or d, for example 90s, 10m, 2h, 3d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


async def _found(call: Call) -> list[DeadMessage]:
    async with EventPipe(call.url, name="eventpipe dead") as pipe:
        letters = pipe.dead_letters(call.queue, parked=call.parked)
        async with aclosing(letters.browse(call.where, limit=call.limit)) as found:
            return [dead async for dead in found]


async def _moved(call: Call, move: Move) -> int:
    async with EventPipe(call.url, name="eventpipe dead") as pipe:
        return await move(pipe.dead_letters(call.queue, parked=call.parked), call)
