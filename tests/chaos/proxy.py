"""A TCP proxy between a client and a broker: what passes can be held, slowed, cut into pieces, or broken off."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

_AT_ONCE = 64 * 1024  # bytes


@dataclass
class Way:
    """What happens to the bytes of one direction. Times are in seconds, sizes in bytes."""

    delay: float = 0.0
    rate: float | None = None
    """Bytes a second."""
    piece: int | None = None
    """The largest segment."""
    hole: bool = False
    """Nothing passes, as when a cable is pulled; what was held passes once this is false again."""
    cut_after: int | None = None
    """After so many more bytes all connections are reset."""


class Proxy:
    """Listens on a free port of loopback and passes everything to ``target``, another port."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.up, self.down = Way(), Way()
        self.silent = False
        """New connections are accepted, and no broker is behind them."""
        self.port = 0
        self.accepted = 0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def url(self, through: str) -> str:
        """Give a broker's URL with this proxy's port."""
        return through.replace(f":{self.target}", f":{self.port}")

    @property
    def connections(self) -> int:
        return len(self._pairs)

    def both(self, **rules: object) -> None:
        """Set the same for both directions."""
        for way in (self.up, self.down):
            for name, value in rules.items():
                setattr(way, name, value)

    def reset(self) -> None:
        """Break all connections off with RST."""
        for pair in self._pairs:
            for writer in pair:
                _reset(writer)

    def half_close(self) -> None:
        """End what the clients send (FIN to the broker), and keep the other direction."""
        for _, to_broker in self._pairs:
            if to_broker.can_write_eof():
                to_broker.write_eof()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.silent:
                await _until(lambda: not self.silent)
                return
            async with self._broker() as (from_broker, to_broker):
                pair = (writer, to_broker)
                self._pairs.add(pair)
                try:
                    await _first(self._pump(reader, to_broker, self.up), self._pump(from_broker, writer, self.down))
                finally:
                    self._pairs.discard(pair)
        except (OSError, asyncio.CancelledError):  # cancelled by our own end; the server would log it
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    @contextlib.asynccontextmanager
    async def _broker(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        while data := await reader.read(_AT_ONCE):
            if way.delay:
                await asyncio.sleep(way.delay)
            await _until(lambda: not way.hole)
            size = way.piece or len(data)
            for at in range(0, len(data), size):
                piece = data[at : at + size]
                if way.rate:
                    await asyncio.sleep(len(piece) / way.rate)
                if way.cut_after is not None and way.cut_after < len(piece):
                    piece, way.cut_after = piece[: way.cut_after], None
                    writer.write(piece)
                    await asyncio.sleep(0.01)  # let it arrive before the reset overtakes it
                    self.reset()
                    return
                if way.cut_after is not None:
                    way.cut_after -= len(piece)
                writer.write(piece)
                await writer.drain()
        await _until(lambda: not way.hole)  # an end does not pass either


async def _first(*pumps: object) -> None:
    """Run both directions until one has ended."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]  # type: ignore[arg-type]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.01)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
