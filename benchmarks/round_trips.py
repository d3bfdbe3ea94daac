"""Round trips per second of a 200-character echo, in one run on one machine.

    python -m benchmarks.round_trips [--broker URL]        # a container or private RabbitMQ where none is named

Closed loop, 8 echo bridges: quaybridge over the embedded broker with 64 in flight; over RabbitMQ with 64 and 256;
and aio-pika's plain RPC pattern without any subprocess (pip install '.[bench]'), which is what the second is held
against. Three rounds, interleaved; medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from quaybridge.broker_choice import chosen_broker
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

TEXT = "x" * 200
REQUESTS = 4000
ROUNDS = 3
BRIDGES = 8


async def closed_loop(call: Callable[[], Awaitable[object]], in_flight: int) -> float:
    """Round trips per second with that many under way all the time."""
    left = iter(range(REQUESTS))

    async def ask() -> None:
        for _ in left:
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return REQUESTS / (time.perf_counter() - started)


async def lone(call: Callable[[], Awaitable[object]]) -> float:
    """The median of a call that has everything to itself, in milliseconds."""
    times = []
    for _ in range(200):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def quaybridge(stack: AsyncExitStack, broker: Broker) -> Callable[[], Awaitable[object]]:
    """A node with echo bridges, and a producer; gives one call."""
    echo = ServiceSettings(name="echo", command=(sys.executable, "-m", "examples.echo"), bridges=BRIDGES)
    node = Node(NodeSettings(services=(echo,)), broker)
    started = time.perf_counter()
    await node.start()
    stack.push_async_callback(node.stop)
    while node.services[0].pool.ready < BRIDGES:
        await asyncio.sleep(0.005)
    print(f"{BRIDGES} bridges ready after {time.perf_counter() - started:.2f} s on {broker.address}")
    producer = await stack.enter_async_context(AsyncProducer(broker))
    for _ in range(100):
        await producer.call("echo", "echo", {"text": TEXT})
    await asyncio.sleep(2)  # the node looks once a second how long requests run
    return lambda: producer.call("echo", "echo", {"text": TEXT})


async def aio_pika_rpc(stack: AsyncExitStack, url: str) -> Callable[[], Awaitable[object]]:
    """aio-pika's RPC pattern: the function runs in this process."""
    import aio_pika
    from aio_pika.patterns import JsonRPC

    connection = await stack.enter_async_context(await aio_pika.connect_robust(url))
    channel = await connection.channel()
    rpc = await JsonRPC.create(channel)

    async def echo(text: str) -> str:
        return text

    await rpc.register("quaybridge-benchmark-echo", echo, auto_delete=True)
    return lambda: rpc.proxy.__getattr__("quaybridge-benchmark-echo")(text=TEXT)


async def measure(url: str) -> None:
    """All of it, interleaved."""
    rates: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        embedded = await quaybridge(stack, MemoryBroker())
        queued = await quaybridge(stack, AmqpBroker(parse_addresses(url)))
        direct = await aio_pika_rpc(stack, url)
        runs = {
            "quaybridge, embedded broker, 64 in flight": (embedded, 64),
            "quaybridge, RabbitMQ, 64 in flight": (queued, 64),
            "quaybridge, RabbitMQ, 256 in flight": (queued, 256),
            "aio-pika RPC, no subprocess, 64 in flight": (direct, 64),
            "aio-pika RPC, no subprocess, 256 in flight": (direct, 256),
        }
        for _ in range(ROUNDS):
            for name, (call, in_flight) in runs.items():
                rates.setdefault(name, []).append(await closed_loop(call, in_flight))
        for name, found in rates.items():
            print(f"{name:<44} {statistics.median(found):>8,.0f} /s  ({min(found):,.0f} … {max(found):,.0f})")
        for name, call in (("quaybridge", queued), ("aio-pika RPC", direct)):
            print(f"{name + ', RabbitMQ, a lone call':<44} {await lone(call):>8.2f} ms")


def main() -> None:
    """Parse, find a broker, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", default="auto", help="a RabbitMQ's URL; default: start one")
    wanted = parser.parse_args().broker
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    with chosen_broker(wanted) as choice:
        if choice.url is None:
            raise SystemExit(f"this needs a RabbitMQ: {choice.why}")
        print(f"{choice.described}, Python {sys.version.split()[0]}")
        asyncio.run(measure(choice.url))


if __name__ == "__main__":
    main()
