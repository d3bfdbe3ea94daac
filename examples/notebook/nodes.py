"""The nodes of the show: processes on RabbitMQ, and on the embedded broker nodes within this process."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from broker.contract import Broker
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings, SessionSettings

SERVICE = "notebook"
COMMAND = (sys.executable, "-m", "examples.notebook.bridge")
BRIDGES = 2
START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 15.0  # seconds

# By the name of each node, what ends it with no time to say good-bye.
Kills = dict[str, Callable[[], Awaitable[None]]]


class NodeNotStarted(Exception):
    """Raised when a node does not start; says what it said last."""


@asynccontextmanager
async def nodes(names: Sequence[str], url: str | None, broker: Broker) -> AsyncIterator[Kills]:
    """Nodes that serve. `url` None: within this process, on `broker`; there a kill stops a node at once."""
    async with AsyncExitStack() as stack:
        if url is None:
            yield {name: await _local_node(stack, name, broker) for name in names}
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quaybridge-notebook-")))
            try:
                async with asyncio.TaskGroup() as group:
                    started = [group.create_task(_process(stack, name, url, directory)) for name in names]
            except* NodeNotStarted as several:
                # One is enough for a person: the others are ended with it.
                raise several.exceptions[0] from None
            yield {name: task.result() for name, task in zip(names, started, strict=True)}


async def _local_node(stack: AsyncExitStack, name: str, broker: Broker) -> Callable[[], Awaitable[None]]:
    service = ServiceSettings(name=SERVICE, command=COMMAND, bridges=BRIDGES, sessions=SessionSettings(enabled=True))
    node = Node(NodeSettings(name=name, services=(service,)), broker)
    stack.push_async_callback(node.stop)
    await node.start()
    return node.stop


async def _process(stack: AsyncExitStack, name: str, url: str, directory: Path) -> Callable[[], Awaitable[None]]:
    """`quaybridge worker`, as on any machine; returns when it serves."""
    alive, log = directory / f"alive-{name}", directory / f"log-{name}"
    arguments = ["--service", SERVICE, "--bridge", shlex.join(COMMAND), "--bridges", str(BRIDGES), "--name", name]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quaybridge", "worker", *arguments),
            env={
                **os.environ,
                "QUAYBRIDGE_BROKER": url,
                "QUAYBRIDGE_HEALTH_FILE": str(alive),
                f"QUAYBRIDGE_SERVICES__{SERVICE.upper()}__SESSIONS__ENABLED": "true",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the show; it ends its nodes then
        )
    stack.push_async_callback(_stop, process)
    for _ in range(int(START_TIMEOUT / 0.05)):
        if alive.exists():
            break
        if process.returncode is not None:
            raise NodeNotStarted(f"{name}: {log.read_text(errors='replace').strip()[-1000:]}")
        await asyncio.sleep(0.05)
    else:
        raise NodeNotStarted(f"{name} does not serve after {START_TIMEOUT:g} s")

    async def kill() -> None:
        process.kill()
        await process.wait()

    return kill


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        # The first signal asks a node to drain, the second not to wait for that.
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
