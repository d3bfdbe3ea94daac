"""Sessions, streams and claim checks together, while bridges, nodes and the broker are killed, and the books of them.

Each caller does one thing, again and again, until the last fault is over:

    counting   a session counts in its bridge's memory: gap-free within an epoch, or the loss is told
    climbing   the same as a stream: chunk by chunk
    reading    a stream outside of any session: each chunk is the next one, or the reader is told
    carrying   more than a message is to carry, there and back, through a store

A call ends in what it has to give, or says what became of it, well before its timeout: one that ends by that is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bridge_protocol.dead_letter import read_dead_letter
from bridge_protocol.errors import (
    BridgeCrashed,
    Code,
    OutcomeUnknown,
    PublishFailed,
    QuaybridgeError,
    ReaderStalled,
    SessionLost,
    StreamGap,
)
from bridge_protocol.topology import UNDELIVERABLE, dead_letter_queue, request_queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker, Channel, Delivery
from broker.store import DirectoryStore
from chaos.cluster import Cluster
from chaos.herd import Herd, HerdError
from chaos.run import QUEUES_SETTLE
from chaos.workload import SERVICE
from producer.async_producer import AsyncProducer
from producer.session import AsyncSession

TIMEOUT = 90.0  # seconds: more than any fault takes
THRESHOLD = 16 * 1024  # bytes, of claims
CHUNKS = 400  # more than may be on their way at once
PAUSE = 0.1  # seconds before what was not sent is sent again
Work = Callable[[], Coroutine[None, None, None]]

# The nodes connect again, and tell each other who is outranked where. A node that dies before that may leave a consumer
# in RabbitMQ 4.3.6 that nobody reads, for good: see `worker_node.partitions`.
CONSUMERS_SETTLE = 3.0  # seconds
HASTY = str(Path(__file__).with_name("hasty_worker.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How many of each, in a random order; `pause`: seconds between two, on average."""

    bridges: int
    nodes: int
    brokers: int
    pause: float


SHORT = Faults(bridges=4, nodes=1, brokers=1, pause=0.5)
LONG = Faults(bridges=200, nodes=60, brokers=15, pause=3.0)


@dataclass(slots=True)
class Books:
    """What every caller was given and told. `wrong`: what never may be."""

    done: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    homes: dict[str, tuple[str | None, int]] = field(default_factory=dict)  # by epoch: its node, and its bridge

    async def ends(self, who: str, work: Work) -> bool:
        """Do it, and write down how it ended; whether well."""
        try:
            await work()
        except (SessionLost, BridgeCrashed, ReaderStalled, StreamGap, OutcomeUnknown) as error:
            self.told[f"{who}: {type(error).__name__}"] += 1
        except PublishFailed as error:  # it was not sent
            self.told[f"{who}: {type(error).__name__}"] += 1
            await asyncio.sleep(PAUSE)
        except QuaybridgeError as error:
            self.wrong.append(f"{who}: {type(error).__name__}: {error}")
        else:
            self.done[who] += 1
            return True
        return False

    def expect(self, who: str, condition: bool, otherwise: object) -> None:
        """Write down what is wrong."""
        if not condition:
            self.wrong.append(f"{who}: {otherwise}")


class Counting:
    """A session that counts: by calls, or (`climbs`) by streams of several steps."""

    def __init__(self, books: Books, session: AsyncSession, *, climbs: bool) -> None:
        self._books = books
        self._session = session
        self._climbs = climbs
        self._who = f"{'climbing' if climbs else 'counting'}, {session.mode}"
        self._epoch: str | None = None
        self._last = 0
        self._lost = 0  # how often it was told, until the last reply
        self._maybe = 0  # so many steps more may have been made, of which nothing was heard

    async def again(self) -> None:
        """Once more."""
        steps = CHUNKS if self._climbs else 1
        if not await self._books.ends(self._who, self._climb if self._climbs else self._count):
            self._maybe += steps

    async def _count(self) -> None:
        reply = await self._session.call("count", timeout=TIMEOUT)
        self._note(reply.session_epoch, reply.node, reply.result, reply.result["count"], reply.result["count"])

    async def _climb(self) -> None:
        said: list[int] = []
        stream = self._session.stream("climb", {"to": CHUNKS}, timeout=TIMEOUT, on_restart=lambda _: said.clear())
        async for number in stream:
            said.append(number)
            in_order = len(said) == 1 or number == said[-2] + 1
            self._books.expect(self._who, in_order, f"{number} came after {said[-2:-1]}")
        reply = stream.reply
        assert reply is not None
        self._books.expect(self._who, len(said) == CHUNKS, f"{len(said)} chunks of {CHUNKS}")
        self._books.expect(self._who, said[-1:] == [reply.result["count"]], f"{said[-1:]}, and then {reply.result}")
        self._note(reply.session_epoch, reply.node, reply.result, said[0] if said else 0, reply.result["count"])

    def _note(self, epoch: str | None, node: str | None, result: dict[str, int], first: int, last: int) -> None:
        home = node, result["pid"]
        known = self._books.homes.setdefault(str(epoch), home)
        self._books.expect(self._who, known == home, f"epoch {epoch} was answered by {known} and by {home}")
        after = self._last if epoch == self._epoch else 0
        gap = first - after - 1
        # Steps nobody heard of are made at any time, in the old epoch or in the new one, or not at all. And where a new
        # owner is given the last request of the old epoch again, whose ack was lost, it makes its steps there, too, if
        # that asked for no epoch or was lenient: before what was sent later, or after some of it if it was handed back.
        if self._epoch not in (None, epoch):
            self._maybe += last - first + 1
        self._books.expect(self._who, 0 <= gap <= self._maybe, f"{after}, then {first} in {epoch}")
        lost = self._session.lost
        if epoch != self._epoch and self._epoch is not None and self._session.mode == "strict":
            self._books.expect(self._who, lost > self._lost, f"another bridge than that of {self._epoch}, untold")
        self._epoch, self._last, self._maybe, self._lost = epoch, last, max(0, self._maybe - gap), lost


async def _read(books: Books, producer: AsyncProducer) -> None:
    async def read() -> None:
        said: list[int] = []
        stream = producer.stream(SERVICE, "numbers", {"to": CHUNKS}, timeout=TIMEOUT, on_restart=lambda _: said.clear())
        async for number in stream:
            books.expect("reading", number == len(said), f"{number} came as chunk {len(said)}")
            said.append(number)
        assert stream.reply is not None
        books.expect("reading", len(said) == stream.reply.result == CHUNKS, f"{len(said)} chunks, {stream.reply}")

    await books.ends("reading", read)


async def _carry(books: Books, producer: AsyncProducer, source: random.Random) -> None:
    text = source.randbytes(source.randrange(THRESHOLD, 4 * THRESHOLD)).hex()

    async def carry() -> None:
        args = {"number": 1, "text": text, "seconds": 0.0}
        result = (await producer.call(SERVICE, "works", args, timeout=TIMEOUT)).result
        right = {"number": 1, "text": text[::-1], "sha256": hashlib.sha256(text.encode()).hexdigest()}
        books.expect("carrying", result == right, "another text came back")

    await books.ends("carrying", carry)


async def run(cluster: Cluster, directory: Path, faults: Faults, *, seed: int, hasty: bool) -> Books:
    """Everything at once. `hasty`: nodes wait for each other for a shorter time after they have connected."""
    books = Books()
    source = random.Random(seed)
    store = directory / "store"
    store.mkdir()
    environ = {
        f"QUAYBRIDGE_SERVICES__{SERVICE.upper()}__SESSIONS__ENABLED": "true",
        "QUAYBRIDGE_STORE": str(store),
        "QUAYBRIDGE_CLAIM_THRESHOLD": str(THRESHOLD),
    }
    program = (HASTY,) if hasty else ("-m", "quaybridge")
    herd = Herd(cluster.url, directory, size=3, program=program, environ=environ)
    broker = AmqpBroker(parse_addresses(cluster.url))
    async with AsyncExitStack() as stack:
        stack.callback(herd.kill_all)
        await herd.start()
        kept = DirectoryStore(store)
        producer = await stack.enter_async_context(AsyncProducer(broker, store=kept, claim_threshold=THRESHOLD))
        over = asyncio.Event()
        callers = [asyncio.create_task(caller) for caller in _callers(books, producer, source, over)]
        try:
            await _inject(cluster, herd, faults, source)
        finally:
            over.set()
            await asyncio.gather(*callers)
        try:
            await herd.stop()
        except HerdError as error:
            books.wrong.append(str(error))
    books.wrong += herd.troubles()
    await _look_at_what_is_left(books, broker)
    return books


def _callers(
    books: Books, producer: AsyncProducer, source: random.Random, over: asyncio.Event
) -> list[Coroutine[None, None, None]]:
    modes = ("strict", "prefer")
    sessions = [
        Counting(
            books,
            producer.session(f"s{number}", service=SERVICE, mode=modes[number % 2]),  # type: ignore[arg-type]
            climbs=number % 4 > 1,
        )
        for number in range(16)
    ]
    works: list[Work] = [session.again for session in sessions]
    works += [lambda: _read(books, producer)] * 2 + [lambda: _carry(books, producer, source)] * 2

    async def call(work: Work) -> None:
        while not over.is_set():
            await work()
        await work()  # once more, when nothing is killed any more

    return [call(work) for work in works]


async def _inject(cluster: Cluster, herd: Herd, faults: Faults, source: random.Random) -> None:
    await asyncio.sleep(QUEUES_SETTLE)
    order = ["bridge"] * faults.bridges + ["node"] * faults.nodes + ["broker"] * faults.brokers
    source.shuffle(order)
    for fault in order:
        match fault:
            case "bridge":
                herd.kill_bridge(source)
            case "node":
                victim = source.choice(herd.nodes)
                await herd.kill(victim)
                await herd.serve()
            case "broker":
                await asyncio.to_thread(cluster.members[0].kill)
                await asyncio.to_thread(cluster.members[0].restart)
                await asyncio.sleep(CONSUMERS_SETTLE)
        await asyncio.sleep(faults.pause * source.uniform(0.5, 1.5))


async def _look_at_what_is_left(books: Books, broker: Broker) -> None:
    channel = await broker.open("chaos", on_closed=lambda _: None)
    try:
        for queue in (request_queue(SERVICE), UNDELIVERABLE):
            length = await channel.queue_length(queue)
            books.expect("the end", length == 0, f"{length} left in {queue}")
        async for letter in _taken(channel, dead_letter_queue(SERVICE)):
            kept = read_dead_letter(letter.properties, letter.body, service=SERVICE)
            books.told[f"letters: {kept.code}"] += 1
            # One that came again after it was answered, and its claim deleted, is refused.
            again = kept.code == Code.BAD_REQUEST and "claim" in kept.error
            books.expect("the end", again or kept.code == Code.BRIDGE_CRASHED, f"a letter: {kept.code}: {kept.error}")
    finally:
        await channel.close()


async def _taken(channel: Channel, queue: str) -> AsyncIterator[Delivery]:
    """All that is in the queue, which then is empty."""
    found: asyncio.Queue[Delivery] = asyncio.Queue()
    left = await channel.queue_length(queue)
    await channel.consume(queue, found.put_nowait, prefetch=100)
    for _ in range(left):
        delivery = await found.get()
        yield delivery
        delivery.ack()
