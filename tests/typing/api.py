"""What a user's editor infers; checked by mypy and pyright, never run."""

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

from pydantic import BaseModel

from eventpipe import Consumer, EventPipe, Exchange, Message, Publisher, Queue, Receipt, Retry


class Posted(BaseModel):
    user: str


class Liked(BaseModel):
    user: str


tweets = Exchange("tweets")
feeds = Queue("feeds", bind=tweets.on("tweet.*"))
pipe = EventPipe("memory://", name="types")

posted = pipe.publisher(Posted, to=tweets, key=lambda event: event.user)
assert_type(posted, Publisher[Posted])

either: Publisher[Posted | Liked] = pipe.publisher(Posted | Liked, to=tweets)
numbers: Publisher[list[int]] = pipe.publisher(list[int], to=feeds)


@pipe.consumer(feeds, retry=Retry(attempts=3))
async def handle(event: Posted, message: Message) -> int:
    return len(event.user) + message.attempt


async def main() -> None:
    assert_type(await posted.publish(Posted(user="ann")), Receipt)
    assert_type(await posted.publish_many([Posted(user="ann")]), list[Receipt])
    await either.publish(Liked(user="bob"))
    await numbers.publish([1, 2])
    await posted.publish("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # the decorator returns the function unchanged, so that a unit test just awaits it
    assert_type(await handle(Posted(user="ann"), Message(id="1", body=b"")), int)


class Feed(Consumer[Posted]):
    def __init__(self, store: Callable[[str], Awaitable[None]]) -> None:
        self.store = store

    async def handle(self, event: Posted, message: Message) -> None:
        await self.store(assert_type(event, Posted).user)


async def store(user: str) -> None: ...


pipe.add(feeds, Feed(store))
pipe.add(feeds, Feed(store), concurrency=5)


def decode(message: Message) -> Any:
    return message.body.decode()
