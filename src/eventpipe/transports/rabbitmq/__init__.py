"""RabbitMQ, over aio-pika: the only place that imports aio_pika, aiormq or pamqp."""

from .transport import RabbitTransport

__all__ = ["RabbitTransport"]
