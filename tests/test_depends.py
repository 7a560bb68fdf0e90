"""Dependencies of handlers: filled, shared, ended before the message is settled."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import fast_depends
import fastapi
import pytest

from eventpipe import Ack, ConfigurationError, DeadLetter, Depends, EventPipe, Message, Queue, Reject, Retry, RetryIn
from eventpipe.testing import running

JOBS = Queue("jobs")


class Story:
    """A pipe, and what happened in which order."""

    def __init__(self, **more: Any) -> None:
        self.told: list[Any] = []
        self.pipe = EventPipe("memory://", name="story", retry=Retry(attempts=1), **more)
        self.publisher = self.pipe.publisher(int, to=JOBS)

    async def run(self, *numbers: int) -> Any:
        async with running(self.pipe) as bus:
            for number in numbers:
                await self.publisher.publish(number)
            await bus.settled()
            return bus


class Settings:
    """A class that is its own dependency."""

    def __init__(self, name: str = "default") -> None:
        self.name = name


def plain() -> str:
    return f"plain in {threading.current_thread() is not threading.main_thread()}"


async def coroutine(text: Annotated[str, Depends(plain)]) -> str:
    return f"coroutine of {text}"


async def of_message(message: Message) -> str:
    return f"{message.queue} {message.attempt}"


async def test_every_kind_of_dependency_is_filled() -> None:
    """Functions in threads, coroutines, classes, what they need in turn, the message; by annotation or default."""
    story = Story()

    @story.pipe.consumer(JOBS)
    async def handle(
        number: int,
        text: Annotated[str, Depends(coroutine)],
        message: Message,
        settings: Annotated[Settings, Depends()],
        *,
        where: Annotated[str, Depends(of_message)],
        old: str = Depends(plain),  # type: ignore[assignment]  # FastAPI's older way
        other: int = 5,
    ) -> None:
        story.told.append((number, text, message.queue, settings.name, where, old, other))

    await story.run(1)
    expected = (1, "coroutine of plain in True", "jobs", "default", "jobs 1", "plain in True", 5)
    assert story.told == [expected]


async def test_other_libraries_markers_are_understood() -> None:
    """One alias serves an endpoint of FastAPI, a function of FastDepends, and a handler."""
    story = Story()
    of_fastapi = Annotated[str, fastapi.Depends(plain)]
    of_fast_depends = Annotated[str, fast_depends.Depends(plain)]

    @story.pipe.consumer(JOBS)
    async def handle(number: int, one: of_fastapi, two: of_fast_depends) -> None:
        story.told.append((one, two))

    app = fastapi.FastAPI()

    @app.get("/")
    async def endpoint(one: of_fastapi) -> str:
        return one

    await story.run(1)
    assert story.told == [("plain in True", "plain in True")]


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("ends", ["well", "badly"])
async def test_generators_end_before_the_message_is_settled(kind: str, ends: str) -> None:
    """In reverse, after the handler: committed, or rolled back, and only then acknowledged."""

    async def watch(message: Message, handle: Any) -> None:
        outcome = await handle()
        story.told.append(type(outcome.decision).__name__)

    story = Story(middleware=[watch])

    async def outer() -> AsyncIterator[str]:
        story.told.append("begin")
        try:
            yield "session"
        except ValueError:
            story.told.append("roll back")
            raise
        else:
            story.told.append("commit")

    def inner(session: Annotated[str, Depends(outer)]) -> Iterator[str]:
        story.told.append(f"open in {session}")
        try:
            yield "cursor"
        finally:
            story.told.append("close")

    async def asynchronous(session: Annotated[str, Depends(outer)]) -> AsyncIterator[str]:
        with contextlib.contextmanager(inner)(session) as cursor:
            yield cursor

    needed = inner if kind == "sync" else asynchronous

    @story.pipe.consumer(JOBS)
    async def handle(number: int, cursor: Annotated[str, Depends(needed)]) -> None:
        story.told.append(f"handle with {cursor}")
        if ends == "badly":
            raise ValueError(number)

    await story.run(1)
    last = ["commit", "Ack"] if ends == "well" else ["roll back", "DeadLetter"]
    assert story.told == ["begin", "open in session", "handle with cursor", "close", *last]


async def test_a_failed_end_is_a_failed_handling() -> None:
    """A commit that fails: the message is not acknowledged as if all were well."""
    story = Story()

    async def session() -> AsyncIterator[str]:
        yield "session"
        raise OSError("commit failed")

    @story.pipe.consumer(JOBS)
    async def handle(number: int, session: Annotated[str, Depends(session)]) -> None: ...

    bus = await story.run(1)
    (dead,) = bus.dead_letters(JOBS)
    assert "commit failed" in dead.error


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_dependency_can_not_save_a_handling(kind: str) -> None:
    """One that swallows the handler's exception cleans up; the message is dead-lettered all the same."""
    story = Story()

    async def swallowing() -> AsyncIterator[str]:
        with contextlib.suppress(ValueError):
            yield "x"

    def swallowing_too() -> Iterator[str]:
        with contextlib.suppress(ValueError):
            yield "x"

    needed = swallowing if kind == "async" else swallowing_too

    @story.pipe.consumer(JOBS)
    async def handle(number: int, one: Annotated[str, Depends(needed)]) -> None:
        raise ValueError(number)

    bus = await story.run(1)
    (dead,) = bus.dead_letters(JOBS)
    assert dead.error_type == "builtins.ValueError"


async def test_one_handling_shares_and_the_next_does_not() -> None:
    """Each dependency is called once a message, or as often as it is asked for."""
    story = Story()
    calls: list[int] = []

    async def counted() -> int:
        calls.append(1)
        return len(calls)

    async def through(number: Annotated[int, Depends(counted)]) -> int:
        return number

    @story.pipe.consumer(JOBS, concurrency=1)
    async def handle(
        number: int,
        one: Annotated[int, Depends(counted)],
        two: Annotated[int, Depends(through)],
        fresh: Annotated[int, Depends(counted, use_cache=False)],
    ) -> None:
        story.told.append((one, two, fresh))

    await story.run(1, 2)
    assert story.told == [(1, 1, 2), (3, 3, 4)]


async def test_overrides() -> None:
    """A test puts its own in the place of a dependency, however deep, and takes it out again."""
    story = Story()

    @story.pipe.consumer(JOBS)
    async def handle(number: int, text: Annotated[str, Depends(coroutine)]) -> None:
        story.told.append(text)

    story.pipe.dependency_overrides[plain] = lambda: "fake"
    await story.run(1)
    story.pipe.dependency_overrides.clear()
    await story.run(2)
    assert story.told == ["coroutine of fake", "coroutine of plain in True"]


async def test_sync_handlers_and_outputs_have_dependencies_too() -> None:
    """A handler in a thread; an async generator whose events are published while its session is open."""
    story = Story()
    results = story.pipe.publisher(str, to=Queue("results"))
    open_sessions = 0

    async def session() -> AsyncIterator[str]:
        nonlocal open_sessions
        open_sessions += 1
        yield "session"
        open_sessions -= 1

    @story.pipe.consumer(JOBS, output=results)
    async def handle(number: int, session: Annotated[str, Depends(session)]) -> AsyncIterator[str]:
        for _ in range(2):
            yield f"{session} {open_sessions}"

    @story.pipe.consumer(Queue("results"))
    def finish(text: str, plain: Annotated[str, Depends(plain)]) -> None:
        story.told.append((text, plain))

    await story.run(1)
    assert story.told == [("session 1", "plain in True")] * 2
    assert open_sessions == 0


async def test_a_timeout_rolls_back() -> None:
    """The handler's time includes its dependencies', and a timeout reaches them."""
    story = Story()

    async def session() -> AsyncIterator[str]:
        try:
            yield "session"
        except asyncio.CancelledError:
            story.told.append("roll back")
            raise

    @story.pipe.consumer(JOBS, timeout=0.01)
    async def handle(number: int, session: Annotated[str, Depends(session)]) -> None:
        await asyncio.sleep(60)

    async with story.pipe, story.pipe.consuming():
        await story.publisher.publish(1)
        while not story.told:
            await asyncio.sleep(0.01)


def _needs_request(request: fastapi.Request) -> str:
    return str(request.url)


def _deep(text: Annotated[str, Depends(_needs_request)]) -> str:
    return text


def _circle(text: Annotated[str, Depends("_circle")]) -> str:
    return text


@pytest.mark.parametrize(
    ("dependency", "says"),
    [(_needs_request, "'request'"), (_deep, "no request"), (_circle, "can't be called"), ("text", "can't be called")],
)
def test_what_can_not_be_filled_is_said_at_once(dependency: Any, says: str) -> None:
    """At decoration, with the handler and the dependency."""
    story = Story()

    async def handle(number: int, one: Annotated[str, Depends(dependency)]) -> None: ...

    with pytest.raises(ConfigurationError, match=says) as caught:
        story.pipe.consumer(JOBS)(handle)
    assert "handle" in str(caught.value)


async def test_a_handler_of_the_message_alone_has_dependencies_too() -> None:
    """And one that asks for more than that is refused."""
    story = Story()

    @story.pipe.consumer(JOBS)
    async def handle(message: Message, text: Annotated[str, Depends(of_message)]) -> None:
        story.told.append((message.body, text))

    await story.run(1)
    assert story.told == [(b"1", "jobs 1")]
    with pytest.raises(ConfigurationError, match="'more'"):

        @Story().pipe.consumer(JOBS)
        async def wrong(message: Message, more: int) -> None: ...


def test_a_circle_is_said_at_once() -> None:
    """Two that need each other."""

    def one(text: Any) -> str:
        return str(text)

    def two(text: Annotated[str, Depends(one)]) -> str:
        return text

    one.__annotations__["text"] = Annotated[str, Depends(two)]

    async def handle(number: int, one: Annotated[str, Depends(one)]) -> None: ...

    with pytest.raises(ConfigurationError, match="depends on itself"):
        Story().pipe.consumer(JOBS)(handle)


# --- middleware


async def test_middleware_runs_around_and_sees_the_outcome() -> None:
    """The pipe's outside of the consumer's, the first one outermost; each outcome as it was decided."""

    def named(name: str) -> Any:
        async def middleware(message: Message, handle: Any) -> None:
            story.told.append(f"{name} begins")
            outcome = await handle()
            story.told.append((name, type(outcome.decision), type(outcome.error)))

        return middleware

    story = Story(middleware=[named("a"), named("b")])

    @story.pipe.consumer(JOBS, middleware=[named("c")], retry=Retry(attempts=2, on=OSError))
    async def handle(number: int) -> None:
        story.told.append(number)
        if number == 2:
            raise Reject("no")
        if number == 3:
            raise OSError("again")

    none = type(None)
    await story.run(1)
    assert story.told == ["a begins", "b begins", "c begins", 1, ("c", Ack, none), ("b", Ack, none), ("a", Ack, none)]
    story.told.clear()
    await story.run(2)
    assert story.told[-1] == ("a", DeadLetter, Reject)
    story.told.clear()
    await story.run(3)
    assert [told for told in story.told if isinstance(told, tuple) and told[0] == "a"] == [
        ("a", RetryIn, OSError),
        ("a", DeadLetter, OSError),
    ]


@pytest.mark.parametrize("how", ["raises before", "raises after", "never handles", "handles twice", "both at once"])
async def test_middleware_can_not_choose_the_outcome(how: str) -> None:
    """The message is handled once, and settled as its handler ended."""

    async def wayward(message: Message, handle: Any) -> None:
        if how == "raises before":
            raise RuntimeError(how)
        if how == "both at once":
            await asyncio.gather(handle(), handle())
        elif how != "never handles":
            first = await handle()
            assert how != "handles twice" or await handle() is first
        if how == "raises after":
            raise RuntimeError(how)

    story = Story(middleware=[wayward])

    @story.pipe.consumer(JOBS)
    async def handle(number: int) -> None:
        await asyncio.sleep(0)
        story.told.append(number)
        if number == 2:
            raise ValueError(number)

    bus = await story.run(1, 2)
    assert sorted(story.told) == [1, 2]
    assert [dead.message.body for dead in bus.dead_letters(JOBS)] == [b"2"]


async def test_a_stop_passes_through_middleware() -> None:
    """A handler that is cut off is not settled, whatever the middleware does about it."""
    story = Story()
    begun = asyncio.Event()

    async def suppressing(message: Message, handle: Any) -> None:
        with contextlib.suppress(BaseException):
            await handle()
        story.told.append("seen")

    pipe = EventPipe("memory://stop-passes", name="story", drain=0.05, middleware=[suppressing])
    publisher = pipe.publisher(int, to=JOBS)

    @pipe.consumer(JOBS)
    async def handle(number: int) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with pipe:
        async with pipe.consuming():
            await publisher.publish(1)
            await begun.wait()
        assert story.told == ["seen"]
        assert await pipe._session.transport.depth("jobs") == 1


def test_what_is_no_middleware_is_refused() -> None:
    """At once, and by name."""
    for wrong in (5, lambda message, handle: None):
        with pytest.raises(ConfigurationError, match="must be an async function"):
            EventPipe("memory://", name="x", middleware=[wrong])
        with pytest.raises(ConfigurationError, match="must be an async function"):
            EventPipe("memory://", name="x").consumer(JOBS, middleware=[wrong])


async def test_a_middleware_object_will_do() -> None:
    """Anything with an async ``__call__``; a batch in one message goes through it event by event."""

    class Counting:
        def __init__(self) -> None:
            self.count = 0

        async def __call__(self, message: Message, handle: Any) -> None:
            await handle()
            self.count += 1

    counting = Counting()
    story = Story(middleware=[counting])

    @story.pipe.consumer(JOBS)
    async def handle(number: int) -> None: ...

    await story.run(1, 2, 3)
    assert counting.count == 3
