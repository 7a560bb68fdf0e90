"""A handler with a bug: its messages die, somebody looks at them, mends the handler, and has them handled again."""

import asyncio

from eventpipe import EventPipe, Queue, Retry, Where

pipe = EventPipe("memory://", name="dead-letters", retry=Retry(attempts=2, delay=0.0))
prices = Queue("prices")
price = pipe.publisher(str, to=prices)
mended = asyncio.Event()


@pipe.consumer(prices)
async def handle(text: str) -> None:
    """Read a price; decimal commas are a surprise at first."""
    print("price", float(text.replace(",", ".") if mended.is_set() else text))


async def main() -> None:
    """Let some die, and bring them back."""
    letters = pipe.dead_letters
    async with pipe:
        async with pipe.consuming():
            await price.publish_many(["9.95", "9,95", "cheap"])
            await asyncio.sleep(0.2)
        async for dead in letters(prices).browse():
            print("dead", dead.message.body.decode(), "-", dead.error, f"after {dead.attempt} attempts")
        print("parked", await letters(prices).park(Where(id=await nonsense())))
        mended.set()
        async with pipe.consuming():
            print("replayed", await letters(prices).replay(Where(exception="ValueError")))
            await asyncio.sleep(0.2)


async def nonsense() -> str:
    """Find the one that no handler will ever understand."""
    found = [dead async for dead in pipe.dead_letters(prices).browse() if b"cheap" in dead.message.body]
    return found[0].message.id


asyncio.run(main())
