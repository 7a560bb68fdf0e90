"""What the broker itself takes and gives: frames made once, on a bare socket, confirms and deliveries only counted."""

import asyncio
import struct
import time
from typing import Any
from urllib.parse import unquote, urlsplit

import pamqp.frame
from pamqp import body, commands, header

from benchmarks.events import PREFETCH, arguments, tweet

WINDOW = 4096
"""Unconfirmed publishes, as many as eventpipe allows."""


class Bare(asyncio.Protocol):
    """Counts confirms; counts deliveries and acknowledges every half of the prefetch."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.confirmed = self.delivered = self.target = 0
        self.room, self.done = asyncio.Event(), asyncio.Event()
        self.sent = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        at, size = 0, len(data)
        while size - at >= 8:
            kind, _, length = struct.unpack_from(">BHI", data, at)
            end = at + 8 + length
            if end > size:
                break
            self._frame(kind, data, at, end)
            at = end
        self.buffer = data[at:]

    def _frame(self, kind: int, data: bytes, at: int, end: int) -> None:
        code = data[at + 7 : at + 11] if kind == 1 else b""
        if code == b"\0\x3c\0\x50":
            self.confirmed = max(self.confirmed, int.from_bytes(data[at + 11 : at + 19], "big"))
            if self.sent - self.confirmed < WINDOW:
                self.room.set()
            if self.confirmed >= self.target:
                self.done.set()
        elif code == b"\0\x3c\0\x3c":
            self.delivered += 1
            if self.delivered % (PREFETCH // 2) == 0 or self.delivered == self.target:
                name = data[at + 11]
                tag = data[at + 12 + name : at + 20 + name]
                self.transport.write(b"\x01\0\1\0\0\0\x0d\0\x3c\0\x50" + tag + b"\1\xce")
            if self.delivered == self.target:
                self.done.set()
        elif kind == 1:
            self.answers.put_nowait(pamqp.frame.unmarshal(data[at:end])[2])


class Limit:
    """Logs in, publishes and consumes with nothing around it."""

    scale = 15.0

    def __init__(self, url: str, queue: str, kind: str, size: int) -> None:
        self.url, self.queue, self.kind = url, queue, kind
        self.body = tweet(size).model_dump_json().encode()

    async def run(self, count: int) -> dict[str, float]:
        """Give messages per second, published and consumed."""
        count = round(count * self.scale)
        await self._open()
        published = await self._publish(count)
        consumed = await self._consume(count)
        self.bare.transport.close()
        return {"publish_concurrent": published, "publish_many": published, "consume_ack": consumed}

    async def _open(self) -> None:
        parts = urlsplit(self.url)
        _, self.bare = await asyncio.get_running_loop().create_connection(Bare, parts.hostname, parts.port)
        self.bare.transport.write(b"AMQP\0\0\x09\x01")
        await self.bare.answers.get()
        await self._call(commands.Connection.StartOk({}, "PLAIN", f"\0{parts.username}\0{parts.password}", "en_US"), 0)
        self._send(commands.Connection.TuneOk(2047, 131_072, 0), 0)
        await self._call(commands.Connection.Open(unquote(parts.path[1:]) or "/"), 0)
        await self._call(commands.Channel.Open())
        await self._call(commands.Queue.Declare(queue=self.queue, durable=True, arguments=arguments(self.kind)))
        await self._call(commands.Confirm.Select())

    async def _publish(self, count: int) -> float:
        properties = commands.Basic.Properties(delivery_mode=2, content_type="application/json", message_id="0" * 32)
        frames = [
            commands.Basic.Publish(exchange="", routing_key=self.queue),
            header.ContentHeader(0, len(self.body), properties),
            body.ContentBody(self.body),
        ]
        chunk = b"".join(pamqp.frame.marshal(one, 1) for one in frames) * 100
        bare, begin = self.bare, time.perf_counter()
        bare.target = count
        while bare.sent < count:
            if bare.sent - bare.confirmed >= WINDOW:
                bare.room.clear()
                await bare.room.wait()
            bare.transport.write(chunk)
            bare.sent += 100
            await asyncio.sleep(0)
        await bare.done.wait()
        return count / (time.perf_counter() - begin)

    async def _consume(self, count: int) -> float:
        await self._call(commands.Basic.Qos(prefetch_count=PREFETCH))
        self.bare.done.clear()
        self.bare.target, begin = count, time.perf_counter()
        self._send(commands.Basic.Consume(queue=self.queue), 1)
        await self.bare.done.wait()
        return count / (time.perf_counter() - begin)

    async def _call(self, method: Any, channel: int = 1) -> Any:
        self._send(method, channel)
        return await self.bare.answers.get()

    def _send(self, method: Any, channel: int) -> None:
        self.bare.transport.write(pamqp.frame.marshal(method, channel))
