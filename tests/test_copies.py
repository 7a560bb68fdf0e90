"""What a copy of a message carries, and what it leaves behind."""

from dataclasses import replace

import pytest

from eventpipe.copies import (
    CUT,
    HEADER_BUDGET,
    REASON,
    dead_copy,
    describe,
    header_size,
    read_dead,
    retry_copy,
    suspect_copy,
)
from eventpipe.message import DeadMessage, Message, Properties, attempt_of, expired

HOSTILE = Properties(
    headers={
        "CC": ["a"],
        "BCC": ["b"],
        "x-death": [{"count": 5}],
        "x-first-death-queue": "q",
        "x-delivery-count": 7,
        "mine": 1,
        "eventpipe-time": 1_000_000,
    },
    message_id="m",
    user_id="eve",
    expiration="5000",
    priority=3,
    correlation_id="c",
    delivery_mode=1,
)
MESSAGE = Message(id="m", body=b"x", properties=HOSTILE, queue="q", exchange="ex", key="k", attempt=2)


def test_a_retry_copy_keeps_what_is_the_users_and_drops_what_the_broker_obeys() -> None:
    """Headers and properties stay; routing headers and death counters go; user_id and expiration move aside."""
    copy = retry_copy(MESSAGE, attempt=3, now=2000.0)
    assert copy.headers == {
        "mine": 1,
        "eventpipe-time": 1_000_000,
        "eventpipe-first-tried-at": 2_000_000,
        "eventpipe-original-user-id": "eve",
        "eventpipe-original-expiration": "5000",
        "eventpipe-expires": 1_005_000,
        "eventpipe-exchange": "ex",
        "eventpipe-key": "k",
        "eventpipe-queue": "q",
        "eventpipe-attempt": 3,
    }
    assert (copy.message_id, copy.user_id, copy.expiration) == ("m", None, None)
    assert (copy.priority, copy.correlation_id, copy.delivery_mode) == (3, "c", 2)
    assert expired(copy, 1005.0)
    assert not expired(copy, 1004.9)


def test_a_suspect_copy_is_marked_and_a_retry_copy_of_it_is_not() -> None:
    """The mark lasts until the message is retried as an ordinary one."""
    suspect = suspect_copy(MESSAGE, attempt=2, now=1.0)
    assert suspect.headers["eventpipe-suspect"] is True
    again = Message(id="m", body=b"x", properties=suspect)
    assert "eventpipe-suspect" not in retry_copy(again, attempt=3, now=1.0).headers


def test_a_dead_letter_can_be_read_back() -> None:
    """What was written about a failure is what is read."""
    try:
        raise ValueError("odd")
    except ValueError as error:
        error_type, text, traceback = describe(error)
    dead = DeadMessage(message=MESSAGE, queue="q", reason="failed", attempt=2)
    dead = replace(dead, error_type=error_type, error=text, traceback=traceback)
    copy = dead_copy(dead, handler="h", now=3.0)
    found = read_dead(Message(id="m", body=b"x", properties=copy))
    assert (found.queue, found.reason, found.attempt) == ("q", "failed", 2)
    assert (found.error_type, found.error, found.traceback) == ("builtins.ValueError", "odd", traceback)
    assert (found.handler, found.died, found.first_tried) == ("h", 3.0, 3.0)
    assert "eventpipe-expires" not in copy.headers


def test_the_brokers_own_dead_letters_are_read_too() -> None:
    """A message that the broker dropped says why in x-death."""
    headers = {"x-death": [{"queue": "q", "reason": "expired", "count": 1}]}
    found = read_dead(Message(id="m", body=b"x", properties=Properties(headers=headers)))
    assert (found.queue, found.reason) == ("q", "expired")


def test_added_headers_fit_the_frame() -> None:
    """However much a message and its error say, the headers of the copy stay within a frame."""
    for size in (1_000, 95_000, 130_000):
        message = Message(id="m", body=b"", properties=Properties(headers={"big": "x" * size, "mine": 1}))
        dead = DeadMessage(message=message, queue="q", reason="r" * 5000, error="e" * 2000, traceback="t" * 8000)
        headers = dead_copy(dead, handler="h", now=0.0).headers
        assert header_size(headers) < HEADER_BUDGET + 1_000
        assert headers["mine"] == 1
        assert (CUT in headers) == (size == 130_000)
        assert REASON in headers


@pytest.mark.fault("F47")
def test_attempts_are_clamped() -> None:
    """A forger can only shorten its own message's life."""
    assert [attempt_of({"eventpipe-attempt": value}, 5) for value in (-3, 0, 2, 99, "x", None)] == [1, 1, 2, 5, 1, 1]
    assert attempt_of({}, 5) == 1
