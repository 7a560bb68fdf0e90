"""What users write to consume: the decorator of ``pipe.consumer`` and the class ``Consumer``."""

import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .errors import ConfigurationError
from .handler import UNSTATED, Handler, name_of, place_of, plan
from .message import DeadMessage, Message
from .middleware import Middleware
from .middleware import check as check_middleware
from .providing import Overrides
from .publisher import Publisher
from .retry import Retry
from .routing import Queue
from .work import Work

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

PREFETCH_LIMIT = 65_535
"""AMQP's ``prefetch-count`` has 16 bits."""


class Consumer(Generic[T]):
    """A handler with dependencies: subclass ``Consumer[Event]``, keep what it needs in ``__init__``, write ``handle``.

    Give it to a pipe with ``pipe.add(queue, MyConsumer(db))``.
    """

    async def handle(self, event: T, message: Message) -> Any:
        """Handle one event; how it ends is the outcome."""
        raise NotImplementedError

    @classmethod
    def event_type(cls) -> Any:
        """Find the type between the brackets of ``Consumer[…]``. Raises ``ConfigurationError``."""
        for base in cls.__mro__:
            for parent in getattr(base, "__orig_bases__", ()):
                origin, arguments = typing.get_origin(parent), typing.get_args(parent)
                if isinstance(origin, type) and issubclass(origin, Consumer) and not isinstance(arguments[0], TypeVar):
                    return arguments[0]
        raise ConfigurationError(
            f"{cls.__qualname__} does not say what it consumes; write class {cls.__name__}(Consumer[Event])"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one queue is consumed. Times are in seconds.

    ``concurrency`` counts events in handlers, ``prefetch`` unsettled messages (twice the concurrency unless given),
    ``timeout`` bounds one handling.
    """

    concurrency: int = 10
    prefetch: int | None = None
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    output: Publisher[Any] | None = None
    decode: Callable[[Message], Any] | None = None
    on_dead_letter: Callable[[DeadMessage], Awaitable[None] | None] | None = None
    middleware: tuple[Middleware, ...] = ()

    def check(self, queue: Queue) -> None:
        """Refuse numbers that can't work, and queues that can't be consumed. Raises ``ConfigurationError``."""
        where = f"the consumer of {queue.name!r}"
        for name, value in (("concurrency", self.concurrency), ("prefetch", self.prefetch)):
            if value is not None and (not isinstance(value, int) or not 1 <= value <= PREFETCH_LIMIT):
                raise ConfigurationError(
                    f"{where}: {name}={value!r} must be a whole number between 1 and {PREFETCH_LIMIT}"
                )
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise ConfigurationError(f"{where}: timeout={self.timeout!r} must be more than 0 seconds")
        if not isinstance(self.retry, Retry):
            raise ConfigurationError(f"{where}: retry={self.retry!r} must be a Retry(…)")
        if self.output is not None and not isinstance(self.output, Publisher):
            raise ConfigurationError(
                f"{where}: output={self.output!r} must be a publisher, made with pipe.publisher(…)"
            )
        check_middleware(self.middleware, where)
        if queue.kind == "stream":
            raise ConfigurationError(f"{where}: stream queues can be declared and published to, not consumed yet")
        if queue.dead is None:
            raise ConfigurationError(f"{where}: it needs a place for dead letters; the queue has dead_letter=False")


class ConsumerDecorator:
    """Registers functions as the handlers of one queue, and returns each unchanged.

    Use it several times for several types on one queue: messages then go by their AMQP ``type``.
    """

    def __init__(self, queue: Queue, settings: Settings, place: str, event_type: Any = UNSTATED) -> None:
        settings.check(queue)
        self.queue, self.settings, self.place = queue, settings, place
        self._event_type = event_type
        self._handlers: list[Handler] = []

    def __call__(self, function: F) -> F:
        """Register a handler. Raises ``ConfigurationError``."""
        self.register(plan(function, event_type=self._event_type))
        return function

    def of(self, event_type: Any) -> Callable[[F], F]:
        """Register a handler and name its event's type, where its annotation can't."""

        def decorate(function: F) -> F:
            self.register(plan(function, event_type=event_type))
            return function

        return decorate

    def register(self, handler: Handler) -> None:
        """Add a planned handler. Raises ``ConfigurationError`` if one of its type is there already."""
        for known in self._handlers:
            if known.wire_type == handler.wire_type:
                raise ConfigurationError(
                    f"queue {self.queue.name!r} has two handlers of type {handler.wire_type!r}: {known.name} "
                    f"({known.place}) and {handler.name} ({handler.place}); give one event class another __event__"
                )
        self._handlers.append(handler)

    def work(self, body_limit: int, overrides: Overrides) -> Work:
        """Put together what a worker needs. Raises ``ConfigurationError`` if nothing was decorated."""
        if not self._handlers:
            raise ConfigurationError(f"the consumer of {self.queue.name!r} ({self.place}) decorates no function")
        settings = self.settings
        return Work(
            queue=self.queue,
            handlers=tuple(self._handlers),
            concurrency=settings.concurrency,
            prefetch=settings.prefetch or min(2 * settings.concurrency, PREFETCH_LIMIT),
            timeout=settings.timeout,
            retry=settings.retry,
            emit=None if settings.output is None else settings.output.emit,
            decode=settings.decode,
            on_dead_letter=settings.on_dead_letter,
            middleware=tuple(settings.middleware),
            overrides=overrides,
            body_limit=body_limit,
        )


def plan_consumer(consumer: Consumer[Any]) -> Handler:
    """Plan the ``handle`` of a class-form consumer. Raises ``ConfigurationError``."""
    if not isinstance(consumer, Consumer):
        raise ConfigurationError(f"pipe.add(…, {consumer!r}): must be an instance of a subclass of Consumer[Event]")
    handle = consumer.handle

    async def call(event: Any, message: Message) -> Any:
        return await handle(event, message)

    handler = plan(call, event_type=consumer.event_type())
    return Handler(
        name=name_of(handle),
        place=place_of(handle),
        event_type=handler.event_type,
        wire_type=handler.wire_type,
        codec=handler.codec,
        kind=handler.kind,
        invoke=handle,
    )
