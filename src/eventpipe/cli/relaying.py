"""``eventpipe relay``: publish what is committed to an outbox."""

from typing import Any

from ..errors import ConfigurationError
from .loading import load
from .probes import STARTING, Signs, beating


def load_outbox(target: str) -> Any:
    """Import ``module:outbox``. Raises ``ConfigurationError``, also when what an outbox needs is not installed."""
    try:
        from ..sql import Outbox  # noqa: PLC0415  SQLAlchemy is an extra
    except ImportError as error:
        raise ConfigurationError(str(error)) from error
    return load(target, Outbox, "outbox")


async def relay_until_told(outbox: Any, signs: Signs) -> None:
    """Relay until a signal comes, and say how it goes."""
    relays: list[Any] = []

    def problem() -> str | None:
        told = outbox.pipe.health().problem
        return told or (relays[0].problem if relays else STARTING)

    async with beating(problem, lambda what: signs.note(0, what)):
        await outbox.run(started=relays.append)
