"""The demo over RabbitMQ: nodes are processes of their own, and one is killed half-way."""

from __future__ import annotations

import asyncio
import json
import sysconfig
from contextlib import suppress
from pathlib import Path

import psutil
from command_line import PATIENCE, run, running

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


def is_bridge(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "examples.analyse" in process.cmdline()
    return False


async def test_a_demo_that_is_killed_leaves_no_process_behind(rabbitmq_url: str) -> None:
    corpus = sysconfig.get_path("stdlib")
    async with running("demo", "--broker", rabbitmq_url, "--nodes", "2", "--bridges", "1", "--corpus", corpus) as demo:
        process = psutil.Process(demo.process.pid)
        async with asyncio.timeout(PATIENCE):
            family = process.children(recursive=True)
            while sum(map(is_bridge, family)) < 2:
                await asyncio.sleep(0.02)
                family = process.children(recursive=True)
        process.kill()
        _, left = await asyncio.to_thread(psutil.wait_procs, family, timeout=10)
    assert left == []


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
