"""The page of faults is what the tests say, and every row has a test or a reason."""

from tests.chaos.matrix import FAULTS, NOT_HERE, PAGE, page, proofs


def test_the_page_is_up_to_date() -> None:
    """Written anew it is the same; ``python -m tests.chaos.matrix`` writes it."""
    assert PAGE.read_text() == page()


def test_every_row_is_proven_or_explained() -> None:
    """Not both, not neither."""
    found = proofs()
    assert [f"F{number:02}" for number in range(1, 57)] == list(FAULTS)
    assert {row for row in FAULTS if not found[row]} == NOT_HERE.keys()
    assert all(text for tests in found.values() for _, text in tests)
