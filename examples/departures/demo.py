"""Drive the service with a year of real departures, show how it goes, and check every count."""

import asyncio
import contextlib
import logging
import os
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
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
CHUNK = 500  # departures per publish_many: small, so that the consumers get their turn in between
PATIENCE = 15.0  # seconds without any progress until the demo gives up
QUIET = 1.0  # seconds in which nothing more may happen at the end: longer than the longest backoff

console = Console()


def how_many(text: str) -> int | None:
    """Read ``--events``: a number, or all of them."""
    if text in ("", "all"):
        return None
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(f"{text!r} is neither a number from 1 on nor 'all'")
    return int(text)


def main(
    url: Annotated[str, typer.Option(help="The broker: memory:// or amqp://host")] = "memory://",
    events: Annotated[str, typer.Option(help="Take the first so many departures only")] = "all",
) -> None:
    """Hand a year of departures off to three consumers, and check the outcome."""
    limit = how_many(events)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    os.environ["EVENTPIPE_URL"] = url or "memory://"
    service.Run.id = secrets.token_hex(4)
    departures = list(read(service.Run.id, limit))
    console.print(f"{len(departures):,} departures to {url.partition('@')[2] or url}")
    differences = asyncio.run(drive(departures, predict(departures)))
    for line in differences:
        console.print(f"[red]wrong[/red] {line}", soft_wrap=True)
    if differences:
        raise typer.Exit(1)
    console.print("every count is the same as that of a plain loop over the file")


async def drive(departures: Sequence[Departure], expected: Outcome) -> list[str]:
    """Send everything, wait for the end, show the tables; give what came out wrong."""
    async with service.pipe, service.pipe.consuming():
        latencies = {"inline": await by_requests("/inline", departures[:INLINE])}
        begin = time.monotonic()
        with Progress(console=console, disable=not console.is_terminal) as progress:
            published = progress.add_task("published", total=len(departures))
            counted = progress.add_task("counted", total=len(departures))
            async with watched(lambda: progress.update(counted, completed=service.Run.seen.by_carrier.total())):
                latencies["handed off"] = await by_requests("/departures", departures[:REQUESTS])
                progress.update(published, completed=len(latencies["handed off"]))
                for chunk in chunks(departures[REQUESTS:]):
                    await service.departed.publish_many(chunk, timeout=30.0)
                    progress.update(published, advance=len(chunk))
                end = await settled(expected)
        show(latencies, len(departures), end - begin)
        return service.Run.seen.differences(expected) + miscounted(expected)


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


@contextlib.asynccontextmanager
async def watched(show_progress: Callable[[], None]) -> AsyncIterator[None]:
    """Show the progress inside the block."""
    watching = asyncio.create_task(watch(show_progress))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        show_progress()


async def watch(show_progress: Callable[[], None]) -> None:
    """Keep the progress up to date; a line now and then where there is no terminal."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.2)
        show_progress()
        if not console.is_terminal and time.monotonic() - last > 5.0:
            last, seen = time.monotonic(), service.Run.seen
            console.print(
                f"counted {seen.by_carrier.total():,}, notified {seen.late:,}, rebooked {seen.rebooked:,}, "
                f"retried {seen.retried:,}, given up {seen.dead:,}"
            )


async def settled(expected: Outcome) -> float:
    """Wait until all is as expected and stays so, or until nothing moves any more; say when the last thing moved.

    It stays a while after the last count is right: one event too many is as wrong as one too few.
    """
    moved, before = time.monotonic(), progress_so_far()
    while True:
        await asyncio.sleep(0.05)
        if (now := progress_so_far()) != before:
            moved, before = time.monotonic(), now
        idle = not any(one.in_flight or one.unsettled for one in service.pipe.health().consumers)
        right = idle and not service.Run.seen.differences(expected)
        if time.monotonic() - moved > (QUIET if right else PATIENCE):
            return moved


def progress_so_far() -> int:
    """Tell how much the consumers have done, for whichever run."""
    return sum(one.handled + one.retried + one.dead_lettered for one in service.pipe.health().consumers)


def miscounted(expected: Outcome) -> list[str]:
    """Compare what eventpipe itself has counted, less what was of an earlier run, with the plain loop."""
    wanted = {
        service.statistics.name: (expected.by_carrier.total(), 0, 0),
        service.notices.name: (expected.late, 0, 0),
        service.rebooking.name: (expected.rebooked, expected.retried, expected.dead),
    }
    found = {
        one.queue: (one.handled - service.Run.passed_over[one.queue], one.retried, one.dead_lettered)
        for one in service.pipe.health().consumers
    }
    return [
        f"{queue}: {found.get(queue)} handled, retried, dead-lettered instead of {counts}"
        for queue, counts in wanted.items()
        if found.get(queue) != counts
    ]


def show(latencies: dict[str, list[float]], events: int, seconds: float) -> None:
    """Print the tables."""
    table = Table("the slow work", "requests", "p50", "p99", title="Latency of a request")
    for kind, found in latencies.items():
        cuts = statistics.quantiles(found * 2 if len(found) == 1 else found, n=100, method="inclusive")
        table.add_row(kind, f"{len(found):,}", f"{cuts[49] * 1000:.2f} ms", f"{cuts[98] * 1000:.2f} ms")
    console.print(table)
    table = Table("consumer", "handled", "retried", "dead-lettered", "passed over", title="What became of the events")
    for one in service.pipe.health().consumers:
        old = service.Run.passed_over[one.queue]
        table.add_row(one.queue, f"{one.handled - old:,}", f"{one.retried:,}", f"{one.dead_lettered:,}", f"{old:,}")
    console.print(table)
    console.print(f"{events:,} events in {seconds:.1f} s: {events / seconds:,.0f} events/s, publishing and consuming")


if __name__ == "__main__":
    typer.run(main)
