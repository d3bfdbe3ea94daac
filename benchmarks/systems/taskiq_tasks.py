"""Taskiq with taskiq-aio-pika: 2 worker processes, its default, on uvloop, which its command line takes where it is.

Its queue is durable and quorum and aio-pika's channels confirm, both by default; acks when executed; a prefetch and
a bound of 256 tasks in each process; no line in the log for each task. It has no results over RabbitMQ (they take
Redis, say), so it is measured one way: done is what a worker has done.
"""

from __future__ import annotations

import os
from typing import Self

from taskiq_aio_pika import AioPikaBroker, Queue

from benchmarks.tally import Tally

QUEUE = "benchmark-taskiq"

broker = AioPikaBroker(os.environ["QUAYBRIDGE_BENCHMARK_URL"], qos=256, task_queues=[Queue(name=QUEUE)])
tally = Tally(os.environ["QUAYBRIDGE_BENCHMARK_TALLY"])


@broker.task
async def echo(argument: str) -> str:
    tally.add()
    return argument


class Client:
    """Publishes."""

    def __init__(self, url: str) -> None:
        """The module has its broker already."""

    async def __aenter__(self) -> Self:
        await broker.startup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await broker.shutdown()

    async def publish(self, argument: str) -> None:
        await echo.kiq(argument)
