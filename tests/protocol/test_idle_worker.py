"""What an idle worker has loaded: it lives long, there may be many, and each module costs each of them memory."""

from __future__ import annotations

import json
import subprocess
import sys

# Starts and stops what `quaybridge worker` does, but for the connection.
WORKER = """
import asyncio, json, sys
from quaybridge.command_line import application
application("worker")
from broker.amqp import AmqpBroker
from broker.memory import MemoryBroker
from quaybridge.failpoints import armed_failpoints
from quaybridge.heartbeat import Heartbeat
from quaybridge.settings import read_configuration
from worker_node.node import Node

async def main():
    environ = {"QUAYBRIDGE_SERVICES__ECHO__COMMAND": sys.executable + " -m examples.echo"}
    settings = read_configuration(None, environ=environ, flags={}).node()
    node = Node(settings, MemoryBroker())
    await node.start()
    loaded = sorted(sys.modules)
    await node.stop()
    print(json.dumps(loaded))

asyncio.run(main())
"""
NOT_NEEDED = {
    # of others
    *("aio_pika", "docker", "http", "multiprocessing", "psutil", "pytest", "requests", "rich"),
    *("sqlite3", "statistics", "testcontainers", "unittest", "uvloop", "xml"),
    # our own
    *("bridge_sdk", "examples", "producer", "quaybridge.batch", "quaybridge.demo", "quaybridge.rabbitmq"),
    *(f"quaybridge.command_{name}" for name in ("batch", "call", "conformance", "dead", "demo", "publish")),
}


def test_an_idle_worker_has_loaded_nothing_that_it_does_not_need() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(json.loads(done.stdout))
    assert "quaybridge.command_worker" in loaded
    assert "worker_node.bridge_process" in loaded
    assert loaded & NOT_NEEDED == set()
