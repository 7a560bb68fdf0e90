"""Which dead letters are meant: a condition as plain data, decided without I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from .errors import ConfigurationError
from .message import NO_HEADERS, DeadMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A condition that a dead letter meets if it meets every part that is given; without any, all of them do.

    ``id`` is the message's. ``reason`` and ``exception`` are parts of the reason and of the exception's type, in any
    case. ``key`` is the routing key, with ``*`` for any text. ``headers`` are equal, as text. ``older`` and ``newer``
    are ages in seconds since it died; a dead letter that does not say when has no age.

    Raises:
        ConfigurationError: an age is negative, or the ages exclude each other.
    """

    id: str | None = None
    reason: str | None = None
    exception: str | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    older: float | None = None
    newer: float | None = None

    def __post_init__(self) -> None:
        for name, age in (("older", self.older), ("newer", self.newer)):
            if age is not None and not 0 <= age < float("inf"):
                raise ConfigurationError(f"Where({name}={age!r}): an age is a number of seconds, 0 or more")
        if self.older is not None and self.newer is not None and self.older >= self.newer:
            raise ConfigurationError(f"Where(older={self.older!r}, newer={self.newer!r}): nothing is both")

    def __bool__(self) -> bool:
        """Tell whether it asks for anything."""
        return self != Where()

    def meets(self, dead: DeadMessage, *, now: float) -> bool:
        """Tell whether a dead letter is meant; ``now`` is in seconds since 1970."""
        message = dead.message
        return (
            (self.id is None or message.id == self.id)
            and (self.reason is None or self.reason.casefold() in dead.reason.casefold())
            and (self.exception is None or self.exception.casefold() in (dead.error_type or "").casefold())
            and (self.key is None or fnmatchcase(message.key, self.key))
            and all(str(message.headers.get(name)) == value for name, value in self.headers.items())
            and self._fits(None if dead.died is None else now - dead.died)
        )

    def _fits(self, age: float | None) -> bool:
        if self.older is None and self.newer is None:
            return True
        if age is None:
            return False
        return (self.older is None or age >= self.older) and (self.newer is None or age < self.newer)
