"""Recovery from what can befall a node's connection to RabbitMQ: alone, within 30 s, with nothing lost.

Each row of ROWS does one thing to a node and a producer under light load, and takes it back. Then requests must be
served again in time, everything confirmed must have been carried out, without a storm of connection attempts, and
the log must say in one sentence what happened. What needs a broker or a network of its own stands below the table.

Recovery that is shown elsewhere: connections closed by an operator in test_round_trip, queues with other arguments
and wrong passwords at the start in test_command_line, alarms and lost confirms as a channel sees them in test_amqp,
consumers the broker has silently forgotten (on the embedded broker) in protocol/test_node_recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from relay import Relay, relay
from soak import SOAK
from vhost import Vhost

from bridge_protocol.envelope import request_properties
from bridge_protocol.errors import (
    Blocked,
    BrokerUnavailable,
    CodedError,
    DeadlineExceeded,
    OutcomeUnknown,
    Refused,
    UnknownService,
)
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import EXCHANGE, UNDELIVERABLE, Queue, dead_letter_queue, request_queue
from broker import link
from broker.address import Address, parse_address
from broker.amqp import AmqpBroker
from broker.amqp_connection import AmqpConnection
from broker.contract import Broker, Channel, ChannelClosed, Message
from broker.link import Link
from producer.async_producer import AsyncProducer
from quaybridge.rabbitmq import ContainerRabbitMQ, PrivateRabbitMQ, RabbitMQ, RabbitMQError
from worker_node.core.lookahead import MOST_PER_SLOT, Lookahead
from worker_node.node import Node
from worker_node.settings import NodeSettings

SERVICE = "note"
QUEUE, DEAD = request_queue(SERVICE), dead_letter_queue(SERVICE)
STEADY = 0.5  # seconds
IN_TIME = 30.0  # seconds from the end of a fault until requests are served again: the promise
PATIENCE = 60.0  # seconds for what takes a few on an idle machine
# What a caller may be told while a fault lasts: the truth, by its name.
TROUBLES = (Blocked, BrokerUnavailable, DeadlineExceeded, OutcomeUnknown, Refused, UnknownService)

BRIDGE = """
import os, sys, time
from bridge_sdk import Bridge

bridge = Bridge()
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bridge.command
def note(number: int, seconds: float = 0.0, text: str = "", gate: str = "") -> list:
    os.write(log, f"{number}\\n".encode())
    time.sleep(seconds)
    while gate and not os.path.exists(gate):
        time.sleep(0.05)
    return [number, text]

@bridge.command
def die() -> None:
    os._exit(3)

bridge.serve()
"""


class CountingBroker:
    """RabbitMQ; `attempts` counts the connections that were tried."""

    def __init__(self, *addresses: Address) -> None:
        self._broker = AmqpBroker(addresses)
        self.attempts = 0

    @property
    def address(self) -> str:
        return self._broker.address

    async def open(
        self,
        name: str,
        *,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None = None,
    ) -> Channel:
        self.attempts += 1
        return await self._broker.open(name, on_closed=on_closed, on_blocked=on_blocked)


class Load:
    """Two producers of numbered requests, one that wants replies and one that does not; and what became of each."""

    def __init__(self, producer: AsyncProducer, log: Path) -> None:
        self.producer = producer
        self.confirmed: set[int] = set()  # and so never to be lost
        self.troubles: Counter[str] = Counter()
        self.log = log  # of what was carried out
        self._numbers = iter(range(1, 10**9))

    def number(self) -> int:
        """The next."""
        return next(self._numbers)

    def lost(self) -> set[int]:
        """What was confirmed and not carried out, yet."""
        return self.confirmed - set(map(int, self.log.read_text().split()))

    async def call(self, *, timeout: float = 20.0, **args: Any) -> None:
        """One request and its reply. Raises what the producer does."""
        number = self.number()
        reply = await self.producer.call(SERVICE, "note", {"number": number, **args}, timeout=timeout)
        assert reply.result == [number, args.get("text", "")]
        self.confirmed.add(number)

    async def publish(self) -> None:
        """One request that nobody waits for."""
        number = self.number()
        await self.producer.publish(SERVICE, "note", {"number": number}, timeout=20)
        self.confirmed.add(number)

    async def keep_up(self, one: Callable[[], Any]) -> None:
        while True:
            try:
                await one()
            except TROUBLES as trouble:
                self.troubles[type(trouble).__name__] += 1
            await asyncio.sleep(0.05)


@dataclass
class Scene:
    """A node and a producer that reach their broker through a relay, and the load between them."""

    vhost: Vhost
    address: Address
    wire: Relay
    broker: CountingBroker
    node: Node
    load: Load
    said: list[str] = field(default_factory=list)  # in the log, since the fault began

    @property
    def rabbitmq(self) -> RabbitMQ:
        return self.vhost.rabbitmq

    async def control(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.rabbitmq.control, *arguments)

    async def manage(self, method: str, path: str, body: object = None) -> Any:
        """Ask the management API; `{vhost}` in the path is the vhost's name."""
        path = path.format(vhost=quote(self.vhost.name, safe=""))
        return await asyncio.to_thread(self.rabbitmq.manage, method, path, body)

    def gate(self) -> Path:
        """A file that is not there: a request with this gate runs until it is."""
        return self.load.log.with_name(secrets.token_hex(8))

    def held(self) -> list[str | None]:
        """The ids of the requests in the node's pool."""
        return [work.delivery.properties.message_id for work in self.node.services[0].pool.tickets()]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_said(self, pattern: str) -> None:
        try:
            await self.until(lambda: any(re.search(pattern, line) for line in self.said))
        except TimeoutError:
            raise AssertionError(f"the log never said {pattern!r}, but {self.said[-20:]}") from None

    async def permit(self, write: str) -> None:
        """Let the user of this scene do all but write, and that where the name matches."""
        rights = {"configure": ".*", "write": write, "read": ".*"}
        await self.manage("PUT", f"/api/permissions/{{vhost}}/{self.address.user}", rights)

    @asynccontextmanager
    async def policy(self, pattern: str, **definition: Any) -> AsyncIterator[None]:
        """A policy for the queues that match, in force inside."""
        path = "/api/policies/{vhost}/fault"
        await self.manage("PUT", path, {"pattern": pattern, "definition": definition, "apply-to": "queues"})
        yield
        await self.manage("DELETE", path)

    async def length(self, queue: str) -> int:
        """How many messages are ready in the queue."""
        channel = await AmqpBroker([parse_address(self.vhost.url)]).open("look", on_closed=lambda _: None)
        try:
            return await channel.queue_length(queue)
        finally:
            await channel.close()

    async def until_length(self, queue: str, length: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.length(queue) != length:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def scene(
    vhost: Vhost,
    directory: Path,
    *,
    heartbeat: int = 10,
    credentials: tuple[str, str] | None = None,
    node_broker: Callable[[Address], Broker] | None = None,
    load: bool = True,
    **of_node: Any,
) -> AsyncIterator[Scene]:
    """A scene in `vhost`, its node serving."""
    program, log = directory / "bridge.py", directory / "log"
    program.write_text(BRIDGE)
    log.touch()
    direct = parse_address(vhost.url)
    async with relay(direct.host, direct.port) as wire:
        address = replace(direct, host="127.0.0.1", port=wire.port, heartbeat=heartbeat)
        if credentials is not None:
            address = replace(address, user=credentials[0], password=credentials[1])
        service = {
            "name": SERVICE,
            "command": (sys.executable, str(program), str(log)),
            "bridges": 2,
            "retry": {"max_attempts": 1},
        }
        broker = CountingBroker(address)
        settings = {"name": "node", "services": [service], "watch_interval": 1, "stall_timeout": 2, **of_node}
        node = Node(NodeSettings.model_validate(settings), node_broker(address) if node_broker else broker)
        async with AsyncProducer(CountingBroker(address), name="producer") as producer:
            await node.start()
            requests = Load(producer, log)
            kinds = (requests.call, requests.publish) if load else ()
            tasks = [asyncio.create_task(requests.keep_up(one)) for one in kinds]
            try:
                yield Scene(vhost, address, wire, broker, node, requests)
            finally:
                for task in tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                wire.flow()
                await node.stop()
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * len(tasks), outcomes


async def recovered(here: Scene) -> float:
    """Once a request is served again: after how many seconds. Fails if that is not in time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            await here.load.call(timeout=2)
        except CodedError:
            assert loop.time() - began < IN_TIME, f"not served again in time; {here.said[-5:]}"
        else:
            return loop.time() - began


async def nothing_lost(here: Scene) -> None:
    await here.until(lambda: not here.load.lost())


@asynccontextmanager
async def listening(here: Scene, caplog: pytest.LogCaptureFixture, *, most: int = 60) -> AsyncIterator[None]:
    """The log goes to `here.said`. Afterwards: each line is one, and there are not many."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            here.said.append(record.getMessage())

    here.said.clear()
    keep = Keep(logging.INFO)
    ours = logging.getLogger("quaybridge")
    ours.addHandler(keep)
    caplog.set_level(logging.INFO, "quaybridge")
    try:
        yield
    finally:
        ours.removeHandler(keep)
    assert not [line for line in here.said if not line.isprintable()]
    assert len(here.said) < most, here.said


# The rows: a fault before the yield, and what takes it back after it.


@asynccontextmanager
async def memory_alarm(here: Scene) -> AsyncIterator[None]:
    before = (await here.control("eval", "vm_memory_monitor:get_vm_memory_high_watermark().")).strip()
    await here.control("set_vm_memory_high_watermark", "0.000001")
    await here.until_said("takes no messages for now: low on memory")
    yield
    await here.control("set_vm_memory_high_watermark", before)


@asynccontextmanager
async def disk_alarm(here: Scene) -> AsyncIterator[None]:
    """While both have something to say, so that the node notices, and takes no more until it is over."""
    before = (await here.control("eval", "rabbit_disk_monitor:get_disk_free_limit().")).strip()
    gate = here.gate()
    running = [asyncio.create_task(here.load.call(gate=str(gate), timeout=PATIENCE)) for _ in range(2)]
    await here.until(lambda: len(here.held()) >= 2)
    await here.control("set_disk_free_limit", f"{10**15}")
    gate.touch()
    await here.until_said("^node replies: .* takes no messages for now: low on disk")
    await here.until_said("^note: no more requests are taken")
    assert not here.node.serving
    bridges = {bridge.process.pid for bridge in here.node.services[0].bridges()}
    yield
    await here.control("set_disk_free_limit", before)
    await asyncio.gather(*running)
    await here.until_said("^note: requests are taken again")
    assert {bridge.process.pid for bridge in here.node.services[0].bridges()} == bridges


@asynccontextmanager
async def queue_deleted(here: Scene) -> AsyncIterator[None]:
    """Several times, while it is published to."""
    for _ in range(3):
        with contextlib.suppress(RabbitMQError):  # it is not there again yet
            await asyncio.to_thread(here.vhost.delete_queue, QUEUE)
        await asyncio.sleep(random.uniform(0.05, 0.5))
    yield


@asynccontextmanager
async def exchange_deleted(here: Scene) -> AsyncIterator[None]:
    """Nothing tells a node that is well: it finds out when it looks."""
    exchange = f"/api/exchanges/{{vhost}}/{EXCHANGE}"
    await here.manage("DELETE", exchange)
    yield
    async with asyncio.timeout(IN_TIME):
        while True:
            with contextlib.suppress(RabbitMQError):
                await here.manage("GET", exchange)
                break
            await asyncio.sleep(0.1)


@asynccontextmanager
async def dead_letter_exchange_missing(here: Scene) -> AsyncIterator[None]:
    """Just when there is something to keep: it is kept, as soon as it can be."""
    before = await here.length(DEAD)
    await here.manage("DELETE", f"/api/exchanges/{{vhost}}/{EXCHANGE}")
    # The producer's exchange is gone as well: so past it, to the queue itself.
    channel = await AmqpBroker([parse_address(here.vhost.url)]).open("past it", on_closed=lambda _: None)
    body = encode_request(Request(id=1, command="die", args={}))
    properties = request_properties(message_id=secrets.token_hex(16), command="die")
    await channel.publish(Message(exchange="", routing_key=QUEUE, body=body, properties=properties), timeout=10)
    await channel.close()
    yield
    await here.until_length(DEAD, before + 1)


@asynccontextmanager
async def dead_letters_full(here: Scene) -> AsyncIterator[None]:
    before = 1 + await here.length(DEAD)
    await here.load.producer.publish(SERVICE, "die")
    await here.until_length(DEAD, before)
    counts, sent = here.node.counts[SERVICE], 0
    dead = counts.dead
    full = {"max-length": before, "overflow": "reject-publish"}
    async with asyncio.timeout(PATIENCE), here.policy(f"^{re.escape(DEAD)}$", **full):
        # A policy is in force in its own time, and a quorum queue takes some more until its publishers know that.
        while not any("not published yet: the broker refused a message for 'note.dead'" in line for line in here.said):
            await here.load.producer.publish(SERVICE, "die")
            sent += 1
            while counts.dead < dead + sent:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        await here.until(lambda: here.node.serving)
        await here.load.call()
    yield
    await here.until_length(DEAD, before + sent)


@asynccontextmanager
async def requests_full(here: Scene) -> AsyncIterator[None]:
    """The producers are told so, and what was taken is kept."""
    async with here.policy(f"^{re.escape(QUEUE)}$", **{"max-length": 1, "overflow": "reject-publish"}):
        # More than the node takes ahead. Of one burst the queue takes all: it says that it is full when it is.
        count = 2 * 2 * (1 + MOST_PER_SLOT)  # twice what two bridges may have ahead
        burst = [asyncio.create_task(here.load.call(seconds=3.0 if n < 2 else 0.0)) for n in range(count)]
        async with asyncio.timeout(PATIENCE):
            while not here.load.troubles["Refused"]:
                await asyncio.sleep(0.1)
        outcomes = Counter(map(type, await asyncio.gather(*burst, return_exceptions=True)))
        assert set(outcomes) <= {type(None), Refused}
    yield


@asynccontextmanager
async def reply_queue_gone(here: Scene) -> AsyncIterator[None]:
    """And, to make it worse, the queue where its reply is to be parked."""
    gone = f"quaybridge.reply.{secrets.token_hex(4)}"
    channel = await AmqpBroker([parse_address(here.vhost.url)]).open("requester", on_closed=lambda _: None)
    await channel.declare([Queue(gone)])
    gate = here.gate()
    body = encode_request(Request(id=1, command="note", args={"number": here.load.number(), "gate": str(gate)}))
    properties = request_properties(message_id=secrets.token_hex(16), command="note", reply_to=gone)
    await channel.publish(Message(exchange=EXCHANGE, routing_key=SERVICE, body=body, properties=properties), timeout=10)
    await channel.close()
    for queue in (gone, UNDELIVERABLE):
        await asyncio.to_thread(here.vhost.delete_queue, queue)
    gate.touch()
    yield
    await here.until_said("^node replies: connected again")
    await here.until_length(UNDELIVERABLE, 1)


@asynccontextmanager
async def requester_gone(here: Scene) -> AsyncIterator[None]:
    """A direct reply that nobody takes is dropped, and its request is done with."""
    gate = here.gate()
    async with AsyncProducer(here.vhost.url) as requester:
        handle = await requester.submit(
            SERVICE, "note", {"number": here.load.number(), "gate": str(gate)}, timeout=PATIENCE
        )
        await here.until(lambda: handle.message_id in here.held())
    assert isinstance(handle.future.exception(), OutcomeUnknown)
    gate.touch()
    yield
    await here.until(lambda: handle.message_id not in here.held())
    assert here.node.counts[SERVICE].retried == 0


@asynccontextmanager
async def permissions_revoked(here: Scene) -> AsyncIterator[None]:
    user = here.address.user
    await here.manage("DELETE", f"/api/permissions/{{vhost}}/{user}")
    here.wire.cut()
    await here.until_said(f"^node requests: cannot connect: .*refused.*access to vhost .* refused for user '{user}'")
    await asyncio.sleep(1)
    yield
    await here.permit(".*")


@asynccontextmanager
async def write_permission_revoked(here: Scene) -> AsyncIterator[None]:
    """Connecting and consuming still work; what is published closes the channel."""
    await here.permit("^$")
    here.wire.cut()
    await here.until_said("access to .* refused for user")
    await asyncio.sleep(1)
    yield
    await here.permit(".*")


@asynccontextmanager
async def password_changed(here: Scene) -> AsyncIterator[None]:
    user, password = here.address.user, here.address.password
    await here.manage("PUT", f"/api/users/{user}", {"password": secrets.token_hex(8), "tags": ""})
    here.wire.cut()
    await here.until_said("^node requests: cannot connect: .*ACCESS_REFUSED")
    await asyncio.sleep(1)
    assert not any(password in line for line in here.said)
    yield
    await here.manage("PUT", f"/api/users/{user}", {"password": password, "tags": ""})


@asynccontextmanager
async def vhost_deleted(here: Scene) -> AsyncIterator[None]:
    await asyncio.to_thread(here.rabbitmq.delete_vhost, here.vhost.name)
    await here.until_said("^node requests: cannot connect: .*vhost.*not found")
    yield
    await asyncio.to_thread(here.rabbitmq.add_vhost, here.vhost.name)
    await here.permit(".*")


@asynccontextmanager
async def latency(here: Scene) -> AsyncIterator[None]:
    here.wire.delay = 0.2
    for _ in range(3):
        await here.load.call()
    yield
    here.wire.flow()


@asynccontextmanager
async def low_bandwidth(here: Scene) -> AsyncIterator[None]:
    """A megabyte each way takes longer than several looks of the watchdog."""
    here.wire.rate = 100_000
    await here.load.call(text="x" * 150_000, timeout=PATIENCE)
    yield
    here.wire.flow()


@asynccontextmanager
async def reset_in_mid_frame(here: Scene) -> AsyncIterator[None]:
    here.wire.rate = 200_000
    begun = [asyncio.create_task(here.load.call(text="x" * 500_000)) for _ in range(2)]
    await asyncio.sleep(1)
    here.wire.cut()
    here.wire.flow()
    outcomes = await asyncio.gather(*begun, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, OutcomeUnknown) for outcome in outcomes), outcomes
    yield


@asynccontextmanager
async def one_byte_segments(here: Scene) -> AsyncIterator[None]:
    """The load goes on through it, and so does everything a new connection needs."""
    here.wire.piece = 1
    here.wire.cut()
    await here.until_said("^node requests: connected again")
    await here.load.call()
    yield
    here.wire.flow()


@asynccontextmanager
async def link_flapping(here: Scene) -> AsyncIterator[None]:
    for _ in range(6):
        here.wire.cut()
        await asyncio.sleep(random.uniform(0.1, 0.6))
    yield


@dataclass(frozen=True)
class Row:
    """A fault, what the log says of it (a pattern for one line), and whether requests in the queue go with it."""

    name: str
    fault: Callable[[Scene], contextlib.AbstractAsyncContextManager[None]]
    said: str
    loses: bool = False
    unnoticed: bool = False  # no connection is lost over it
    long: bool = False  # too long for every day


ROWS = (
    Row("9 memory alarm", memory_alarm, "takes no messages for now: low on memory", unnoticed=True),
    Row("10 disk alarm", disk_alarm, "for 2 s the broker has taken no reply", unnoticed=True),
    Row(
        "15-16 queue deleted",
        queue_deleted,
        f"^node requests: connection lost: the broker ended the subscription to {QUEUE}",
        loses=True,
    ),
    # Of these the log says something only if somebody publishes before the next look.
    Row("17 exchange missing", exchange_deleted, ""),
    Row("19 dead-letter exchange missing", dead_letter_exchange_missing, ""),
    Row("20 dead letters full", dead_letters_full, "not published yet: the broker refused", unnoticed=True),
    Row("21 request queue full", requests_full, "", unnoticed=True),
    Row("22 reply queue gone", reply_queue_gone, "no queue quaybridge.reply.*: its reply is parked"),
    Row("23 requester gone", requester_gone, "", unnoticed=True),
    Row("24 permissions revoked", permissions_revoked, "refused the connection: NOT_ALLOWED - access to vhost"),
    Row("24 write permission revoked", write_permission_revoked, "ACCESS_REFUSED - write access to"),
    Row("25 password changed", password_changed, "refused the connection: ACCESS_REFUSED"),
    Row("24-25 vhost deleted", vhost_deleted, "connection lost: the broker closed the connection: ", loses=True),
    Row("26 latency", latency, "", unnoticed=True, long=True),
    Row("27 low bandwidth", low_bandwidth, "", unnoticed=True, long=True),
    Row("28 reset in mid-frame", reset_in_mid_frame, "^node .*: connection lost: .* was lost: .*(reset|hung up)"),
    Row("28 link flapping", link_flapping, "^node requests: connected again"),
    Row("30 one-byte segments", one_byte_segments, "^node requests: connected again"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(rabbitmq_vhost_of_module: Vhost, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One scene for all rows, with a user of its own."""
    vhost = rabbitmq_vhost_of_module
    # Faults follow one another sooner here than elsewhere: each shall count as a first one.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(link, "STEADY", STEADY)
    credentials = f"user-of-{vhost.name}", secrets.token_hex(8)
    vhost.rabbitmq.control("add_user", *credentials)
    vhost.control("set_permissions", credentials[0], ".*", ".*", ".*")
    try:
        async with scene(vhost, tmp_path_factory.mktemp("recovery"), credentials=credentials) as made:
            yield made
            await nothing_lost(made)
    finally:
        monkeypatch.undo()
        vhost.rabbitmq.control("delete_user", credentials[0])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", [row for row in ROWS if SOAK or not row.long], ids=lambda row: row.name)
async def test_it_recovers_alone(here: Scene, row: Row, caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    await here.until(lambda: here.node.serving)  # after the row before
    await asyncio.sleep(STEADY + 0.1)
    async with listening(here, caplog):
        began, attempts = loop.time(), here.broker.attempts
        async with row.fault(here):
            confirmed_by_then = set(here.load.confirmed)
        took = await recovered(here)
        await here.until(lambda: here.node.serving)
        lasted = loop.time() - began
        if row.loses:
            here.load.confirmed -= confirmed_by_then
        await nothing_lost(here)
    assert any(re.search(row.said, line) for line in here.said) or not row.said, here.said
    if row.unnoticed:
        assert here.broker.attempts == attempts, here.said
    # The first tries come soon, the later ones every 2.5 to 5 s; two connections.
    assert here.broker.attempts - attempts <= 2 * (10 + lasted / 2.5), here.said
    print(f"{row.name}: served again after {took:.1f} s, {here.broker.attempts - attempts} connections tried")


# What needs a broker, a node or a network of its own.


@asynccontextmanager
async def storm(address: Address, count: int) -> AsyncIterator[list[Link]]:
    """So many more connections, each kept as a node's are."""

    async def nothing(channel: Channel) -> None:
        pass

    links = [Link(AmqpBroker([address]), f"light {number}", set_up=nothing) for number in range(count)]
    await asyncio.gather(*(each.start(PATIENCE) for each in links))
    try:
        yield links
    finally:
        await asyncio.gather(*(each.close() for each in links))


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed in a fifth of the time it takes. (That this is in time: protocol/test_amqp_connection.)"""

    def sooner(self: AmqpConnection, delay: float, callback: Callable[[], None]) -> object:
        return asyncio.get_running_loop().call_later(delay / 5, callback)

    monkeypatch.setattr(AmqpConnection, "_adapter_call_later", sooner)


async def test_a_broker_that_is_killed_stopped_and_paused(
    own_rabbitmq: ContainerRabbitMQ, quick_heartbeats: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows 1, 3, 32 and 34 (2: tests of chaos), one after the other; 50 other clients come back at the same time."""
    vhost = Vhost("/", own_rabbitmq.url, own_rabbitmq)

    async def until_lost(here: Scene) -> None:
        await here.until_said("^node requests: connection lost")
        await here.until(lambda: not here.node.serving)

    async with scene(vhost, tmp_path, heartbeat=5) as here, storm(here.address, 50) as links:
        # 1 and 34: what was written and confirmed is there again.
        async with listening(here, caplog, most=400):
            await here.load.call()
            await asyncio.to_thread(own_rabbitmq.kill)
            await until_lost(here)
            attempts = here.broker.attempts
            await asyncio.to_thread(own_rabbitmq.restart)
            here.wire.target = (own_rabbitmq.host, own_rabbitmq.port)
            killed = await recovered(here)
            await here.until(lambda: all(each.up for each in links))
            await nothing_lost(here)
            assert here.broker.attempts - attempts < 30
        # 3: it says why.
        async with listening(here, caplog, most=400):
            await here.control("stop_app")
            await here.until_said(
                "^node requests: connection lost: the broker closed the connection: CONNECTION_FORCED"
            )
            await here.control("start_app")
            stopped = await recovered(here)
            await nothing_lost(here)
        # 32: a short pause is nothing; a long one is noticed by the silence, as a black hole is (29).
        await here.until(lambda: all(each.up for each in links))
        async with listening(here, caplog, most=400):
            attempts = here.broker.attempts
            await asyncio.to_thread(own_rabbitmq.pause)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_rabbitmq.unpause)
            await here.load.call()
            assert here.broker.attempts == attempts
            if SOAK:
                await asyncio.to_thread(own_rabbitmq.pause)
                await here.until_said("^node requests: connection lost: .*heartbeat")
                await asyncio.to_thread(own_rabbitmq.unpause)
            paused = await recovered(here)
            await nothing_lost(here)
        print(f"served again after: kill {killed:.1f} s, stop_app {stopped:.1f} s, pause {paused:.1f} s")


async def test_29_a_black_hole(
    rabbitmq_vhost: Vhost, quick_heartbeats: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No packet comes through any more, and nobody says so; new connections get no answer either."""
    async with scene(rabbitmq_vhost, tmp_path, heartbeat=5) as here, listening(here, caplog):
        here.wire.stall()
        await here.until_said("^node requests: connection lost: .*heartbeat")
        await here.until_said("^node replies: connection lost: .*heartbeat")
        here.wire.cut()  # that nothing of the old connections comes through late
        here.wire.flow()
        took = await recovered(here)
        await nothing_lost(here)
        assert took < IN_TIME


async def test_31_a_confirm_that_is_lost(
    rabbitmq_vhost: Vhost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker has the reply, and the node does not know: it says it again, and does not do it again."""
    direct = parse_address(rabbitmq_vhost.url)
    async with relay(direct.host, direct.port) as line:
        of_replies = replace(direct, host="127.0.0.1", port=line.port)

        class TwoLines(CountingBroker):
            """What is published goes through a line of its own."""

            async def open(self, name: str, **callbacks: Any) -> Channel:
                broker = AmqpBroker([of_replies]) if name.endswith("replies") else self._broker
                return await broker.open(name, **callbacks)

        async with (
            scene(rabbitmq_vhost, tmp_path, node_broker=lambda address: TwoLines(address), load=False) as here,
            listening(here, caplog),
        ):
            line.hush()
            await here.load.call()  # its reply came
            await here.until(lambda: here.node.services[0].settlement.pending == 1)
            line.cut()
            line.flow()
            await here.until(lambda: here.load.producer.late_replies == 1)
            await here.until(lambda: not here.node.services[0].settlement.pending)
            assert here.node.counts[SERVICE].succeeded == 1
            assert here.node.counts[SERVICE].redelivered == 0
            assert any(line.startswith("note: not published yet: ") for line in here.said)


@pytest.fixture
def impatient(rabbitmq_each: Vhost) -> Iterator[Vhost]:
    """A vhost in a RabbitMQ that looks at ack timeouts several times a second; theirs are a second, by a policy."""
    rabbitmq = rabbitmq_each.rabbitmq
    if isinstance(rabbitmq, PrivateRabbitMQ):
        pytest.skip("a RabbitMQ before 3.12 has one ack timeout for all, and no policy for it")
    usual = {"channel_tick_interval": 60_000, "quorum_tick_interval": 5_000}

    def set_ticks(ticks: dict[str, int]) -> None:
        settings = ", ".join(f"application:set_env(rabbit, {name}, {value})" for name, value in ticks.items())
        rabbitmq.control("eval", f"{settings}.")

    # Before the queue is declared: from 4.3 on a consumer keeps the timeout it began with.
    policy = {"pattern": f"^{re.escape(QUEUE)}$", "definition": {"consumer-timeout": 1000}, "apply-to": "queues"}
    rabbitmq.manage("PUT", f"/api/policies/{quote(rabbitmq_each.name, safe='')}/fault", policy)
    set_ticks(dict.fromkeys(usual, 256))
    yield rabbitmq_each
    set_ticks(usual)


async def time_out(here: Scene, said: str) -> None:
    """Hold a delivery for too long, until the log says so; then there is more time, and all goes on."""
    slow = asyncio.create_task(here.load.call(seconds=2.0, timeout=PATIENCE))
    await here.until_said(f"^node requests: connection lost: {said}")
    await here.manage("DELETE", "/api/policies/{vhost}/fault")
    await recovered(here)
    await slow  # it came again, and was answered
    await nothing_lost(here)
    assert here.node.counts[SERVICE].redelivered >= 1


async def test_13_14_an_ack_timeout(impatient: Vhost, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To 4.2 the channel is closed, from 4.3 the consumer is cancelled, and must not just be made again."""
    said = f"(.*delivery acknowledgement on channel 1 timed out|the broker ended the subscription to {QUEUE})"
    async with scene(impatient, tmp_path) as here, listening(here, caplog):
        await time_out(here, said)


async def test_14_a_cancel_that_was_overlooked_is_made_up_for(
    impatient: Vhost, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 4.3 on that consumer is given nothing more; or, once the late ack has come, as if nothing had been."""
    if "4.0" in (await asyncio.to_thread(impatient.rabbitmq.control, "version")):
        return  # it closes the channel
    monkeypatch.setattr(Node, "_on_cancelled", lambda self, consumer: None)
    # A lookahead that changes makes a new consumer too, and would be in time now and then.
    monkeypatch.setattr(Lookahead, "wanted", lambda self, capacity: 0)
    forgotten = f"[0-9]+ requests? waits? in {QUEUE}, where this consumer is given none"
    revived = "the broker delivers for a subscription that it had ended"
    async with scene(impatient, tmp_path) as here, listening(here, caplog):
        await time_out(here, f"({forgotten}|{revived})")
        assert await here.length(DEAD) == 0
