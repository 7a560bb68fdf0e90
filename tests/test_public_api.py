"""The names that users may rely on."""

import inspect
import subprocess
import sys

import eventpipe
from eventpipe import testing

NAMES = [
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


def test_the_names_are_these() -> None:
    """A name is added or removed here first."""
    assert eventpipe.__all__ == NAMES
    assert testing.__all__ == ["BrokerUnavailable", "Bus", "ManualClock", "RabbitNode", "message", "running"]
    assert eventpipe.__version__ == "0.1.0"


def test_everything_public_is_documented() -> None:
    """Each name, and each public method of it, says what it is for."""
    for name in NAMES:
        thing = getattr(eventpipe, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing) and thing.__module__.startswith("eventpipe"):
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and inspect.isfunction(value):
                    assert inspect.getdoc(value), f"{name}.{attribute}"


def test_importing_does_nothing_else() -> None:
    """Importing starts no thread and no loop, and neither the command's nor the test kit's libraries."""
    program = (
        "import sys, threading, eventpipe; "
        "print(threading.active_count(), *sorted({'typer', 'pytest', 'testcontainers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
