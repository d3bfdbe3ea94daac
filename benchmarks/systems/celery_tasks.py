"""Celery: prefork with as many processes as there are CPUs (its default), results by rpc://.

A quorum queue, `acks_late`, and publisher confirms, which wait for each message; a prefetch of 64 for each process,
as its documentation advises for short tasks; gossip, mingle and heartbeats off, which cost and serve nothing here.
The client sends from one thread, and collects results in the order it sent.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from kombu import Queue

from examples.analyse import analysis

QUEUE = "benchmark-celery"

app = Celery("benchmark", broker=os.environ["QUAYBRIDGE_BENCHMARK_URL"], backend="rpc://")
app.conf.update(
    task_queues=[Queue(QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    task_default_queue=QUEUE,
    task_default_queue_type="quorum",
    task_default_exchange_type="topic",
    task_acks_late=True,
    broker_transport_options={"confirm_publish": True},
    worker_prefetch_multiplier=64,
)


@app.task
def echo(argument: str) -> str:
    return argument


@app.task
def summarise(argument: str) -> dict[str, Any]:
    return analysis.summarise(analysis.read(argument), argument)


class Client:
    """Sends tasks and waits for their results; `wait` for the oldest takes in the others too."""

    def __init__(self, url: str) -> None:
        self._tasks = {"echo": echo, "summarise": summarise}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        app.close()

    def send(self, command: str, argument: str) -> AsyncResult[Any]:
        return self._tasks[command].apply_async((argument,))

    def wait(self, result: AsyncResult[Any]) -> None:
        result.get(timeout=60)
        result.forget()

    def publish(self, argument: str) -> None:
        echo.apply_async((argument,), ignore_result=True)
