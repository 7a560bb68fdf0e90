"""What was attempted, acknowledged and handled, on disk; and whether it balances (in the words of Jepsen's checkers).

Each process appends lines ``word id`` to a file of its own and syncs it: a producer ``acknowledged`` *after* the
broker's confirm, a consumer ``handled`` *before* its acknowledgement. Whatever is killed, no line claims too much.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEDGER = "EVENTPIPE_LEDGER"
"""The environment variable with the ledger's folder."""


class Book:
    """One process's file of a ledger."""

    def __init__(self, folder: Path | str, name: str) -> None:
        self._file = os.open(Path(folder) / f"{name}-{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._lines: list[str] = []
        self._synced: asyncio.Future[None] | None = None

    def write(self, word: str, ids: Iterable[object]) -> None:
        """Append and sync, now."""
        lines = "".join(f"{word} {one}\n" for one in ids)
        os.write(self._file, lines.encode())
        os.fdatasync(self._file)

    async def note(self, word: str, id: object) -> None:
        """Append, and return once it is synced; whoever asks meanwhile shares the sync."""
        self._lines.append(f"{word} {id}\n")
        if self._synced is None:
            self._synced = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.002, self._sync)
        await asyncio.shield(self._synced)

    def _sync(self) -> None:
        synced, self._synced = self._synced, None
        lines, self._lines = self._lines, []
        os.write(self._file, "".join(lines).encode())
        os.fdatasync(self._file)
        assert synced is not None
        synced.set_result(None)


@dataclass(frozen=True)
class Balance:
    """What a ledger says. ``lost`` has to be empty, and ``unexpected`` too."""

    attempted: int
    acknowledged: int
    handled: int
    lost: tuple[str, ...]
    unexpected: tuple[str, ...]
    duplicated: int
    """Handlings beyond the first of each."""
    recovered: int
    """Handled although no confirm reached the producer."""
    dead: int

    def __str__(self) -> str:
        return (
            f"attempted {self.attempted:,} · acknowledged {self.acknowledged:,} · handled {self.handled:,} · "
            f"lost {len(self.lost):,} · unexpected {len(self.unexpected):,} · duplicated {self.duplicated:,} · "
            f"recovered {self.recovered:,} · dead {self.dead:,}"
        )


def words(folder: Path, word: str) -> Counter[str]:
    """Count the ids that were noted with a word."""
    found: Counter[str] = Counter()
    for file in folder.iterdir():
        for line in file.read_text().splitlines(keepends=True):
            said, _, what = line.partition(" ")
            if said == word and what.endswith("\n"):  # the last line of a killed process may be half
                found[what[:-1]] += 1
    return found


def balance(folder: Path) -> Balance:
    """Check a ledger."""
    attempted, acknowledged = words(folder, "attempted"), words(folder, "acknowledged")
    handled, dead = words(folder, "handled"), words(folder, "dead")
    seen = handled.keys() | dead.keys()
    return Balance(
        attempted=len(attempted),
        acknowledged=len(acknowledged),
        handled=len(handled),
        lost=tuple(sorted(acknowledged.keys() - seen)),
        unexpected=tuple(sorted(seen - attempted.keys())),
        duplicated=handled.total() - len(handled),
        recovered=len(seen - acknowledged.keys()),
        dead=len(dead),
    )
