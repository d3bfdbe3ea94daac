"""How long a node takes to start: from the first bridge's start to the last one's READY, all started at once."""

from __future__ import annotations

import asyncio
import sys
import time

from benchmarks.order import Measure, Order
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

LOOK = 0.001  # seconds


async def start(order: Order) -> Measure:
    """Start a node with `order.bridges` echo bridges, in this process; `p50` is how long it took."""
    echo = ServiceSettings(name="echo", command=(sys.executable, "-m", "examples.echo"), bridges=order.bridges)
    node = Node(NodeSettings(services=(echo,)), AmqpBroker(parse_addresses(order.url)))
    began = time.perf_counter()
    starting = asyncio.create_task(node.start())
    while not node.services or node.services[0].pool.ready < order.bridges:
        await asyncio.sleep(LOOK)
        if starting.done():
            starting.result()
    seconds = time.perf_counter() - began
    await starting
    await node.stop()
    return Measure(rate=order.bridges / seconds, count=order.bridges, p50=seconds * 1000)
