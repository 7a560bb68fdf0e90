"""What a publishing channel's refusals mean."""

import asyncio

import pytest

from eventpipe.message import Properties
from eventpipe.transports.base import CONFIRMED, Outgoing
from eventpipe.transports.rabbitmq.hot import NACKED, Entry
from eventpipe.transports.rabbitmq.publishing import DOUBTED_NACKS, Publishing


def _sent(publishing: Publishing, *, doubted: bool = False) -> Entry:
    future = asyncio.get_running_loop().create_future()
    entry = Entry(Outgoing("", "q", b"1", Properties()), future, sent=True, doubted=doubted)
    publishing._pending[future] = entry
    return entry


async def test_a_channel_that_has_confirmed_nothing_is_not_believed_at_once() -> None:
    """Its refusal stays without an answer, to be sent again on the next channel, a few times."""
    publishing = Publishing(None, str)  # type: ignore[arg-type]  # it is not started
    entry = _sent(publishing)
    for _ in range(DOUBTED_NACKS):
        publishing._heard(entry, NACKED)
        assert not entry.future.done()
        assert not entry.sent
        assert publishing._retired.is_set()
    publishing._heard(entry, NACKED)
    assert entry.future.result() is NACKED


async def test_a_channel_that_has_confirmed_is_believed() -> None:
    """It is proven by its first confirm."""
    publishing = Publishing(None, str)  # type: ignore[arg-type]  # it is not started
    first, second = _sent(publishing), _sent(publishing)
    publishing._heard(first, CONFIRMED)
    publishing._opened = asyncio.get_running_loop().time()
    publishing._heard(second, NACKED)
    assert second.future.result() is NACKED
    assert not publishing._retired.is_set()


class Link:
    blocked = False


@pytest.mark.fault("F17")
@pytest.mark.parametrize("what", ["silent", "answers", "blocked", "owes nothing"])
async def test_a_silent_channel_is_replaced(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """One that owes an answer, even if nobody waits for it any more; not one that answers, or is blocked, or idle."""
    monkeypatch.setattr("eventpipe.transports.rabbitmq.publishing.SILENT_AFTER", 0.02)
    link = Link()
    publishing = Publishing(link, str)  # type: ignore[arg-type]  # it is not started
    if what != "owes nothing":
        publishing.withdraw(_looked_at(publishing).future)
    link.blocked = what == "blocked"
    if what == "answers":
        publishing._heard(_sent(publishing), CONFIRMED)
    publishing._look()
    await asyncio.sleep(0.03)
    publishing._look()
    assert publishing._retired.is_set() == (what == "silent")


def _looked_at(publishing: Publishing) -> Entry:
    entry = _sent(publishing)
    publishing._look()
    return entry


async def test_what_is_doubted_itself_is_answered() -> None:
    """It is sent alone, before all others, which wait for its answer: without one nothing would be published again."""
    publishing = Publishing(None, str)  # type: ignore[arg-type]  # it is not started
    entry = _sent(publishing, doubted=True)
    publishing._opened = asyncio.get_running_loop().time()
    publishing._heard(entry, NACKED)
    assert entry.future.result() is NACKED
