"""The nodes of a chaos run: `quaybridge worker` processes that are killed, and replaced."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from chaos.workload import SERVICE
from worker_node.core.lookahead import ENOUGH, Lookahead

BRIDGE = Path(__file__).parent.parent / "bridges" / "chaotic.py"
START_PATIENCE = 60.0  # seconds for what takes one on an idle machine
STOP_PATIENCE = 40.0  # seconds to drain
ORPHAN_PATIENCE = 5.0  # seconds a bridge may outlive its node


class HerdError(AssertionError):
    """Raised when a node did what no node may: did not start, ended by itself, or left something behind."""


@dataclass(eq=False)
class NodeProcess:
    """One `quaybridge worker`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    serving: bool = False

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")


class Herd:
    """`size` nodes with so many bridges each, on the broker at `url` (or several, separated by commas).

    `program`: what Python runs as `quaybridge`; `environ`: more of each node's environment.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        size: int = 3,
        bridges: int = 2,
        program: Sequence[str] = ("-m", "quaybridge"),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes: list[NodeProcess] = []
        self.bridges = bridges
        self._size = size
        self._url = url
        self._directory = directory
        self._program = program
        self._environ = dict(environ or {})
        self._started = 0
        self._token = f"herd-{os.getpid()}-{directory.name}"  # marks the bridges' command lines

    def prefetch(self, shortest: float) -> int:
        """The most deliveries a node may hold, of runs that take at least `shortest` seconds."""
        lookahead = Lookahead()
        for _ in range(ENOUGH):
            lookahead.ran(shortest)
        return self.bridges + lookahead.wanted(self.bridges)

    async def start(self) -> None:
        """Start them all; returns when each serves."""
        await asyncio.gather(*(self.serve() for _ in range(self._size)))

    async def serve(self, environ: Mapping[str, str] | None = None) -> NodeProcess:
        """Start one more node; returns when it serves. Raises HerdError with what it said last."""
        node = self.spawn(environ)
        end = time.monotonic() + START_PATIENCE
        while f"{node.name}: serving" not in (said := node.said()):
            if node.process.poll() is not None or time.monotonic() > end:
                raise HerdError(f"{node.name} did not start: {said[-2000:]}")
            await asyncio.sleep(0.02)
        node.serving = True
        return node

    def spawn(self, environ: Mapping[str, str] | None = None) -> NodeProcess:
        """Start a node's process."""
        self._started += 1
        name = f"node-{self._started}"
        bridge = shlex.join((sys.executable, str(BRIDGE), self._token))
        options = ("--service", SERVICE, "--bridges", str(self.bridges), "--name", name, "--bridge", bridge)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("QUAYBRIDGE_")}
        retries = {"FIRST_DELAY": "1", "FACTOR": "1"}
        settings = {f"QUAYBRIDGE_SERVICES__{SERVICE.upper()}__RETRY__{key}": value for key, value in retries.items()}
        log = self._directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *self._program, "worker", *options],
                env={**inherited, **settings, "QUAYBRIDGE_BROKER": self._url, **self._environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the run, which ends its nodes then
            )
        node = NodeProcess(name, process, log)
        self.nodes.append(node)
        return node

    async def kill(self, node: NodeProcess) -> None:
        """Kill it, and see that it died of that."""
        node.process.kill()
        await self.gone(node)

    async def gone(self, node: NodeProcess) -> None:
        """Wait until it is dead by SIGKILL, by whose hand ever."""
        status = await asyncio.to_thread(node.process.wait, START_PATIENCE)
        self.nodes.remove(node)
        if status != -signal.SIGKILL:
            raise HerdError(f"{node.name} ended with {status} before it was killed: {node.said()[-2000:]}")

    def kill_bridge(self, source: random.Random) -> NodeProcess | None:
        """Kill one bridge of one node with SIGKILL; whose it was, or None if there was none."""
        node = source.choice([node for node in self.nodes if node.serving] or self.nodes)
        try:
            bridges = [child for child in psutil.Process(node.process.pid).children() if self._token in child.cmdline()]
            victim = source.choice(bridges)
            victim.kill()
        except (psutil.Error, IndexError):
            return None
        return node

    async def stop(self) -> None:
        """Drain them all. Raises HerdError for one that does not end with 0, or leaves a bridge."""
        for node in self.nodes:
            node.process.send_signal(signal.SIGTERM)
        try:
            for node in self.nodes:
                status = await asyncio.to_thread(node.process.wait, STOP_PATIENCE)
                if status:
                    raise HerdError(f"{node.name} ended with {status}: {node.said()[-2000:]}")
            await self._no_orphans()
        except subprocess.TimeoutExpired as error:
            raise HerdError(f"a node did not drain within {STOP_PATIENCE:.0f} s") from error
        finally:
            self.kill_all()

    def kill_all(self) -> None:
        """Leave nothing."""
        for node in self.nodes:
            node.process.kill()
            node.process.wait()
        self.nodes.clear()

    def troubles(self) -> list[str]:
        """The stack traces in the nodes' logs."""
        logs = sorted(self._directory.glob("node-*.log"))
        return [
            f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs if b"Traceback" in log.read_bytes()
        ]

    async def _no_orphans(self) -> None:
        end = time.monotonic() + ORPHAN_PATIENCE
        while orphans := [process.pid for process in psutil.process_iter() if self._token in _command_line(process)]:
            if time.monotonic() > end:
                raise HerdError(f"bridges outlived their nodes by {ORPHAN_PATIENCE:.0f} s: {orphans}")
            await asyncio.sleep(0.1)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
