"""From a raw delivery to the events in it, one or the many of a batch, and to the messages that handlers see."""

from dataclasses import replace

from .clock import uuid7
from .codec import BATCH, JSON, Undecodable, split
from .handler import Handler
from .intake import Parcel
from .message import EXCHANGE, KEY, Message, attempt_of
from .work import Surroundings, Work


class Unpacking:
    """Opens the parcels of one worker."""

    def __init__(self, work: Work, around: Surroundings) -> None:
        self._work, self._around = work, around
        self._only = work.handlers[0] if len(work.handlers) == 1 else None

    def open(self, parcel: Parcel) -> None:
        """Find out how many events a parcel has, or why they can't be handled; decode a batch at once if that works."""
        try:
            self._check(parcel)
            if parcel.delivery.properties.content_type == BATCH:
                self._open_batch(parcel)
        except Undecodable as error:
            parcel.refusal = f"undecodable: {error}"

    def handler(self, message_type: str | None) -> Handler:
        """Choose the handler of a type. Raises ``Undecodable`` if there is none."""
        if self._only is not None:
            return self._only
        for handler in self._work.handlers:
            if handler.wire_type == message_type:
                return handler
        raise Undecodable(f"no handler for the type {message_type!r}")

    def message(self, parcel: Parcel, index: int) -> Message:
        """View one event of a parcel as a message."""
        whole = self.whole(parcel)
        if not parcel.batch:
            return whole
        body = self.bodies(parcel)[index]
        properties = replace(whole.properties, content_type=JSON)
        return replace(whole, id=f"{whole.id}/{index}", body=body, properties=properties)

    def whole(self, parcel: Parcel) -> Message:
        """View a delivery as a message, a batch too."""
        if parcel.whole is None:
            parcel.whole = self._whole(parcel)
        return parcel.whole

    def bodies(self, parcel: Parcel) -> list[bytes]:
        """Give the body of each event of a batch, as it is in there. Raises ``Undecodable``."""
        if parcel.bodies is None:
            parcel.bodies = split(parcel.delivery.body)
        return parcel.bodies

    def _check(self, parcel: Parcel) -> None:
        delivery = parcel.delivery
        if delivery.fault is not None:
            raise Undecodable(delivery.fault.reason)
        if len(delivery.body) > self._work.body_limit:
            raise Undecodable(f"a body of {len(delivery.body)} bytes is over the limit of {self._work.body_limit}")
        if delivery.properties.content_encoding not in (None, "", "utf-8", "identity"):
            raise Undecodable(f"content encoding {delivery.properties.content_encoding!r} is not supported")

    def _open_batch(self, parcel: Parcel) -> None:
        decode_many = self.handler(parcel.delivery.properties.type).codec.decode_many
        if self._work.decode is None:
            try:
                parcel.events = decode_many(parcel.delivery.body)
            except Undecodable:
                parcel.bodies = split(parcel.delivery.body)  # one by one: the others are good
        else:
            parcel.bodies = split(parcel.delivery.body)
        parcel.size = parcel.open = len(parcel.events if parcel.events is not None else self.bodies(parcel))
        if not parcel.size:
            parcel.size = parcel.open = 1
            parcel.events = parcel.bodies = None
            raise Undecodable("an empty batch")

    def _whole(self, parcel: Parcel) -> Message:
        delivery, around = parcel.delivery, self._around
        properties = delivery.properties
        headers = properties.headers
        return Message(
            id=properties.message_id or uuid7(around.clock, around.chance),
            body=delivery.body,
            properties=properties,
            queue=self._work.queue.name,
            exchange=str(headers.get(EXCHANGE, delivery.exchange)),
            key=str(headers.get(KEY, delivery.key)),
            attempt=attempt_of(headers, self._work.retry.attempts),
            redelivered=delivery.redelivered,
            id_generated=not properties.message_id,
        )
