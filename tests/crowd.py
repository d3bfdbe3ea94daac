"""More nodes than a delivery may come back times, after a broker's restart: the one it is meant for connects last."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from bridge_protocol.envelope import Properties, request_properties
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import (
    EXCHANGE,
    partition_of,
    service_topology,
    session_key,
    session_topology,
    shared_topology,
)
from broker.contract import Broker, Channel, Delivery, Message
from worker_node.partitions import Partitions, weight

NODES = 30
PATIENCE = 90.0  # seconds for what takes ten on an idle machine


class Crowd:
    """The session consumers of so many nodes. `taken`: by whom, and what."""

    def __init__(self, broker: Broker) -> None:
        self.taken: list[tuple[str, Delivery]] = []
        self.session = "s"
        number = partition_of(self.session)
        self.names = sorted((f"n{n}" for n in range(NODES)), key=lambda name: weight(name, number))
        self.owner = self.names[-1]
        self._broker = broker
        self._stack = AsyncExitStack()
        self._nodes: dict[str, Partitions] = {}

    async def connect(self, name: str) -> None:
        """One more of them."""

        def take(delivery: Delivery, _: int) -> None:
            self.taken.append((name, delivery))
            delivery.ack()

        node = Partitions(
            "work",
            name,
            on_delivery=take,
            on_owned=lambda _: None,
            on_consuming=lambda _: None,
            on_cancelled=lambda _: None,
        )
        node.want(True)
        node.attach(await self._open(name))
        self._stack.callback(node.detach)
        self._nodes[name] = node

    async def request(self) -> None:
        """A request of a session that the owner had before the restart."""
        channel = await self._open("setup")
        await channel.declare([*shared_topology(), *service_topology("work"), *session_topology("work")])
        made = request_properties(message_id="m", command="count")
        headers = {**made.headers, "session": self.session, "session-epoch": f"{'0' * 32}@{self.owner}"}
        properties = Properties(message_id="m", correlation_id="m", headers=headers)
        body = encode_request(Request(id=1, command="count", args={}))
        key = session_key("work", partition_of(self.session))
        await channel.publish(
            Message(exchange=EXCHANGE, routing_key=key, body=body, properties=properties), timeout=PATIENCE
        )

    @property
    def handed_back(self) -> int:
        """How often it was, so far."""
        return sum(node.handed_back for node in self._nodes.values())

    @property
    def holding(self) -> bool:
        """Whether one of them keeps it for a while."""
        return any(partition.held for node in self._nodes.values() for partition in node._partitions)

    async def close(self) -> None:
        """Leave nothing."""
        await self._stack.aclose()

    async def _open(self, name: str) -> Channel:
        channel = await self._broker.open(name, on_closed=lambda _: None)
        self._stack.push_async_callback(channel.close)
        return channel


async def who_takes_it(broker: Broker) -> tuple[bool, int]:
    """All the others get it first, one after the other. Whether the last one took it, and how often it came back."""
    crowd = Crowd(broker)
    try:
        await crowd.request()
        async with asyncio.timeout(PATIENCE):
            for name in crowd.names[:-1]:
                before = crowd.handed_back
                await crowd.connect(name)
                while not (crowd.taken or crowd.holding) and crowd.handed_back == before:
                    await asyncio.sleep(0.001)
            await crowd.connect(crowd.owner)
            while not crowd.taken:
                await asyncio.sleep(0.001)
        ((name, delivery),) = crowd.taken
        return name == crowd.owner, delivery.delivery_count
    finally:
        await crowd.close()
