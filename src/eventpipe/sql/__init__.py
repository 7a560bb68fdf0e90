"""Events and effects in one database transaction: the outbox and the inbox, on SQLAlchemy (``eventpipe[sql]``).

``outbox`` is what an application calls inside its transaction, ``relay`` publishes what was committed (``waking`` tells
it when), ``inbox`` makes the effect of a handler happen once. ``tables`` has both tables, for the application's own
metadata and migrations; nothing here ever creates one.
"""

try:
    import sqlalchemy.ext.asyncio  # noqa: F401  greenlet, which it needs, is not SQLAlchemy's own dependency
except ImportError as error:
    raise ImportError("eventpipe.sql needs SQLAlchemy: pip install 'eventpipe[sql]'") from error

from .inbox import Inbox
from .outbox import Outbox

__all__ = ["Inbox", "Outbox"]
