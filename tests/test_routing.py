"""Exchanges, queues and bindings as values: what RabbitMQ refuses is refused when they are made."""

from typing import Any

import pytest

from eventpipe import ConfigurationError, Exchange, Queue
from eventpipe.routing import topology


@pytest.mark.parametrize(
    "make",
    [
        lambda: Queue(""),
        lambda: Queue("q" * 201),
        lambda: Queue("a.#.b"),
        lambda: Queue("*"),
        lambda: Queue("amq.mine"),
        lambda: Queue("q", kind="other"),
        lambda: Queue("q", bind="events"),
        lambda: Queue("q", exclusive=True),
        lambda: Queue("q", auto_delete=True),
        lambda: Queue("q", durable=False),
        lambda: Queue("q", max_priority=5),
        lambda: Queue("q", lazy=True),
        lambda: Queue("q", overflow="reject-publish-dlx"),
        lambda: Queue("q", max_length=-1),
        lambda: Queue("q", message_ttl=-1),
        lambda: Queue("q", expires=0),
        lambda: Queue("q", kind="classic", max_priority=256),
        lambda: Queue("q", kind="classic", delivery_limit=3),
        lambda: Queue("q", kind="classic", dead_letter_strategy="at-least-once"),
        lambda: Queue("q", kind="classic", initial_group_size=3),
        lambda: Queue("q", dead_letter_strategy="at-least-once", overflow="drop-head"),
        lambda: Queue("q", kind="stream", message_ttl=1),
        lambda: Queue("q", kind="stream", max_length=1),
        lambda: Queue("q", kind="stream", single_active_consumer=True),
        lambda: Queue("q", max_age="1D"),
        lambda: Exchange(""),
        lambda: Exchange("x" * 256),
        lambda: Exchange("x", kind="other"),
        lambda: Exchange("x").on(),
        lambda: Exchange("x").on("k" * 256),
        lambda: Exchange("x").on("k", headers={"a": 1}),
        lambda: Exchange("x", kind="headers").on("k"),
    ],
)
def test_what_the_broker_would_refuse(make: Any) -> None:
    """A combination that can't be declared is an error where it is written."""
    with pytest.raises(ConfigurationError):
        make()


def test_arguments() -> None:
    """Typed fields become the arguments of the declaration, in the broker's units; what is not set is not sent."""
    assert Queue("q").wire_arguments == {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q.dead",
        "x-delivery-limit": 100,
        "x-dead-letter-strategy": "at-least-once",
    }
    classic = Queue("q", kind="classic", message_ttl=1.5, expires=60, max_priority=9, lazy=True, overflow="drop-head")
    assert classic.wire_arguments == {
        "x-queue-type": "classic",
        "x-message-ttl": 1500,
        "x-expires": 60_000,
        "x-max-priority": 9,
        "x-queue-mode": "lazy",
        "x-overflow": "drop-head",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q.dead",
    }
    assert Queue("s", kind="stream", max_age="7D").wire_arguments == {"x-queue-type": "stream", "x-max-age": "7D"}
    assert Queue("q", dead_letter=False).wire_arguments == {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    assert Queue("q", arguments={"x-mine": 1}).wire_arguments["x-mine"] == 1


def test_topology_lists_everything_once_targets_first() -> None:
    """Exchanges behind exchanges, dead-letter and suspect queues are found, and bindings come last."""
    rest = Exchange("rest", kind="fanout")
    source = Exchange("source", alternate=rest)
    behind = Exchange("behind", bind=source.on("a.#"))
    queue = Queue("q", bind=[behind.on("a.b"), source.on("c")])
    found = topology(queues=[queue], consumed=[queue])
    assert [one.name for one in found.queues] == ["q.dead", "q.suspects", "q"]
    assert [one.name for one in found.exchanges] == ["rest", "source", "behind"]
    assert [(binding.source.name, binding.key, target, kind) for binding, target, kind in found.bindings] == [
        ("behind", "a.b", "q", "queue"),
        ("source", "c", "q", "queue"),
        ("source", "a.#", "behind", "exchange"),
    ]
    assert found.retried == ("q",)
    assert hash(queue) == hash(Queue("q"))
    picture = found.mermaid()
    assert picture.splitlines()[0] == "flowchart LR"
    assert '-- "a.b" -->' in picture
    assert '-. "given up" .->' in picture
