"""What many tests use."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any


async def eventually(what: Callable[[], Any | Awaitable[Any]], *, within: float = 5.0) -> Any:
    """Wait until ``what()`` is true, looking every few milliseconds; fail after ``within`` seconds."""
    async with asyncio.timeout(within):
        while True:
            found = what()
            if isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)
