"""A bare socket that logs in and publishes whatever bytes it is given: what no client library would send."""

import socket
import struct
from typing import Any
from urllib.parse import unquote, urlsplit

import pamqp.frame
from pamqp import commands


class RawPublisher:
    """One connection with one channel in confirm mode."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self._read = self._socket.makefile("rb")
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        self._frame()
        self._call(commands.Connection.StartOk({}, "PLAIN", f"\0{parts.username}\0{parts.password}", "en_US"), 0)
        self._send(commands.Connection.TuneOk(2047, 131_072, 0), 0)
        self._call(commands.Connection.Open(unquote(parts.path[1:]) or "/"), 0)
        self._call(commands.Channel.Open())
        self._call(commands.Confirm.Select())

    def publish(self, exchange: bytes, key: bytes, flags: int, properties: bytes, body: bytes) -> None:
        """Publish and wait for the confirm."""
        method = struct.pack(">HHHB", 60, 40, 0, len(exchange)) + exchange + bytes((len(key),)) + key + b"\0"
        header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
        parts = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
        raw = b""
        for kind, payload in [(1, method), (2, header), *((3, part) for part in parts)]:
            raw += struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"
        self._socket.sendall(raw)
        answer = self._frame()
        assert isinstance(answer, commands.Basic.Ack), answer

    def close(self) -> None:
        self._read.close()
        self._socket.close()

    def _call(self, method: Any, channel: int = 1) -> Any:
        self._send(method, channel)
        return self._frame()

    def _send(self, method: Any, channel: int) -> None:
        self._socket.sendall(pamqp.frame.marshal(method, channel))

    def _frame(self) -> Any:
        head = self._read.read(7)
        rest = self._read.read(struct.unpack(">I", head[3:])[0] + 1)
        return pamqp.frame.unmarshal(head + rest)[2]
