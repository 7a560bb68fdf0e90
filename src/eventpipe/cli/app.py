"""The commands: run, relay, topology, permissions, dead, version."""

import asyncio
import shlex
from collections.abc import Iterator
from typing import Annotated

import rich
import typer
from rich.table import Table

from ..errors import ConfigurationError
from ..pipe import EventPipe
from ..routing import Topology
from ..version import VERSION
from . import dead
from .failing import errors
from .loading import load_pipe
from .probes import Signs, beating, problem_of, serving
from .relaying import load_outbox, relay_until_told
from .supervisor import Plan, Supervisor

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Run and look at eventpipe applications.")
app.add_typer(dead.app, name="dead")

Target = Annotated[str, typer.Argument(metavar="MODULE:PIPE", help="Where the EventPipe is, e.g. feeds.service:pipe")]


@app.command()
def run(
    target: Target,
    workers: Annotated[int, typer.Option(min=1, help="How many worker processes.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(metavar="QUEUE", help="Consume this queue only; repeatable.")
    ] = None,
    drain: Annotated[float | None, typer.Option(min=0, help="Seconds that a shutdown may take.")] = None,
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /live and /ready there; a port alone is loopback's.")
    ] = None,
) -> None:
    """Consume until SIGTERM or Ctrl-C, then drain."""
    with errors():
        pipe = load_pipe(target)
        pipe.drain = pipe.drain if drain is None else drain
        if workers > 1 and pipe.in_memory:
            raise ConfigurationError("memory:// lives inside one process: use RabbitMQ for several workers")
        if workers == 1:
            signs = Signs(1)
            with serving(health, signs):
                asyncio.run(_run(pipe, only or [], signs))
            return
        plan = Plan(target=target, workers=workers, only=tuple(only or ()), drain=pipe.drain, health=health)
        code = asyncio.run(_supervise(plan))
    raise typer.Exit(code)


@app.command()
def relay(
    target: Annotated[str, typer.Argument(metavar="MODULE:OUTBOX", help="Where the Outbox is, e.g. shop.db:outbox")],
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /live and /ready there; a port alone is loopback's.")
    ] = None,
) -> None:
    """Publish what is committed to an outbox until SIGTERM or Ctrl-C. Several may run side by side."""
    with errors():
        signs = Signs(1)
        found = load_outbox(target)
        with serving(health, signs):
            asyncio.run(relay_until_told(found, signs))


@app.command()
def topology(
    target: Target, *, mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False
) -> None:
    """Show the exchanges, queues and bindings that a pipe declares."""
    with errors():
        found = load_pipe(target).topology
    if mermaid:
        typer.echo(found.mermaid())
        return
    for table in _tables(found):
        rich.print(table)
    if found.retried:
        rich.print("and the delay ladder that a RabbitMQ virtual host shares: eventpipe.delay.v1.00 to .19")


@app.command()
def permissions(target: Target, user: Annotated[str, typer.Option(help="For the command line.")] = "USER") -> None:
    """Show the least that the application's RabbitMQ user needs, as a command line."""
    with errors():
        found = load_pipe(target).permissions
    patterns = " ".join(shlex.quote(one) for one in (found.configure, found.write, found.read))
    typer.echo(f"rabbitmqctl set_permissions -p / {shlex.quote(user)} {patterns}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(VERSION)


async def _run(pipe: EventPipe, only: list[str], signs: Signs) -> None:
    async with beating(lambda: problem_of(pipe), lambda problem: signs.note(0, problem)):
        await pipe.run(*only)


async def _supervise(plan: Plan) -> int:
    return await Supervisor(plan).run()


def _tables(found: Topology) -> Iterator[Table]:
    exchanges = Table("exchange", "kind", "alternate", title="Exchanges")
    for exchange in found.exchanges:
        exchanges.add_row(exchange.name, exchange.kind, exchange.alternate.name if exchange.alternate else "")
    queues = Table("queue", "kind", "arguments", title="Queues")
    for queue in found.queues:
        given = {name: value for name, value in queue.wire_arguments.items() if name != "x-queue-type"}
        queues.add_row(queue.name, queue.kind, "\n".join(f"{name}={value}" for name, value in given.items()))
    bindings = Table("exchange", "key", "target", title="Bindings")
    for binding, target, kind in found.bindings:
        arguments = " ".join(f"{name}={value}" for name, value in binding.arguments.items())
        bindings.add_row(binding.source.name, binding.key or arguments, f"{kind} {target}")
    yield from (table for table in (exchanges, queues, bindings) if table.row_count)
