"""Drive the service with a year of real departures, show how it goes, and check every count."""

import asyncio
import logging
import os
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import app as service
import httpx
import structlog
import typer
from events import Departure, Outcome, predict, read
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

REQUESTS = 2_000  # departures that arrive as HTTP requests
INLINE = 300  # requests that do the work inline, for comparison
CHUNK = 5_000  # departures per publish_many
PATIENCE = 20.0  # seconds without any progress until the demo gives up

console = Console()


def main(
    url: Annotated[str, typer.Option(help="The broker: memory:// or amqp://host")] = "memory://",
    events: Annotated[int | None, typer.Option(help="Take the first so many departures only")] = None,
) -> None:
    """Hand a year of departures off to three consumers, and check the outcome."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    os.environ["EVENTPIPE_URL"] = url or "memory://"
    service.Run.id = secrets.token_hex(4)
    departures = list(read(service.Run.id, events))
    expected = predict(departures)
    console.print(f"{len(departures):,} departures to {url.partition('@')[2] or url}")
    raise typer.Exit(asyncio.run(drive(departures, expected)))


async def drive(departures: Sequence[Departure], expected: Outcome) -> int:
    """Send everything, wait for the end, show the table; give the exit code."""
    async with service.pipe, service.pipe.consuming():
        latencies = {"inline": await by_requests("/inline", departures[:INLINE])}
        begin = time.perf_counter()
        latencies["handed off"] = await by_requests("/departures", departures[:REQUESTS])
        with Progress(console=console, disable=not console.is_terminal) as progress:
            published = progress.add_task("published", total=len(departures))
            counted = progress.add_task("counted", total=len(departures))
            watching = asyncio.create_task(watch(lambda: progress.update(counted, completed=handled())))
            progress.update(published, completed=min(REQUESTS, len(departures)))
            for chunk in chunks(departures[REQUESTS:]):
                await service.departed.publish_many(chunk, timeout=30.0)
                progress.update(published, advance=len(chunk))
            await until_done(expected)
            watching.cancel()
        seconds = time.perf_counter() - begin
        show(latencies, len(departures), seconds)
    differences = service.Run.seen.differences(expected)
    for line in differences:
        console.print(f"[red]wrong[/red] {line}")
    if not differences:
        console.print("every count is the same as that of a plain loop over the file")
    return 1 if differences else 0


async def by_requests(path: str, departures: Sequence[Departure]) -> list[float]:
    """Post departures to the web app, one after the other; give the latencies in seconds."""
    latencies: list[float] = []
    transport = httpx.ASGITransport(app=service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        for departure in departures:
            begin = time.perf_counter()
            (await client.post(path, content=departure.model_dump_json())).raise_for_status()
            latencies.append(time.perf_counter() - begin)
    return latencies


def chunks(departures: Sequence[Departure]) -> list[Sequence[Departure]]:
    """Cut the rest into what is published at once."""
    return [departures[start : start + CHUNK] for start in range(0, len(departures), CHUNK)]


def handled() -> int:
    """Tell how many departures the fast consumer has counted."""
    return service.Run.seen.by_carrier.total()


async def watch(show_progress: Callable[[], None]) -> None:
    """Keep the progress up to date; a line now and then where there is no terminal."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.2)
        show_progress()
        if not console.is_terminal and time.monotonic() - last > 5.0:
            last = time.monotonic()
            console.print(
                f"counted {handled():,}, notified {service.Run.seen.late:,}, rebooked {service.Run.seen.rebooked:,}"
            )


async def until_done(expected: Outcome) -> None:
    """Wait until everything came out as expected, or until nothing moves any more."""
    moved, before = time.monotonic(), -1
    while service.Run.seen.differences(expected) and time.monotonic() - moved < PATIENCE:
        await asyncio.sleep(0.1)
        seen = service.Run.seen
        now = handled() + seen.late + seen.rebooked + seen.retried + seen.dead
        moved, before = (time.monotonic(), now) if now != before else (moved, before)


def show(latencies: dict[str, list[float]], events: int, seconds: float) -> None:
    """Print the tables."""
    table = Table("request", "n", "p50", "p99", title="Request latency, the work inline and handed off")
    for kind, found in latencies.items():
        cuts = statistics.quantiles(found, n=100)
        table.add_row(kind, f"{len(found):,}", f"{cuts[49] * 1000:.2f} ms", f"{cuts[98] * 1000:.2f} ms")
    console.print(table)
    table = Table("consumer", "handled", "retried", "dead-lettered", title="What became of the events")
    for one in service.pipe.health().consumers:
        table.add_row(one.queue, f"{one.handled:,}", f"{one.retried:,}", f"{one.dead_lettered:,}")
    console.print(table)
    console.print(f"{events:,} events in {seconds:.1f} s: {events / seconds:,.0f} events/s, publishing and consuming")


if __name__ == "__main__":
    typer.run(main)
