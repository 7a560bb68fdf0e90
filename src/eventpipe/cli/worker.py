"""What one worker process runs: a pipe, until it is told to stop or its supervisor is gone."""

import argparse
import asyncio
import contextlib
import gc
import os
import sys

from ..errors import EventPipeError
from ..pipe import EventPipe
from ..shown import shown
from .loading import load_pipe
from .probes import beating, problem_of


def explain(error: BaseException) -> str:
    """Put an error and its notes into the lines that an operator sees."""
    return "\n".join([f"error: {error}", *(f"  {note}" for note in getattr(error, "__notes__", ()))])


async def serve(pipe: EventPipe, only: list[str], *, report: int, life: int) -> None:
    """Consume; write signs of life to ``report``, and drain when ``life`` reaches its end."""
    os.set_blocking(report, False)

    def tell(problem: str | None) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the supervisor is stuck, or gone
            os.write(report, f"{shown(problem) or ''}\n".encode())

    running = asyncio.ensure_future(pipe.run(*only, started=lambda: tell(None)))
    asyncio.get_running_loop().add_reader(life, running.cancel)  # nobody writes to it: the supervisor is gone
    try:
        async with beating(lambda: problem_of(pipe), tell):
            await running
    except asyncio.CancelledError:
        pass
    finally:
        asyncio.get_running_loop().remove_reader(life)


def main() -> None:
    """Serve the pipe that the arguments name; exit 1 with one line when that is not possible."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--drain", type=float)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--life", type=int, required=True)
    given = parser.parse_args()
    try:
        pipe = load_pipe(given.target)
        pipe.drain = pipe.drain if given.drain is None else given.drain
        gc.collect()
        gc.freeze()  # what is loaded by now stays: a full collection that walks it costs tens of milliseconds
        asyncio.run(serve(pipe, given.only, report=given.report, life=given.life))
    except EventPipeError as error:
        sys.exit(explain(error))


if __name__ == "__main__":
    main()
