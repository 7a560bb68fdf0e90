"""``EventPipe``: one application's publishers and consumers; connect, declare, run, drain."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, Literal, Self, TypeVar, overload

from .clock import Chance, Clock, SystemClock, system_chance
from .codec import BODY_LIMIT
from .consumer import Consumer, ConsumerDecorator, Settings, plan_consumer
from .context import configure_unless_configured
from .deadletters import DeadLetters
from .errors import ConfigurationError
from .handler import UNSTATED
from .health import Health, health_of
from .message import DeadMessage, Message
from .middleware import Middleware
from .middleware import check as check_middleware
from .outlet import Outlet
from .packing import Pack
from .permissions import Permissions, permissions
from .publisher import Publisher, make_publisher
from .retry import Decision, Retry
from .routing import Exchange, Queue, Topology, topology
from .signals import until_told
from .transports.base import Transport, TransportState
from .transports.select import is_memory, open_transport
from .watch import watching
from .wish import PUBLISH_TIMEOUT, Wish
from .work import Surroundings
from .worker import Worker

T = TypeVar("T")

URL_VARIABLE = "EVENTPIPE_URL"
"""The environment variable that names the broker when the pipe's ``url`` does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What few pipes change. Times are in seconds, sizes in bytes; ``clock`` and ``chance`` are for simulations.

    ``fast=False`` takes the plain path on RabbitMQ: aiormq's public calls only. ``consumer_timeout`` is the broker's
    (by default half an hour): deliveries that are kept longer than half of it are warned of. ``stall``: when a handler
    holds up the event loop for longer, its name and stack are logged. 0 turns either watch off.
    """

    body_limit: int = BODY_LIMIT
    connect_timeout: float = 10.0
    heartbeat: int = 10
    fast: bool = True
    consumer_timeout: float = 1800.0
    stall: float = 1.0
    clock: Clock = field(default_factory=SystemClock)
    chance: Chance = field(default_factory=system_chance)


@dataclass(slots=True)
class _Session:
    """What exists while a pipe is entered."""

    transport: Transport
    outlet: Outlet
    loop: asyncio.AbstractEventLoop
    process: int
    workers: dict[str, Worker] = field(default_factory=dict)


class EventPipe:
    """One application's connection to a broker, with its publishers and consumers.

    Building it, decorating and importing do no I/O; ``async with pipe`` connects and declares. It can be entered again
    after it was left, also on another event loop. ``url`` is one URL or several that are tried in order; without one,
    ``$EVENTPIPE_URL`` is read when it connects. ``topology="check"`` declares nothing and checks that all is there.
    ``retry`` is the default of its consumers; ``drain`` bounds a shutdown, in seconds. ``middleware`` runs around each
    handling of every consumer, the first one outermost.
    """

    dependency_overrides: dict[Callable[..., Any], Callable[..., Any]]
    """What takes the place of a handler's dependency, for tests: ``{get_session: get_test_session}``."""

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        name: str,
        topology: Literal["apply", "check"] = "apply",
        retry: Retry = Retry(),  # noqa: B008  a frozen value
        drain: float = 25.0,
        middleware: Iterable[Middleware] = (),
        options: Options | None = None,
    ) -> None:
        if not name or not isinstance(name, str):
            raise ConfigurationError(f"EventPipe(name={name!r}): give the application a name; brokers show it")
        if topology not in ("apply", "check"):
            raise ConfigurationError(f'EventPipe(topology={topology!r}): must be "apply" or "check"')
        if not 0 <= drain < float("inf"):
            raise ConfigurationError(f"EventPipe(drain={drain!r}): must be a number of seconds, 0 or more")
        self.name, self.drain = name, drain
        self._url, self._retry, self._mode = url, retry, topology
        self._options = options or Options()
        self._middleware = check_middleware(middleware, f"EventPipe(name={name!r})")
        self.dependency_overrides = {}
        self._publishers: list[Publisher[Any]] = []
        self._consumers: dict[str, ConsumerDecorator] = {}
        self._session: _Session | None = None
        self._wrap: Callable[[Transport], Transport] | None = None
        self._observe: Callable[[Message, Decision], None] | None = None

    # --- declaring

    @overload
    def publisher(
        self,
        event_type: type[T],
        *,
        to: Exchange | Queue,
        key: str | Callable[[T], str] | None = None,
        id: Callable[[T], str] | None = None,
        mandatory: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
        pack: Pack | None = None,
    ) -> Publisher[T]: ...
    @overload  # a union or a list, which type[T] can't express: annotate the variable
    def publisher(
        self,
        event_type: UnionType,
        *,
        to: Exchange | Queue,
        key: str | Callable[[Any], str] | None = None,
        id: Callable[[Any], str] | None = None,
        mandatory: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
        pack: Pack | None = None,
    ) -> Publisher[Any]: ...
    def publisher(
        self,
        event_type: Any,
        *,
        to: Exchange | Queue,
        key: str | Callable[[Any], str] | None = None,
        id: Callable[[Any], str] | None = None,
        mandatory: bool = True,
        timeout: float = PUBLISH_TIMEOUT,
        pack: Pack | None = None,
    ) -> Publisher[Any]:
        """Make a publisher of one type of events.

        ``key`` is the routing key, or makes it from the event; by default it is the queue's name or the event's type.
        ``id`` makes a stable message id from the event; by default it is random. ``mandatory``: an event that reaches
        no queue is an ``Unroutable`` error. ``timeout`` is in seconds. ``pack`` sends many events in one message; what
        a handler's ``output=`` publishes is never packed, for its ids derive from the input's.

        Raises:
            ConfigurationError: the type, the target or an option can't work.
        """
        made = make_publisher(
            event_type,
            to,
            Wish(key=key, id=id, timeout=timeout),
            mandatory=mandatory,
            outlet=self._outlet,
            stamp=lambda: self._options,
            pack=pack,
        )
        self._publishers.append(made)
        return made

    def consumer(  # noqa: PLR0913  the public signature
        self,
        queue: Queue,
        *,
        concurrency: int = 10,
        prefetch: int | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        output: Publisher[Any] | None = None,
        decode: Callable[[Message], Any] | None = None,
        on_dead_letter: Callable[[DeadMessage], Any] | None = None,
        middleware: Iterable[Middleware] = (),
        event: Any = UNSTATED,
    ) -> ConsumerDecorator:
        """Make the decorator of a queue's handlers; it returns each function unchanged and can be used several times.

        With several handlers a message goes by its AMQP ``type``. ``event`` names the type where annotations can't.
        ``middleware`` runs inside of the pipe's own.

        Raises:
            ConfigurationError: the queue has a consumer already, or an option can't work.
        """
        settings = Settings(
            concurrency=concurrency,
            prefetch=prefetch,
            timeout=timeout,
            retry=self._retry if retry is None else retry,
            output=output,
            decode=decode,
            on_dead_letter=on_dead_letter,
            middleware=(*self._middleware, *middleware),
        )
        return self._register(queue, settings, _caller(), event)

    def add(self, queue: Queue, consumer: Consumer[Any], **settings: Any) -> None:
        """Let a ``Consumer`` object handle a queue; ``settings`` are those of ``consumer``.

        Raises:
            ConfigurationError: the queue has a consumer already, or a setting can't work.
        """
        handler = plan_consumer(consumer)
        try:
            own = tuple(settings.pop("middleware", ()))
            made = Settings(**{"retry": self._retry, "middleware": (*self._middleware, *own), **settings})
        except TypeError as error:
            raise ConfigurationError(f"pipe.add({queue.name!r}, …): {error}") from error
        self._register(queue, made, _caller(), UNSTATED).register(handler)

    def _register(self, queue: Queue, settings: Settings, place: str, event: Any) -> ConsumerDecorator:
        if not isinstance(queue, Queue):
            raise ConfigurationError(f"{queue!r} is no Queue (at {place}); write Queue({queue!r})")
        known = self._consumers.get(queue.name)
        if known is not None:
            raise ConfigurationError(
                f"queue {queue.name!r} has two consumers: at {known.place} and at {place}. "
                f"Keep the first's decorator and use it again for another type."
            )
        self._consumers[queue.name] = made = ConsumerDecorator(queue, settings, place, event)
        return made

    @property
    def in_memory(self) -> bool:
        """Whether its broker is in this process. Raises ``ConfigurationError`` if it has none."""
        return any(map(is_memory, self._urls()))

    @property
    def topology(self) -> Topology:
        """Everything that this pipe declares, as plain data. Raises ``ConfigurationError`` on contradictions."""
        targets = [publisher.to for publisher in self._publishers]
        return topology(
            exchanges=[target for target in targets if isinstance(target, Exchange)],
            queues=[target for target in targets if isinstance(target, Queue)],
            consumed=[consumer.queue for consumer in self._consumers.values()],
        )

    @property
    def permissions(self) -> Permissions:
        """The least that its RabbitMQ user needs. Raises ``ConfigurationError`` on contradictions."""
        return permissions(
            self.topology,
            publishes=[publisher.to for publisher in self._publishers],
            consumes=[consumer.queue for consumer in self._consumers.values()],
            declares=self._mode == "apply",
        )

    # --- running

    async def __aenter__(self) -> Self:
        """Connect and declare; no consumer starts yet. Raises ``ConnectError`` or ``TopologyError``."""
        if self._session is not None:
            raise ConfigurationError(f"pipe {self.name!r} is entered already; leave it first, or make another pipe")
        wanted, options = self.topology, self._options
        transport = self._transport()
        try:
            await transport.connect()
            await transport.declare(wanted, passive=self._mode == "check")
        except BaseException:
            await transport.close()
            raise
        outlet = Outlet(transport, options.clock, options.chance, options.body_limit)
        self._session = _Session(transport, outlet, asyncio.get_running_loop(), os.getpid())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Flush what is unconfirmed, within ``drain``, and disconnect."""
        session = self._entered()
        try:
            await self._stop(list(session.workers.values()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.drain):
                    packers = [publisher.packer for publisher in self._publishers if publisher.packer is not None]
                    await asyncio.gather(*(packer.close() for packer in packers))
                    await session.transport.flush()
        finally:
            self._session = None
            session.outlet.close()
            await session.transport.close()

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Connect and declare for the life of a web application; give it to Starlette or FastAPI as ``lifespan``."""
        async with self:
            yield

    @contextlib.asynccontextmanager
    async def consuming(self, *queues: Queue | str) -> AsyncIterator[None]:
        """Run the consumers of these queues, or of all, inside the block; drain them at its end."""
        session, options = self._entered(), self._options
        configure_unless_configured()
        workers: list[Worker] = []
        try:
            for consumer in self._chosen(queues):
                worker = self._worker(session, consumer)
                workers.append(worker)
                await worker.start()
            with watching(workers, stall=options.stall, consumer_timeout=options.consumer_timeout):
                yield
        finally:
            await self._stop(workers)

    async def run(self, *queues: Queue | str, started: Callable[[], object] | None = None) -> None:
        """Consume these queues, or all, until SIGTERM, SIGINT or cancellation; then drain.

        Enters the pipe unless it is entered already, and calls ``started`` once it consumes. A second signal ends the
        process at once.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self._session is None:
                await stack.enter_async_context(self)
            stopped = stack.enter_context(until_told())
            await stack.enter_async_context(self.consuming(*queues))
            if started is not None:
                started()
            await stopped.wait()

    def dead_letters(self, queue: Queue | str, *, parked: bool = False) -> DeadLetters:
        """Give the dead letters of a queue, to look at and to have handled again; or the ``parked`` ones.

        The queue need not be one of this pipe's. Raises ``ConfigurationError`` if the pipe is not entered.
        """
        session = self._entered()
        named = queue if isinstance(queue, Queue) else Queue(queue)
        return DeadLetters(named, session.transport, session.outlet, parked=parked)

    def health(self) -> Health:
        """Tell whether this pipe does its work now."""
        session = self._session
        if session is None:
            return Health(ok=False, transport=TransportState(connected=False, error="not entered"), consumers=())
        return health_of(session.transport, session.workers.values())

    def _transport(self) -> Transport:
        options = self._options
        transport = open_transport(
            self._urls(),
            name=self.name,
            clock=options.clock,
            chance=options.chance,
            connect_timeout=options.connect_timeout,
            heartbeat=options.heartbeat,
            fast=options.fast,
        )
        return transport if self._wrap is None else self._wrap(transport)

    @contextlib.contextmanager
    def override(
        self,
        url: str,
        *,
        clock: Clock,
        wrap: Callable[[Transport], Transport],
        observe: Callable[[Message, Decision], None],
    ) -> Iterator[None]:
        """Use another broker and another clock inside the block, and see what passes; for test kits."""
        if self._session is not None:
            raise ConfigurationError(f"pipe {self.name!r} is entered already: its broker can't be swapped now")
        before = self._url, self._options, self._wrap, self._observe
        self._url, self._options = url, replace(self._options, clock=clock)
        self._wrap, self._observe = wrap, observe
        try:
            yield
        finally:
            self._url, self._options, self._wrap, self._observe = before

    def _urls(self) -> tuple[str, ...]:
        given = self._url if self._url is not None else os.environ.get(URL_VARIABLE)
        if not given:
            raise ConfigurationError(
                f"pipe {self.name!r} has no broker: give EventPipe(url=…) or set ${URL_VARIABLE}, "
                f"for example amqp://localhost, or memory:// for a broker inside this process"
            )
        return (given,) if isinstance(given, str) else tuple(given)

    def _worker(self, session: _Session, consumer: ConsumerDecorator) -> Worker:
        options = self._options
        around = Surroundings(session.transport, options.clock, options.chance, self._observe)
        name = consumer.queue.name
        if name in session.workers:
            raise ConfigurationError(f"queue {name!r} is being consumed by this pipe already")
        session.workers[name] = Worker(consumer.work(options.body_limit, self.dependency_overrides), around)
        return session.workers[name]

    async def _stop(self, workers: Iterable[Worker]) -> None:
        workers = list(workers)
        await asyncio.gather(*(worker.stop(self.drain) for worker in workers))
        if self._session is not None:
            for worker in workers:
                self._session.workers.pop(worker.work.queue.name, None)

    def _chosen(self, queues: Iterable[Queue | str]) -> list[ConsumerDecorator]:
        names = [queue if isinstance(queue, str) else queue.name for queue in queues]
        unknown = [name for name in names if name not in self._consumers]
        if unknown:
            known = ", ".join(map(repr, self._consumers)) or "none"
            raise ConfigurationError(f"pipe {self.name!r} consumes no queue {unknown[0]!r}; it has {known}")
        return [self._consumers[name] for name in names] if names else list(self._consumers.values())

    def _entered(self) -> _Session:
        session = self._session
        if session is None:
            raise ConfigurationError(f"pipe {self.name!r} is not entered: use it inside `async with pipe:`")
        if session.process != os.getpid():
            raise ConfigurationError(
                f"pipe {self.name!r} was entered before a fork: enter it in the child process instead"
            )
        if session.loop is not asyncio.get_running_loop():
            raise ConfigurationError(f"pipe {self.name!r} was entered on another event loop: enter it on this one")
        return session

    def _outlet(self) -> Outlet:
        return self._entered().outlet


def _caller() -> str:
    """Give the file and line that called the public method that called this."""
    frame = sys._getframe(2)  # noqa: SLF001  inspect.stack() reads source files
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
