"""The pytest plugin, with ``eventpipe_broker`` and ``eventpipe_rabbitmq``; it loads by itself."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def _eventpipe_test_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from .brokers import find_broker  # noqa: PLC0415  only for those who ask: the plugin is loaded in every pytest

    shared, owner = tmp_path_factory.getbasetemp(), os.getpid()
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    if parallel:  # the workers share one node, which ends with the process that started them
        shared, owner = shared.parent, os.getppid()
    broker = find_broker(shared, owner=owner)
    yield broker
    if not parallel:
        broker.stop()


@pytest.fixture
def eventpipe_rabbitmq(_eventpipe_test_broker: Any) -> Iterator[str]:
    """The URL of a RabbitMQ with a fresh virtual host, or a name prefix of its own where it can't make one."""
    url = _eventpipe_test_broker.fresh()
    yield url
    _eventpipe_test_broker.release(url)


@pytest.fixture(params=["memory", "rabbitmq"])
def eventpipe_broker(request: pytest.FixtureRequest) -> str:
    """The URL of a broker of one's own: the memory broker, then RabbitMQ."""
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("eventpipe_rabbitmq"))
