"""Run the benchmarks: every peer in turn, again and again, on one private RabbitMQ node.

Writes ``results.json`` and ``results.svg`` beside this file, and prints a table of medians with their ratios.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.chart import draw
from eventpipe.testing.node import RabbitNode

HERE = Path(__file__).parent
PEERS = (
    "limit",
    "eventpipe",
    "eventpipe-plain",
    "eventpipe-memory",
    "aio-pika",
    "aiormq",
    "faststream",
    "taskiq",
    "kombu",
    "pika",
    "packed",
    "packed-memory",
)
SHOWN = {"packed": "eventpipe", "packed-memory": "eventpipe-memory"}
CASES = ("publish_concurrent", "publish_many", "publish_each", "consume_ack", "packed_end_to_end", "latency_p99_ms")
NO_LOOP = {"kombu", "pika"}
NO_BROKER = {"eventpipe-memory", "packed-memory"}
TIMEOUT = 180
GUARANTEES = (
    "All: persistent, confirmed, acknowledged after handling, prefetch 200. Typed with pydantic: eventpipe, FastStream "
    "and taskiq; the others parse JSON into the same model by hand. limit: frames made once, nothing parsed. kombu and "
    "pika block: one caller. Garbage collection: what is loaded before the first event is frozen, for all."
)


@dataclass(frozen=True)
class Setting:
    """One line of the matrix."""

    queue: str
    body: int
    loop: str


FIGURES = Setting("quorum", 100, "asyncio")
"""What the chart shows, and the latency is measured on."""


def settings(*, quick: bool) -> Iterator[Setting]:
    """The whole matrix, or the one setting that the figures are about."""
    yield FIGURES
    if quick:
        return
    yield Setting("quorum", 100, "uvloop")
    yield Setting("classic", 100, "asyncio")
    for body in (1024, 10_240):
        for queue in ("quorum", "classic"):
            yield Setting(queue, body, "asyncio")


async def one(peer: str, url: str, setting: Setting, count: int, latency: float, number: int) -> dict[str, float]:
    """Run one peer once, in a process and on a queue of its own."""
    queue = f"{peer}.{setting.queue}.{setting.body}.{number}"
    arguments = (peer, url, queue, setting.queue, str(setting.body), setting.loop, str(count), str(latency))
    command = (sys.executable, "-m", "benchmarks.one", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=HERE.parent
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SystemExit(f"{peer} on {setting}: no result within {TIMEOUT} s") from None
    if process.returncode:
        raise SystemExit(f"{peer} on {setting} failed:\n{errors.decode()}")
    return dict(json.loads(out))


async def measure(rounds: int, count: int, latency: float, *, quick: bool) -> list[dict[str, object]]:
    """Run everything in interleaved rounds, written down after each; give one object for each case of each peer."""
    found: dict[tuple[str, str, Setting], list[float]] = defaultdict(list)
    with RabbitNode.start(config="vm_memory_high_watermark.relative = 0.7\n") as node:
        for number in range(rounds):
            for setting in settings(quick=quick):
                vhost = node.create_vhost()
                for peer in PEERS:
                    if (setting.loop == "uvloop" and peer in NO_LOOP) or (
                        setting.queue == "classic" and peer in NO_BROKER
                    ):
                        continue
                    size = max(500, count // (1 + setting.body // 2048))
                    lasts = latency if setting == FIGURES else 0.0
                    results = await one(peer, vhost, setting, size, lasts, number)
                    for case, value in results.items():
                        found[case, SHOWN.get(peer, peer), setting].append(value)
                node.delete_vhost(vhost.rpartition("/")[2])
            if not quick:
                print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
                (HERE / "results.json").write_text(json.dumps(medians(found), indent=1) + "\n")
    return medians(found)


def medians(found: dict[tuple[str, str, Setting], list[float]]) -> list[dict[str, object]]:
    """Give one object for each case of each peer in each setting."""
    return [
        {
            "case": case,
            "peer": peer,
            "queue": setting.queue,
            "body": setting.body,
            "loop": setting.loop,
            "runs": [round(value, 3) for value in values],
            "median": round(statistics.median(values), 3),
        }
        for (case, peer, setting), values in found.items()
    ]


def show(results: list[dict[str, object]]) -> None:
    """Print the medians, and in brackets the ratio to FastStream."""
    console = Console(width=150)
    for setting in dict.fromkeys((one["queue"], one["body"], one["loop"]) for one in results):
        table = Table("peer", *CASES, title="{} queue, {} B, {}".format(*setting))
        here = {
            (one["case"], one["peer"]): float(str(one["median"]))
            for one in results
            if (one["queue"], one["body"], one["loop"]) == setting
        }
        for peer in dict.fromkeys(peer for _, peer in here):
            cells = []
            for case in CASES:
                value, base = here.get((case, peer)), here.get((case, "faststream"))
                ratio = f" ({value / base:.1f}x)" if value and base else ""
                cells.append("" if value is None else f"{value:,.1f}{ratio}" if value < 100 else f"{value:,.0f}{ratio}")
            table.add_row(str(peer), *cells)
        console.print(table)
    console.print(GUARANTEES)


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="quorum, 100 B, asyncio, once; writes nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=1000, help="publishes per case of a slow peer")
    given = parser.parse_args()
    if given.quick:
        show(asyncio.run(measure(1, 1000, 1.0, quick=True)))
        return
    results = asyncio.run(measure(given.rounds, given.count, 1.0, quick=False))
    draw(results, HERE / "results.svg")
    show(results)


if __name__ == "__main__":
    main()
