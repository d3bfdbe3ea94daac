"""Failpoints in processes: what each action does to one, and a bridge that is killed where a request passes."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest
from rig import PATIENCE, Rig, echo, until

from broker.failpoints import Failpoints
from worker_node.failing_bridge import FailingBridge
from worker_node.node import Node
from worker_node.settings import NodeSettings

PROGRAM = """
import sys
from broker.failpoints import Failpoints, Point
failed = Failpoints.parse(sys.argv[1]).reached(Point.P4)
print("went on", failed)
"""


def start(armed: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, armed], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("exit", 1)])
def test_a_process_ends_at_a_failpoint(action: str, status: int) -> None:
    with start(f"p4:{action}") as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert (said, process.returncode) == ("", status)


async def test_a_process_stands_still_until_it_is_continued() -> None:
    with start("p4:pause") as process:
        await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=PATIENCE)
    assert (said, process.returncode) == ("went on False\n", 0)


@pytest.mark.parametrize("point", ["p5", "p6", "p7", "p8"])
async def test_a_bridge_is_killed_where_a_request_passes(rig: Rig, point: str) -> None:
    """At p8 it has answered: what was done is said to have failed, and is done again."""
    service = {"name": "work", "command": echo(), "bridges": 1, "restart_delay": 0.01, "retry": {"first_delay": 1}}
    failpoints = Failpoints.parse(f"{point}:error@2")
    settings = NodeSettings.model_validate({"services": [service]})
    node = Node(settings, rig.broker, spawn=partial(FailingBridge, failpoints))
    rig.nodes.append(node)
    await rig.producer.start()
    await node.start()
    await rig.call("echo")
    reply = await rig.producer.call("work", "sleep", {"seconds": 0.2}, timeout=PATIENCE)
    assert reply.attempt == 2
    assert node.counts["work"].retried == 1
