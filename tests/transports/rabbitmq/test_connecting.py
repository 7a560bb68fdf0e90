"""Addresses, and what a connection that can't be made is told as."""

import asyncio
import random
import time

import pytest
from tests.support import eventually

from eventpipe import AccessRefused, ConfigurationError, ConnectError, EventPipe, Exchange, Properties, Queue
from eventpipe.clock import SystemClock
from eventpipe.routing import topology
from eventpipe.transports.base import CONFIRMED, Outgoing
from eventpipe.transports.rabbitmq import RabbitTransport
from eventpipe.transports.rabbitmq.address import parse


@pytest.mark.parametrize(
    ("url", "shown", "facts"),
    [
        ("amqp://localhost", "amqp://guest@localhost:5672", ("guest", "guest", "/")),
        ("amqps://u:pass9@h", "amqps://u@h:5671", ("u", "pass9", "/")),
        ("amqp://u%40x:p%2F1@h:1/my%2Fvhost", "amqp://u@x@h:1/my%2Fvhost", ("u@x", "p/1", "my/vhost")),
        ("amqp://[::1]:5/v", "amqp://guest@[::1]:5/v", ("guest", "guest", "v")),
    ],
)
def test_addresses(url: str, shown: str, facts: tuple[str, str, str]) -> None:
    """User, password and virtual host are decoded, defaults filled in, and the password never shown."""
    address = parse(url, heartbeat=10, timeout=5.0)
    assert (str(address), (address.user, address.password, address.vhost)) == (shown, facts)
    assert facts[1] == "guest" or facts[1] not in repr(address)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://x", "begins with 'http'"),
        ("localhost:5672", "begins with 'localhost'"),
        ("amqp://", "has no host"),
        ("amqp://h:99999", "can't be read"),
        ("amqp://u:p@h?heartbeat=x", "heartbeat='x'"),
        ("amqp://u:p@h?speed=1", "unknown parameter 'speed'"),
        ("amqps://u:p@h?no_verify_ssl=1", "always verified"),
        ("amqps://u:p@h?verify=verify_none", "always verified"),
    ],
)
def test_bad_addresses(url: str, text: str) -> None:
    """A URL that can't work says what to write."""
    with pytest.raises(ConfigurationError, match=text):
        parse(url, heartbeat=10, timeout=5.0)


def test_missing_certificate_files() -> None:
    """A CA file that can't be read is named where the connection is made."""
    with pytest.raises(ConfigurationError, match="certificate files"):
        parse("amqps://u:p@h?cacertfile=/nowhere.pem", heartbeat=10, timeout=5.0).tls()


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (lambda url: "amqp://guest:secret@nowhere.invalid/", ConnectError, "can't be resolved"),
        (lambda url: "amqp://guest:secret@127.0.0.1:1/", ConnectError, "nothing listens there"),
        (lambda url: url.replace(":guest@", ":secret@"), AccessRefused, "refused the login of user 'guest'"),
        (lambda url: url.rpartition("/")[0] + "/nowhere", AccessRefused, "virtual host 'nowhere' does not exist"),
        (lambda url: url.replace("amqp:", "amqps:"), ConnectError, "TLS failed"),
    ],
)
async def test_a_connection_that_can_not_be_made(
    eventpipe_rabbitmq: str, change: object, kind: type, text: str
) -> None:
    """Each reason has its own words, names the address, and never the password."""
    begin = time.monotonic()
    with pytest.raises(kind, match=text) as caught:
        async with EventPipe(change(eventpipe_rabbitmq), name="bad"):
            pass
    assert "secret" not in str(caught.value)
    assert "@" in str(caught.value)
    assert time.monotonic() - begin < 5


@pytest.mark.fault("F03")
async def test_a_silent_server_costs_the_connect_timeout() -> None:
    """Something that accepts and says nothing is given up after the timeout."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(ConnectError, match=r"no connection within 0\.3 s"):
        async with EventPipe(f"amqp://127.0.0.1:{port}?connection_timeout=0.3", name="silent"):
            pass
    assert time.monotonic() - begin < 3
    for writer in writers:
        writer.close()
    server.close()


@pytest.mark.fault("F08")
async def test_several_urls_are_tried_in_order(eventpipe_rabbitmq: str) -> None:
    """A dead first address leads to the second; when all fail, all are named."""
    dead = "amqp://127.0.0.1:1/"
    async with EventPipe([dead, eventpipe_rabbitmq], name="several") as pipe:
        assert pipe.health().ok
    with pytest.raises(ConnectError) as caught:
        async with EventPipe([dead, "amqp://127.0.0.1:2/"], name="several"):
            pass
    assert "127.0.0.1:2" in caught.value.__notes__[0]


async def test_a_name_prefix_separates_tests_on_one_virtual_host(eventpipe_rabbitmq: str) -> None:
    """Two pipes with the same names and different prefixes don't see each other, delays and dead letters included."""
    one, two = (
        RabbitTransport(
            [f"{eventpipe_rabbitmq}?name_prefix=p{n}."], name="p", clock=SystemClock(), chance=random.Random()
        )
        for n in (1, 2)
    )
    exchange = Exchange("x")
    queue = Queue("q", bind=exchange.on("#"), message_ttl=3.0)
    for transport in (one, two):
        await transport.connect()
        await transport.declare(topology(queues=[queue], consumed=[queue]))
    got: list[tuple[str, str]] = []
    await one.subscribe(queue, 10, lambda delivery: got.append((delivery.exchange, delivery.key)), lambda _epoch: None)
    assert await one.publish(Outgoing("x", "k", b"1", Properties(message_id="1"))) == CONFIRMED
    assert await one.publish(Outgoing("", "q", b"2", Properties(message_id="2"))) == CONFIRMED
    assert await one.delay(Outgoing("", "q", b"3", Properties(message_id="3")), 0.1) == CONFIRMED
    assert await one.delay(Outgoing("x", "k", b"4", Properties(message_id="4")), 0.1) == CONFIRMED
    await eventually(lambda: len(got) == 4)
    assert got[:2] == [("x", "k"), ("", "q")]
    assert await two.depth("q") == 0
    await one.close()
    await two.close()
