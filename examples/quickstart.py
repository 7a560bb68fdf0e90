import asyncio

from eventpipe import EventPipe, Queue

pipe = EventPipe("memory://", name="quickstart")
greet = pipe.publisher(str, to=(greetings := Queue("greetings")))

@pipe.consumer(greetings)
async def hello(name: str) -> None:
    print(f"hello {name}")

async def main() -> None:
    async with pipe, pipe.consuming():
        await greet.publish("world")
asyncio.run(main())
