"""The processes of a measurement: workers that are started, waited for and stopped, and clients that are run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import pika
import pika.exceptions
import psutil

from benchmarks.cpu import tree
from benchmarks.order import Measure, Order
from benchmarks.systems import System

READY_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 15.0  # seconds
CLIENT_TIMEOUT = 900.0  # seconds
ROOT = Path(__file__).parent.parent


class BenchmarkError(Exception):
    """Raised when a process of the benchmark did not do what it should; says what it wrote last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """Where one system is measured: a vhost of its own, and a directory for the tally and for logs."""

    url: str
    directory: Path

    def environment(self) -> dict[str, str]:
        """What every process of the measurement has in its environment."""
        return {
            **os.environ,
            "QUAYBRIDGE_BROKER": self.url,
            "QUAYBRIDGE_BENCHMARK_URL": self.url,
            "QUAYBRIDGE_BENCHMARK_TALLY": str(self.directory / "tally"),
        }


@contextmanager
def venue(url: str) -> Iterator[Venue]:
    """A venue on the vhost that `url` names."""
    with tempfile.TemporaryDirectory(prefix="quaybridge-benchmark-") as directory:
        (Path(directory) / "tally").mkdir()
        yield Venue(url=url, directory=Path(directory))


@contextmanager
def workers(system: System, place: Venue, *, number: int = 1, processes: int | None = None) -> Iterator[list[int]]:
    """So many workers of a system, ready; gives their process ids. They are gone after the block.

    `processes`: how many subprocesses each has, where that can be said; None: as many as it has by default.
    """
    command = list(system.worker)
    if processes is not None and system.processes is not None:
        command += [system.processes, str(processes)]
    with ExitStack() as stack:
        log = stack.enter_context((place.directory / "workers.log").open("a+b"))
        running = [stack.enter_context(worker_process(command, place.environment(), log)) for _ in range(number)]
        _wait_for_consumers(system, place.url, running, log, number)
        yield [process.pid for process in running]


@contextmanager
def worker_process(
    command: list[str], environment: Mapping[str, str], log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to stop after the block, and then made to, with all it started."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # a Ctrl-C is for us; we end it then
    )
    try:
        yield process
    finally:
        below = [psutil.Process(pid) for pid in tree(process.pid)]
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        for each in below:  # psutil knows whether a process id is another's by now
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(STOP_TIMEOUT)


def _wait_for_consumers(
    system: System,
    url: str,
    running: list[subprocess.Popen[bytes]],
    log: IO[bytes],
    number: int,
) -> None:
    wanted = number * system.consumers
    deadline = time.monotonic() + READY_TIMEOUT
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        while True:
            try:
                found = connection.channel().queue_declare(system.queue, passive=True).method.consumer_count
            except pika.exceptions.ChannelClosedByBroker:  # there is no such queue yet
                found = 0
            if found >= wanted:
                return
            ended = any(process.poll() is not None for process in running)
            if ended or time.monotonic() > deadline:
                log.seek(0)
                said = log.read().decode(errors="replace")[-2000:]
                raise BenchmarkError(f"{system.title}: {found} of {wanted} workers consume; they said:\n{said}")
            time.sleep(0.05)
    finally:
        connection.close()


def run_client(order: Order, place: Venue) -> Measure:
    """Have a client process carry out `order`; what it measured."""
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.client"],
                cwd=ROOT,
                env=place.environment(),
                input=json.dumps(asdict(order)).encode(),
                stdout=subprocess.PIPE,
                stderr=said,
                timeout=CLIENT_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(
                f"the client of {order.system} ({order.kind}) took over {CLIENT_TIMEOUT:.0f} s"
            ) from None
        if done.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace")[-2000:]
            raise BenchmarkError(f"the client of {order.system} ({order.kind}) failed:\n{words}")
    return Measure(**json.loads(done.stdout.splitlines()[-1]))
