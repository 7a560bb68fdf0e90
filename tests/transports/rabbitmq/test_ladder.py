"""The delay ladder: its arithmetic, and where its keys lead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventpipe import InvalidMessage
from eventpipe.retry import MAX_DELAY
from eventpipe.transports.memory.matching import topic_matches
from eventpipe.transports.rabbitmq import ladder


@pytest.mark.parametrize(
    ("seconds", "units"),
    [(0.001, 1), (0.1, 1), (0.11, 2), (1.0, 10), (1.5, 15), (1.6, 16), (1.61, 18), (60.0, 640), (MAX_DELAY, 15 << 16)],
)
def test_delays_are_rounded_up_to_their_four_highest_bits(seconds: float, units: int) -> None:
    """A unit is 100 ms."""
    assert ladder.round_up(seconds) == units


@given(st.floats(0.001, MAX_DELAY))
def test_never_early_and_at_most_an_eighth_late(seconds: float) -> None:
    """At most four waits, never early, and late by a unit or 12.5 % at most."""
    units = ladder.round_up(seconds)
    assert units.bit_count() <= 4
    assert units * 100 >= round(seconds * 1000)
    assert units * 0.1 <= max(seconds + 0.1, seconds * 1.125) + 1e-6


def test_too_long() -> None:
    """A delay that twenty levels can't hold is refused."""
    with pytest.raises(InvalidMessage, match=r"27\.3 hours"):
        ladder.round_up(MAX_DELAY * 1.01)


@given(units=st.integers(1, (1 << 20) - 1), queue=st.sampled_from(["b", "a.b", "1.0.1", "q.x", "0"]))
def test_a_key_waits_each_of_its_bits_once(units: int, queue: str) -> None:
    """Walking the bindings from the first exchange passes exactly the levels of the delay's bits."""
    key, waited = ladder.key_to_queue(units, queue), 0
    bindings = ladder.objects().bindings
    exchange = ladder.first_exchange(units)
    while exchange != ladder.DELIVER:
        hits = [
            (target, kind)
            for binding, target, kind in bindings
            if binding.source.name == exchange and topic_matches(binding.key, key)
        ]
        assert len(hits) == 1, (exchange, hits)
        ((target, kind),) = hits
        if kind == "queue":
            level = int(target.rpartition(".")[2])
            waited += 1 << level
            exchange = f"{ladder.BASE}.{level - 1:02}" if level else ladder.DELIVER
        else:
            exchange = target
    assert waited == units
    names = ["b", "a.b", "x.a.b", "1.0.1", "q.x", "0", "x"]
    reached = [name for name in names if topic_matches(ladder.queue_destination(name, str).bindings[0][0].key, key)]
    assert reached == [queue]


def test_a_users_key_that_a_level_would_obey() -> None:
    """The user's own key takes part in the routing; one that would be taken for bits is refused."""
    ladder.check_key(10, "1.0.1")
    ladder.check_key(1 << 19, "a.b.c")
    with pytest.raises(InvalidMessage, match="word 3 is '1'"):
        ladder.check_key(1 << 19, "a.b.1")
