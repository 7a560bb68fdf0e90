"""Every exception of eventpipe, in one tree.

::

    EventPipeError
    ├── ConfigurationError          something was declared or used wrongly; fix the program
    ├── ConnectError                no URL led to a usable broker connection
    │   └── AccessRefused           the broker answered, and refused the login or the virtual host
    ├── TopologyError               the broker's exchanges and queues are not what was declared
    │   ├── TopologyMismatch        it exists, with another argument
    │   └── TopologyMissing         it does not exist, and declaring it is not ours
    ├── InvalidMessage              refused before anything was sent
    └── PublishError                sent, or meant to be; ``outcome`` says what is known
        ├── Unroutable              no queue is bound for its routing key (or no such exchange)
        ├── Refused                 the broker said no (a full queue that rejects, no permission)
        ├── PublishTimeout          no verdict within the timeout
        └── Disconnected            the pipe closed before a verdict

    PublishManyError                an ``ExceptionGroup`` of the failed publishes of one ``publish_many``

    HandlingSignal                  what a handler raises to choose its outcome
    ├── Reject                      dead-letter this message now
    └── RetryAfter                  retry it after this many seconds
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

Outcome = Literal["not_stored", "unknown"]


class EventPipeError(Exception):
    """Base of every error that eventpipe raises."""


class ConfigurationError(EventPipeError):
    """Something was declared or used wrongly; the text says where and what to do."""


class ConnectError(EventPipeError):
    """No broker connection could be made within the connect timeout."""


class AccessRefused(ConnectError):
    """The broker refused the login or the virtual host."""


class TopologyError(EventPipeError):
    """The broker's exchanges, queues and bindings are not what was declared."""


class TopologyMismatch(TopologyError):
    """An exchange or queue exists with another argument than the declared one.

    ``kind`` and ``name`` are the object, ``argument`` is the first that differs (a broker names only that one),
    ``declared`` and ``existing`` are both values as the broker tells them.
    """

    def __init__(self, *, kind: str, name: str, argument: str, declared: str, existing: str) -> None:
        self.kind, self.name, self.argument = kind, name, argument
        self.declared, self.existing = declared, existing
        super().__init__(
            f"{kind} {name!r} exists with another {argument!r}: declared {declared}, on the broker {existing}. "
            f"Declare it as it is, or delete it on the broker once it is empty."
        )


class TopologyMissing(TopologyError):
    """An exchange or queue that somebody else should have declared does not exist."""


class InvalidMessage(EventPipeError):
    """An event or one of its options can't be published; nothing was sent."""


class PublishError(EventPipeError):
    """A publish did not end with the broker's confirm.

    ``outcome`` is ``"not_stored"`` when the broker surely does not have the message, ``"unknown"`` when it may.
    Publishing again with the same id is safe: a consumer may then see that id twice.
    """

    def __init__(self, text: str, *, outcome: Outcome, id: str) -> None:
        super().__init__(text)
        self.outcome: Outcome = outcome
        self.id = id


class Unroutable(PublishError):
    """The broker returned the message: no queue is bound for its routing key."""


class Refused(PublishError):
    """The broker refused the message: a full queue that rejects, or no permission."""


class PublishTimeout(PublishError):
    """The broker gave no verdict within the timeout."""


class Disconnected(PublishError):
    """The pipe was closed before the broker gave a verdict."""


class PublishManyError(ExceptionGroup[PublishError]):
    """Some publishes of one ``publish_many`` failed.

    ``verdicts`` has one entry per event, in order: its ``Receipt``, or its ``PublishError``.
    """

    verdicts: Sequence[Any]

    def __new__(cls, text: str, verdicts: Sequence[Any]) -> Self:
        failed = [verdict for verdict in verdicts if isinstance(verdict, PublishError)]
        self = super().__new__(cls, text, failed)
        self.verdicts = verdicts
        return self

    def __init__(self, text: str, verdicts: Sequence[Any]) -> None:
        """Keep the group's own construction in ``__new__``, which filters the failures."""

    def derive(self, excs: Sequence[Any], /) -> "PublishManyError":  # type: ignore[override]  # one kind of group
        """Keep the type when ``except*`` splits the group."""
        return PublishManyError(self.message, excs)


class HandlingSignal(Exception):
    """What a handler raises to choose the outcome of its message."""


class Reject(HandlingSignal):
    """Dead-letter this message now, with this reason."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class RetryAfter(HandlingSignal):
    """Retry this message after this many seconds; it counts as an attempt."""

    def __init__(self, seconds: float) -> None:
        if not 0 <= seconds < float("inf"):
            raise ConfigurationError(f"RetryAfter({seconds!r}): a delay is a finite number of seconds, 0 or more")
        super().__init__(f"retry after {seconds} s")
        self.seconds = seconds
