"""Call the dependencies of one handling, and end them in turn."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from .depends import Gives, Need, Provider, provider
from .message import Message

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Providing:
    """The dependencies of one handling; each is called once, unless it asks for more."""

    def __init__(self, message: Message, stack: AsyncExitStack, overrides: Overrides) -> None:
        self._message, self._stack, self._overrides = message, stack, overrides
        self._known: dict[Callable[..., Any], Any] = {}

    async def values(self, needs: tuple[Need, ...]) -> dict[str, Any]:
        """Give the values of these parameters by name."""
        return {need.name: await self._value(need) for need in needs}

    async def _value(self, need: Need) -> Any:
        function = self._overrides.get(need.dependency, need.dependency)
        if need.use_cache and function in self._known:
            return self._known[function]
        planned = provider(function)
        arguments = await self.values(planned.needs)
        if planned.message is not None:
            arguments[planned.message] = self._message
        value = self._known[function] = await self._call(planned, arguments)
        return value

    async def _call(self, planned: Provider, arguments: dict[str, Any]) -> Any:
        function = planned.function
        match planned.gives:
            case Gives.COROUTINE:
                return await function(**arguments)
            case Gives.ASYNC_GENERATOR:
                return await self._stack.enter_async_context(contextlib.asynccontextmanager(function)(**arguments))
            case Gives.GENERATOR:
                return await self._stack.enter_async_context(_in_threads(function, arguments))
            case Gives.CLASS:
                return function(**arguments)
            case _:  # it may well block, as an endpoint's may in FastAPI
                return await asyncio.to_thread(function, **arguments)


@contextlib.asynccontextmanager
async def _in_threads(function: Callable[..., Any], arguments: dict[str, Any]) -> AsyncIterator[Any]:
    """Run both halves of a sync generator in threads."""
    manager = contextlib.contextmanager(function)(**arguments)
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    except BaseException as error:
        swallowed = await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__)
        if not swallowed:
            raise
    else:
        await asyncio.to_thread(manager.__exit__, None, None, None)
