"""What the web app and the worker share: the event, its exchange and queue, and the pipe."""

import os
import sqlite3

from pydantic import BaseModel

from eventpipe import EventPipe, Exchange, Message, Queue, Retry


class TweetPosted(BaseModel):
    """Somebody posted a tweet."""

    user: str
    text: str


tweets = Exchange("tweets")
feeds = Queue("feeds", bind=tweets.on("tweet.posted"))

pipe = EventPipe(name="tweet-feed")  # the broker is $EVENTPIPE_URL
tweet_posted = pipe.publisher(TweetPosted, to=tweets, key="tweet.posted")


def database() -> sqlite3.Connection:
    """Open the feeds; a stand-in for the store of a real service."""
    connection = sqlite3.connect(os.environ.get("FEEDS", "feeds.sqlite"), timeout=10)
    connection.execute("CREATE TABLE IF NOT EXISTS followers (user TEXT, follower TEXT)")
    connection.execute("CREATE TABLE IF NOT EXISTS feeds (id TEXT, follower TEXT, text TEXT, UNIQUE (id, follower))")
    return connection


@pipe.consumer(feeds, concurrency=20, retry=Retry(attempts=5, delay=0.5))
def push_to_feeds(tweet: TweetPosted, message: Message) -> None:
    """Put a tweet into the feed of each follower.

    A message may come twice; the message's id makes the second time change nothing.
    """
    with database() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO feeds SELECT ?, follower, ? FROM followers WHERE user = ?",
            (message.id, f"{tweet.user}: {tweet.text}", tweet.user),
        )
    connection.close()
