"""The web app: ``POST /tweets`` answers once the broker has the tweet; the followers' feeds are the worker's."""

from service import TweetPosted, database, pipe, tweet_posted
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from eventpipe import PublishError


async def post_tweet(request: Request) -> JSONResponse:
    """Publish a tweet."""
    tweet = TweetPosted.model_validate_json(await request.body())
    try:
        receipt = await tweet_posted.publish(tweet, timeout=2.0)
    except PublishError as error:
        return JSONResponse({"error": "try again", "stored": error.outcome}, status_code=503)
    return JSONResponse({"id": receipt.id}, status_code=202)


def follow(request: Request) -> JSONResponse:
    """Follow somebody."""
    with database() as connection:
        connection.execute("INSERT INTO followers VALUES (?, ?)", tuple(request.path_params.values()))
    connection.close()
    return JSONResponse({}, status_code=201)


def read_feed(request: Request) -> JSONResponse:
    """Show a follower's feed."""
    connection = database()
    found = connection.execute("SELECT text FROM feeds WHERE follower = ?", (request.path_params["user"],)).fetchall()
    connection.close()
    return JSONResponse([text for (text,) in found])


app = Starlette(
    routes=[
        Route("/tweets", post_tweet, methods=["POST"]),
        Route("/users/{user}/followers/{follower}", follow, methods=["PUT"]),
        Route("/feeds/{user}", read_feed),
    ],
    lifespan=pipe.lifespan,
)
