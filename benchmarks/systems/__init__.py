"""What is measured: quaybridge, its peers, and the limit. One file a system: what its worker runs, and a client of it.

Each file's docstring says how the system is configured, and why. What all have, where they can: a durable quorum
queue, publisher confirms, an ack after the work, the reply where there is one, and worker and client in processes of
their own. Workers find the broker in `QUAYBRIDGE_BENCHMARK_URL`: their command lines import the file, and pass
nothing on.

A file has a class `Client(url)`, a context manager with `publish(argument)`; where there are replies, also
`call(command, argument)` or, of a client that is not asynchronous, `send(command, argument)` and `wait(what it gave)`.
"""

from __future__ import annotations

import importlib
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PYTHON = sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """`worker`: the command of its worker; `consumers`: how many its `queue` has then, None: one for each process.

    `packages` are those whose versions are told, `processes` which option of `worker` says how many there are.
    """

    name: str
    title: str
    module: str
    worker: tuple[str, ...]
    queue: str
    packages: tuple[str, ...]
    processes: str | None = None
    consumers: int = 1
    replies: bool = True
    quorum_by_vhost: bool = False  # it declares its queues without a type

    def client(self, url: str) -> Any:
        """A client of it: imports what it needs, from here on."""
        return importlib.import_module(self.module).Client(url)

    def loop_factory(self) -> Callable[[], AbstractEventLoop] | None:
        """What makes the event loop its client runs on; None: asyncio."""
        return getattr(importlib.import_module(self.module), "loop_factory", None)


LIMIT = System(
    name="limit",
    title="pika by hand, no subprocess (the limit)",
    module="benchmarks.systems.pika_echo",
    worker=(PYTHON, "-m", "benchmarks.systems.pika_echo"),
    queue="benchmark-limit",
    packages=("pika", "uvloop"),
)
QUAYBRIDGE = System(
    name="quaybridge",
    title="quaybridge",
    module="benchmarks.systems.quaybridge_nodes",
    worker=(PYTHON, "-m", "quaybridge", "worker", "--service", "echo", "--bridge", f"{PYTHON} -m examples.echo"),
    queue="quaybridge.echo",
    packages=("quaybridge", "orjson"),
    processes="--bridges",
)
ANALYSE = System(
    name="quaybridge",
    title="quaybridge",
    module="benchmarks.systems.quaybridge_nodes",
    worker=(PYTHON, "-m", "quaybridge", "worker", "--service", "analyse", "--bridge", f"{PYTHON} -m examples.analyse"),
    queue="quaybridge.analyse",
    packages=("quaybridge", "orjson"),
    processes="--bridges",
)
AIO_PIKA = System(
    name="aio-pika",
    title="aio-pika RPC, no subprocess",
    module="benchmarks.systems.aio_pika_rpc",
    worker=(PYTHON, "-m", "benchmarks.systems.aio_pika_rpc"),
    queue="benchmark-aio-pika",
    packages=("aio-pika",),
)
CELERY = System(
    name="celery",
    title="Celery prefork, rpc://",
    module="benchmarks.systems.celery_tasks",
    worker=(
        *(PYTHON, "-m", "celery", "--app", "benchmarks.systems.celery_tasks", "worker"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    queue="benchmark-celery",
    packages=("celery", "kombu"),
    processes="--concurrency",
)
DRAMATIQ = System(
    name="dramatiq",
    title="Dramatiq, one way",
    module="benchmarks.systems.dramatiq_tasks",
    worker=(PYTHON, "-m", "dramatiq", "benchmarks.systems.dramatiq_tasks"),
    queue="benchmark-dramatiq",
    packages=("dramatiq",),
    processes="--processes",
    replies=False,
    quorum_by_vhost=True,
)
TASKIQ = System(
    name="taskiq",
    title="Taskiq, one way",
    module="benchmarks.systems.taskiq_tasks",
    worker=(
        *(PYTHON, "-m", "taskiq", "worker", "benchmarks.systems.taskiq_tasks:broker", "--log-level", "WARNING"),
        *("--max-async-tasks", "256", "--ack-type", "when_executed"),
    ),
    queue="benchmark-taskiq",
    packages=("taskiq", "taskiq-aio-pika"),
    consumers=2,
    replies=False,
)
FASTSTREAM = System(
    name="faststream",
    title="FastStream",
    module="benchmarks.systems.faststream_app",
    worker=(PYTHON, "-m", "faststream", "run", "benchmarks.systems.faststream_app:app"),
    queue="benchmark-faststream",
    packages=("faststream",),
)

SYSTEMS = (LIMIT, QUAYBRIDGE, AIO_PIKA, CELERY, DRAMATIQ, TASKIQ, FASTSTREAM)
