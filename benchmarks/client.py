"""The client process: reads an order from its standard input, carries it out, and prints what it measured, as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict

from benchmarks import cold_start, loops, standing_queue
from benchmarks.order import Measure, Order
from benchmarks.systems import SYSTEMS
from benchmarks.tally import Tally


def carry_out(order: Order) -> Measure:
    """Do what `order` says, in this process."""
    match order.kind:
        case "fill":
            return asyncio.run(standing_queue.fill(order))
        case "standing":
            return asyncio.run(standing_queue.stand(order))
        case "start":
            return asyncio.run(cold_start.start(order))
    system = next(system for system in SYSTEMS if system.name == order.system)
    directory = os.environ.get("QUAYBRIDGE_BENCHMARK_TALLY")
    tally = None if directory is None else Tally(directory)
    client = system.client(order.url)
    if hasattr(client, "__enter__"):
        with client:
            return loops.run_in_thread(client, order, tally)

    async def run() -> Measure:
        async with client:
            return await loops.run(client, order, tally)

    with asyncio.Runner(loop_factory=system.loop_factory()) as runner:
        return runner.run(run())


def main() -> None:
    """One order."""
    logging.disable(logging.WARNING)
    print(json.dumps(asdict(carry_out(Order(**json.load(sys.stdin))))))


if __name__ == "__main__":
    main()
