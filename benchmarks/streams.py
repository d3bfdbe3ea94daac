"""Streams through RabbitMQ, from one bridge to one consumer: `python -m benchmarks.streams`.

How many chunks of 20 bytes a second, how long until the first one (beside a lone call), and what a reader that never
reads costs the node and the broker, in memory. Worker, broker and consumer are processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Iterable

import psutil

from benchmarks.cpu import tree
from benchmarks.processes import workers
from benchmarks.rabbitmqs import bench, names
from benchmarks.systems import System
from producer.async_producer import AsyncProducer

CHUNKS = 200_000
CALLS = 200
UNREAD_CHUNKS = 2_000_000
UNREAD_SECONDS = 10.0
STREAMS = System(
    name="streams",
    title="streams",
    module="benchmarks.systems.quaybridge_nodes",
    worker=(
        *(sys.executable, "-m", "quaybridge", "worker", "--service", "words"),
        *("--bridge", f"{sys.executable} -m examples.stream_words", "--bridges", "1"),
    ),
    queue="quaybridge.words",
    packages=(),
)


async def rate(producer: AsyncProducer) -> float:
    """Chunks a second."""
    began = time.perf_counter()
    count = 0
    async for _ in producer.stream("words", "count", {"to": CHUNKS}, timeout=300):
        count += 1
    assert count == CHUNKS
    return count / (time.perf_counter() - began)


async def first_chunk(producer: AsyncProducer) -> tuple[float, float]:
    """Milliseconds at the median: of a lone call, and until a stream's first chunk; in turn."""
    calls, firsts = [], []
    for _ in range(CALLS):
        began = time.perf_counter()
        await producer.call("words", "write", {"pages": 0})
        calls.append(time.perf_counter() - began)
        began = time.perf_counter()
        async with producer.stream("words", "count", {"to": 3}) as stream:
            async for _ in stream:
                if len(firsts) < len(calls):
                    firsts.append(time.perf_counter() - began)
    return statistics.median(calls) * 1000, statistics.median(firsts) * 1000


async def unread(producer: AsyncProducer, worker: list[int], broker: list[int]) -> tuple[int, int]:
    """By how many bytes worker and broker grow, at most, while a stream is not read."""
    before = memory(worker), memory(broker)
    grown = [0, 0]
    async with producer.stream("words", "count", {"to": UNREAD_CHUNKS}, timeout=300) as stream:
        async for _ in stream:
            end = time.monotonic() + UNREAD_SECONDS
            while time.monotonic() < end:
                await asyncio.sleep(0.5)
                now = memory(worker), memory(broker)
                grown = [max(grown[at], now[at] - before[at]) for at in range(2)]
            break
    return grown[0], grown[1]


def memory(pids: Iterable[int]) -> int:
    """Resident bytes of these processes."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids if psutil.pid_exists(pid))


async def measure(url: str, worker: list[int], broker: list[int]) -> None:
    """Print what is found."""
    async with AsyncProducer(url) as producer:
        await rate(producer)
        rates = [await rate(producer) for _ in range(3)]
        print(
            f"chunks of 20 bytes   {statistics.median(rates):,.0f} /s  ({', '.join(f'{each:,.0f}' for each in rates)})"
        )
        call, first = await first_chunk(producer)
        print(f"first chunk          {first:.2f} ms, a lone call {call:.2f} ms: {first / call:.2f} ×")
        node, rabbitmq = await unread(producer, worker, broker)
        print(f"never read           node and bridge +{node / 2**20:.1f} MiB, broker +{rabbitmq / 2**20:.1f} MiB")


def main() -> None:
    """Measure on each RabbitMQ that can be started here."""
    found = names(os.environ)
    if not found:
        sys.exit("no RabbitMQ to measure on: see `make rabbitmq`")
    for name in found:
        with bench(name) as rabbitmq, rabbitmq.venue(STREAMS) as place, workers(STREAMS, place) as running:
            print(rabbitmq.version)
            pids = [pid for each in running for pid in tree(each)]
            asyncio.run(measure(place.url, pids, list(rabbitmq.pids)))


if __name__ == "__main__":
    main()
