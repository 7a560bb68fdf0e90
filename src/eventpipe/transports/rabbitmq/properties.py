"""AMQP properties: pamqp's objects <-> ours."""

import datetime as dt
from typing import Any

from pamqp.commands import Basic

from ...message import NO_HEADERS, Properties


def to_wire(properties: Properties) -> Basic.Properties:
    """Make pamqp's properties."""
    moment = properties.timestamp
    return Basic.Properties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=dict(properties.headers) or None,
        delivery_mode=properties.delivery_mode,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        expiration=properties.expiration,
        message_id=properties.message_id,
        timestamp=None if moment is None else dt.datetime.fromtimestamp(moment, tz=dt.UTC),
        message_type=properties.type,
        user_id=properties.user_id,
        app_id=properties.app_id,
    )


def from_wire(found: Any) -> Properties:
    """Read pamqp's properties."""
    return Properties(
        content_type=found.content_type or None,
        content_encoding=found.content_encoding or None,
        headers=found.headers or NO_HEADERS,
        delivery_mode=found.delivery_mode,
        priority=found.priority,
        correlation_id=found.correlation_id or None,
        reply_to=found.reply_to or None,
        expiration=found.expiration or None,
        message_id=found.message_id or None,
        timestamp=None if found.timestamp is None else int(found.timestamp.timestamp()),
        type=found.message_type or None,
        user_id=found.user_id or None,
        app_id=found.app_id or None,
    )
