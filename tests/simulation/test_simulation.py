"""Thousands of small worlds, each with its own faults; whatever happens in one happens again from its seed."""

import os
from collections.abc import Iterator

import pytest
from tests.simulation.world import World, simulate

SEEDS = int(os.environ.get("EVENTPIPE_SEEDS", "2000"))
CHUNKS = 20


@pytest.mark.fault("F46")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_seed_balances(chunk: int) -> None:
    """Lost confirms and acks, nacks, disconnects, crashes at any step: nothing is lost, stuck, or given up in vain."""
    for world in _worlds(range(chunk, SEEDS, CHUNKS)):
        assert not world.problems, (
            f"seed {world.seed}: {'; '.join(world.problems)}\nreplay: python -m tests.simulation {world.seed}"
        )


def test_a_seed_is_the_same_each_time() -> None:
    """To the last turn of the loop."""
    first, second = simulate(4), simulate(4)
    assert first.story == second.story
    assert first.story


def test_the_seeds_meet_every_fault() -> None:
    """A simulation in which nothing happens would prove nothing."""
    worlds = list(_worlds(range(40)))
    assert sum(world.faults for world in worlds) > 500
    assert sum(world.crashes for world in worlds) > 20
    assert sum(len(world.acknowledged) for world in worlds) > 1000
    assert sum(world.handled.total() - len(world.handled) for world in worlds) > 20, "duplicates have to happen"


def _worlds(seeds: range) -> Iterator[World]:
    for seed in seeds:
        yield simulate(seed)
