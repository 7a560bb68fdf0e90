"""eventpipe: typed events over RabbitMQ for asyncio services; nothing lost, everything settled."""

from .codec import Codec
from .consumer import Consumer
from .context import log_context
from .deadletters import DeadLetters
from .depends import Depends
from .errors import (
    AccessRefused,
    ConfigurationError,
    ConnectError,
    Disconnected,
    EventPipeError,
    InvalidMessage,
    PublishError,
    PublishManyError,
    PublishTimeout,
    Refused,
    Reject,
    RetryAfter,
    TopologyError,
    TopologyMismatch,
    TopologyMissing,
    Unroutable,
)
from .health import ConsumerHealth, Health
from .message import DeadMessage, FailedAttempt, Message, Properties
from .middleware import Handle, Middleware, Outcome
from .outlet import Receipt
from .packing import Pack
from .pipe import EventPipe, Options
from .publisher import Publisher
from .retry import Ack, DeadLetter, Retry, RetryIn
from .routing import Binding, Exchange, Queue, Topology
from .version import VERSION
from .where import Where

__version__ = VERSION

__all__ = [
    "AccessRefused",
    "Ack",
    "Binding",
    "Codec",
    "ConfigurationError",
    "ConnectError",
    "Consumer",
    "ConsumerHealth",
    "DeadLetter",
    "DeadLetters",
    "DeadMessage",
    "Depends",
    "Disconnected",
    "EventPipe",
    "EventPipeError",
    "Exchange",
    "FailedAttempt",
    "Handle",
    "Health",
    "InvalidMessage",
    "Message",
    "Middleware",
    "Options",
    "Outcome",
    "Pack",
    "Properties",
    "PublishError",
    "PublishManyError",
    "PublishTimeout",
    "Publisher",
    "Queue",
    "Receipt",
    "Refused",
    "Reject",
    "Retry",
    "RetryAfter",
    "RetryIn",
    "Topology",
    "TopologyError",
    "TopologyMismatch",
    "TopologyMissing",
    "Unroutable",
    "Where",
    "log_context",
]
