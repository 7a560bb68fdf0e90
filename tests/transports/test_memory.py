"""What only the memory broker has: shared names, and its matching rules as pure functions."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventpipe.clock import SystemClock
from eventpipe.routing import Queue, topology
from eventpipe.transports.base import Outgoing
from eventpipe.message import Properties
from eventpipe.testing import ManualClock
from eventpipe.transports.memory import MemoryTransport, memory_broker
from eventpipe.transports.memory.matching import headers_match, topic_matches


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a", False),
        ("*", "a", True),
        ("*", "", False),
        ("*", "a.b", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.x.y.b", True),
        ("a.#.b", "a.x.y", False),
        ("#.*", "", False),
        ("#.#", "", True),
        ("*.#.*", "a", False),
        ("*.#.*", "a.b", True),
        ("a.*.c", "a..c", True),
    ],
)
def test_topic_matching(pattern: str, key: str, expected: bool) -> None:
    """A star is one word, a hash any number of them."""
    assert topic_matches(pattern, key) is expected


def _naive(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_naive(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _naive(pattern[1:], words[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=6),
)
def test_topic_matching_agrees_with_the_definition(pattern: list[str], words: list[str]) -> None:
    """The quick way gives what the plain recursive definition gives."""
    assert topic_matches(".".join(pattern), ".".join(words)) is _naive(pattern, words)


def test_headers_matching() -> None:
    """All or any of the arguments, whose names don't begin with x-; a None argument asks for presence only."""
    assert headers_match({"a": 1, "x-match": "all"}, {"a": 1, "b": 2})
    assert not headers_match({"a": 1, "b": 3, "x-match": "all"}, {"a": 1, "b": 2})
    assert headers_match({"a": 1, "b": 3, "x-match": "any"}, {"a": 1, "b": 2})
    assert headers_match({"a": None, "x-match": "all"}, {"a": 5})


def test_names_are_shared() -> None:
    """``memory://name`` is one broker for the whole process, ``memory://`` a new one each time."""
    assert memory_broker("memory://shared") is memory_broker("memory://shared")
    assert memory_broker("memory://") is not memory_broker("memory://")


async def test_what_is_delayed_outlives_its_transport() -> None:
    """A delay belongs to the broker: it ends while another transport is there, or when the next one opens."""
    broker, clock = memory_broker("memory://"), ManualClock()
    first = MemoryTransport(broker, clock=clock)
    await first.connect()
    await first.declare(topology(queues=[Queue("q")]))
    await first.delay(Outgoing("", "q", b"x", Properties()), 10.0)
    await first.close()
    clock.advance(20.0)
    second = MemoryTransport(broker, clock=clock)
    await second.connect()
    clock.advance(0.0)
    await asyncio.sleep(0)
    assert await second.depth("q") == 1
    await second.close()


def test_one_event_loop_after_another() -> None:
    """A loop that ended while its transport was open does not hold up the next one."""
    broker = memory_broker("memory://")

    async def leave_open() -> None:
        transport = MemoryTransport(broker, clock=SystemClock())
        await transport.connect()
        await transport.declare(topology(queues=[Queue("q")]))
        transport.publish(Outgoing("", "q", b"x", Properties()))

    async def publish() -> object:
        transport = MemoryTransport(broker, clock=SystemClock())
        await transport.connect()
        return await asyncio.wait_for(transport.publish(Outgoing("", "q", b"x", Properties())), 2)

    asyncio.run(leave_open())
    asyncio.run(publish())
