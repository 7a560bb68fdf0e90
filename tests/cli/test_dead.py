"""``eventpipe dead``, as an operator meets it: real processes, on a real broker."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support import eventually

from eventpipe import EventPipe, Message, Queue, Retry
from eventpipe.cli.dead import seconds
from eventpipe.errors import ConfigurationError

JOBS = Queue("jobs")
NASTY = "\x1b[31mred\x1b[0m\n2026 ok \u202e[bold]"


async def eventpipe(*arguments: str, url: str, ends: int = 0) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from eventpipe.cli import main; main()", "dead", *arguments),
        env={**os.environ, "EVENTPIPE_URL": url, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == ends, (out, err)
    return out.decode(), err.decode()


class Service:
    """A queue whose messages all die at first, and what of it is handled once it is mended."""

    def __init__(self, url: str) -> None:
        self.pipe = EventPipe(url, name="service", retry=Retry(attempts=2, delay=0.0))
        self.publisher = self.pipe.publisher(dict[str, Any], to=JOBS)
        self.handled: list[tuple[str, int]] = []
        self.mended = False

        @self.pipe.consumer(JOBS)
        async def handle(order: dict[str, Any], message: Message) -> None:
            if not self.mended:
                raise ValueError(order.get("text", "no"))
            self.handled.append((message.id, message.attempt))

    async def kill(self, *orders: dict[str, Any]) -> None:
        async with self.pipe.consuming():
            await self.publisher.publish_many(orders)
            await eventually(lambda: self.dead(len(orders)))

    async def dead(self, count: int) -> bool:
        return await self.pipe._session.transport.depth("jobs.dead") == count


@pytest.fixture
async def service(eventpipe_rabbitmq: str) -> Any:
    made = Service(eventpipe_rabbitmq)
    async with made.pipe:
        yield made


async def test_list_and_show_tell_the_story(service: Service, eventpipe_rabbitmq: str) -> None:
    """As a table, as text, as JSON; with foreign text escaped."""
    await service.kill({"n": 1, "text": NASTY})
    url = eventpipe_rabbitmq
    out, _ = await eventpipe("list", "jobs", url=url)
    assert "failed 2 times" in out
    assert "builtins.ValueError" in out
    assert "1 dead letter" in out
    await eventually(lambda: service.dead(1))
    out, _ = await eventpipe("show", "jobs", url=url)
    for part in ("failed 2 times", "handle", "attempts", "traceback", "raise ValueError", '"n": 1', "raw b'{", "UTC"):
        assert part in out, part
    assert out.count("ValueError: ") >= 3, "each attempt, and the traceback"
    assert not set(out) & {"\x1b", "\u202e"}
    assert "[bold]" in out, "no markup is obeyed"
    await eventually(lambda: service.dead(1))
    out, _ = await eventpipe("list", "jobs", "--json", url=url)
    (told,) = map(json.loads, out.splitlines())
    assert ("jobs", "failed 2 times", 2, {"n": 1, "text": NASTY}) == (
        told["queue"],
        told["reason"],
        told["attempt"],
        json.loads(told["body"]),
    )
    assert [one["attempt"] for one in told["history"]] == [1]


async def test_replay_park_and_drop(service: Service, eventpipe_rabbitmq: str) -> None:
    """What is meant, counted; nothing on a dry run; a drop asks first."""
    url = eventpipe_rabbitmq
    await service.kill(*({"n": number} for number in range(6)))
    out, _ = await eventpipe("replay", "jobs", "--limit", "2", "--dry-run", url=url)
    assert "2 dead letters" in out
    await eventually(lambda: service.dead(6))
    out, _ = await eventpipe("park", "jobs", "--limit", "1", url=url)
    assert out == "1 parked\n"
    await eventually(lambda: service.dead(5))
    out, _ = await eventpipe("list", "jobs", "--parked", url=url)
    assert "1 dead letter" in out
    _, err = await eventpipe("drop", "jobs", url=url, ends=1)
    assert "for ever?" in err
    await eventually(lambda: service.dead(5))
    out, _ = await eventpipe("drop", "jobs", "--limit", "1", "--yes", "--json", url=url)
    assert json.loads(out) == {"dropped": 1}
    await eventually(lambda: service.dead(4))
    service.mended = True
    async with service.pipe.consuming():
        out, _ = await eventpipe("replay", "jobs", "--exception", "valueerror", "--older", "0s", url=url)
        assert out == "4 replayed\n"
        await eventually(lambda: len(service.handled) == 4)
    assert {attempt for _, attempt in service.handled} == {1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "nobody"), "nobody.dead"),
        (("list", "jobs", "--older", "soon"), "90s, 10m, 2h, 3d"),
        (("replay", "jobs", "--header", "tenant"), "NAME=VALUE"),
        (("replay", "jobs", "--rate", "0"), "more than 0"),
    ],
)
async def test_what_can_not_be_is_said(eventpipe_rabbitmq: str, arguments: tuple[str, ...], says: str) -> None:
    """In one line that says what to do."""
    _, err = await eventpipe(*arguments, url=eventpipe_rabbitmq, ends=1)
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err


async def test_killed_in_the_middle_and_run_again(service: Service, eventpipe_rabbitmq: str) -> None:
    """None is lost, what is not meant stays as it was, and what was done twice has one id."""
    url = eventpipe_rabbitmq
    count = 3_000
    await service.kill(*({"n": number} for number in range(count)))
    service.mended = True
    async with service.pipe.consuming():
        for rest in (2500, 1500):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", "from eventpipe.cli import main; main()"),
                *("dead", "replay", "jobs", "--rate", "2000"),
                env={**os.environ, "EVENTPIPE_URL": url},
                stdout=asyncio.subprocess.DEVNULL,
            )
            await eventually(lambda rest=rest: len(service.handled) > count - rest, within=20)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await eventually(lambda: _is_back(service, count), within=10)
        await eventpipe("replay", "jobs", url=url)
        await eventually(lambda: len({one for one, _ in service.handled}) == count, within=20)
        assert len(service.handled) < count + 2 * 600, "at most what was on its way is handled twice"
    assert await service.dead(0)


async def _is_back(service: Service, count: int) -> bool:
    """What the killed process had in hand is with the queue again."""
    depth = await service.pipe._session.transport.depth("jobs.dead")
    return depth >= count - len({one for one, _ in service.handled})


def test_ages() -> None:
    """With a unit, or in seconds."""
    assert [seconds(age) for age in ("90", "90s", "1.5m", "2h", "3d")] == [90, 90, 90, 7200, 259200]
    for bad in ("", "m", "-1", "1w", "1 h"):
        with pytest.raises(ConfigurationError):
            seconds(bad)


def test_a_folder_is_not_needed(tmp_path: Path) -> None:
    """The command needs a broker, and says so."""
    import subprocess

    ended = subprocess.run(
        [sys.executable, "-c", "from eventpipe.cli import main; main()", "dead", "list", "jobs"],
        env={name: value for name, value in os.environ.items() if name != "EVENTPIPE_URL"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 1
    assert "EVENTPIPE_URL" in ended.stderr
