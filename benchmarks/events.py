"""What every peer sends, and how it is counted."""

import asyncio
import json
import time

from pydantic import BaseModel

CALLERS = 500
PREFETCH = 200
CONCURRENCY = 100


class Tweet(BaseModel):
    """A small typed event."""

    user: str
    tweet: str
    n: int
    at: float = 0.0


def tweet(size: int) -> Tweet:
    """Make an event whose JSON is about ``size`` bytes long."""
    empty = len(Tweet(user="u123", tweet="", n=1).model_dump_json())
    return Tweet(user="u123", tweet="x" * max(0, size - empty), n=1)


class Counter:
    """Counts what handlers saw, and knows when it was enough."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.done = asyncio.Event()
        self.delays: list[float] = []

    def see(self, event: Tweet) -> None:
        """Count one."""
        if event.at:
            self.delays.append(time.perf_counter() - event.at)
        self.left -= 1
        if self.left == 0:
            self.done.set()


def arguments(kind: str) -> dict[str, str]:
    """Give the queue arguments of a kind."""
    return {"x-queue-type": "quorum"} if kind == "quorum" else {}


def parse(body: bytes) -> Tweet:
    """Read a body for peers that leave it to the user."""
    return Tweet(**json.loads(body))
