"""Bridges that are not made with the SDK, under a node; and a client that is no node, with a bridge that is."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rig import PATIENCE, Rig, foreign, until

from bridge_protocol.errors import ApplicationError, DeadlineExceeded

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ARGS: dict[str, Any] = {
    "text": "déjà vu 😀",
    "numbers": [0, -2.5, 2**53 - 1],
    "nothing": None,
    "nested": {"list": [[]]},
}


async def test_a_bridge_that_knows_nothing_of_us_serves_unchanged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quaybridge.bridge")
    await rig.serve(foreign(), stop_timeout=PATIENCE)
    bridge = rig.bridge().process
    assert await rig.call("echo", ARGS) == {"status": "ok", "echoed": ARGS}
    assert await rig.call("bare", ARGS) == ARGS
    assert await rig.call("talkative", ARGS) == ARGS
    assert await rig.call("no_such_command") == {"status": "error", "error": "Unknown command: no_such_command"}
    with pytest.raises(ApplicationError) as failed:
        await rig.call("fail")
    assert (failed.value.message, failed.value.details) == ("no such program: p1", {})
    assert (await rig.call("ping", {"who": "is there"}))["echo"] == {"who": "is there"}
    assert rig.bridge().process is bridge
    await until(lambda: "serving ping" in caplog.messages[-1])
    await rig.nodes[0].drain()  # which ends its stdin, and kills it only after `stop_timeout`; a stop kills it at once
    assert any("foreign bridge ended" in line for line in caplog.messages)


@pytest.fixture(params=["node", "cc", "escript"])
def command(request: pytest.FixtureRequest, program: Callable[[str], str], tmp_path: Path) -> tuple[str, ...]:
    """How each of the example bridges is started."""
    found = program(request.param)
    if request.param == "node":
        return (found, str(EXAMPLES / "node" / "bridge.js"))
    if request.param == "escript":
        return (found, str(EXAMPLES / "erlang" / "bridge.escript"))
    built = tmp_path / "bridge"
    subprocess.run([found, "-O2", "-o", str(built), str(EXAMPLES / "c" / "bridge.c")], check=True)
    return (str(built),)


async def test_the_examples_serve_under_a_node_and_their_cancels_save_them(rig: Rig, command: tuple[str, ...]) -> None:
    await rig.serve(command, stop_timeout=PATIENCE)
    bridge = rig.bridge().process
    assert await rig.call("echo", ARGS) == ARGS
    assert await asyncio.gather(*(rig.call("echo", {"n": n}) for n in range(100))) == [{"n": n} for n in range(100)]
    assert await rig.call("sleep", {"seconds": 0.01}) == 0.01
    with pytest.raises(ApplicationError, match="no_such_command"):
        await rig.call("no_such_command")
    with pytest.raises(DeadlineExceeded):
        await rig.call("sleep", {"seconds": 3600}, timeout=0.5)
    assert await rig.call("count", {"to": 3}) == 3
    assert await rig.call("log", {"bytes": 100_000}) == 100_000
    assert rig.bridge().process is bridge


async def test_an_erlang_client_opens_our_python_bridge_as_a_port(program: Callable[[str], str]) -> None:
    """With `{packet, 4}` and DSPex's messages: a ping with its own initialization, requests, replies, a shutdown."""
    client = await asyncio.create_subprocess_exec(
        *(program("escript"), str(EXAMPLES / "erlang" / "client.escript"), sys.executable, "-m", "examples.echo"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    async with asyncio.timeout(3 * PATIENCE):
        out, err = await client.communicate()
    assert client.returncode == 0, (out, err)
    lines = out.decode().splitlines()
    assert lines[0].startswith('ping (0): {"id":0,"success":true,"result":{"status":"ok","capabilities":')
    assert "What is déjà vu? 😀" in lines[1]
    assert lines[3].startswith("echo (9007199254740991): ")
    assert lines[-1] == "the bridge ended with 0"
