"""The demo over RabbitMQ: nodes are processes of their own, and one is killed half-way."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import psutil
from command_line import run

CORPUS = Path(sysconfig.get_path("stdlib")) / "encodings"


async def test_a_bridge_and_a_node_are_killed_and_the_result_still_agrees(rabbitmq_url: str) -> None:
    before = {process.pid for process in psutil.process_iter()}
    ended = await run("demo", "--broker", rabbitmq_url, "--corpus", str(CORPUS), "--chaos")
    assert ended.status == 0, ended.err
    assert ended.err.count("killed") == 2, ended.err
    assert ended.out.splitlines()[-1] == "verified: identical to the in-process run"
    left = [
        process
        for process in psutil.process_iter(["pid", "cmdline"])
        if process.pid not in before and "examples.analyse" in " ".join(process.info["cmdline"] or [])
    ]
    assert psutil.wait_procs(left, timeout=5)[1] == []


async def test_the_figures_of_a_run_over_rabbitmq(rabbitmq_url: str) -> None:
    ended = await run("demo", "--broker", rabbitmq_url, "--corpus", str(CORPUS), "--json")
    assert ended.status == 0, ended.err
    figures = json.loads(ended.out)
    assert (figures["broker"], figures["verified"]) == ("RabbitMQ", True)
    assert figures["files"] == len(list(CORPUS.rglob("*.py")))


async def test_auto_takes_the_broker_that_the_environment_names(rabbitmq_url: str) -> None:
    environ = {"QUAYBRIDGE_BROKER": rabbitmq_url}
    ended = await run("demo", "--nodes", "1", "--bridges", "1", "--corpus", str(CORPUS), environ=environ)
    assert ended.status == 0, ended.err
    assert "QUAYBRIDGE_BROKER names it" in ended.err
