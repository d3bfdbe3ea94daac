"""One chaos run: load, faults, the drain, and what the books say then."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bridge_protocol.topology import (
    UNDELIVERABLE,
    Queue,
    Resource,
    dead_letter_queue,
    service_topology,
    shared_topology,
)
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Channel, Delivery
from broker.link import Link
from chaos.cluster import Cluster
from chaos.herd import Herd, HerdError, NodeProcess
from chaos.ledger import EXPIRED, Ledger, Verdict
from chaos.plan import BRIDGE_KILLS, BROKER_KILLS, CLOSES, NODE_KILLS, Calls, Plan
from chaos.requester import Caller, Requester
from chaos.workload import SERVICE, Asked, made
from quaybridge.rabbitmq import RabbitMQError

RECOVERY_LIMIT = 30.0  # seconds from the return of what was away to the first work done
STALL = 60.0  # seconds without any progress after which a run counts as wedged
MOST_TIMES = 4  # what is planned, of a fault that meets no request
BETWEEN_BROKER_KILLS = 5.0  # seconds: it has to come back, and do some work
# RabbitMQ 4.0 forgets where a quorum queue's log is if it is killed within about 0.6 s of its declaration, and has a
# queue then that never elects a leader (github.com/rabbitmq/rabbitmq-server/issues/15725); measured, and not on 4.3.
QUEUES_SETTLE = 3.0  # seconds
CONFIRM_LIMIT = 150.0  # seconds, of trying again and again: more than all that is down at once takes


@dataclass(slots=True, kw_only=True)
class Report:
    """What came of a run. `void`: why it proves nothing; `troubles`: what beside the books went wrong."""

    seed: int
    broker: str
    plan: Plan
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    recoveries: dict[str, list[float]] = field(default_factory=dict)  # seconds, by fault
    verdict: Verdict | None = None
    requests: int = 0
    confirmed: int = 0
    expired: int = 0
    dead: int = 0
    parked: int = 0
    unknown: int = 0  # publishes that ended without a confirm
    republished: int = 0
    redelivered: int = 0
    retried: int = 0
    bound: int = 0  # of what may be duplicated
    left: dict[str, int] = field(default_factory=dict)  # messages, by queue
    void: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, false, or doubled beyond the bound, and every fault happened."""
        verdict = self.verdict
        sound = verdict is not None and verdict.sound and verdict.duplicated <= self.bound
        return sound and not (self.left or self.void or self.troubles)


class Rig:
    """A cluster, a herd, two requesters and one ledger. A context manager; the nodes are drained at its end."""

    def __init__(
        self, cluster: Cluster, directory: Path, *, nodes: int = 2, bridges: int = 2, calls: Calls | None = None
    ) -> None:
        self.cluster = cluster
        self.ledger = Ledger()
        self.herd = Herd(cluster.url, directory, size=nodes, bridges=bridges)
        self.broker = AmqpBroker(parse_addresses(cluster.url))
        make = Requester if calls is None else partial(Caller, calls=calls)
        self.requesters = [make(self.broker, f"chaos-{number}", self._note) for number in (1, 2)]
        self.losses = 0  # of a connection that does nothing but watch
        self._watching = Link(self.broker, "chaos watch", set_up=self._watch, on_lost=self._on_lost)

    def _note(self, what: str, *arguments: Any, **options: Any) -> None:
        getattr(self.ledger, what)(*arguments, **options)

    async def __aenter__(self) -> Rig:
        async with AsyncExitStack() as stack:
            stack.callback(self.herd.kill_all)
            await self.herd.start()
            await self._watching.start(STALL)
            stack.push_async_callback(self._watching.close)
            for requester in self.requesters:
                await requester.start()
                stack.push_async_callback(requester.close)
            self._stack = stack.pop_all()
        return self

    async def _watch(self, channel: Channel) -> None:
        """Nothing: to be connected is enough."""

    def _on_lost(self, reason: str) -> None:
        self.losses += 1

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def last_reply(self) -> float:
        """When the latest came, on the monotonic clock."""
        return max(requester.last_reply for requester in self.requesters)

    def last_reply_of(self, node: NodeProcess) -> float:
        """When that node's latest came; 0: never."""
        return max(requester.last_by_node.get(node.name, 0.0) for requester in self.requesters)

    async def publish(self, requests: AsyncIterator[Asked], in_flight: int) -> None:
        """Publish them all, so many at once; returns when each is confirmed. Requesters take turns."""
        room = asyncio.Semaphore(in_flight)
        turns = cycle(self.requesters)
        async with asyncio.TaskGroup() as sending:
            async for asked in requests:
                await room.acquire()
                task = sending.create_task(self._send(next(turns), asked))
                task.add_done_callback(lambda _: room.release())

    async def _send(self, requester: Requester | Caller, asked: Asked) -> None:
        try:
            async with asyncio.timeout(CONFIRM_LIMIT):
                await requester.send(asked)
        except TimeoutError:
            last = requester.failures[-1] if requester.failures else "no publish has ended"
            raise AssertionError(f"{asked.message_id} is not confirmed after {CONFIRM_LIMIT:.0f} s: {last}") from None

    async def drain(self) -> list[str]:
        """Wait for what is outstanding, and write down the dead letters and the parked replies; what went wrong."""
        collector = Link(self.broker, "chaos collector", set_up=self._collect)
        await collector.start(STALL)
        troubles = []
        try:
            before, since = self.ledger.unsettled, time.monotonic()
            while self.ledger.unsettled:
                await asyncio.sleep(0.05)
                if self.ledger.unsettled != before:
                    before, since = self.ledger.unsettled, time.monotonic()
                elif time.monotonic() - since > STALL:
                    troubles.append(f"undrained: nothing more came within {STALL:.0f} s")
                    break
            await self.herd.stop()
            await self._emptied((dead_letter_queue(SERVICE), UNDELIVERABLE))
        except HerdError as error:
            troubles.append(str(error))
        finally:
            await collector.close()
        return troubles

    async def left(self) -> dict[str, int]:
        """The messages that are left, by queue. With no node running, and the requesters disconnected."""
        for requester in self.requesters:
            await requester.close()
        topology: list[Resource] = [*shared_topology(), *service_topology(SERVICE)]
        names = [resource.name for resource in topology if isinstance(resource, Queue)]
        channel = await self.broker.open("chaos", on_closed=lambda _: None)
        try:
            names += [requester.queue for requester in self.requesters if requester.queue is not None]
            lengths = {name: await channel.queue_length(name) for name in names}
        finally:
            await channel.close()
        return {name: length for name, length in lengths.items() if length}

    async def _collect(self, channel: Channel) -> None:
        def took(note: Callable[[str], None], delivery: Delivery) -> None:
            note(delivery.properties.message_id or "?")
            delivery.ack()

        await channel.consume(dead_letter_queue(SERVICE), partial(took, self.ledger.died), prefetch=100)
        await channel.consume(UNDELIVERABLE, partial(took, self.ledger.was_parked), prefetch=100)

    async def _emptied(self, queues: Iterable[str]) -> None:
        channel = await self.broker.open("chaos", on_closed=lambda _: None)
        try:
            async with asyncio.timeout(STALL):
                for queue in queues:
                    while await channel.queue_length(queue):
                        await asyncio.sleep(0.05)
        finally:
            await channel.close()


class Chaos:
    """The faults of a run, each kind at its own seeded moments, and how long it took to recover from them."""

    def __init__(self, rig: Rig, plan: Plan, seed: int) -> None:
        self.done: dict[str, int] = {name: 0 for name, planned in plan.planned().items() if planned}
        self.recoveries: dict[str, list[float]] = {name: [] for name in self.done}
        self.troubles: list[str] = []
        self.over = False
        self._group = asyncio.TaskGroup()
        self._rig = rig
        self._plan = plan
        self._seed = seed

    async def run(self) -> None:
        """Inject them all; returns when each has been recovered from."""
        ledger = self._rig.ledger
        async with self._group as group:
            group.create_task(self._each(NODE_KILLS, self._kill_node, bit=lambda: ledger.redelivered > 0))
            group.create_task(self._each(BRIDGE_KILLS, self._kill_bridge, bit=lambda: ledger.retried > 0))
            killing = self._each(BROKER_KILLS, self._kill_broker, first=QUEUES_SETTLE, least=BETWEEN_BROKER_KILLS)
            group.create_task(killing)
            group.create_task(self._each(CLOSES, self._close_connection))
        self.over = True

    async def requests(self) -> AsyncIterator[Asked]:
        """The load, at its rate: all that is planned, and more until the last fault is recovered from."""
        plan = self._plan
        started = time.monotonic()
        for number, asked in enumerate(made(self._seed, seconds=plan.work, mixed=plan.mixed)):
            if number >= plan.requests and self.over:
                return
            while plan.seconds and number > (time.monotonic() - started) * plan.requests / plan.seconds:
                await asyncio.sleep(0.005)
            yield asked

    async def _each(
        self,
        name: str,
        fault: Callable[[random.Random], Awaitable[bool]],
        *,
        least: float = 0.0,
        first: float = 0.0,
        bit: Callable[[], bool] = lambda: True,
    ) -> None:
        """As many as are planned; more, if none of them is seen to have met a request (`bit`).

        `first`: seconds before the first; `least`: seconds between two, beside those that the plan leaves.
        """
        count = self._plan.planned()[name]
        source = random.Random(f"{name} {self._seed}")
        usual = self._plan.seconds / (count + 1)
        if count:
            await asyncio.sleep(first)
        while self.done.get(name, 0) < count or (count and not bit() and self.done[name] < MOST_TIMES * count):
            await asyncio.sleep(usual * source.uniform(0.1, 1.3))
            if await fault(source):
                self.done[name] += 1
                await asyncio.sleep(least if self.done[name] < count else 0)

    async def _kill_node(self, source: random.Random) -> bool:
        serving = [node for node in self._rig.herd.nodes if node.serving and self._rig.last_reply_of(node)]
        if len(serving) < 2:  # all dead at once is another experiment
            return False
        victim = source.choice(serving)
        victim.serving = False
        since = time.monotonic()
        await self._rig.herd.kill(victim)
        self._group.create_task(self._replace(since))
        return True

    async def _replace(self, since: float) -> None:
        successor = await self._rig.herd.serve()
        await self._recovered(NODE_KILLS, successor.name, since, lambda: self._rig.last_reply_of(successor) > 0)

    async def _kill_bridge(self, source: random.Random) -> bool:
        since = time.monotonic()
        node = self._rig.herd.kill_bridge(source)
        if node is None:
            return False
        herd = self._rig.herd
        await self._recovered(
            BRIDGE_KILLS, node.name, since, lambda: self._rig.last_reply_of(node) > since or node not in herd.nodes
        )
        return True

    async def _kill_broker(self, source: random.Random) -> bool:
        member = source.choice(self._rig.cluster.members)
        losses = self._rig.losses
        await asyncio.to_thread(member.kill)
        if await asyncio.to_thread(member.running):
            self.troubles.append(f"{member!r} runs on after SIGKILL")
        await asyncio.to_thread(member.restart)
        since = time.monotonic()
        herd = self._rig.herd
        before = [node for node in herd.nodes if node.serving]
        await self._recovered(
            BROKER_KILLS,
            "a node",
            since,
            lambda: all(self._rig.last_reply_of(node) > since for node in before if node in herd.nodes),
        )
        if self._rig.losses == losses:
            self.troubles.append("no connection was lost by the death of the broker")
        return True

    async def _close_connection(self, source: random.Random) -> bool:
        member = source.choice(self._rig.cluster.members)
        try:
            connections = await asyncio.to_thread(member.manage, "GET", "/api/connections")
            names = sorted(connection["name"] for connection in connections if connection.get("state") == "running")
            if not names:
                return False
            since = time.monotonic()
            await asyncio.to_thread(member.manage, "DELETE", f"/api/connections/{quote(source.choice(names), safe='')}")
        except (OSError, RabbitMQError):
            return False  # it is gone already, or the broker is
        await self._recovered(CLOSES, "everybody", since, lambda: self._rig.last_reply > since)
        return True

    async def _recovered(self, name: str, what: str, since: float, condition: Callable[[], bool]) -> None:
        while not condition():
            if time.monotonic() - since > RECOVERY_LIMIT + STALL:
                self.troubles.append(f"{what} after one of {name}: no work done in {time.monotonic() - since:.0f} s")
                return
            await asyncio.sleep(0.01)
        self.recoveries[name].append(time.monotonic() - since)


async def run(plan: Plan, cluster: Cluster, directory: Path, *, seed: int) -> Report:
    """Run the plan on that cluster. `directory` gets the nodes' logs."""
    report = Report(seed=seed, broker=cluster.image, plan=plan)
    async with Rig(cluster, directory, nodes=plan.nodes, bridges=plan.bridges, calls=plan.calls) as rig:
        chaos = Chaos(rig, plan, seed)
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(chaos.run())
            group.create_task(rig.publish(chaos.requests(), plan.in_flight))
        report.troubles = await rig.drain()
        report.seconds = time.monotonic() - started
        report.left = await rig.left()
        _fill(report, rig, chaos)
    return report


def _fill(report: Report, rig: Rig, chaos: Chaos) -> None:
    plan, ledger = report.plan, rig.ledger
    report.troubles += chaos.troubles + rig.herd.troubles()
    report.faults, report.recoveries = chaos.done, chaos.recoveries
    report.verdict = ledger.verdict()
    report.requests = len(ledger.entries)
    report.confirmed, report.expired = ledger.count("confirmed"), ledger.count(EXPIRED)
    report.dead, report.parked = len(ledger.dead), len(ledger.parked)
    report.unknown, report.redelivered, report.retried = ledger.unknown, ledger.redelivered, ledger.retried
    report.republished = sum(requester.republished for requester in rig.requesters)
    prefetch = rig.herd.prefetch(plan.work[0])
    report.bound = (
        (chaos.done.get(NODE_KILLS, 0) + chaos.done.get(CLOSES, 0)) * prefetch
        + chaos.done.get(BROKER_KILLS, 0) * prefetch * plan.nodes
        + report.republished
    )
    report.void = [
        f"{chaos.done.get(name, 0)} of {count} {name}"
        for name, count in plan.planned().items()
        if chaos.done.get(name, 0) < count
    ]
    if (plan.node_kills or plan.broker_kills) and not ledger.redelivered:
        report.void.append("no reply says that its request was redelivered")
    if plan.bridge_kills and not ledger.retried:
        report.void.append("no reply came from a second try")
    slow = max((seconds for name in (BROKER_KILLS, CLOSES) for seconds in report.recoveries.get(name, [])), default=0)
    if slow > RECOVERY_LIMIT:
        report.troubles.append(f"it took {slow:.0f} s to recover, and {RECOVERY_LIMIT:.0f} s are promised")
