"""A broker inside this process, with RabbitMQ's rules: for trying things out and for tests; nothing survives it.

``broker`` holds the state, ``routes`` says where a message goes (``matching`` has the rules), ``queue`` is one queue,
``deaths`` writes dead letters' headers, ``transport`` and ``subscription`` are the protocol.

It does not have: single active consumers and priorities (declaring one is an error), ``x-expires``, consuming streams,
and ``BCC`` when a message is dead-lettered. All of it is for one thread at a time.
"""

from .broker import MemoryBroker, memory_broker
from .transport import MemoryTransport

__all__ = ["MemoryBroker", "MemoryTransport", "memory_broker"]
