"""Where a test gets its RabbitMQ: named in the environment, installed on this machine, or in a container."""

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Protocol

from .node import BrokerUnavailable, RabbitNode, find_server

URL_VARIABLE = "EVENTPIPE_TEST_URL"

HOW_TO_GET_ONE = (
    "the broker tests need a RabbitMQ: install rabbitmq-server (Debian and Ubuntu: apt-get install rabbitmq-server), "
    f"or set ${URL_VARIABLE}=amqp://user:password@host/vhost, or install eventpipe[containers] and start Docker"
)


class Broker(Protocol):
    """A RabbitMQ to test with."""

    def fresh(self) -> str:
        """Give the URL of a place of one's own: a virtual host, or a name prefix in a shared one."""
        ...

    def release(self, url: str) -> None:
        """Give the place back."""
        ...

    def stop(self) -> None:
        """End what was started for it."""
        ...


class NamedBroker:
    """A broker that somebody else runs, at an AMQP URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def fresh(self) -> str:
        separator = "&" if "?" in self._url else "?"
        return f"{self._url}{separator}name_prefix=t{secrets.token_hex(6)}."

    def release(self, url: str) -> None:
        """Leave it: its owner cleans up."""

    def stop(self) -> None:
        """Leave it running."""


class NodeBroker:
    """A private node; each place is a virtual host."""

    def __init__(self, node: RabbitNode) -> None:
        self.node = node

    def fresh(self) -> str:
        return self.node.create_vhost()

    def release(self, url: str) -> None:
        self.node.delete_vhost(url.rpartition("/")[2])

    def stop(self) -> None:
        self.node.stop()


def find_broker(shared: Path, *, owner: int) -> Broker:
    """Find or start a RabbitMQ; processes that name the same folder ``shared`` share one private node.

    Raises ``BrokerUnavailable`` with what to do.
    """
    named = os.environ.get(URL_VARIABLE)
    if named:
        return NamedBroker(named)
    if find_server() is not None:
        return NodeBroker(_shared_node(shared, owner))
    return _container()


def _shared_node(shared: Path, owner: int) -> RabbitNode:
    facts = shared / "eventpipe-node.json"
    with (shared / "eventpipe-node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if facts.exists():
            known = json.loads(facts.read_text())
            if Path(known["folder"]).exists():  # else its owner has ended, and it with it
                return RabbitNode(Path(known["folder"]), known["facts"])
        node = RabbitNode.start(owner=owner)
        facts.write_text(json.dumps({"folder": str(node.folder), "facts": node.facts}))
        return node


def _container() -> Broker:
    try:
        import docker  # noqa: PLC0415  an extra
        from testcontainers.rabbitmq import RabbitMqContainer  # noqa: PLC0415  an extra

        docker.from_env(timeout=2).ping()
    except Exception as error:
        raise BrokerUnavailable(HOW_TO_GET_ONE) from error
    container = RabbitMqContainer("rabbitmq:3.13")
    container.start()
    host, port = container.get_container_host_ip(), container.get_exposed_port(5672)
    broker = NamedBroker(f"amqp://guest:guest@{host}:{port}/")
    broker.stop = container.stop  # type: ignore[method-assign]  # the one thing that differs
    return broker
