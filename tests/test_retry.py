"""The decision about a failed message, as a table."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventpipe import ConfigurationError, Reject, Retry, RetryAfter
from eventpipe.retry import MAX_DELAY, DeadLetter, RetryIn

PLAIN = Retry(attempts=3, delay=1.0, factor=3.0, max_delay=5.0, jitter=0.5)


@pytest.mark.parametrize(
    ("retry", "failure", "attempt", "expected"),
    [
        (PLAIN, ValueError(), 1, RetryIn(1.0)),
        (PLAIN, ValueError(), 2, RetryIn(3.0)),
        (PLAIN, ValueError(), 3, DeadLetter("failed 3 times")),
        (Retry(attempts=1), ValueError(), 1, DeadLetter("failed")),
        (PLAIN, Reject("bad"), 1, DeadLetter("bad")),
        (PLAIN, RetryAfter(0.0), 1, RetryIn(0.0)),
        (PLAIN, RetryAfter(9.0), 2, RetryIn(9.0)),
        (PLAIN, RetryAfter(1e9), 1, RetryIn(MAX_DELAY)),
        (PLAIN, SystemExit(), 1, DeadLetter("SystemExit is not retried")),
        (Retry(on=KeyError), ValueError(), 1, DeadLetter("ValueError is not retried")),
        (Retry(on=(KeyError, ValueError), jitter=0.0), ValueError(), 1, RetryIn(1.0)),
        (Retry(on=lambda error: 7.5), ValueError(), 4, RetryIn(7.5)),
        (Retry(on=lambda error: False), ValueError(), 1, DeadLetter("ValueError is not retried")),
        (Retry(attempts=10**6, delay=1.0, factor=1000.0, jitter=0.0), ValueError(), 10**5, RetryIn(60.0)),
    ],
)
def test_decisions(retry: Retry, failure: BaseException, attempt: int, expected: object) -> None:
    """Each failure has one decision, which depends on nothing else."""
    assert retry.decide(failure, attempt=attempt, chance=0.0) == expected


def test_jitter_lengthens_by_a_fraction() -> None:
    """Jitter adds up to its fraction of the delay, never shortens it."""
    assert PLAIN.decide(ValueError(), attempt=1, chance=0.999) == RetryIn(pytest.approx(1.4995))


@given(attempt=st.integers(1, 1000), chance=st.floats(0, 0.999), delay=st.floats(0, MAX_DELAY))
def test_delays_stay_in_bounds(attempt: int, chance: float, delay: float) -> None:
    """No numbers make a delay that a broker could not hold."""
    found = Retry(attempts=2000, delay=delay, max_delay=MAX_DELAY, jitter=1.0).decide(
        ValueError(), attempt=attempt, chance=chance
    )
    assert isinstance(found, RetryIn)
    assert 0 <= found.seconds <= MAX_DELAY


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"attempts": 1.5}, {"delay": -1}, {"factor": 0.5}, {"max_delay": 1e6}, {"jitter": 2}],
)
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    """A policy that can't work is an error where it is written."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Retry(**options)


def test_retry_after_checks_its_delay() -> None:
    """A negative or endless delay is refused where it is raised."""
    for seconds in (-1, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError):
            RetryAfter(seconds)
