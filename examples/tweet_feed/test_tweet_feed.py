"""How a user of eventpipe tests a service: the app and its consumer, on both brokers."""

from pathlib import Path

import httpx
import pytest
from service import TweetPosted, feeds, pipe, push_to_feeds
from web import app

from eventpipe.testing import message, running


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
    monkeypatch.setenv("FEEDS", str(tmp_path / "feeds.sqlite"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def test_a_tweet_reaches_the_followers(web: httpx.AsyncClient, eventpipe_broker: str) -> None:
    """What ann posts is in the feed of bob, who follows her, and not in carl's."""
    async with running(pipe, url=eventpipe_broker) as bus, web:
        await web.put("/users/ann/followers/bob")
        answer = await web.post("/tweets", json={"user": "ann", "text": "hi"})
        assert answer.status_code == 202
        await bus.settled()
        assert bus.published(TweetPosted) == [TweetPosted(user="ann", text="hi")]
        assert [done.id for done in bus.handled(feeds)] == [answer.json()["id"]]
        assert (await web.get("/feeds/bob")).json() == ["ann: hi"]
        assert (await web.get("/feeds/carl")).json() == []


async def test_a_broken_store_is_retried_and_then_given_up(
    web: httpx.AsyncClient, eventpipe_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an hour of backoff or half a second: the memory broker jumps over it."""
    monkeypatch.setenv("FEEDS", "/nowhere/feeds.sqlite")
    async with running(pipe, url=eventpipe_broker) as bus, web:
        await web.post("/tweets", json={"user": "ann", "text": "hi"})
        await bus.settled()
        (dead,) = bus.dead_letters(feeds)
        assert (dead.attempt, dead.error_type) == (5, "sqlite3.OperationalError")


async def test_the_handler_alone(web: httpx.AsyncClient) -> None:
    """The decorator returned the function unchanged: a unit test calls it."""
    tweet = TweetPosted(user="ann", text="hi")
    async with web:
        await web.put("/users/ann/followers/bob")
        for _ in range(2):  # delivered twice, pushed once
            push_to_feeds(tweet, message(tweet, id="1"))
        assert (await web.get("/feeds/bob")).json() == ["ann: hi"]
