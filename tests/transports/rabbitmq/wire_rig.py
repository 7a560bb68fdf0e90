"""A wire without a socket: bytes in, deliveries, verdicts and what is left to aiormq out."""

import asyncio

from eventpipe.message import Properties
from eventpipe.transports.base import Delivery, Outgoing, Verdict
from eventpipe.transports.rabbitmq.fast import FastDeliveries, FastPublishes, Wire
from eventpipe.transports.rabbitmq.hot import Entry, Feed


class Socket:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, _name: str) -> None:
        return None


class Channel:
    def __init__(self, number: int) -> None:
        self.number = number


class Reader(asyncio.StreamReader):
    """Keeps what is passed on to aiormq."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = b""

    def feed_data(self, data: bytes) -> None:
        self.passed += data


class Rig:
    """A wire with a consuming channel and a publishing channel 2, and all that comes out of them."""

    def __init__(self, heartbeat: float = 0, channel: int = 1) -> None:
        self.reader, self.socket = Reader(), Socket()
        self.wire = Wire(self.reader, asyncio.get_running_loop(), heartbeat)
        self.wire.connection_made(self.socket)
        self.deliveries: list[Delivery] = []
        self.verdicts: list[tuple[str, Verdict]] = []
        feed = Feed(1, "", True, self.deliveries.append)
        self.consuming = FastDeliveries(self.wire, Channel(channel), feed)
        self.publishing = FastPublishes(
            self.wire, Channel(2), str, lambda entry, verdict: self.verdicts.append((entry.outgoing.key, verdict))
        )

    def publish(self, key: str, *, mandatory: bool = True) -> None:
        out = Outgoing("x", key, b"body", Properties(message_id="same"), mandatory)
        self.publishing.send(Entry(out, asyncio.get_running_loop().create_future()))
