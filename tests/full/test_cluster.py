"""Three RabbitMQs that form a cluster: one may go, and two may go for a while; nothing confirmed is lost."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chaos.cluster import Cluster
from chaos.run import RECOVERY_LIMIT, STALL, Rig
from chaos.workload import SERVICE, Asked, made
from container import needs_container
from soak import SOAK

from bridge_protocol.errors import CodedError
from bridge_protocol.topology import request_queue
from producer.async_producer import AsyncProducer
from quaybridge.rabbitmq import DEFAULT_IMAGE

IMAGE = os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE
IMAGES = [IMAGE, *(image for image in os.environ.get("RABBITMQ_IMAGES", "").split() if image != IMAGE)]
NODES = 2
WORK = (0.005, 0.02)  # seconds
RATE = 60  # requests per second
PARTITION = 30.0  # seconds
QUEUE = request_queue(SERVICE)

soak = pytest.mark.skipif(not SOAK, reason="a long form: make soak runs it")


@pytest.fixture(scope="module", params=IMAGES if SOAK else IMAGES[:1], ids=lambda image: image.rpartition(":")[2])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    needs_container(request.param)
    with Cluster(request.param, 3) as started:
        yield started


@asynccontextmanager
async def under_load(cluster: Cluster, directory: Path) -> AsyncIterator[Rig]:
    """Nodes and requesters under a steady load; after the block the load ends, and the oracle is asked."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    stopping = asyncio.Event()

    async def requests() -> AsyncIterator[Asked]:
        for asked in made(seed, seconds=WORK, mixed=False):
            if stopping.is_set():
                return
            yield asked
            await asyncio.sleep(1 / RATE)

    async with Rig(cluster, directory, nodes=NODES) as rig:
        loading = asyncio.create_task(rig.publish(requests(), 200))
        try:
            await until(lambda: rig.last_reply > 0)
            yield rig
            stopping.set()
            await loading
        finally:
            loading.cancel()
            await asyncio.wait([loading])
        troubles = await rig.drain()
        left = await rig.left()
        verdict = rig.ledger.verdict()
        assert verdict.sound, verdict
        assert (troubles, left, rig.herd.troubles()) == ([], {}, [])
        assert rig.ledger.count("confirmed") == len(rig.ledger.entries)
        republished = sum(requester.republished for requester in rig.requesters)
        held = len(cluster.members) * NODES * rig.herd.prefetch(WORK[0])  # at most, if each of them is lost once
        assert verdict.duplicated <= republished + held
        print(f"{rig.ledger!r}, {verdict.duplicated} doubled, {rig.ledger.unknown} publishes of unknown outcome")


async def until(condition: Callable[[], object], patience: float = STALL) -> float:
    """Wait for it; how long that took."""
    since = time.monotonic()
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.01)
    return time.monotonic() - since


async def works_again(rig: Rig, since: float) -> None:
    """Until every node has answered something again, within what is promised."""
    nodes = rig.herd.nodes
    took = await until(lambda: all(rig.last_reply_of(node) > since for node in nodes), RECOVERY_LIMIT)
    print(f"all nodes work again after {took:.1f} s")


async def test_the_leader_is_killed_under_load(cluster: Cluster, tmp_path: Path) -> None:
    async with under_load(cluster, tmp_path) as rig:
        leader = await asyncio.to_thread(cluster.leader_of, QUEUE)
        await asyncio.to_thread(leader.kill)
        killed = time.monotonic()
        assert not await asyncio.to_thread(leader.running)
        await works_again(rig, killed)
        await asyncio.to_thread(leader.restart)
        await asyncio.to_thread(cluster.wait_until_whole)


async def test_the_leader_moves_under_load(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody loses a connection over that; what is on its way to the old leader must not be lost either."""
    async with under_load(cluster, tmp_path) as rig:
        leader = await asyncio.to_thread(cluster.leader_of, QUEUE)
        for member in (*(other for other in cluster.members if other is not leader), leader):
            await asyncio.to_thread(cluster.move_leader, QUEUE, member)
            await works_again(rig, time.monotonic())
        assert rig.losses == 0


async def test_with_two_of_three_down_nothing_is_promised_and_then_all_recovers(
    cluster: Cluster, tmp_path: Path
) -> None:
    """No publish is said to have succeeded; each ends in time, in an error with a code."""
    async with under_load(cluster, tmp_path) as rig:
        *killed, left = cluster.members
        for member in killed:
            await asyncio.to_thread(member.kill)
        await asyncio.sleep(1)  # what was on its way may still be confirmed
        before = rig.ledger.count("confirmed")
        started = time.monotonic()
        outcomes = await asyncio.gather(*(publish(left.url) for _ in range(5)))
        assert all(isinstance(outcome, CodedError) for outcome in outcomes), outcomes
        assert time.monotonic() - started < 20
        assert rig.ledger.count("confirmed") == before
        assert rig.ledger.unknown > 0
        await asyncio.gather(*(asyncio.to_thread(member.restart) for member in killed))
        back = time.monotonic()
        await asyncio.to_thread(cluster.wait_until_whole)
        await works_again(rig, back)


async def publish(url: str) -> CodedError | None:
    """Publish one request nobody waits for, to a service that exists; how that ended."""
    producer = AsyncProducer(url, connect_timeout=5)
    try:
        await producer.start()
        await producer.publish(SERVICE, "works", {"number": 0, "text": "", "seconds": 0}, timeout=3)
    except CodedError as error:
        return error
    finally:
        await producer.close()
    return None


@soak
@pytest.mark.parametrize("whose", ["the leader's", "a follower's"])
async def test_a_minority_is_partitioned(whose: str, cluster: Cluster, tmp_path: Path) -> None:
    """Its clients still reach it; it can promise them nothing. The clients of the others notice nothing."""
    async with under_load(cluster, tmp_path) as rig:
        leader = await asyncio.to_thread(cluster.leader_of, QUEUE)
        clients = cluster.members[0]  # the first of the URLs that answers
        followers = [member for member in cluster.members if member not in (leader, clients)]
        apart = leader if whose == "the leader's" else followers[0]
        await asyncio.to_thread(apart.partition)
        await asyncio.sleep(PARTITION)
        if apart is not clients:
            assert time.monotonic() - rig.last_reply < 5
        await asyncio.to_thread(apart.heal)
        healed = time.monotonic()
        await asyncio.to_thread(cluster.wait_until_whole)
        await works_again(rig, healed)


@soak
async def test_a_rolling_restart(cluster: Cluster, tmp_path: Path) -> None:
    async with under_load(cluster, tmp_path) as rig:
        for member in cluster.members:
            await asyncio.to_thread(member.stop)
            await asyncio.to_thread(member.restart)
            back = time.monotonic()
            await asyncio.to_thread(cluster.wait_until_whole)
            await asyncio.to_thread(cluster.wait_for, lambda: len(cluster.online_members_of(QUEUE)) == 3)
            await works_again(rig, back)
