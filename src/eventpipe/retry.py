"""What becomes of a message whose handler ended: the decision, and nothing but the decision.

``worker.py`` carries it out, ``copies.py`` says what a retry or dead-letter copy carries, and the attempt is counted
in a header (``message.ATTEMPT``). "Retry" is never used of connections: those reconnect.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConfigurationError, Reject, RetryAfter

MAX_DELAY = 98_304.0
"""The longest delay, in seconds (27.3 h): 0b1111 << 16 units of 0.1 s, what twenty ladder levels can hold."""

On = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool | float]


@dataclass(frozen=True, slots=True)
class Ack:
    """It is done: acknowledge it."""


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Handle it again after this many seconds, as the next attempt."""

    seconds: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Give it up for this reason."""

    reason: str


Decision = Ack | RetryIn | DeadLetter


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How failures of a handler are retried: ``attempts`` handlings in all, the first included.

    The n-th retry waits ``delay * factor ** (n - 1)`` seconds, at most ``max_delay``, made longer by up to the
    fraction ``jitter`` of itself. ``on`` says which exceptions are worth a retry: a class, a tuple of classes, or a
    function of the exception that gives a bool or a delay in seconds; what it does not cover is dead-lettered at once.

    Raises:
        ConfigurationError: a number is out of range.
    """

    attempts: int = 5
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.1
    on: On = Exception

    def __post_init__(self) -> None:
        for name, ok, rule in (
            (
                "attempts",
                isinstance(self.attempts, int) and 1 <= self.attempts <= 1_000_000,
                "a whole number, 1 or more",
            ),
            ("delay", 0 <= self.delay <= MAX_DELAY, f"between 0 and {MAX_DELAY} seconds"),
            ("factor", 1 <= self.factor <= 1000, "between 1 and 1000"),
            ("max_delay", 0 <= self.max_delay <= MAX_DELAY, f"between 0 and {MAX_DELAY} seconds (27.3 hours)"),
            ("jitter", 0 <= self.jitter <= 1, "between 0 and 1"),
        ):
            if not ok:
                raise ConfigurationError(f"Retry({name}={getattr(self, name)!r}): must be {rule}")

    def decide(self, failure: BaseException, *, attempt: int, chance: float) -> RetryIn | DeadLetter:
        """Decide what becomes of a failed message on its ``attempt``-th handling; ``chance`` is in [0, 1)."""
        if isinstance(failure, Reject):
            return DeadLetter(failure.reason)
        wish = failure.seconds if isinstance(failure, RetryAfter) else self._covers(failure)
        if wish is False:
            return DeadLetter(f"{type(failure).__name__} is not retried")
        if attempt >= self.attempts:
            return DeadLetter(f"failed {attempt} times" if attempt > 1 else "failed")
        return RetryIn(min(self.backoff(attempt, chance=chance) if wish is True else wish, MAX_DELAY))

    def backoff(self, attempt: int, *, chance: float) -> float:
        """Give the seconds between the ``attempt``-th handling and the next."""
        try:
            plain = min(self.delay * self.factor ** (attempt - 1), self.max_delay)
        except OverflowError:
            plain = self.max_delay
        return plain * (1 + self.jitter * chance)

    def _covers(self, failure: BaseException) -> bool | float:
        if isinstance(self.on, (type, tuple)):
            return isinstance(failure, self.on)
        return self.on(failure)


NEVER = Retry(attempts=1)
"""No retries: the first failure dead-letters."""
