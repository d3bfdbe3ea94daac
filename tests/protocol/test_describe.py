"""What a service's commands are, asked of it: of bridges in several languages, of busy ones, and of none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rig import PATIENCE, Rig, echo, foreign, until, with_sdk

from bridge_protocol.errors import BadRequest, DeadlineExceeded, UnknownService
from quaybridge.descriptions import NotDescribed, as_json, ask_descriptions, print_descriptions

ROOT = Path(__file__).parents[2]


async def test_of_the_sdk(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    await rig.serve((sys.executable, "-m", "examples.stream_words"))
    found = await ask_descriptions(rig.producer, "work", PATIENCE)
    print_descriptions("work", found)
    told = capsys.readouterr().out
    assert "\nsay  streams str\n    The words of `text`, one after the other, " in told
    assert told.endswith(
        "    text: str\n    delay: float = 0.0\n\n"
        "write  → int\n    Write so many pages, and say how far it is.\n    pages: int\n    delay: float = 0.1\n"
    )
    (said,) = (each for each in as_json("work", found)["commands"] if each["name"] == "write")
    assert said["args"] == [
        {"name": "pages", "type": "int", "required": True},
        {"name": "delay", "type": "float", "required": False, "default": 0.1},
    ]


async def test_of_an_api(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    await rig.serve((sys.executable, "-m", "examples.invoices"))
    print_descriptions("work", await ask_descriptions(rig.producer, "work", PATIENCE))
    told = capsys.readouterr().out
    assert "lines: list[Line(text: str, price: Decimal, count?: int)]\n" in told
    assert """currency: Currency('EUR' | 'CHF') = "EUR"\n""" in told


async def test_of_another_language(rig: Rig, program: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    await rig.serve((program("node"), str(ROOT / "examples" / "node" / "bridge.js")))
    print_descriptions("work", await ask_descriptions(rig.producer, "work", PATIENCE))
    told = capsys.readouterr().out
    assert "count  streams\n    The numbers from 0 on.\n    to: integer\n" in told
    assert "echo  → object\n    Gives back its args.\n    … any others\n" in told


async def test_nothing_that_a_bridge_says_moves_the_cursor(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge = tmp_path / "artist.py"
    bridge.write_text(
        "from bridge_sdk import Bridge\nbridge = Bridge()\n"
        "@bridge.command\ndef paint(colour: str = '\\x1b[31m') -> None:\n    'In \\x1b[31m[bold]red[/bold].'\n"
        "bridge.serve()\n"
    )
    await rig.serve((sys.executable, str(bridge)))
    print_descriptions("work", await ask_descriptions(rig.producer, "work", PATIENCE))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "[bold]red[/bold]" in told


async def test_with_small_frames_a_bridge_starts_all_the_same(rig: Rig) -> None:
    await rig.serve(echo(), frame_limit=1024)
    found = await ask_descriptions(rig.producer, "work", PATIENCE)
    assert [each.name for each in found] == ["echo", "fail", "log", "pid", "sleep"]


async def test_a_bridge_that_says_nothing_is_told_of(rig: Rig) -> None:
    await rig.serve(foreign())
    with pytest.raises(NotDescribed, match="the bridge of 'work' does not say what its commands are"):
        await ask_descriptions(rig.producer, "work", PATIENCE)


async def test_without_a_worker_that_is_said_at_once(rig: Rig) -> None:
    await rig.producer.start()
    with pytest.raises(UnknownService, match=r"no queue for service 'work'|no worker was ever started"):
        await ask_descriptions(rig.producer, "work", PATIENCE)
    with pytest.raises(BadRequest, match="no service name"):
        await ask_descriptions(rig.producer, "No Name", PATIENCE)
    await rig.node(with_sdk("octets")).start()
    await rig.nodes[0].stop()
    began = asyncio.get_running_loop().time()
    with pytest.raises(UnknownService, match="no worker serves 'work' now: start one, and ask again"):
        await ask_descriptions(rig.producer, "work", 2 * PATIENCE)
    assert asyncio.get_running_loop().time() - began < PATIENCE
    await until(lambda: not rig.producer.sender.waiting)


async def test_workers_that_are_busy_are_told_from_none(rig: Rig) -> None:
    await rig.serve(echo())
    running = await rig.producer.submit("work", "sleep", {"seconds": 60}, timeout=PATIENCE)
    await until(lambda: any(slot.runs for slot in rig.nodes[0].services[0].pool.slots))
    with pytest.raises(DeadlineExceeded, match=r"the workers that serve 'work' are busy: none answered in 1.5 s"):
        await ask_descriptions(rig.producer, "work", 1.5)
    await running.cancel(timeout=PATIENCE)
    assert await ask_descriptions(rig.producer, "work", PATIENCE)
