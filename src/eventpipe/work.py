"""What a worker is told to do, what it is given to do it with, and what it has done: plain values."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .clock import Chance, Clock
from .codec import BODY_LIMIT
from .handler import Handler
from .message import DeadMessage, Message
from .middleware import Middleware
from .providing import Overrides
from .retry import Decision, Retry
from .routing import Queue
from .transports.base import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done with the messages of one queue. Times are in seconds, sizes in bytes."""

    queue: Queue
    handlers: tuple[Handler, ...]
    concurrency: int = 10
    prefetch: int = 20
    timeout: float | None = None
    retry: Retry = Retry()
    emit: Callable[[Any, Message], Awaitable[None]] | None = None
    decode: Callable[[Message], Any] | None = None
    on_dead_letter: Callable[[DeadMessage], Any] | None = None
    middleware: tuple[Middleware, ...] = ()
    overrides: Overrides = field(default_factory=dict)
    body_limit: int = BODY_LIMIT


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker is given: the broker, time, chance, and who wants to hear of decisions."""

    transport: Transport
    clock: Clock
    chance: Chance
    observe: Callable[[Message, Decision], None] | None = None


@dataclass(slots=True)
class Counts:
    """What a worker has done since it started."""

    handled: int = 0
    retried: int = 0
    dead_lettered: int = 0
    set_aside: int = 0
    settled_again: int = 0
