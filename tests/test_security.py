"""What others chose reaches a log, a terminal and a dead letter as text, and nothing else."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from tests.support import eventually

from eventpipe import ConfigurationError, EventPipe, Exchange, Properties, Queue, Refused, Retry, log_context
from eventpipe.shown import shown
from eventpipe.testing import running
from eventpipe.transports.base import Outgoing
from eventpipe.transports.rabbitmq.address import parse

ROOT = Path(__file__).parents[1] / "src" / "eventpipe"
HOSTILE = "\x1b[2J\r\nERROR forged line\u202e"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain ü 漢", "plain ü 漢"),
        (HOSTILE, "\\x1b[2J\\r\\nERROR forged line\\u202e"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\ud800", "\\ud800"),
        ("x" * 1000, "x" * 300 + "… (1000 characters)"),
        (None, None),
        (5, 5),
    ],
)
def test_what_is_shown(text: object, seen: object) -> None:
    """Printable, on one line, and not for ever."""
    assert shown(text) == seen


async def test_hostile_text_reaches_logs_escaped() -> None:
    """Message ids, types, correlation ids, and what a handler's exception quotes of a body."""
    pipe = EventPipe("memory://", name="hostile", retry=Retry(attempts=2, delay=0.1))
    queue = Queue("jobs")

    @pipe.consumer(queue)
    async def handle(text: str) -> None:
        structlog.get_logger().info("mine")
        raise ValueError(text)

    async with running(pipe) as bus:
        with capture_logs(processors=[log_context]) as logs:
            properties = Properties(message_id=HOSTILE, type=HOSTILE, correlation_id=HOSTILE)
            transport = pipe._session.transport
            transport.publish(Outgoing("", "jobs", json.dumps(HOSTILE).encode(), properties))
            await bus.settled()
    assert {"retry", "dead-lettered", "mine"} <= {line["event"] for line in logs}
    for line in logs:
        assert all(value.isprintable() for value in line.values() if isinstance(value, str)), line


@pytest.mark.parametrize("host", ["rabbit.example.org", "10.0.0.1", "rabbitmq", "[2001:db8::1]"])
def test_a_silent_guest_is_refused_off_loopback(host: str) -> None:
    """Whoever wants guest there has to say so."""
    with pytest.raises(ConfigurationError, match=r"names no user.*write amqp://user:password@"):
        parse(f"amqp://{host}/", heartbeat=1, timeout=1)
    assert parse(f"amqp://guest:guest@{host}/", heartbeat=1, timeout=1).user == "guest"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.8.9.10"])
def test_loopback_needs_no_user(host: str) -> None:
    """As RabbitMQ has it."""
    assert parse(f"amqp://{host}", heartbeat=1, timeout=1).user == "guest"


def test_nothing_evaluates_unpickles_or_runs_a_shell() -> None:
    """Neither by name nor by import; only the command line starts processes, and without a shell."""
    forbidden = {"eval", "exec", "compile", "__import__"}
    modules = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle"}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, path
            if isinstance(node, ast.Import):
                assert not modules & {alias.name for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert node.module not in modules, path
            if isinstance(node, ast.keyword):
                assert node.arg != "shell", path


async def test_a_pipe_with_least_privilege(eventpipe_rabbitmq: str, rabbit_node: Any) -> None:
    """A user with nothing but what ``permissions`` says publishes, delays, retries, dead-letters and reconnects."""
    vhost = eventpipe_rabbitmq.rpartition("/")[2]
    rabbit_node.api("PUT", "users/least", {"password": "secret", "tags": ""})
    url = eventpipe_rabbitmq.replace("guest:guest", "least:secret")
    orders = Exchange("orders", alternate=Exchange("strays", kind="fanout"))
    queue = Queue("billing", bind=orders.on("order.*"))

    def make(mode: Any) -> tuple[EventPipe, Any, list[int]]:
        pipe = EventPipe(url, name="least", retry=Retry(attempts=2, delay=0.1), topology=mode)
        seen: list[int] = []

        @pipe.consumer(queue)
        async def handle(number: int) -> None:
            seen.append(number)
            if number < 0:
                raise ValueError(number)

        return pipe, pipe.publisher(int, to=orders, key="order.made"), seen

    for mode in ("apply", "check"):
        pipe, orders_out, seen = make(mode)
        found = pipe.permissions
        needed = {"configure": found.configure, "write": found.write, "read": found.read}
        rabbit_node.api("PUT", f"permissions/{vhost}/least", needed)
        async with pipe, pipe.consuming():
            await orders_out.publish(1)
            await orders_out.publish(-1)
            if mode == "apply":
                await orders_out.publish(2, delay=0.1)
            else:
                with pytest.raises(Refused, match="its delay can't be arranged"):
                    await orders_out.publish(2, delay=0.1)
                await orders_out.publish(2)
            await eventually(lambda seen=seen: sorted(seen) == [-1, -1, 1, 2])
            await eventually(lambda pipe=pipe: pipe.health().consumers[0].dead_lettered == 1)
            pipe._session.transport._consuming._wire._socket.abort()
            await eventually(lambda pipe=pipe: not pipe.health().ok)
            await eventually(lambda pipe=pipe: pipe.health().ok)
            await orders_out.publish(3)
            await eventually(lambda seen=seen: 3 in seen)
    assert pipe.permissions.configure == "^$"


def test_another_applications_names_are_out_of_reach() -> None:
    """The patterns match whole names only."""
    pipe = EventPipe("memory://", name="least")
    pipe.publisher(int, to=Exchange("orders"))
    found = pipe.permissions
    for other in ("orders2", "my.orders", "ordersx"):
        assert not re.search(found.configure, other)
        assert not re.search(found.write, other)
    assert re.search(found.write, "orders")
