"""The service: a web app that hands departures off, and three consumers that work on them."""

import asyncio
from collections import Counter
from typing import ClassVar

from events import ATTEMPTS, Departure, Outcome, failures
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventpipe import DeadMessage, EventPipe, Exchange, Message, Queue, Reject, Retry

SLOW_CALL = 0.02  # seconds: the call to somebody else's system that should not make a request wait

departures = Exchange("departures")
statistics = Queue("departures.statistics", bind=departures.on("departure.#"))
notices = Queue("departures.notices", bind=departures.on("departure.*.late"))
rebooking = Queue("departures.rebooking", bind=departures.on("departure.*.cancelled"))


def routing_key(departure: Departure) -> str:
    """Say in words what a queue may want to bind to."""
    return f"departure.{departure.origin}.{departure.fate}"


pipe = EventPipe(name="departures")
departed = pipe.publisher(Departure, to=departures, key=routing_key, id=lambda event: event.id)


class Run:
    """What this run's consumers count; what an earlier run left in a queue is passed over."""

    id = ""
    seen = Outcome()
    passed_over: ClassVar[Counter[str]] = Counter()


def ours(departure: Departure, queue: Queue) -> bool:
    """Tell whether a departure is of this run; count it if it is not."""
    if departure.run == Run.id:
        return True
    Run.passed_over[queue.name] += 1
    return False


@pipe.consumer(statistics, concurrency=100, prefetch=1000)
async def count(departure: Departure) -> None:
    """Count by carrier and airport: fast."""
    if ours(departure, statistics):
        Run.seen.by_carrier[departure.carrier, departure.origin] += 1


@pipe.consumer(notices, concurrency=400)
async def notify(departure: Departure) -> None:
    """Tell the passengers of a late departure: slow."""
    if ours(departure, notices):
        await asyncio.sleep(SLOW_CALL)
        Run.seen.late += 1


def given_up(dead: DeadMessage) -> None:
    """Count what ends in the dead letters."""
    Run.seen.dead += Departure.model_validate_json(dead.message.body).run == Run.id


@pipe.consumer(
    rebooking,
    concurrency=200,
    retry=Retry(attempts=ATTEMPTS, delay=0.1, max_delay=1.0),
    on_dead_letter=given_up,
)
async def rebook(departure: Departure, message: Message) -> None:
    """Rebook the passengers of a cancelled departure: fails now and then, and sometimes always."""
    if not ours(departure, rebooking):
        return
    wrong = failures(departure)
    if wrong < 0:
        raise Reject("nobody was booked")
    if message.attempt > 1:
        Run.seen.retried += 1
    if message.attempt <= wrong:
        raise ConnectionError("the booking system did not answer")
    Run.seen.rebooked += 1


async def hand_off(request: Request) -> Response:
    """Answer as soon as the broker has the event."""
    await departed.publish(Departure.model_validate_json(await request.body()))
    return Response(status_code=202)


async def inline(request: Request) -> Response:
    """Do the slow work before answering, for comparison."""
    Departure.model_validate_json(await request.body())
    await asyncio.sleep(SLOW_CALL)
    return Response(status_code=200)


app = Starlette(
    routes=[Route("/departures", hand_off, methods=["POST"]), Route("/inline", inline, methods=["POST"])],
)
