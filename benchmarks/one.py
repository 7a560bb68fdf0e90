"""One peer, one round, in a process of its own; prints a JSON object of results.

``python -m benchmarks.one PEER URL QUEUE KIND SIZE LOOP COUNT SECONDS``; a packed peer starts its consumer as a second
process.
"""

import asyncio
import gc
import json
import sys
import time
from typing import Any

from benchmarks.events import Counter
from benchmarks.limit import Limit
from benchmarks.peers import PEERS, EventpipePacked, run

CHUNK = 20_000


async def one(peer: str, url: str, queue: str, kind: str, size: int, count: int, latency: float) -> dict[str, float]:
    """Run a peer's cases."""
    if peer == "limit":
        return await Limit(url, queue, kind, size).run(count)
    if peer == "packed":
        return {"packed_end_to_end": await packed(url, queue, kind, size, count * 100)}
    if peer == "packed-memory":
        return {"packed_end_to_end": await packed_in_memory(queue, size, count * 100)}
    return await run(PEERS[peer](url, queue, kind, size), count, latency)


async def packed(url: str, queue: str, kind: str, size: int, count: int) -> float:
    """Publish in this process, handle in another; from the first publish to the last acknowledgement."""
    made = EventpipePacked(url, queue, kind, size)
    await made.open()
    gc.collect()
    gc.freeze()
    arguments = ("packed-consumer", url, queue, kind, str(size), "asyncio", str(count), "0")
    command = (sys.executable, "-m", "benchmarks.one", *arguments)
    consumer = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert consumer.stdout is not None  # noqa: S101  it was asked for
    await consumer.stdout.readline()
    begin = time.time()
    await _publish(made, count)
    end = json.loads(await consumer.stdout.readline())
    await consumer.wait()
    await made.close()
    return count / (end - begin)


async def packed_in_memory(queue: str, size: int, count: int) -> float:
    """Do the same in one process, on the memory broker."""
    made = EventpipePacked("memory://", queue, "quorum", size)
    await made.open()
    counter = Counter(count)
    await made.start(counter)
    gc.collect()
    gc.freeze()
    begin = time.perf_counter()
    await _publish(made, count)
    await counter.done.wait()
    took = time.perf_counter() - begin
    await made.close()
    return count / took


async def _publish(made: EventpipePacked, count: int) -> None:
    for start in range(0, count, CHUNK):
        await made.publisher.publish_many([made.event] * min(CHUNK, count - start))


async def consume_packed(url: str, queue: str, kind: str, size: int, count: int) -> None:
    """Say when it is ready, and at what time everything was handled and acknowledged."""
    made = EventpipePacked(url, queue, kind, size)
    await made.open()
    counter = Counter(count)
    await made.start(counter)
    gc.collect()
    gc.freeze()  # as `eventpipe run` does
    print("ready", flush=True)
    await counter.done.wait()
    await made.pipe._session.transport.flush()  # noqa: SLF001  acknowledged, and not only handled
    print(json.dumps(time.time()), flush=True)
    await made.close()


def main() -> None:
    """Read the arguments and run."""
    peer, url, queue, kind, size, loop, count, latency = sys.argv[1:]
    factory: Any = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if peer == "packed-consumer":
            runner.run(consume_packed(url, queue, kind, int(size), int(count)))
        else:
            print(json.dumps(runner.run(one(peer, url, queue, kind, int(size), int(count), float(latency)))))


if __name__ == "__main__":
    main()
