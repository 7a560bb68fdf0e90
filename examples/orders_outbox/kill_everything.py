"""Place orders while web app, relay and payment services are killed at random; then show what was paid.

On $EVENTPIPE_URL and $DATABASE_URL, or on a private RabbitMQ node and an SQLite file that it makes for itself.
"""

import argparse
import asyncio
import os
import random
import socket
import sys
import tempfile
import uuid
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx

HERE = Path(__file__).parent
COMMAND = "from eventpipe.cli import main; main()"


class Processes:
    """The shop's processes, each started again when it has ended."""

    def __init__(self, port: int) -> None:
        self.kills = 0
        self.commands = {
            "web": ("-m", "uvicorn", "storefront:app", "--port", str(port), "--log-level", "error"),
            "relay": ("-c", COMMAND, "relay", "shop:outbox"),
            "payment 1": ("-c", COMMAND, "run", "payment:pipe"),
            "payment 2": ("-c", COMMAND, "run", "payment:pipe"),
        }
        self.running: dict[str, asyncio.subprocess.Process] = {}

    async def keep(self, name: str) -> None:
        """Start one, again and again."""
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.commands[name],
                cwd=HERE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.running[name] = process
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def kill(self, chance: random.Random) -> None:
        """Kill one after the other, whichever."""
        while True:
            await asyncio.sleep(chance.uniform(0.3, 1.2))
            name = chance.choice(list(self.running))
            print(f"  kill -9 {name}")
            self.running[name].kill()
            self.kills += 1

    @property
    def names(self) -> list[str]:
        """What runs."""
        return list(self.commands)


async def place(client: httpx.AsyncClient, order: uuid.UUID) -> None:
    """Ask until the order is placed."""
    while True:
        try:
            answer = await client.put(f"/orders/{order}", json={"cents": 995}, timeout=2.0)
            if answer.status_code == 201:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.1)


async def paid() -> Counter[str]:
    """Count the payments of each order."""
    from shop import engine, payments  # noqa: PLC0415  it reads $DATABASE_URL

    async with engine.connect() as connection:
        return Counter(row.order for row in await connection.execute(payments.select()))


async def run(count: int, seed: int) -> bool:
    """Do it, and tell whether every order was paid once."""
    chance = random.Random(seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = Processes(port)
    orders = [uuid.UUID(int=chance.getrandbits(128), version=4) for _ in range(count)]
    keeping = [asyncio.create_task(processes.keep(name)) for name in processes.names]
    killing = asyncio.create_task(processes.kill(chance))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for order in orders:
                await place(client, order)
                await asyncio.sleep(0.02)
        killing.cancel()
        print(f"{count} orders placed, {processes.kills} processes killed; waiting for the last payments")
        async with asyncio.timeout(60):
            while len(await paid()) < count:
                await asyncio.sleep(0.2)
        await asyncio.sleep(1.0)  # for one that should not come
    finally:
        for task in (killing, *keeping):
            task.cancel()
        await asyncio.wait(keeping)
    found = await paid()
    twice = [order for order, times in found.items() if times > 1]
    print(f"paid: {len(found)} of {count} orders, {len(twice)} of them more than once")
    return set(found) == set(map(str, orders)) and not twice


def main() -> int:
    """Read the arguments, and make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    with ExitStack() as stack:
        if "EVENTPIPE_URL" not in os.environ:
            from eventpipe.testing import RabbitNode  # noqa: PLC0415  only where there is no broker

            os.environ["EVENTPIPE_URL"] = stack.enter_context(RabbitNode.start()).url
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ.setdefault("DATABASE_URL", f"sqlite+aiosqlite:///{folder}/shop.db")
        asyncio.run(migrate())
        print(f"seed {given.seed}, {os.environ['DATABASE_URL'].partition(':')[0]}")
        return 0 if asyncio.run(run(given.orders, given.seed)) else 1


async def migrate() -> None:
    """Make the tables, as a deployment would."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "alembic", "upgrade", "head", cwd=HERE)
    if await process.wait():
        raise SystemExit("the migration failed")


if __name__ == "__main__":
    sys.exit(main())
