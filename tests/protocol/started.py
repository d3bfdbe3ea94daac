"""What a test has started, and not ended."""

from __future__ import annotations

import psutil

from worker_node.environment import RUN


def started_here() -> list[psutil.Process]:
    """The children of this process, but for the rabbitmq-server that other layers share, and the reaper of that."""
    children = psutil.Process().children()
    servers = [child for child in children if child.name() == "rabbitmq-server"]
    runs = {f"{RUN}={server.environ()[RUN].partition('/')[0]}" for server in servers}
    return [child for child in children if child not in servers and not runs & _arguments(child)]


def _arguments(process: psutil.Process) -> set[str]:
    try:
        return set(process.cmdline())
    except psutil.ZombieProcess:
        return set()
