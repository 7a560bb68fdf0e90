"""A broker inside this process, with RabbitMQ's rules: for trying things out and for tests; nothing survives it."""

from .broker import MemoryBroker, memory_broker
from .transport import MemoryTransport

__all__ = ["MemoryBroker", "MemoryTransport", "memory_broker"]
