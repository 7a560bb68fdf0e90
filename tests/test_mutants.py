"""The planted bugs fit the sources as they are; ``make mutants`` proves that each is caught."""

import shutil
from pathlib import Path

import pytest
from tests.chaos.mutants import MUTANTS, ROOT, Mutant, plant


def test_there_are_enough_and_each_has_its_name() -> None:
    """At least 25."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_can_be_planted(mutant: Mutant, tmp_path: Path) -> None:
    """Its text is in its file, once, and what comes of it is Python."""
    target = tmp_path / mutant.file
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "src" / "eventpipe" / mutant.file, target)
    plant(mutant, tmp_path)
    compile(target.read_text(), mutant.file, "exec")
