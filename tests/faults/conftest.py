"""Services in processes of their own, to be killed; and how many rounds to go."""

import asyncio
import gc
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.proxy import Proxy

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


CANARY = "canary-5f1d9"
"""A password that no text may show."""


@pytest.fixture
def guarded_url(rabbit_node: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[str]:
    """A URL with a user of its own and a fresh virtual host; nothing logged or printed may show its password."""
    caplog.set_level(logging.DEBUG)
    url = rabbit_node.create_vhost()
    vhost, user = url.rpartition("/")[2], f"user-{secrets.token_hex(4)}"
    rabbit_node.api("PUT", f"users/{user}", {"password": CANARY, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbit_node.api("PUT", f"permissions/{vhost}/{user}", everything)
    yield url.replace("guest:guest", f"{user}:{CANARY}")
    rabbit_node.delete_vhost(vhost)
    rabbit_node.api("DELETE", f"users/{user}")
    printed = capfd.readouterr()
    assert CANARY not in caplog.text + printed.out + printed.err


@pytest.fixture
async def proxy(rabbit_node: Any) -> AsyncIterator[Proxy]:
    """A proxy before the node, which lets everything pass until it is told otherwise."""
    async with Proxy(rabbit_node.facts["port"]) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    """Whatever a fault breaks, its sockets and files are closed."""
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    yield
    if folder.exists():
        gc.collect()
        assert len(list(folder.iterdir())) <= before + 2  # the test broker's own, which is started when it is asked for
