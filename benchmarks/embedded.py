"""Large payloads through the embedded broker and one bridge: `python -m benchmarks.embedded`. Needs no RabbitMQ.

How many MiB a second come back, of echoes of each size, four calls in flight and one at a time. Broker, node and
producer share this process; the bridge is a process of its own, as ever. Exits with 1 below the goal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from statistics import median

from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

KIB, MIB = 1024, 1024 * 1024
SIZES = {"64 KiB": 64 * KIB, "1 MiB": MIB, "10 MiB": 10 * MIB}
IN_FLIGHT = (4, 1)
ROUNDS = 5
A_ROUND = 100 * MIB  # of payloads
GOAL = 100.0  # MiB/s of 10 MiB, four in flight


async def rate(producer: AsyncProducer, size: int, in_flight: int) -> float:
    """MiB of payloads that came back in a second."""
    text = "x" * size
    count = max(in_flight, A_ROUND // size)
    waiting = iter(range(count))

    async def calls() -> None:
        for _ in waiting:
            reply = await producer.call("echo", "echo", {"text": text}, timeout=120)
            assert len(reply.result["text"]) == size

    began = time.perf_counter()
    await asyncio.gather(*(calls() for _ in range(in_flight)))
    return count * size / MIB / (time.perf_counter() - began)


async def measure() -> float:
    """Print what is found; the figure that has a goal."""
    echo = ServiceSettings(name="echo", command=(sys.executable, "-m", "examples.echo"), bridges=1)
    broker = MemoryBroker()
    node = Node(NodeSettings(services=(echo,)), broker)
    await node.start()
    found = {}
    async with AsyncProducer(broker) as producer:
        for name, size in SIZES.items():
            for in_flight in IN_FLIGHT:
                rates = [await rate(producer, size, in_flight) for _ in range(ROUNDS)]
                found[name, in_flight] = median(rates)
                spread = f"{min(rates):,.0f} … {max(rates):,.0f}"
                print(f"{name:>6}, {in_flight} in flight  {median(rates):6,.0f} MiB/s  ({spread})")
    await node.stop()
    return found["10 MiB", IN_FLIGHT[0]]


def main() -> int:
    """Measure, and judge."""
    figure = asyncio.run(measure())
    print(f"10 MiB: {figure:,.0f} MiB/s, at least {GOAL:.0f} are wanted")
    return 0 if figure >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
