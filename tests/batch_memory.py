"""A batch of so many lines of 1 KB, answered at once by the embedded broker; tells its peak memory and its rate."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from responder import SERVICE, Responder

from bridge_protocol.messages import Request
from broker.contract import Delivery
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from quaybridge.batch import Batch, Lines, Records, Tally


def act(responder: Responder, delivery: Delivery, request: Request) -> None:
    responder.seen.clear()
    responder.succeed(delivery, request, request.args)


async def main(count: int, directory: Path) -> None:
    requests = directory / "requests"
    with requests.open("w") as writing:
        writing.writelines(json.dumps({"n": n, "text": "x" * 1000}) + "\n" for n in range(count))
    broker = MemoryBroker()
    await Responder(act).start(broker)
    source = os.open(requests, os.O_RDONLY)
    target = os.open(directory / "replies", os.O_WRONLY | os.O_CREAT)
    async with AsyncProducer(broker) as producer:
        began = time.perf_counter()
        options = {"replies": Records(target), "failures": Records(path=directory / "failures"), "tally": Tally()}
        work = Batch(producer, SERVICE, "echo", **options, in_flight=100, timeout=60)  # type: ignore[arg-type]
        await work.run(Lines(source))
        took = time.perf_counter() - began
        os.close(source)
        os.close(target)
        told = {
            "answered": work.tally.succeeded,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "lines_per_second": round(count / took),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(main(int(sys.argv[1]), Path(made)))
