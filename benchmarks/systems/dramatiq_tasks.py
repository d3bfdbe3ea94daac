"""Dramatiq: one process for each CPU and 8 threads in each, its defaults, with `confirm_delivery`.

It has no results over RabbitMQ, so it is measured one way: done is what a worker has done. It declares its queues
without a type; the benchmark's vhost makes quorum queues of them. Threads of one client do not publish faster than
one: each waits for its own confirm, but they hold each other up.
"""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.tally import Tally

QUEUE = "benchmark-dramatiq"

broker = RabbitmqBroker(url=os.environ["QUAYBRIDGE_BENCHMARK_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)
tally = Tally(os.environ["QUAYBRIDGE_BENCHMARK_TALLY"])


@dramatiq.actor(queue_name=QUEUE)
def echo(argument: str) -> str:
    tally.add()
    return argument


class Client:
    """Publishes."""

    def __init__(self, url: str) -> None:
        """The module has its broker already."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        broker.close()

    def publish(self, argument: str) -> None:
        echo.send(argument)
