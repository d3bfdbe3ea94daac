"""A node with real bridges on the embedded broker, for tests of everything between a producer and a bridge."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from started import started_here

from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from worker_node.bridge import Bridge
from worker_node.dispatcher import Dispatcher
from worker_node.node import Node
from worker_node.settings import NodeSettings

PATIENCE = 20  # seconds until a test gives up waiting
BRIDGES = Path(__file__).parent.parent / "bridges"
# Without site-packages it starts in a third of the time.
PYTHON = (sys.executable, "-S", "-E")


def misbehave(mode: str, argument: object = "") -> tuple[str, ...]:
    """The command of the bridge that goes wrong in this way, when it is asked to `misbehave`."""
    return (*PYTHON, str(BRIDGES / "misbehave.py"), mode, str(argument))


def foreign() -> tuple[str, ...]:
    """The command of a bridge that never heard of quaybridge."""
    return (*PYTHON, str(BRIDGES / "foreign.py"))


def with_sdk(name: str) -> tuple[str, ...]:
    """The command of a test's bridge that is made with the SDK."""
    return (sys.executable, str(BRIDGES / f"{name}.py"))


def breeder(token: str) -> tuple[str, ...]:
    """The command of the bridge that has descendants, all with this number on their command line."""
    return (*PYTHON, str(BRIDGES / "breeder.py"), token)


def echo(concurrency: int = 1) -> tuple[str, ...]:
    """The command of the SDK's echo bridge."""
    return (sys.executable, "-m", "examples.echo", str(concurrency))


async def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


def descriptors() -> set[str]:
    """The numbers of this process's open descriptors."""
    return set(os.listdir("/proc/self/fd"))


def children() -> list[psutil.Process]:
    """The bridges that nodes in this process have started: all of its children but the nodes' reapers."""
    return [child for child in started_here() if "reaper_program.py" not in " ".join(child.cmdline())]


class Rig:
    """The embedded broker, a producer, and nodes that serve `work`."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.producer = AsyncProducer(self.broker)
        self.nodes: list[Node] = []

    def node(
        self, command: tuple[str, ...], *, bridges: int = 1, of_node: dict[str, Any] | None = None, **of_service: Any
    ) -> Node:
        """A node that is impatient, and tries each request once; not started."""
        service = {
            "name": "work",
            "command": command,
            "bridges": bridges,
            "run_timeout": 10.0,
            "stop_timeout": 0.3,
            "restart_delay": 0.01,
            "max_restart_delay": 0.05,
            "retry": {"max_attempts": 1},
            **of_service,
        }
        settings = {"name": f"n{len(self.nodes) + 1}", "services": [service], **(of_node or {})}
        made = Node(NodeSettings.model_validate(settings), self.broker)
        self.nodes.append(made)
        return made

    async def serve(self, command: tuple[str, ...], **options: Any) -> Dispatcher:
        """Start a node, and the producer before it; gives the node's service."""
        node = self.node(command, **options)
        if len(self.nodes) == 1:
            await self.producer.start()
        await node.start()
        return node.services[0]

    async def call(self, command: str, args: dict[str, Any] | None = None, *, timeout: float = PATIENCE) -> Any:
        """What the service answers."""
        return (await self.producer.call("work", command, args, timeout=timeout)).result

    def bridge(self, slot: int = 0) -> Bridge:
        """The bridge in a slot of the first node."""
        return next(bridge for bridge in self.nodes[0].services[0].bridges() if bridge.slot == slot)

    async def close(self) -> None:
        """Stop and close them all."""
        for node in self.nodes:
            await node.stop()
        await self.producer.close()
