"""What all tests share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.postgres import Postgres


@pytest.fixture
def rabbit_node(_eventpipe_test_broker: Any) -> Any:
    """The private node that the tests of this process share; for faults that leave it running."""
    if not hasattr(_eventpipe_test_broker, "node"):
        pytest.fail("these tests break their broker: unset EVENTPIPE_TEST_URL, so that they start a private node")
    return _eventpipe_test_broker.node


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One private server for the session; each test has a database of its own."""
    started = Postgres.start("fsync=off")
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(autouse=True)
async def _no_task_is_left() -> AsyncIterator[None]:
    """Whatever a test starts has ended when it ends."""
    before = asyncio.all_tasks()
    yield
    for _ in range(100):
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"left running: {left}")
