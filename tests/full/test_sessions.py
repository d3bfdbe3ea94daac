"""Sessions on RabbitMQ, with nodes that are processes: they join, leave, are killed, and the broker restarts.

Each session counts upwards in its bridge's memory, so what happened to it shows in what it counts: within one epoch
there is no gap and nothing twice, and a loss is told. The short form has fewer sessions and rounds, and its nodes are
less patient with each other where they join and leave.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from crowd import who_takes_it
from soak import SOAK
from vhost import Vhost

from bridge_protocol.envelope import Properties
from bridge_protocol.errors import BridgeCrashed, SessionLost
from bridge_protocol.topology import (
    PARTITIONS,
    partition_of,
    service_topology,
    session_queue,
    session_topology,
    shared_topology,
)
from broker.address import parse_addresses
from broker.amqp import AmqpBroker, AmqpChannel
from broker.contract import Delivery, Message
from producer.async_producer import AsyncProducer
from producer.session import AsyncSession
from worker_node.partitions import HAND_BACK, Partitions, weight

SESSIONS = 200 if SOAK else 64
ROUNDS = 10 if SOAK else 1
IMPATIENT = HAND_BACK if SOAK else 3.0  # seconds after connecting
PATIENCE = 90.0  # seconds for what takes ten on an idle machine
ONE_NODE = Path(__file__).parent / "one_node.py"
COUNTS = Path(__file__).parents[1] / "bridges" / "counts.py"


@asynccontextmanager
async def node(url: str, name: str, hand_back: float = HAND_BACK) -> AsyncIterator[asyncio.subprocess.Process]:
    """A node in a process of its own, which serves. `hand_back`: see one_node.py."""
    settings = {
        "name": name,
        "drain_timeout": 10,
        "services": [
            {
                "name": "work",
                "command": [sys.executable, str(COUNTS)],
                "bridges": 2,
                "stop_timeout": 1,
                "sessions": {"enabled": True},
            }
        ],
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ONE_NODE), json.dumps(settings), url, str(hand_back)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"serving\n"
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.communicate()  # until its pipe ends, which what it started may hold a moment longer


@asynccontextmanager
async def worker(url: str, name: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A node as an operator starts it, which serves. What it says is in the file `log`."""
    bridge = shlex.join((sys.executable, str(COUNTS)))
    options = ("--service", "work", "--bridges", "2", "--name", name, "--bridge", bridge)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("QUAYBRIDGE_")}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quaybridge", "worker", *options),
            env={**inherited, "QUAYBRIDGE_BROKER": url, "QUAYBRIDGE_SERVICES__WORK__SESSIONS__ENABLED": "true"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(PATIENCE):
            while f"{name}: serving" not in log.read_text():
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Counters:
    """Sessions that count, and the books of what each was told."""

    def __init__(self, producer: AsyncProducer, count: int) -> None:
        self.sessions = [producer.session(f"session {number}", service="work") for number in range(count)]
        self.nodes: dict[str, str] = {}  # by session, who served it last
        self.lost: set[str] = set()  # since `forget`
        self._last: dict[str, tuple[str | None, int]] = {}
        self._homes: dict[str, tuple[str | None, int]] = {}  # by epoch: its node, and its bridge's process

    async def count(self, times: int = 1) -> None:
        """Each of them counts, all at the same time."""
        await asyncio.gather(*(self._count(session, times) for session in self.sessions))

    def forget(self) -> None:
        self.lost.clear()

    async def _count(self, session: AsyncSession, times: int) -> None:
        for _ in range(times):
            try:
                reply = await session.call("count", timeout=PATIENCE)
            except (SessionLost, BridgeCrashed):
                self.lost.add(session.id)
                if session.epoch is None:
                    self._last.pop(session.id, None)
                continue
            epoch, number = reply.session_epoch, reply.result["count"]
            assert epoch is not None
            before, last = self._last.get(session.id, (None, 0))
            assert number == (last + 1 if epoch == before else 1), f"{session.id}: {last} then {number}"
            assert before in (None, epoch), f"{session.id} got another bridge and was not told"
            home = reply.node, reply.result["pid"]
            assert self._homes.setdefault(epoch, home) == home, "an epoch answered by two processes"
            self._last[session.id] = epoch, number
            assert reply.node is not None
            self.nodes[session.id] = reply.node

    def moves(self, before: dict[str, str]) -> set[int]:
        """The partitions that another node serves than before."""
        return {partition_of(session) for session, name in self.nodes.items() if before[session] != name}


def owners(names: list[str]) -> dict[int, str]:
    """Who is to own each partition, with these nodes there."""
    return {number: max(names, key=lambda name: weight(name, number)) for number in range(PARTITIONS)}


def is_as_computed(counters: Counters, names: list[str]) -> bool:
    computed = owners(names)
    return all(computed[partition_of(session)] == name for session, name in counters.nodes.items())


async def settle(counters: Counters, names: list[str]) -> None:
    """Count until every session is where it is computed to be."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await counters.count()
            if is_as_computed(counters, names):
                return
            await asyncio.sleep(0.5)


async def test_nodes_join_leave_are_killed_and_held_up(rabbitmq_each: Vhost) -> None:
    version = rabbitmq_each.rabbitmq.control("version")
    if version.startswith("3."):
        pytest.skip("before 4.0 sessions do not follow priorities")
    url = rabbitmq_each.url
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with AsyncExitStack() as stack, AsyncProducer(url) as producer:
        processes = {name: await stack.enter_async_context(node(url, name, IMPATIENT)) for name in ("a", "b")}
        counters = Counters(producer, SESSIONS)
        await settle(counters, ["a", "b"])
        for number in range(ROUNDS):
            # One joins: what it is to own moves to it, and nothing else does.
            before, new = dict(counters.nodes), f"c{number}"
            counters.forget()
            processes[new] = await stack.enter_async_context(node(url, new, IMPATIENT))
            names = sorted(processes)
            await settle(counters, names)
            moved = {partition for partition, name in owners(names).items() if name == new}
            assert counters.moves(before) == moved & {partition_of(session) for session in before}
            assert {partition_of(session) for session in counters.lost} <= moved
            # One is killed, while all count.
            gone = chance.choice(names)
            before = dict(counters.nodes)
            counters.forget()
            counting = asyncio.create_task(counters.count(5))
            await asyncio.sleep(chance.random() / 4)
            processes.pop(gone).kill()
            await counting
            names = sorted(processes)
            await settle(counters, names)
            assert {before[session] for session in counters.lost} == {gone}
            # One leaves as it should, and comes back.
            gone = chance.choice(names)
            before = dict(counters.nodes)
            counters.forget()
            leaving = processes.pop(gone)
            leaving.terminate()
            await leaving.wait()
            await settle(counters, sorted(processes))
            assert {before[session] for session in counters.lost} == {gone}
            processes[gone] = await stack.enter_async_context(node(url, gone, IMPATIENT))
            await settle(counters, names)


async def test_an_owner_that_was_held_up_corrupts_no_session(rabbitmq_vhost: Vhost) -> None:
    url = f"{rabbitmq_vhost.url}?heartbeat=5"
    async with node(url, "a") as held, node(url, "b"), AsyncProducer(rabbitmq_vhost.url) as producer:
        counters = Counters(producer, 16)
        await counters.count(3)
        held.send_signal(signal.SIGSTOP)
        await counters.count(3)  # those of the held one wait until the broker misses its heartbeats
        held.send_signal(signal.SIGCONT)
        for _ in range(8):
            await counters.count(2)
            await asyncio.sleep(0.2)


async def test_a_broker_restart_ends_no_session(rabbitmq_vhost: Vhost) -> None:
    url = rabbitmq_vhost.url
    async with AsyncExitStack() as stack, AsyncProducer(url) as producer:
        for name in ("a", "b", "c"):
            await stack.enter_async_context(node(url, name))
        counters = Counters(producer, SESSIONS)
        await settle(counters, ["a", "b", "c"])
        counters.forget()  # of those that met the third node while it joined
        homes = dict(counters.nodes)
        control = rabbitmq_vhost.rabbitmq.control
        await asyncio.to_thread(control, "stop_app")
        await asyncio.to_thread(control, "start_app")
        await asyncio.to_thread(control, "await_startup")
        await counters.count(2)
        assert not counters.lost
        assert counters.nodes == homes


async def test_a_node_that_dies_while_it_is_outranked_leaves_no_consumer_behind(rabbitmq_vhost: Vhost) -> None:
    """RabbitMQ 4.3 would keep it, and give it what comes once no better one is there: nobody would get that."""
    broker = AmqpBroker(parse_addresses(rabbitmq_vhost.url))
    queue = session_queue("work", 0)
    worst, best = sorted(("a", "b"), key=lambda name: weight(name, 0))
    taken: asyncio.Queue[tuple[str, Delivery]] = asyncio.Queue()
    nodes: dict[str, Partitions] = {}
    told: set[str] = set()

    def consumes(name: str, numbers: Sequence[int]) -> None:
        if 0 in numbers:
            told.add(name)
        for node in nodes.values():
            node.yield_to(name, numbers)

    async def join(name: str) -> AmqpChannel:
        nodes[name] = Partitions(
            "work",
            name,
            on_delivery=lambda delivery, _: taken.put_nowait((name, delivery)),
            on_owned=lambda _: None,
            on_consuming=partial(consumes, name),
            on_cancelled=lambda _: None,
        )
        nodes[name].want(True)
        channel = await broker.open(name, on_closed=lambda _: None)
        nodes[name].attach(channel)
        while name not in told:
            await asyncio.sleep(0.001)
        return channel

    async def publish() -> None:
        await setup.publish(
            Message(exchange="", routing_key=queue, body=b"{}", properties=Properties()), timeout=PATIENCE
        )

    async with asyncio.timeout(PATIENCE):
        setup = await broker.open("setup", on_closed=lambda _: None)
        await setup.declare([*shared_topology(), *service_topology("work"), *session_topology("work")])
        dying = await join(worst)
        await publish()
        assert (await taken.get())[0] == worst
        leaving = await join(best)
        await nodes[worst].settled()
        dying._connection.abort()
        nodes.pop(worst).detach()
        name, delivery = await taken.get()
        assert name == best
        delivery.ack()
        await leaving.close()
        nodes.pop(best).detach()
        await publish()
        last = await join("c")
        name, delivery = await taken.get()
        assert name == "c"
        delivery.ack()
        await last.close()
        await setup.close()


async def test_before_4_0_sessions_stay_with_the_first_node_and_a_worker_says_so_at_its_start(
    rabbitmq_on_path: Vhost, tmp_path: Path
) -> None:
    version = rabbitmq_on_path.rabbitmq.control("version").strip()
    if not version.startswith("3."):
        pytest.skip(f"the rabbitmq-server on PATH is a {version}")
    url = rabbitmq_on_path.url
    async with AsyncProducer(url) as producer, worker(url, "a", tmp_path / "a") as first:
        said = (tmp_path / "a").read_text().partition("a: serving")[0]
        assert said.count(f"work: RabbitMQ {version} gives a session queue to the first node that takes it") == 1
        counters = Counters(producer, 16)
        await counters.count(3)
        async with worker(url, "b", tmp_path / "b"):
            await counters.count(3)
            assert set(counters.nodes.values()) == {"a"}
            assert not counters.lost
            first.kill()
            await first.wait()
            others = [producer.session(f"another {number}", service="work") for number in range(16)]
            for number in (1, 2, 3):
                replies = await asyncio.gather(*(session.call("count", timeout=PATIENCE) for session in others))
                assert {(reply.node, reply.result["count"]) for reply in replies} == {("b", number)}


@pytest.mark.skipif(not SOAK, reason="a long form: make soak runs it")
async def test_with_more_nodes_than_a_delivery_may_come_back_times_a_restart_makes_no_dead_letter(
    rabbitmq_each: Vhost,
) -> None:
    to_its_owner, returns = await who_takes_it(AmqpBroker(parse_addresses(rabbitmq_each.url)))
    # Before 4.0 it goes to one after the other, and whoever has it when its time to hand back is over keeps it.
    assert to_its_owner or rabbitmq_each.rabbitmq.control("version").startswith("3.")
    assert returns <= 12
