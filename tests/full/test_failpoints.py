"""Processes that are killed at every point of a request's life: afterwards nothing is lost, and nothing is false."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.herd import Herd
from chaos.ledger import Ledger
from chaos.requester import Requester
from chaos.workload import made
from soak import SOAK
from vhost import Vhost

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.failpoints import Point

PATIENCE = 90.0  # seconds for what takes two on an idle machine
PAUSE = 0.05  # seconds between two requests of one publisher: the machine has nodes to start
KILLS = 20 if SOAK else 3
AT_ONCE = 5
OF_A_PRODUCER = [point for point in Point if point.startswith(("p1.", "p2", "p3.", "p13.", "p14."))]
OF_A_NODE = [point for point in Point if point not in OF_A_PRODUCER]
SEED = random.randrange(2**32)


@dataclass(frozen=True)
class Site:
    """A vhost with one node that nothing is done to, and where logs and journals go."""

    url: str
    herd: Herd
    directory: Path


@pytest.fixture(scope="module")
def site(rabbitmq_vhost_of_module: Vhost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("failpoints")
    url = rabbitmq_vhost_of_module.url
    herd = Herd(url, directory, bridges=1)
    try:
        asyncio.run(herd.serve())
        yield Site(url, herd, directory)
        asyncio.run(herd.stop())
    finally:
        herd.kill_all()
    assert herd.troubles() == []


@asynccontextmanager
async def under_load(site: Site, ledger: Ledger, seed: int) -> AsyncIterator[Requester]:
    """A requester that publishes without end; after the block, until all of it has an outcome."""

    def note(what: str, *arguments: object, **options: object) -> None:
        getattr(ledger, what)(*arguments, **options)

    requester = Requester(AmqpBroker(parse_addresses(site.url)), f"failpoints-{secrets.token_hex(4)}", note)
    requests = made(seed, seconds=(0.0, 0.004), mixed=False)
    stopping = asyncio.Event()

    async def publish() -> None:
        while not stopping.is_set():
            await requester.send(next(requests))
            await asyncio.sleep(PAUSE)

    await requester.start()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(publish())
            yield requester
            stopping.set()
        await until(lambda: not ledger.unsettled)
    finally:
        await requester.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def armed(point: Point, action: str, source: random.Random) -> dict[str, str]:
    """The variable that does it at one of the first passages."""
    return {"QUAYBRIDGE_FAILPOINT": f"{point}:{action}@{source.randint(1, 10)}"}


@pytest.mark.parametrize("point", OF_A_NODE)
async def test_a_node_is_killed_at(point: Point, site: Site) -> None:
    """And one for whom, at that point, what it did is said to have failed: it goes on by itself."""
    print(f"seed {SEED}")
    source = random.Random(f"{point} {SEED}")
    ledger, herd = Ledger(), site.herd
    async with under_load(site, ledger, source.getrandbits(32)):
        failing = herd.spawn(armed(point, "error", source))
        for batch in range(0, KILLS, AT_ONCE):
            doomed = [herd.spawn(armed(point, "kill", source)) for _ in range(min(AT_ONCE, KILLS - batch))]
            for node in doomed:
                await herd.gone(node)
                assert f"failpoint {point}: kill" in node.said()
        await until(lambda: f"failpoint {point}: error" in failing.said())
        failing.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(failing.process.wait, PATIENCE) == 0, failing.said()
        herd.nodes.remove(failing)
    verdict = ledger.verdict()
    assert verdict.sound, verdict
    assert verdict.duplicated <= (KILLS + 1) * herd.prefetch(0.0001), verdict
    assert ledger.redelivered or point is Point.P12  # then it was acked, and the node may have had no other


@pytest.mark.parametrize("point", OF_A_PRODUCER)
async def test_a_producer_is_killed_at(point: Point, site: Site) -> None:
    """Its successor goes on from its journal; at that point what it did is said to have failed, and it goes on too."""
    print(f"seed {SEED}")
    source = random.Random(f"{point} {SEED}")
    for batch in range(0, KILLS, AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, KILLS - batch)):
                group.create_task(one_producer(point, site, source))


async def one_producer(point: Point, site: Site, source: random.Random) -> None:
    count, seed = 40, source.getrandbits(32)
    name = f"failpoints-{seed}"
    journal = site.directory / name

    async def run(environ: dict[str, str]) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chaos.requester", str(journal), name, str(seed), str(count)),
            env={**os.environ, **environ, "QUAYBRIDGE_BROKER": site.url},
            cwd=Path(__file__).parent.parent,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, said.decode()

    status, said = await run(armed(point, "kill", source))
    assert status == -signal.SIGKILL, said
    status, said = await run(armed(point, "error", source))
    assert status == 0, said
    assert f"failpoint {point}: error" in said
    ledger = Ledger()
    with journal.open() as written:
        ledger.read(written)
    verdict = ledger.verdict()
    assert verdict.sound, verdict
    assert ledger.count("confirmed") == ledger.count("result") == count
    assert verdict.duplicated <= sum(entry.sends - 1 for entry in ledger.entries.values())
