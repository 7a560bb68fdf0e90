"""Which transport a URL asks for. A new transport gets its scheme here.

A transport is imported when a URL asks for it: they make a quarter of the time that importing eventpipe takes.
"""

from collections.abc import Sequence

from ..clock import Chance, Clock
from ..errors import ConfigurationError
from .base import Transport


def is_memory(url: str) -> bool:
    """Tell whether a URL names a broker inside this process."""
    return url.partition(":")[0] == "memory"


def open_transport(
    urls: Sequence[str], *, name: str, clock: Clock, chance: Chance, connect_timeout: float, heartbeat: int, fast: bool
) -> Transport:
    """Make the transport of these URLs, unconnected. Raises ``ConfigurationError``."""
    if not urls or not all(isinstance(url, str) and url for url in urls):
        raise ConfigurationError(f"urls {urls!r}: give one URL or several, such as amqp://localhost or memory://")
    if all(map(is_memory, urls)) and len(urls) == 1:
        from .memory import MemoryTransport, memory_broker  # noqa: PLC0415

        return MemoryTransport(memory_broker(urls[0]), clock=clock)
    from .rabbitmq import RabbitTransport  # noqa: PLC0415

    return RabbitTransport(
        urls, name=name, clock=clock, chance=chance, connect_timeout=connect_timeout, heartbeat=heartbeat, fast=fast
    )
