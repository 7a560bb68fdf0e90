"""From a raw delivery to the messages in it: one, or the events of a batch."""

from dataclasses import replace

from .clock import uuid7
from .codec import BATCH, JSON, Undecodable, unpack
from .message import EXCHANGE, KEY, Message, attempt_of
from .transports.base import Delivery
from .work import Surroundings, Work


def messages_of(delivery: Delivery, work: Work, around: Surroundings) -> list[Message]:
    """Unpack what a delivery holds. Raises ``Undecodable``."""
    if delivery.fault is not None:
        raise Undecodable(delivery.fault.reason)
    if len(delivery.body) > work.body_limit:
        raise Undecodable(f"a body of {len(delivery.body)} bytes is over the limit of {work.body_limit}")
    if delivery.properties.content_encoding not in (None, "", "utf-8", "identity"):
        raise Undecodable(f"content encoding {delivery.properties.content_encoding!r} is not supported")
    whole = message_of(delivery, work, around)
    if delivery.properties.content_type != BATCH:
        return [whole]
    bodies = unpack(delivery.body)
    if not bodies:
        raise Undecodable("an empty batch")
    properties = replace(delivery.properties, content_type=JSON)
    return [
        replace(whole, id=f"{whole.id}/{index}", body=body, properties=properties) for index, body in enumerate(bodies)
    ]


def message_of(delivery: Delivery, work: Work, around: Surroundings) -> Message:
    """View a delivery as one message, whatever its body holds."""
    properties = delivery.properties
    headers = properties.headers
    return Message(
        id=properties.message_id or uuid7(around.clock, around.chance),
        body=delivery.body,
        properties=properties,
        queue=work.queue.name,
        exchange=str(headers.get(EXCHANGE, delivery.exchange)),
        key=str(headers.get(KEY, delivery.key)),
        attempt=attempt_of(headers, work.retry.attempts),
        redelivered=delivery.redelivered,
        id_generated=not properties.message_id,
    )
