"""Faults of the network, through a proxy between the application and a real broker."""

import asyncio
import random
import socket
import time
from typing import Any

import pytest
from tests.chaos.proxy import Proxy
from tests.chaos.service import HEARTBEAT, Service
from tests.faults.conftest import ROUNDS
from tests.support import eventually

from eventpipe import ConnectError, EventPipe, Options, PublishTimeout, Queue, Receipt

DEAD_AFTER = 2.5 * HEARTBEAT
"""Seconds after which a silent peer has to be given up."""

REPEATS = 15 if ROUNDS == 1 else 100 * ROUNDS

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # aiormq's own, when a socket dies
)


@pytest.mark.fault("F02", "F11")
async def test_a_network_that_drops_everything(guarded_url: str, proxy: Proxy, rabbit_node: Any) -> None:
    """A silent peer is given up within 2.5 heartbeats; the next of several URLs takes over; nothing is lost."""
    async with Proxy(rabbit_node.facts["port"]) as other:
        service = Service([proxy.url(guarded_url), other.url(guarded_url)])
        async with service.running():
            async with service.load():
                await eventually(lambda: len(service.handled) > 100)
                assert other.connections == 0
                proxy.both(hole=True)
                begun = time.monotonic()
                await eventually(lambda: not service.pipe.health().ok, within=DEAD_AFTER + 1)
                assert time.monotonic() - begun <= DEAD_AFTER + 0.5
                await eventually(lambda: other.connections == 2)
                await service.probe(within=3)
            proxy.both(hole=False)
            await service.balanced()


@pytest.mark.fault("F11")
async def test_a_network_that_comes_back(guarded_url: str, proxy: Proxy) -> None:
    """With one URL only, publishing and consuming go on by themselves once bytes pass again."""
    service = Service(proxy.url(guarded_url))
    async with service.running():
        async with service.load():
            await eventually(lambda: len(service.handled) > 100)
            proxy.both(hole=True)
            await eventually(lambda: not service.pipe.health().ok, within=DEAD_AFTER + 1)
            await asyncio.sleep(1)
            proxy.both(hole=False)
            await service.probe(within=10)
        await service.balanced()


@pytest.mark.fault("F12")
async def test_a_half_open_connection(guarded_url: str, proxy: Proxy) -> None:
    """The broker misses our heartbeats and closes; what it says until then keeps nobody waiting for ever."""
    service = Service(proxy.url(guarded_url))
    async with service.running():
        async with service.load():
            await eventually(lambda: len(service.handled) > 100)
            proxy.up.hole = True
            await eventually(lambda: not service.pipe.health().ok, within=15)
            proxy.up.hole = False
            await service.probe(within=10)
        await service.balanced()


@pytest.mark.fault("F03")
async def test_a_peer_that_is_silent_from_the_start(guarded_url: str, proxy: Proxy, rabbit_node: Any) -> None:
    """The connect timeout bounds it, alone it is a ``ConnectError``; of several URLs the next one is taken."""
    proxy.silent = True
    begun = time.monotonic()
    with pytest.raises(ConnectError, match=r"no connection within 0\.5 s"):
        async with EventPipe(proxy.url(guarded_url), name="silent", options=Options(connect_timeout=0.5)):
            raise AssertionError("it can't have been entered")
    assert time.monotonic() - begun < 1.5
    service = Service([proxy.url(guarded_url), guarded_url], connect_timeout=0.5)
    async with service.running():
        await service.probe()


@pytest.mark.fault("F06")
async def test_cut_at_any_byte_of_connecting_and_declaring(guarded_url: str, proxy: Proxy) -> None:
    """Wherever a reconnect is cut, the next one restores everything: the probe is published and handled."""
    service = Service(proxy.url(guarded_url))
    chance = random.Random(6)
    async with service.running():
        await service.probe()
        for _ in range(12 * ROUNDS):
            way = chance.choice((proxy.up, proxy.down))
            way.cut_after = chance.randrange(1, 2500)
            proxy.reset()
            await asyncio.sleep(chance.random() / 5)
            way.cut_after = None
            await service.probe(within=10)


@pytest.mark.fault("F13")
async def test_cut_at_any_byte_of_a_publish(guarded_url: str, proxy: Proxy) -> None:
    """It is sent again with the same id: each publish succeeds, and none is lost or answered for another."""
    pipe = EventPipe(proxy.url(guarded_url), name="cut", options=Options(heartbeat=5))
    numbers = pipe.publisher(int, to=Queue("cut"), id=lambda number: f"id-{number}", timeout=10.0)
    seen: set[int] = set()

    @pipe.consumer(Queue("cut"))
    async def handle(number: int) -> None:
        seen.add(number)

    step = 1 if ROUNDS > 1 else 11
    async with pipe:
        for number, at in enumerate(range(0, 260, step)):
            proxy.up.cut_after = at
            receipt = await numbers.publish(number)
            assert isinstance(receipt, Receipt)
            assert receipt.id == f"id-{number}"
            proxy.up.cut_after = None
        async with pipe.consuming():
            await eventually(lambda: seen == set(range(len(range(0, 260, step)))), within=10)


@pytest.mark.fault("F14")
@pytest.mark.parametrize("rule", [{"piece": 1}, {"delay": 0.5}, {"rate": 10_000, "piece": 500}], ids=str)
async def test_a_slow_network(guarded_url: str, proxy: Proxy, rule: dict[str, Any]) -> None:
    """Correct, if slow, and not taken for dead."""
    service = Service(proxy.url(guarded_url), heartbeat=10, connect_timeout=30.0)
    async with service.running():
        proxy.both(**rule)
        accepted = proxy.accepted
        receipts = await service.publisher.publish_many(range(30), timeout=30.0)
        assert len(receipts) == 30
        await eventually(lambda: len(service.handled) == 30, within=30)
        assert proxy.accepted == accepted, "the connections are still the first ones"
        proxy.both(piece=None, delay=0.0, rate=None)


@pytest.mark.fault("F17")
async def test_a_confirm_that_never_comes(guarded_url: str, proxy: Proxy) -> None:
    """The publish ends at its timeout as possibly stored; the next connection's confirms are its own."""
    service = Service(proxy.url(guarded_url), heartbeat=5)
    async with service.running():
        await service.probe()
        proxy.down.hole = True
        begun = time.monotonic()
        with pytest.raises(PublishTimeout) as caught:
            await service.publisher.publish(1, timeout=0.5)
        assert time.monotonic() - begun < 1.5
        assert caught.value.outcome == "unknown"
        proxy.down.hole = False
        proxy.reset()
        await service.probe(within=10)
        await eventually(lambda: service.handled[1] > 0)


@pytest.mark.fault("F36", "F37")
async def test_reset_while_handlers_run_and_a_prefetch_waits(guarded_url: str, proxy: Proxy) -> None:
    """Handlers end undisturbed; what waited is not run from the old buffer; what was handled does not run again."""
    service = Service(proxy.url(guarded_url), work=0.5, concurrency=5, prefetch=50)
    async with service.running():
        await service.publisher.publish_many(range(50))
        for _ in range(3):
            await asyncio.sleep(0.3)
            proxy.reset()
        await eventually(lambda: len(service.handled) == 50, within=30)
        await eventually(lambda: service.pipe.health().ok)
        assert service.cancelled == 0
        assert service.handled.total() == 50, "each was handled once, although it was delivered several times"


@pytest.mark.fault("F25")
async def test_a_host_name_that_can_not_be_resolved_or_leads_elsewhere(
    guarded_url: str, proxy: Proxy, rabbit_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it; a name is resolved again for each connection, so a change of its address is followed."""
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo
    ports = {"broker.test": proxy.port}

    async def resolver(host: Any, port: Any, **more: Any) -> Any:
        if host == "broker.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", ports[host]))]
        if isinstance(host, str) and host.endswith(".test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await resolve(host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", resolver)
    unknown = guarded_url.replace("127.0.0.1", "nowhere.test")
    with pytest.raises(ConnectError, match="can't be resolved"):
        async with EventPipe(unknown, name="dns"):
            raise AssertionError("it can't have been entered")
    service = Service(guarded_url.replace("127.0.0.1", "broker.test"))
    async with service.running():
        await service.probe()
        assert proxy.connections == 2
        ports["broker.test"] = rabbit_node.facts["port"]
        proxy.silent = True
        proxy.reset()
        await service.probe(within=10)
        assert proxy.connections == 0
        proxy.silent = False


@pytest.mark.fault("F28")
async def test_an_exclusive_queue_that_a_dead_connection_still_holds(guarded_url: str, proxy: Proxy) -> None:
    """Red and said until the broker lets go of it, then back by itself."""
    queue = Queue("mine", kind="classic", exclusive=True, durable=False)
    service = Service([proxy.url(guarded_url), guarded_url], queue=queue)
    async with service.running():
        await service.probe()
        proxy.both(hole=True)
        link = service.pipe._session.transport._consuming
        link._wire._socket.abort()  # the broker goes on to believe in this connection for two heartbeats
        await eventually(lambda: "exclusive" in str(service.pipe.health().consumers[0].error), within=10)
        assert not service.pipe.health().ok
        await eventually(lambda: service.pipe.health().ok, within=20)
        await service.probe()
        proxy.both(hole=False)


@pytest.mark.fault("F52")
async def test_reconnects_leave_nothing_behind(guarded_url: str, proxy: Proxy) -> None:
    """Neither tasks nor callbacks nor connections grow with the number of reconnects."""
    service = Service(proxy.url(guarded_url), heartbeat=10)
    async with service.running():
        counts: list[tuple[int, int]] = []
        for number in range(10 + REPEATS):
            proxy.reset()
            await service.probe()
            if number in (9, 9 + REPEATS):
                await asyncio.sleep(0.3)
                counts.append((len(asyncio.all_tasks()), proxy.connections))
        assert counts[0] == counts[-1]
