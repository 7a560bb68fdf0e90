"""Random faults on a real cluster under load, and the ledger at the end: ``make soak MINUTES=n``.

``python -m tests.chaos.soak --minutes 1 --seed 1 --peer eventpipe``. Three nodes behind proxies, two producers and two
consumers as processes of their own; each fault is drawn from ``FAULTS`` and heals before the next one.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.ledger import LEDGER, Balance, balance, words
from tests.chaos.proxy import Proxy

from eventpipe.testing import RabbitNode

APP = "tests.chaos.apps."
COMMANDS = {
    "eventpipe": {
        "produce": ["-m", f"{APP}with_eventpipe"],
        "consume": ["-c", "from eventpipe.cli import main; main()", "run", f"{APP}with_eventpipe:pipe"],
    },
    "aio-pika": {what: ["-m", f"{APP}with_aio_pika", what] for what in ("produce", "consume")},
    "faststream": {what: ["-m", f"{APP}with_faststream", what] for what in ("produce", "consume")},
}
PROCESSES = {"produce": 2, "consume": 2}
EMPTY_WITHIN = 120.0
"""Seconds that the queue gets to be empty after the last fault."""


class Soak:
    """A cluster behind proxies, and the application's processes, which are started again when they end."""

    def __init__(self, cluster: Cluster, proxies: list[Proxy], folder: Path, peer: str, seed: int, rate: float) -> None:
        self.cluster, self.proxies, self.folder = cluster, proxies, folder
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self._commands = COMMANDS[peer]
        pairs = list(zip(cluster.nodes, proxies, strict=True))
        urls = [proxy.url(node.url) for node, proxy in pairs]
        self._environment = {**os.environ, LEDGER: str(folder), "URLS": " ".join(urls), "RATE": str(rate)}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Start the application."""
        for what, count in PROCESSES.items():
            for number in range(count):
                self._keepers[f"{what} {number}"] = asyncio.create_task(self._keep(what, number))

    async def _keep(self, what: str, number: int) -> None:
        while True:
            with (self.folder.parent / f"{what}-{number}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *self._commands[what],
                    env=self._environment,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                )
            self._running[f"{what} {number}"] = process
            await process.wait()
            await asyncio.sleep(0.2)

    async def stop(self, what: str) -> None:
        """End the processes of one kind in good order."""
        for name, process in list(self._running.items()):
            if name.startswith(what):
                self._keepers[name].cancel()
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
        ending = [process.wait() for name, process in self._running.items() if name.startswith(what)]
        try:
            await asyncio.wait_for(asyncio.gather(*ending), 40)
        except TimeoutError:
            print(f"a process that should {what} does not end, and is killed")
            for name, process in self._running.items():
                if name.startswith(what) and process.returncode is None:
                    process.kill()

    # --- faults

    async def fault(self) -> None:
        """Draw a fault, let it happen, and heal it."""
        name = self.chance.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
        self.faults[name] += 1
        await FAULTS[name][1](self)

    def pause(self, most: float) -> Awaitable[None]:
        """Wait for a moment."""
        return asyncio.sleep(self.chance.random() * most)

    def node(self) -> RabbitNode:
        return self.chance.choice(self.cluster.nodes)

    async def cut(self) -> None:
        """Reset a node's connections after some bytes, in either direction."""
        proxy = self.chance.choice(self.proxies)
        way = self.chance.choice((proxy.up, proxy.down))
        way.cut_after = self.chance.randrange(20_000)
        await self.pause(2)
        way.cut_after = None

    async def reset(self) -> None:
        self.chance.choice(self.proxies).reset()
        await self.pause(1)

    async def hole(self) -> None:
        proxy = self.chance.choice(self.proxies)
        ways = self.chance.choice(((proxy.up,), (proxy.down,), (proxy.up, proxy.down)))
        for way in ways:
            way.hole = True
        await self.pause(6)
        for way in ways:
            way.hole = False

    async def freeze(self) -> None:
        node = self.node()
        node.pause()
        await self.pause(6)
        node.unpause()

    async def kill(self, node: RabbitNode | None = None) -> None:
        node = node or self.node()
        await asyncio.to_thread(node.kill)
        await self.pause(3)
        await asyncio.to_thread(node.restart)

    async def kill_leader(self) -> None:
        try:
            leader = await asyncio.to_thread(self.cluster.leader, "jobs")
        except Exception:
            leader = self.node()
        await self.kill(leader)

    async def close(self) -> None:
        await asyncio.to_thread(self.node().ctl, "close_all_connections", "--global", "soak")

    async def alarm(self) -> None:
        node = self.node()
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        await self.pause(2)
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "1GB")

    async def kill_process(self, what: str) -> None:
        alive = [one for name, one in self._running.items() if name.startswith(what) and one.returncode is None]
        with contextlib.suppress(ProcessLookupError):
            self.chance.choice(alive).send_signal(signal.SIGKILL)
        await self.pause(2)


FAULTS: dict[str, tuple[float, Callable[[Soak], Awaitable[None]]]] = {
    "byte cut": (30, Soak.cut),
    "reset": (10, Soak.reset),
    "consumer kill -9": (15, lambda soak: soak.kill_process("consume")),
    "producer kill -9": (8, lambda soak: soak.kill_process("produce")),
    "black hole": (9, Soak.hole),
    "STOP": (8, Soak.freeze),
    "closed by the broker": (6, Soak.close),
    "node kill -9": (7, Soak.kill),
    "leader kill -9": (4, Soak.kill_leader),
    "memory alarm": (3, Soak.alarm),
}
"""Faults with their weights."""


async def soak(*, minutes: float, seed: int, peer: str, rate: float, folder: Path) -> tuple[Balance, Counter[str], int]:
    """Run for so long; give the ledger's balance, the faults, and what is left in the queue."""
    with Cluster.start() as cluster:
        async with contextlib.AsyncExitStack() as stack:
            ports = [node.facts["port"] for node in cluster.nodes]
            proxies = [await stack.enter_async_context(Proxy(port)) for port in ports]
            run = Soak(cluster, proxies, folder, peer, seed, rate)
            run.start()
            await _until(lambda: bool(words(folder, "handled")), 60)
            end = time.monotonic() + minutes * 60
            told = time.monotonic()
            while time.monotonic() < end:
                await run.fault()
                await run.pause(1)
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    print(f"{run.faults.total()} faults; {balance(folder)}", flush=True)
            await asyncio.sleep(5)
            await run.stop("produce")
            left = await _drained(cluster)
            await run.stop("consume")
            return balance(folder), run.faults, left


async def _drained(cluster: Cluster) -> int:
    """Wait until the queue is empty and settled; give what is left in it."""
    left, end, quiet = -1, time.monotonic() + EMPTY_WITHIN, 0
    while time.monotonic() < end and quiet < 3:  # the figures are some seconds old
        await asyncio.sleep(3)
        with contextlib.suppress(OSError):
            found = await asyncio.to_thread(cluster.nodes[0].api, "GET", "queues/%2F/jobs")
            left = found.get("messages", -1)
            quiet = quiet + 1 if left == 0 else 0
    return left


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


def main() -> None:
    """Run, print the ledger, and exit 1 if it does not balance."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--peer", choices=COMMANDS, default="eventpipe")
    parser.add_argument("--rate", type=float, default=600.0, help="messages a second of each producer")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="eventpipe-soak-") as folder:
        ledger = Path(folder) / "ledger"
        ledger.mkdir()
        result, faults, left = asyncio.run(soak(folder=ledger, **vars(given)))
        print(f"{given.peer}: {faults.total()} faults: {json.dumps(faults)}")
        print(f"{result}; left in the queue {left}")
        good = not result.lost and not result.unexpected and not left and bool(result.acknowledged)
        print("the ledger balances" if good else f"it does NOT balance: {result.lost[:5]} {result.unexpected[:5]}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
