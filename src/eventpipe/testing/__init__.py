"""Integration tests of services that use eventpipe: on the memory broker, and on a real RabbitMQ.

``running`` runs a pipe on a test's broker, ``message`` builds a message for unit tests, and the pytest plugin offers
the fixtures ``eventpipe_broker`` and ``eventpipe_rabbitmq``.
"""

from .bus import Bus, message, running
from .clock import ManualClock
from .node import BrokerUnavailable, RabbitNode

__all__ = ["BrokerUnavailable", "Bus", "ManualClock", "RabbitNode", "message", "running"]
