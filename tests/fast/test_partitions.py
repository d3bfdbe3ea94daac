"""The queues of a service's sessions, on a channel that does what the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from bridge_protocol.envelope import SESSION_EPOCH, Properties
from bridge_protocol.topology import PARTITIONS, session_queue
from broker import contract
from broker.contract import Consumer, Delivery
from worker_node import partitions
from worker_node.partitions import Partitions


class Channel:
    """Confirms subscriptions while `open` is set; counts those there are, by queue."""

    server = "RabbitMQ 4.3.0"

    def __init__(self) -> None:
        self.closed = False
        self.open = asyncio.Event()
        self.open.set()
        self.consumers: Counter[str] = Counter()
        self.rejected: list[int] = []
        self._on_delivery: dict[str, Callable[[Delivery], None]] = {}

    async def consume(self, queue: str, on_delivery: Callable[[Delivery], None], **_: Any) -> Consumer:
        self.consumers[queue] += 1
        self._on_delivery[queue] = on_delivery
        await self.open.wait()
        return Consumer(tag=f"{queue} {self.consumers.total()}", queue=queue)

    async def cancel(self, consumer: Consumer) -> None:
        self.consumers[consumer.queue] -= 1

    def reject(self, tag: int, *, requeue: bool) -> None:
        assert requeue
        self.rejected.append(tag)

    def deliver(self, queue: str, epoch: str) -> None:
        properties = Properties(headers={SESSION_EPOCH: epoch})
        delivery = Delivery(
            body=b"{}",
            properties=properties,
            exchange="quaybridge",
            routing_key="work.session.0",
            redelivered=False,
            delivery_count=0,
            tag=7,
            channel=cast("contract.Channel", self),
        )
        self._on_delivery[queue](delivery)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_a_queue_that_is_left_for_a_while_is_consumed_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the node stops taking requests, and takes them again, at the moment its time is over."""
    monkeypatch.setattr(partitions, "HAND_BACK", 0.02)
    queue = session_queue("work", 0)
    consumed = Partitions(
        "work", "b", on_delivery=lambda *_: None, on_owned=lambda _: None, on_cancelled=lambda _: None
    )
    consumed.want(True)
    channel = Channel()
    await consumed.attach(cast("contract.Channel", channel))
    assert channel.consumers.total() == PARTITIONS
    channel.deliver(queue, "x@a")
    channel.open.clear()
    await until(lambda: channel.rejected == [7])
    assert channel.consumers[queue] == 0
    await until(lambda: channel.consumers[queue])  # its time is over, and the broker takes its own to confirm
    consumed.want(False)
    consumed.want(True)
    channel.open.set()
    await consumed.settled()
    assert {channel.consumers[session_queue("work", number)] for number in range(PARTITIONS)} == {1}
