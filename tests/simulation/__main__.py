"""Replay seeds: ``python -m tests.simulation SEED …``."""

import sys

from tests.simulation.world import simulate

failed = False
for seed in map(int, sys.argv[1:]):
    world = simulate(seed)
    failed = failed or bool(world.problems)
    print("\n".join(world.story))
    print(f"seed {seed}: {world.faults} faults, {world.crashes} crashes; {'; '.join(world.problems) or 'it balances'}")
sys.exit(failed)
