"""The demo: every Python file of a corpus analysed by bridges behind a queue, and the result proved.

The proof is a second run of the same analysis, in this process and without any of quaybridge: the two must agree
file by file, in what they found and in what they could not parse.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

import psutil

from bridge_protocol.errors import ApplicationError, QuaybridgeError
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker
from broker.memory import MemoryBroker
from examples.analyse import analysis
from producer.async_producer import AsyncProducer
from quaybridge.settings import SettingsError
from worker_node.environment import MARK, RUN
from worker_node.node import Node
from worker_node.reaper import Reaper
from worker_node.settings import NodeSettings, ServiceSettings

SERVICE = "demo-analyse"
COMMAND = (sys.executable, "-m", "examples.analyse")
IN_FLIGHT_PER_BRIDGE = 8
REQUEST_TIMEOUT = 300.0  # seconds
NODE_START_TIMEOUT = 60.0  # seconds
NODE_STOP_TIMEOUT = 15.0  # seconds

Findings = dict[str, Any]  # by path: what a file's analysis found, or the text of its failure


class DemoError(QuaybridgeError):
    """Raised when the demo cannot run; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. `url` None: the embedded broker, and all nodes in this process."""

    url: str | None
    nodes: int
    bridges: int
    corpus: Path
    chaos: bool


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it. Times in seconds; `chaos` is what was killed, in words."""

    findings: Findings = field(default_factory=dict)
    failures: int = 0
    redelivered: int = 0
    retried: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    chaos: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, rank: int) -> float:
        """The latency that `rank` percent of the requests stayed within, in seconds."""
        if len(self.latencies) < 2:
            return self.latencies[0]
        return quantiles(self.latencies, n=100, method="inclusive")[rank - 1]


class Nodes(Protocol):
    """The worker nodes of a run, and what chaos can do to them."""

    def kill_bridge(self) -> str | None:
        """Kill one bridge with SIGKILL; what was done, or None if there was none."""

    async def kill_node(self) -> str | None:
        """Kill one node with SIGKILL and start another; what was done, or None where nodes are no processes."""


def python_files(corpus: Path) -> list[str]:
    """Every .py file under `corpus`, sorted. Raises SettingsError if there is none."""
    if not corpus.is_dir():
        raise SettingsError(f"--corpus: {corpus} is no directory: name a directory with Python files")
    files = sorted(str(path) for path in corpus.rglob("*.py") if "site-packages" not in path.parts and path.is_file())
    if not files:
        raise SettingsError(f"--corpus: {corpus} holds no .py file: name a directory with Python files")
    return files


def standard_library() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def analyse_here(files: list[str], on_done: Callable[[], None]) -> Findings:
    """The same analysis, in this process: what the bridges' answers are held against."""
    findings: Findings = {}
    for path in files:
        try:
            findings[path] = analysis.summarise(analysis.read(path), path)
        except analysis.Unparsable as error:
            findings[path] = f"{path}:{error.line or '?'}: {error}"
        except OSError as error:
            findings[path] = f"{path}: {error.strerror}"
        on_done()
    return findings


def functions(findings: Findings) -> int:
    """How many functions were found in all."""
    return sum(found["functions"] for found in findings.values() if isinstance(found, dict))


async def analyse_by_bridges(plan: Plan, files: list[str], on_done: Callable[[], None]) -> Outcome:
    """Analyse `files` through the queue. Raises what the producer raises, if a request cannot be carried at all."""
    async with AsyncExitStack() as stack:
        broker = MemoryBroker() if plan.url is None else AmqpBroker(parse_addresses(plan.url))
        # First, for a broker that is not there is found so, before nodes are started for it.
        producer = await stack.enter_async_context(AsyncProducer(broker, name="quaybridge demo"))
        nodes = await stack.enter_async_context(_running_nodes(plan, broker))
        outcome = Outcome()
        waiting = iter(files)
        in_flight = min(plan.nodes * plan.bridges * IN_FLIGHT_PER_BRIDGE, len(files))
        half_way = asyncio.Event()

        def done() -> None:
            on_done()
            if len(outcome.latencies) * 2 >= len(files):
                half_way.set()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(_ask(producer, waiting, outcome, done))
            if plan.chaos:
                group.create_task(_make_chaos(nodes, outcome, half_way))
        outcome.seconds = time.perf_counter() - started
        return outcome


async def _ask(producer: AsyncProducer, files: Iterator[str], outcome: Outcome, on_done: Callable[[], None]) -> None:
    for path in files:
        asked = time.perf_counter()
        try:
            reply = await producer.call(SERVICE, "summarise", {"path": path}, timeout=REQUEST_TIMEOUT)
        except ApplicationError as error:
            outcome.findings[path] = error.message.removeprefix("ApplicationError: ")
            outcome.failures += 1
        else:
            outcome.findings[path] = reply.result
            outcome.redelivered += reply.redelivered
            outcome.retried += reply.attempt > 1
        outcome.latencies.append(time.perf_counter() - asked)
        on_done()


async def _make_chaos(nodes: Nodes, outcome: Outcome, half_way: asyncio.Event) -> None:
    """Half-way, kill a bridge; then a node: what was done goes into `outcome`."""
    await half_way.wait()
    for done in (nodes.kill_bridge(), await nodes.kill_node()):
        if done is not None:
            outcome.chaos.append(done)


@asynccontextmanager
async def _running_nodes(plan: Plan, broker: Broker) -> AsyncIterator[Nodes]:
    if plan.url is None:
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(_local_node(plan, broker, n)) for n in range(plan.nodes)]
            yield LocalNodes(nodes)
    else:
        with tempfile.TemporaryDirectory(prefix="quaybridge-demo-") as directory:
            processes = NodeProcesses(plan, Path(directory))
            try:
                await processes.start()
                yield processes
            finally:
                await processes.stop()


@asynccontextmanager
async def _local_node(plan: Plan, broker: Broker, number: int) -> AsyncIterator[Node]:
    service = ServiceSettings(name=SERVICE, command=COMMAND, bridges=plan.bridges)
    node = Node(NodeSettings(name=f"demo-{number}", services=(service,)), broker)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


class LocalNodes:
    """Nodes in this process, on the embedded broker."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes

    def kill_bridge(self) -> str | None:
        for node in self._nodes:
            for service in node.services:
                for bridge in service.bridges():
                    os.kill(bridge.process.pid, signal.SIGKILL)
                    return f"bridge {bridge.process.pid} of {node.name} killed"
        return None

    async def kill_node(self) -> str | None:
        return None


class NodeProcesses:
    """Nodes as processes of their own: `quaybridge worker`, as on any machine. They end with a killed demo too."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan = plan
        self._directory = directory
        self._reaper = Reaper("demo")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started = 0

    async def start(self) -> None:
        """Start them all at once; returns when each can serve. Raises DemoError with what one said last."""
        await self._reaper.start()
        ready = [self._spawn() for _ in range(self._plan.nodes)]
        await asyncio.gather(*(asyncio.to_thread(_wait_ready, *node) for node in ready))

    def kill_bridge(self) -> str | None:
        node = psutil.Process(self._processes[0].pid)
        for child in node.children():
            with suppress(psutil.Error):  # it ended by itself, just now
                if child.environ().get(MARK):  # its reaper is its child too
                    child.kill()
                    return f"bridge {child.pid} of node process {node.pid} killed"
        return None

    async def kill_node(self) -> str | None:
        killed = self._processes.pop(0)
        killed.kill()
        await asyncio.to_thread(killed.wait)
        await asyncio.to_thread(_wait_ready, *self._spawn())
        return f"node process {killed.pid} killed, another started"

    async def stop(self) -> None:
        """Ask them to end at once, and see to it that they do."""
        for process in self._processes:
            # The first signal asks a node to drain, the second not to wait for that.
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                await asyncio.to_thread(process.wait, NODE_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        await self._reaper.stop()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Path, Path]:
        number = self._started
        self._started += 1
        alive, log = self._directory / f"alive-{number}", self._directory / f"log-{number}"
        arguments = ["worker", "--service", SERVICE, "--bridges", str(self._plan.bridges), "--name", f"demo-{number}"]
        # The URL holds a password: it travels in the environment, not on the command line for all to see.
        environment = {
            **os.environ,
            "QUAYBRIDGE_BROKER": self._plan.url or "",
            "QUAYBRIDGE_HEALTH_FILE": str(alive),
            RUN: self._reaper.new_bridge(),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "quaybridge", *arguments, "--bridge", shlex.join(COMMAND)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the demo; it ends its nodes then
            )
        self._processes.append(process)
        return process, alive, log


def _wait_ready(process: subprocess.Popen[bytes], alive: Path, log: Path) -> None:
    """Until a node says, by its health file, that it serves. Raises DemoError if it ends before that."""
    deadline = time.monotonic() + NODE_START_TIMEOUT
    while not alive.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise DemoError("a worker node did not start: " + (" | ".join(said) or "it said nothing"))
        time.sleep(0.05)
