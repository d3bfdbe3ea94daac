"""The demo on the embedded broker, as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest
from command_line import PATIENCE, run, running

FIELDS = [
    "broker",
    "nodes",
    "bridges",
    "files",
    "functions",
    "failures",
    "redelivered",
    "requests_per_second",
    "p50_ms",
    "p99_ms",
    "verified",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A few files with something in them, and one that is no Python."""
    (tmp_path / "inner").mkdir()
    for number in range(30):
        (tmp_path / "inner" / f"file_{number}.py").write_text(
            f"import os\ndef f{number}(x):\n    return x or {number}\n"
        )
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nclass É: pass\n".encode("latin-1"))
    (tmp_path / "broken.py").write_text("def (:\n")
    return tmp_path


async def test_it_proves_its_result(corpus: Path) -> None:
    ended = await run("demo", "--broker", "memory", "--corpus", str(corpus))
    assert ended.status == 0, ended.err
    last = ended.out.splitlines()[-1]
    assert last == "verified: identical to the in-process run"
    said = dict(line.split(maxsplit=1) for line in ended.out.splitlines()[:-1] if not line.startswith(("p50", "p99")))
    assert (said["files"], said["functions"], said["failures"]) == ("32", "30", "1")
    assert "32 files" in ended.err


async def test_json_is_one_object_with_every_figure(corpus: Path) -> None:
    ended = await run("demo", "--broker", "memory", "--nodes", "1", "--corpus", str(corpus), "--json")
    assert ended.status == 0
    assert ended.err == ""
    figures = json.loads(ended.out)
    assert list(figures) == FIELDS
    assert (figures["broker"], figures["nodes"], figures["verified"]) == ("embedded broker", 1, True)
    assert figures["requests_per_second"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


async def test_chaos_kills_a_bridge_and_the_result_still_agrees(corpus: Path) -> None:
    ended = await run("demo", "--broker", "memory", "--corpus", str(corpus), "--chaos")
    assert ended.status == 0, ended.err
    assert "killed" in ended.err
    assert ended.out.splitlines()[-1].startswith("verified")


def test_a_difference_is_told_and_ends_with_1(tmp_path: Path) -> None:
    # What this path holds depends on who reads it: nothing for a bridge, a function for the demo itself.
    (tmp_path / "mine.py").symlink_to("/proc/self/fd/0")
    (tmp_path / "input").write_text("def f(): pass\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("QUAYBRIDGE_")}
    with (tmp_path / "input").open() as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "quaybridge", "demo", "--broker", "memory", "--corpus", str(tmp_path)],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environ,
        )
    assert done.returncode == 1
    assert "NOT verified" in done.stdout
    assert "mine.py" in done.stderr


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("from quaybridge.__main__ import main; sys.argv = ['quaybridge', 'demo', '--dspy']; main()", "not installed"),
        ("import runpy; runpy.run_module('examples.dspy', run_name='__main__')", "dspy"),
    ],
)
def test_without_dspy_one_sentence_says_how_to_get_it(start: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['dspy'] = None; {start}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in line
    assert "pip install 'quaybridge[dspy]'" in line


async def test_dspy_is_not_shown_on_another_broker() -> None:
    ended = await run("demo", "--dspy", "--broker", "amqp://rabbit.example/")
    assert ended.status == 2
    assert "--dspy is shown on the embedded broker" in ended.err


async def test_a_corpus_without_python_is_a_clear_error(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        ended = await run("demo", "--broker", "memory", "--corpus", str(directory))
        assert ended.status == 2
        assert len(ended.err.splitlines()) == 1
        assert ended.err.startswith(f"--corpus: {directory} ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_it_leaves_no_process_behind(number: signal.Signals) -> None:
    corpus = sysconfig.get_path("stdlib")
    async with running("demo", "--broker", "memory", "--corpus", corpus) as demo:
        process = psutil.Process(demo.process.pid)
        async with asyncio.timeout(PATIENCE):
            while len(bridges := process.children()) < 4:
                await asyncio.sleep(0.02)
        process.send_signal(number)
        ended = await demo.ended()
    assert ended.status == 130
    assert "Traceback" not in ended.err
    _, left = psutil.wait_procs(bridges, timeout=5)
    assert left == []
