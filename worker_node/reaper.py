"""The node's side of its reaper: the one small process that sees to it that nothing outlives the node, or a bridge.

What the reaper does and how it finds what to kill is in `reaper_program`. It is the node's child, in a session of
its own, and holds nothing of the node but the other ends of two pipes. Here on the event loop nothing looks at
processes: who ended is written to one pipe, what was found is read from the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

from worker_node.environment import RUN
from worker_node.run_id import own_run_id

PROGRAM = Path(__file__).with_name("reaper_program.py").absolute()
SWEEP_TIMEOUT = 10.0  # seconds the node's start waits for what an earlier run left to be gone
STOP_TIMEOUT = 15.0  # seconds the reaper has to find that nothing is left
RESTART_INTERVAL = 1.0  # seconds between two starts, the first restart apart

logger = logging.getLogger("quaybridge.node")


def spawn_reaper(run_id: str, *, stdout: int) -> subprocess.Popen[bytes]:
    """The reaper of this run: `reaper_program` says what it reads and writes. Raises OSError."""
    # It gets no environment: what a dead run left is told by it, and the reaper of a node that was itself started by a
    # bridge must not pass for that. Some interpreters need the one variable to start at all.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return subprocess.Popen(
        (sys.executable, "-I", "-S", str(PROGRAM), f"{RUN}={run_id}"),
        stdin=subprocess.PIPE,
        stdout=stdout,
        env=environment,
        bufsize=0,
        start_new_session=True,
    )


class Reaper:
    """The reaper of one node. `start`, then `new_bridge` and `clear` for each bridge, then `stop`.

    A reaper that dies is replaced, and the next one is told again what the last one may not have done.
    """

    def __init__(self, node: str) -> None:
        self.run_id = own_run_id()
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._bridges = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned = -RESTART_INTERVAL
        self._again: asyncio.TimerHandle | None = None
        self._unsent = bytearray()
        self._unread = b""
        # By run id: what the log calls the bridge, and whether it is known to have left something.
        self._clearing: dict[str, tuple[str, bool]] = {}
        self._swept = asyncio.Event()
        self._started = False
        self._stopping = False
        self._last_try = False
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        pid = "gone" if self._process is None else self._process.pid
        return f"<Reaper {pid} of {self.run_id}, {len(self._clearing)} bridges to clear>"

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it, and wait until what earlier runs left is gone. Raises OSError if it cannot be started."""
        self._started = True
        self._spawn()
        try:
            async with asyncio.timeout(SWEEP_TIMEOUT):
                await self._swept.wait()
        except TimeoutError:
            logger.warning("%s: what an earlier run left is still not gone: going on without waiting", self._node)

    def new_bridge(self) -> str:
        """A run id for the environment of a bridge that is about to be started."""
        return f"{self.run_id}/{next(self._bridges)}"

    def clear(self, bridge: str, who: str, *, left: bool = False) -> None:
        """The bridge with this run id has ended: kill what is left of it.

        `who`: what the log calls it; `left`: something was left, and killed already.
        """
        self._clearing[bridge] = who, left
        self._send(bridge)

    async def stop(self) -> None:
        """Kill what is left of all bridges, and end the reaper. Returns at once if `start` was never called."""
        if not self._started:
            return
        if not self._stopping:
            self._stopping = True
            if self._process is None:
                self._spawn_again()
            self._send("end")
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._gone.wait()
        except TimeoutError:
            logger.warning("%s: the reaper does not end, and is killed", self._node)
            self._last_try = True
            if self._process is not None:
                self._process.kill()
            await self._gone.wait()

    def _spawn(self) -> None:
        self._spawned = self._loop.time()
        process = self._process = spawn_reaper(self.run_id, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._unsent.clear()
        self._unread = b""
        self._loop.add_reader(process.stdout.fileno(), self._read, process)
        for bridge in self._clearing:
            self._send(bridge)

    def _spawn_again(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            self._spawn()
        except OSError as error:
            logger.error("%s: the reaper cannot be started: %s", self._node, error.strerror or error)
            if self._stopping:
                self._gone.set()
            else:
                self._again = self._loop.call_later(RESTART_INTERVAL, self._spawn_again)
        else:
            logger.info("%s: another reaper (%d) was started", self._node, self.pid)

    def _send(self, line: str) -> None:
        self._unsent += f"{line}\n".encode()
        self._write()

    def _write(self) -> None:
        if self._process is None or self._process.stdin is None:
            return  # the next one is told
        pipe = self._process.stdin.fileno()
        try:
            written = os.write(pipe, self._unsent)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:
            self._loop.remove_writer(pipe)
            return  # its end is about to be read
        del self._unsent[:written]
        if self._unsent:
            self._loop.add_writer(pipe, self._write)
        else:
            self._loop.remove_writer(pipe)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            data = os.read(process.stdout.fileno(), 65536)
        except BlockingIOError:
            return
        if not data:
            self._ended(process)
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            name, _, killed = line.decode().partition(" ")
            self._told(name, int(killed))

    def _told(self, name: str, killed: int) -> None:
        what = "1 process" if killed == 1 else f"{killed} processes"
        if name == "sweep":
            self._swept.set()
            who, left = "an earlier run", False
        elif name in self._clearing:
            who, left = self._clearing.pop(name)
            what = "processes"  # some of them may have been killed with its group, and nobody counted those
        else:
            who, left = "this run", False
        if killed or left:
            logger.warning("%s: %s left %s behind: killed", self._node, who, what)

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._loop.remove_reader(process.stdout.fileno())
        self._loop.remove_writer(process.stdin.fileno())
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it closed its output, so it is ending: waiting for that takes no time
        code = process.wait()
        process.stdin.close()
        process.stdout.close()
        self._process = None
        if self._stopping and (code == 0 or self._last_try):
            self._gone.set()
            return
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        logger.warning("%s: the reaper (%d) ended with %s: starting another", self._node, process.pid, how)
        if self._stopping:
            self._last_try = True
            self._spawn_again()
            self._send("end")
            return
        delay = self._spawned + RESTART_INTERVAL - self._loop.time()
        self._again = self._loop.call_later(max(0.0, delay), self._spawn_again)
