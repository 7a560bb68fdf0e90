"""What a publishing channel's refusals mean."""

import asyncio

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


async def test_what_is_doubted_itself_is_answered() -> None:
    """It is sent alone, before all others, which wait for its answer: without one nothing would be published again."""
    publishing = Publishing(None, str)  # type: ignore[arg-type]  # it is not started
    entry = _sent(publishing, doubted=True)
    publishing._opened = asyncio.get_running_loop().time()
    publishing._heard(entry, NACKED)
    assert entry.future.result() is NACKED
