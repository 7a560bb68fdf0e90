"""A supervised connection: it connects, notices that it is lost, and connects again, until it is closed."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version

import aiormq.exceptions
import structlog
from aio_pika.connection import Connection
from aiormq.abc import AbstractChannel
from yarl import URL

from ...clock import Chance
from ...errors import AccessRefused, ConfigurationError, ConnectError
from ..base import Verdict
from .address import Address
from .failures import LOST, aiormq_calls, connect_error
from .fast import FRAME_MAX, FastDeliveries, FastPublishes, Wire, WireFactory
from .hot import Deliveries, Entry, Feed, Names, Publishes
from .plain import PlainDeliveries, PlainPublishes

log = structlog.get_logger("eventpipe")

BACKOFF = (0.05, 0.5)
"""Seconds between tries while the broker is down or restarting: at first, and at most. Jitter comes on top."""

REFUSED_BACKOFF = (1.0, 30.0)
"""Seconds between tries while the broker refuses the login."""

RPC_TIMEOUT = 10.0
"""Seconds for one call on a channel."""

CLOSE_TIMEOUT = 3.0
"""Seconds for closing a channel or a connection in good order."""


class Link:
    """One connection to one of several brokers. ``lost(reason)`` is called when it is gone.

    ``fast`` says which path its hot channels take; it turns false if aiormq no longer has the seams for it.
    """

    def __init__(self, addresses: Sequence[Address], name: str, chance: Chance, *, fast: bool) -> None:
        self.error: str | None = None
        self.fast = fast
        self.lost: Callable[[str], object] = lambda _reason: None
        self._addresses, self._name, self._chance = deque(addresses), name, chance
        self._connection: Connection | None = None
        self._wire: Wire | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes now.

        aiormq has no flag for it; its ``ready()`` does not suspend while the connection is open and not blocked.
        """
        if self._connection is None or self._connection.transport is None:
            return False
        ready = self._connection.transport.connection.ready()
        try:
            ready.send(None)
        except StopIteration:
            return False
        except RuntimeError:
            return False
        finally:
            ready.close()
        return True

    async def start(self) -> None:
        """Connect once, or raise ``ConnectError``; from then on stay connected."""
        closed = await self._connect()
        self._task = asyncio.create_task(self._supervise(closed), name=f"eventpipe link {self._name}")

    async def until_up(self) -> None:
        """Wait until it is connected."""
        await self._up.wait()

    async def close(self) -> None:
        """Disconnect for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._disconnect()

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel. Raises what aiormq raises, or ``TimeoutError``.

        It is aiormq's: of each of its own, aio-pika 10.2 leaves an observer on the connection while that lives.
        """
        transport = None if self._connection is None else self._connection.transport
        if transport is None or not self.connected:
            raise aiormq.exceptions.ChannelInvalidStateError("not connected")
        async with asyncio.timeout(RPC_TIMEOUT):
            with aiormq_calls():
                return await transport.connection.channel(publisher_confirms=confirms, on_return_raises=confirms)

    def deliveries(self, underlay: AbstractChannel, feed: Feed) -> Deliveries:
        """Make a consuming channel of an open channel that nobody else uses."""
        return PlainDeliveries(underlay, feed) if self._wire is None else FastDeliveries(self._wire, underlay, feed)

    def publishes(
        self, underlay: AbstractChannel, names: Names, resolve: Callable[[Entry, Verdict], object]
    ) -> Publishes:
        """Make a publishing channel of an open channel in confirm mode that nobody else uses."""
        if self._wire is None:
            return PlainPublishes(underlay, names, resolve)
        return FastPublishes(self._wire, underlay, names, resolve)

    @contextlib.asynccontextmanager
    async def throwaway(self) -> AsyncIterator[AbstractChannel]:
        """Give a channel for declarations: an error on it harms no other."""
        channel = await self.channel()
        try:
            yield channel
        finally:
            await close_channel(channel)

    async def _supervise(self, closed: "asyncio.Future[str]") -> None:
        while True:
            reason = await closed
            self._up.clear()
            self.error = reason
            self.lost(reason)
            await self._disconnect()
            closed = await self._reconnect()

    async def _reconnect(self) -> "asyncio.Future[str]":
        pause = 0.0
        while True:
            first, longest = BACKOFF
            try:
                return await self._connect()
            except AccessRefused as error:
                self.error = str(error)
                first, longest = REFUSED_BACKOFF
            except (ConnectError, ConfigurationError) as error:  # a certificate file may have gone meanwhile
                self.error = str(error)
            pause = min(max(first, 2 * pause), longest)
            await asyncio.sleep(pause * (0.75 + self._chance.random() / 2))

    async def _connect(self) -> "asyncio.Future[str]":
        """Try each address in turn; give the future of the reason for which the connection will be lost.

        What was lost or failed last is tried last: a broker that is frozen still accepts connections.
        """
        failures: list[ConnectError] = []
        for address in list(self._addresses):
            self._addresses.rotate(-1)
            try:
                return await self._connect_to(address)
            except ConnectError as error:
                failures.append(error)
        # What refuses us is likelier to need a person than what is down.
        failures.sort(key=lambda one: not isinstance(one, AccessRefused))
        for other in failures[1:]:
            failures[0].add_note(f"and {other}")
        raise failures[0]

    async def _connect_to(self, address: Address) -> "asyncio.Future[str]":
        factory = WireFactory(address.heartbeat) if self.fast else None
        connection = await self._open(address, factory)
        if factory is not None and (missing := _missing_seam(connection, factory)):
            log.warning(
                "this aiormq can't be used at full speed: plain path", missing=missing, aiormq=version("aiormq")
            )
            self.fast, factory = False, None
            await _close_quietly(connection)
            connection = await self._open(address, None)
        self._wire = None if factory is None else factory.wire
        closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_close(_connection: object, error: BaseException | None) -> None:
            if not closed.done():
                closed.set_result(f"{address}: {error or 'the connection was closed'}")

        connection.close_callbacks.add(on_close)
        self._connection, self.error = connection, None
        self._up.set()
        return closed

    async def _open(self, address: Address, factory: WireFactory | None) -> Connection:
        connection = Connection(URL(address.aiormq_url(self._name), encoded=True), ssl_context=address.tls())
        if factory is not None:
            connection.kwargs["transport_factory"] = factory
        try:
            async with asyncio.timeout(address.timeout):
                with aiormq_calls():
                    await connection.connect()
        except LOST as error:
            await _close_quietly(connection)
            raise connect_error(error, address, address.timeout) from error
        except asyncio.CancelledError:
            await _close_quietly(connection)
            raise
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._up.clear()
        if connection is not None:
            await _close_quietly(connection)


def _missing_seam(connection: Connection, factory: WireFactory) -> str | None:
    """Say what ``fast.py`` builds on and this aiormq does not have; also tell the wire what was agreed on."""
    if factory.wire is None:
        return "its connection was not made by the transport_factory it was given"
    underlay = getattr(connection.transport, "connection", None)
    agreed = getattr(getattr(underlay, "connection_tune", None), "frame_max", None)
    if not isinstance(agreed, int):
        return "connection_tune.frame_max"
    if "number" not in getattr(AbstractChannel, "__annotations__", {}):
        return "channel.number"
    factory.wire.frame_max = agreed or FRAME_MAX
    return None


def when_closed(channel: AbstractChannel, call: Callable[[BaseException | None], object]) -> None:
    """Have ``call`` called with the reason once the channel is closed, by whomever."""
    channel.closing.add_done_callback(lambda done: call(None if done.cancelled() else done.exception()))


async def close_channel(channel: AbstractChannel) -> None:
    """Close a channel, which may be dead already, in bounded time."""
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            with aiormq_calls():
                await channel.close()


async def _close_quietly(connection: Connection) -> None:
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            with aiormq_calls():
                await connection.close()
