"""The notebook: its bridge, and the show of what becomes of sessions when a node goes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from rich.console import Console
from rig import PATIENCE, Rig

from bridge_protocol.errors import ApplicationError
from broker.memory import MemoryBroker
from examples.notebook import __main__ as notebook
from examples.notebook import nodes
from examples.notebook.nodes import NodeNotStarted
from worker_node import partitions

COMMAND = (sys.executable, "-m", "examples.notebook.bridge")


async def test_variables_stay_for_each_session_its_own(rig: Rig) -> None:
    await rig.serve(COMMAND, sessions={"enabled": True})

    async def run(session: str, code: str) -> object:
        return (await sessions[session].call("run", {"code": code}, timeout=PATIENCE)).result

    sessions = {name: rig.producer.session(name, service="work") for name in "ab"}
    assert await run("a", "x = 1\nprint('one')") == {"value": None, "printed": "one\n"}
    assert await run("b", "x = 'b'") == {"value": None, "printed": ""}
    assert await run("a", "def f():\n    return x + 1\nf()") == {"value": "2", "printed": ""}
    assert await run("b", "x") == {"value": "'b'", "printed": ""}
    with pytest.raises(ApplicationError, match="NameError: name 'y'"):
        await run("a", "x = 5\ny")
    assert await run("a", "x") == {"value": "5", "printed": ""}
    await sessions["a"].close()
    sessions["a"] = rig.producer.session("a", service="work")
    with pytest.raises(ApplicationError, match="NameError: name 'x'"):
        await run("a", "x")
    assert await run("b", "x") == {"value": "'b'", "printed": ""}
    with pytest.raises(ApplicationError, match="needs a session"):
        await rig.call("run", {"code": "1"})


async def test_the_show_on_the_embedded_broker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(partitions, "HAND_BACK", 0.0)
    monkeypatch.setattr(notebook, "CELLS", 8)
    monkeypatch.setenv("COLUMNS", "100")
    assert await asyncio.to_thread(notebook.main, ["--broker", "memory", "--sessions", "24"]) == 0
    said = capsys.readouterr()
    assert "stopped at once" in said.err
    *_, every, _, last = said.out.splitlines()
    assert last.startswith("verified")
    total, kept, lost, rebuilt, wrong = map(int, every.replace("│", " ").split()[1:])
    assert total == kept + lost + rebuilt == 24
    assert min(kept, lost, rebuilt) > 0
    assert wrong == 0


async def test_a_variable_that_is_lost_without_a_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The show proves something: with a bridge that forgets, it is not verified."""
    monkeypatch.setattr(partitions, "HAND_BACK", 0.0)
    monkeypatch.setattr(notebook, "CELLS", 4)
    forgets = (
        "from bridge_sdk import Bridge; bridge = Bridge(); bridge.command('run')(lambda code: {'value': '1'}); "
        "bridge.serve()"
    )
    monkeypatch.setattr("examples.notebook.nodes.COMMAND", (sys.executable, "-c", forgets))
    notebooks, killed = await notebook.show(MemoryBroker(), None, 6, Console(quiet=True))
    assert not notebook.verified(notebooks, killed)


async def test_one_node_that_does_not_start_leaves_none_of_the_others(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = nodes._process

    async def begun(stack: AsyncExitStack, name: str, *rest: Any) -> Callable[[], Awaitable[None]]:
        if name == "a":
            raise NodeNotStarted("a: it does not")
        return await begin(stack, name, *rest)

    monkeypatch.setattr(nodes, "_process", begun)
    with pytest.raises(NodeNotStarted, match="a: it does not"):
        async with nodes.nodes(("a", "b", "c"), "amqp://127.0.0.1:1/", MemoryBroker()):
            raise AssertionError("it serves")
