"""Services in processes of their own, to be killed; and how many rounds to go."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("EVENTPIPE_FAULT_ROUNDS", "1"))


class Workers:
    """Runs ``service:pipe`` of a folder under the supervisor, and knows what its handlers wrote."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    @asynccontextmanager
    async def run(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from eventpipe.cli import main; main()", "run", "service:pipe", *arguments),
            cwd=self.folder,
            env={**os.environ, "EVENTPIPE_URL": self.url},
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                await asyncio.wait_for(process.wait(), 40)

    def lines(self, start: str) -> list[list[str]]:
        log = self.folder / "log"
        if not log.exists():
            return []
        found = [line.split() for line in log.read_text().splitlines()]
        return [line for line in found if line and line[0] == start]


@pytest.fixture
def workers(tmp_path: Path, eventpipe_rabbitmq: str) -> Workers:
    """A folder for a service, and a fresh virtual host for it."""
    return Workers(tmp_path, eventpipe_rabbitmq)
