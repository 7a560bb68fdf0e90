"""Nodes of a cluster of three that die, are outnumbered, or are parted."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest
from tests.chaos.cluster import Cluster
from tests.chaos.service import Service
from tests.support import eventually

from eventpipe import PublishTimeout
from eventpipe.testing import RabbitNode

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # aiormq's own, when a socket dies
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.start() as started:
        yield started


def _urls(cluster: Cluster, first: RabbitNode) -> list[str]:
    """Give the URLs, beginning with one node's."""
    return sorted(cluster.urls(), key=lambda url: url != first.url)


async def _purge(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.nodes[0].api, "DELETE", "queues/%2F/jobs/contents")


@pytest.mark.fault("F07", "F08")
@pytest.mark.parametrize("connected", ["to the leader", "to a follower"])
async def test_the_leader_is_killed(cluster: Cluster, connected: str) -> None:
    """Publishing and consuming go on within seconds through another node, and nothing is lost."""
    setup = Service(cluster.urls())
    async with setup.running():
        await setup.probe()
    leader = await asyncio.to_thread(cluster.leader, "jobs")
    follower = next(node for node in cluster.nodes if node is not leader)
    service = Service(_urls(cluster, leader if connected == "to the leader" else follower))
    try:
        async with service.running():
            async with service.load():
                await eventually(lambda: len(service.handled) > 300)
                await asyncio.to_thread(leader.kill)
                begun, before = time.monotonic(), len(service.acknowledged)
                await eventually(lambda: len(service.acknowledged) > before + 100, within=15)
                assert time.monotonic() - begun < 10
                await service.probe(within=15)
            await service.balanced()
    finally:
        await asyncio.to_thread(leader.restart)
        await _until_whole(cluster)


@pytest.mark.fault("F09")
async def test_the_majority_is_lost(cluster: Cluster) -> None:
    """Publishes end at their timeout, nothing dies of it, and all goes on when the majority is back."""
    service = Service(cluster.nodes[0].url)
    async with service.running():
        await service.probe()
        for node in cluster.nodes[1:]:
            await asyncio.to_thread(node.kill)
        try:
            with pytest.raises(PublishTimeout) as caught:
                await service.publisher.publish(1, timeout=2.0)
            assert caught.value.outcome in ("unknown", "not_stored")
        finally:
            await asyncio.gather(*(asyncio.to_thread(node.restart) for node in cluster.nodes[1:]))
            await _until_whole(cluster)
        await service.probe(within=30)


@pytest.mark.fault("F10")
async def test_a_partition(cluster: Cluster) -> None:
    """A node that the others can't talk to any more is parted from them and comes back; nothing confirmed is lost."""
    service = Service(cluster.nodes[0].url)
    async with service.running():
        await service.probe()
        leader = await asyncio.to_thread(cluster.leader, "jobs")
        parted = next(node for node in cluster.nodes[1:] if node is not leader)
        async with service.load():
            names = [node.facts["name"] for node in cluster.nodes if node is not parted]
            # The cookie is what lets nodes talk: with another one they can neither stay nor come back together.
            await asyncio.to_thread(parted.ctl, "eval", _part(names))
            await asyncio.sleep(3)
            await service.probe(within=20)
            os.kill(parted.pid, signal.SIGKILL)
            await asyncio.to_thread(parted.restart)
        await service.balanced()
    await _until_whole(cluster)


def _part(names: list[str]) -> str:
    nodes = ", ".join(f"'{name}'" for name in names)
    return f"[begin erlang:set_cookie(N, parted), erlang:disconnect_node(N) end || N <- [{nodes}]]."


async def _until_whole(cluster: Cluster) -> None:
    def whole() -> bool:
        return all(
            sum(node["running"] for node in one.api("GET", "nodes")) == len(cluster.nodes) for one in cluster.nodes
        )

    await eventually(lambda: asyncio.to_thread(whole), within=60)
    await _purge(cluster)
