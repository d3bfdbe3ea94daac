"""The queues of a service's sessions, on a channel that does what the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from virtual_time import virtual_time

from bridge_protocol.envelope import SESSION_EPOCH, Properties
from bridge_protocol.topology import PARTITIONS, session_queue
from broker import contract
from broker.contract import Consumer, Delivery
from worker_node.partitions import HAND_BACK, HANDED_BACK_AT_ONCE, QUEUES_RECOVER, Partitions, weight


class Channel:
    """Confirms subscriptions while `open` is set; counts those there are, by queue."""

    server = "RabbitMQ 4.3.0"

    def __init__(self) -> None:
        self.closed = False
        self.silent: set[str] = set()  # queues that answer nobody
        self.open = asyncio.Event()
        self.open.set()
        self.consumers: Counter[str] = Counter()
        self.rejected: list[int] = []
        self.cancelled: list[str] = []
        self.tags: dict[str, str] = {}  # by queue, of the latest consumer
        self._made = 0
        self._on_delivery: dict[str, Callable[[Delivery], None]] = {}

    async def consume(self, queue: str, on_delivery: Callable[[Delivery], None], **_: Any) -> Consumer:
        self.consumers[queue] += 1
        self._on_delivery[queue] = on_delivery
        self._made += 1
        self.tags[queue] = f"c{self._made}"
        consumer = Consumer(tag=self.tags[queue], queue=queue)
        await (asyncio.Event().wait() if queue in self.silent else self.open.wait())
        return consumer

    async def cancel(self, consumer: Consumer) -> None:
        self.cancelled.append(consumer.tag)
        self.consumers[consumer.queue] -= 1

    def reject(self, tag: int, *, requeue: bool) -> None:
        assert requeue
        self.rejected.append(tag)

    def deliver(self, queue: str, epoch: str, *, returns: int = 0) -> None:
        properties = Properties(headers={SESSION_EPOCH: epoch})
        delivery = Delivery(
            body=b"{}",
            properties=properties,
            exchange="quaybridge",
            routing_key="work.session.0",
            redelivered=returns > 0,
            delivery_count=returns,
            tag=7,
            channel=cast("contract.Channel", self),
        )
        self._on_delivery[queue](delivery)


def made(owned: list[int], begun: list[list[int]]) -> Partitions:
    """Of the node b; what it says."""
    return Partitions(
        "work",
        "b",
        on_delivery=lambda *_: None,
        on_owned=owned.append,
        on_consuming=lambda numbers: begun.append(list(numbers)),
        on_cancelled=lambda _: None,
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(2 * HAND_BACK):
        while not condition():
            await asyncio.sleep(0.01)


@virtual_time
async def test_a_queue_that_is_left_for_a_while_is_consumed_again_once() -> None:
    """Also where the node stops taking requests, and takes them again, at the moment its time is over."""
    queue = session_queue("work", 0)
    consumed = made([], [])
    consumed.want(True)
    channel = Channel()
    consumed.attach(cast("contract.Channel", channel))
    await consumed.settled()
    assert channel.consumers.total() == PARTITIONS
    channel.deliver(queue, "x@a")
    channel.open.clear()
    await until(lambda: channel.rejected == [7])
    assert channel.consumers[queue] == 0
    await until(lambda: channel.consumers[queue])  # its time is over, and the broker takes its own to confirm
    assert asyncio.get_running_loop().time() >= HAND_BACK
    consumed.want(False)
    consumed.want(True)
    channel.open.set()
    await consumed.settled()
    assert {channel.consumers[session_queue("work", number)] for number in range(PARTITIONS)} == {1}


async def test_who_owns_a_queue_and_is_outranked_there_stands_by_with_a_new_consumer() -> None:
    """RabbitMQ 4.3 would keep the old one for ever, if this node died before all it holds is settled."""
    owned: list[int] = []
    begun: list[list[int]] = []
    consumed = made(owned, begun)
    consumed.want(True)
    channel = Channel()
    consumed.attach(cast("contract.Channel", channel))
    await until(lambda: begun == [list(range(PARTITIONS))])
    better = [number for number in range(PARTITIONS) if weight("a", number) > weight("b", number)]
    worse = sorted(set(range(PARTITIONS)) - set(better))
    for number in (better[0], better[1], worse[0]):
        channel.deliver(session_queue("work", number), "x@b")
    first = dict(channel.tags)
    consumed.yield_to("a", [better[0], worse[0], better[2]])  # owned and outranked, owned and not, and not owned
    await consumed.settled()
    renewed = [
        number for number in range(PARTITIONS) if channel.tags[session_queue("work", number)] not in first.values()
    ]
    assert renewed == [better[0]]
    assert channel.cancelled == [first[session_queue("work", better[0])]]
    await until(lambda: begun[1:] == [[better[0]]])  # it may outrank others there
    assert channel.consumers.total() == PARTITIONS
    assert consumed.owned == sorted({better[1], worse[0]})
    channel.deliver(session_queue("work", better[0]), "x@b")  # the other has left
    assert owned == [better[0], better[1], worse[0], better[0]]


@virtual_time
async def test_after_a_reconnect_queues_are_consumed_when_their_broker_has_dropped_what_it_had() -> None:
    loop = asyncio.get_running_loop()
    consumed = made([], [])
    consumed.want(True)
    for pause in (0.0, QUEUES_RECOVER, QUEUES_RECOVER):
        channel = Channel()
        connected = loop.time()
        consumed.attach(cast("contract.Channel", channel))
        await asyncio.sleep(pause * 0.9)
        assert not channel.consumers or not pause
        await until(lambda: channel.consumers.total() == PARTITIONS)  # noqa: B023 - the loop goes on after that
        assert pause <= loop.time() - connected < pause + 0.1
        consumed.detach()


@virtual_time
async def test_a_queue_that_answers_nobody_holds_up_no_other() -> None:
    """Neither their consumers, nor what is told of them, nor what is adjusted later."""
    begun: list[list[int]] = []
    consumed = made([], begun)
    channel = Channel()
    silent, others = session_queue("work", 0), list(range(1, PARTITIONS))
    channel.silent.add(silent)
    consumed.want(True)
    consumed.attach(cast("contract.Channel", channel))
    await until(lambda: begun == [others])
    other = next(number for number in others if weight("a", number) > weight("b", number))
    channel.deliver(session_queue("work", other), "x@b")
    consumed.yield_to("a", [other])
    await until(lambda: begun[1:] == [[other]])
    consumed.want(False)
    await until(lambda: channel.consumers.total() == 1)  # the broker may have it, and has not said so
    consumed.detach()


@virtual_time
async def test_what_is_held_for_a_while_is_handed_back_when_no_more_is_taken() -> None:
    """It came back so often that it was to wait for seconds; nobody else can have it until it is rejected."""
    queue = session_queue("work", 0)
    consumed = made([], [])
    consumed.want(True)
    channel = Channel()
    consumed.attach(cast("contract.Channel", channel))
    await consumed.settled()
    channel.deliver(queue, "x@a", returns=HANDED_BACK_AT_ONCE + 3)
    await until(lambda: channel.consumers[queue] == 0)
    assert channel.rejected == []
    consumed.want(False)
    async with asyncio.timeout(1):
        await consumed.settled()
    assert channel.rejected == [7]
    assert channel.consumers.total() == 0
