"""What a bridge may use, and how one that wants more ends: its request is told what the bridge met."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
from rig import BRIDGES, PYTHON, Rig

from bridge_protocol.errors import BridgeCrashed
from worker_node.launch import CPU_GRACE, Launcher
from worker_node.settings import LimitSettings

MEGABYTE = 1024 * 1024
HUNGRY = (*PYTHON, str(BRIDGES / "hungry.py"))
ALL = {"memory": 900 * MEGABYTE, "open_files": 64, "processes": 900, "cpu_time": 90, "nice": 7}


async def test_limits_hold_for_the_bridge_itself_which_keeps_its_process_id(rig: Rig) -> None:
    await rig.serve(HUNGRY, limits=ALL)
    assert await rig.call("limits") == {
        "RLIMIT_AS": [900 * MEGABYTE] * 2,
        "RLIMIT_NOFILE": [64, 64],
        "RLIMIT_NPROC": [900, 900],
        "RLIMIT_CPU": [90, 90 + CPU_GRACE],
        "RLIMIT_CORE": [0, 0],
        "nice": os.nice(0) + 7,
        "pid": rig.bridge().process.pid,
    }


async def test_without_limits_it_may_use_what_the_node_may_but_never_dumps_core(rig: Rig) -> None:
    await rig.serve(HUNGRY)
    told = await rig.call("limits")
    for name in ("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CPU"):
        assert tuple(told[name]) == resource.getrlimit(getattr(resource, name))
    assert told["RLIMIT_CORE"] == [0, 0]
    assert told["nice"] == os.nice(0)
    assert told["pid"] == rig.bridge().process.pid


@pytest.mark.parametrize(
    ("command", "limits", "last_words"),
    [
        ("memory", {"memory": 200 * MEGABYTE}, "MemoryError"),
        ("files", {"open_files": 32}, "OSError: [Errno 24] Too many open files: '/dev/null'"),
        ("processes", {"processes": 4}, "BlockingIOError: [Errno 11] Resource temporarily unavailable"),
    ],
)
async def test_a_bridge_that_is_refused_more_says_so_in_its_failure(
    rig: Rig, command: str, limits: dict[str, int], last_words: str
) -> None:
    await rig.serve(HUNGRY, limits=limits)
    with pytest.raises(BridgeCrashed) as crashed:
        await rig.call(command)
    assert crashed.value.details["exit_code"] == 1
    assert crashed.value.details["stderr"][-1] == last_words
    assert (await rig.call("limits"))["RLIMIT_CORE"] == [0, 0]  # its successor serves


async def test_a_bridge_without_cpu_time_ends_by_its_signal(rig: Rig) -> None:
    await rig.serve(HUNGRY, limits={"cpu_time": 1}, run_timeout=60)
    with pytest.raises(BridgeCrashed) as crashed:
        await rig.call("cpu", timeout=60)
    assert crashed.value.details["signal"] == "SIGXCPU"
    assert "signal SIGXCPU" in crashed.value.message


# How the command is made.


def tools(directory: Path, *names: str, status: int = 0) -> str:
    """A PATH on which there are these programs, and they do nothing."""
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (directory / name).chmod(0o755)
    return str(directory)


def command(launcher: Launcher, **limits: int) -> tuple[str, ...]:
    return launcher.command(("sh", "-c", ":"), LimitSettings(**limits), {"PATH": "/bin:/usr/bin"}, None)


def test_each_tool_does_its_part_and_the_command_comes_last(tmp_path: Path) -> None:
    launcher = Launcher(tools(tmp_path, "setpriv", "nice", "prlimit"))
    assert launcher.lacking == []
    death = (f"{tmp_path}/setpriv", "--pdeathsig", "KILL", "--")
    prlimit = (f"{tmp_path}/prlimit", "--core=0")
    assert command(launcher) == (*death, *prlimit, "--", "sh", "-c", ":")
    limited = command(launcher, memory=20_000_000, open_files=20, processes=30, cpu_time=40, nice=5)
    options = ("--as=20000000", "--nofile=20", "--nproc=30", "--cpu=40:45")
    assert limited == (*death, f"{tmp_path}/nice", "-n", "5", "--", *prlimit, *options, "--", "sh", "-c", ":")


def test_where_there_are_no_tools_a_bridge_starts_as_it_is_and_the_log_says_what_it_lacks(tmp_path: Path) -> None:
    launcher = Launcher(str(tmp_path))
    assert command(launcher) == ("sh", "-c", ":")
    assert [name.split()[0] for name in launcher.lacking] == ["setpriv", "prlimit"]


@pytest.mark.parametrize(("limits", "tool"), [({"nice": 1}, "nice"), ({"cpu_time": 1}, "prlimit")])
def test_limits_that_cannot_be_set_are_an_error(tmp_path: Path, limits: dict[str, int], tool: str) -> None:
    with pytest.raises(FileNotFoundError, match="limits are set: install util-linux") as missing:
        command(Launcher(str(tmp_path)), **limits)
    assert missing.value.filename == tool


def test_a_setpriv_that_does_not_know_the_signal_is_not_used(tmp_path: Path) -> None:
    launcher = Launcher(tools(tmp_path, "setpriv", status=1))
    assert command(launcher) == ("sh", "-c", ":")
    assert launcher.lacking[0].startswith("setpriv --pdeathsig")


async def test_a_node_says_what_its_host_lacks_and_serves(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    await rig.serve(HUNGRY)
    assert (await rig.call("limits"))["pid"] == rig.bridge().process.pid
    assert any(line.startswith("n1: this host has no setpriv --pdeathsig") for line in caplog.messages)


# Programs that cannot be executed: found out before the tools could turn it into a line on stderr.


@pytest.mark.parametrize(
    ("program", "directory", "error"),
    [
        ("program", None, FileNotFoundError),
        ("/no/such/program", None, FileNotFoundError),
        ("./missing", "{here}", FileNotFoundError),
        ("{here}/text", None, PermissionError),
        ("./text", "{here}", PermissionError),
        ("{here}", None, PermissionError),
        ("text", None, PermissionError),
        ("below", None, PermissionError),
        ("{here}/text/x", None, FileNotFoundError),
    ],
)
def test_what_cannot_be_executed(tmp_path: Path, program: str, directory: str | None, error: type[OSError]) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "below").mkdir()
    here = str(tmp_path)
    words = (program.replace("{here}", here), "argument")
    where = None if directory is None else directory.replace("{here}", here)
    with pytest.raises(error) as raised:
        Launcher(None).command(words, LimitSettings(), {"PATH": here}, where)
    assert raised.value.filename == words[0]


@pytest.mark.parametrize(
    ("program", "path", "directory"),
    [("mine", "{here}", None), ("./mine", "", "{here}"), ("mine", ".", "{here}"), ("mine", "/nowhere:{here}", "/")],
)
async def test_a_program_is_found_where_execvp_finds_it(
    rig: Rig, tmp_path: Path, program: str, path: str, directory: str | None
) -> None:
    mine = tmp_path / "mine"
    mine.write_text(f"#!/bin/sh\nexec {' '.join(HUNGRY)}\n")
    mine.chmod(0o755)
    options: dict[str, Any] = {"environment": {"PATH": path.replace("{here}", str(tmp_path))}}
    if directory is not None:
        options["directory"] = directory.replace("{here}", str(tmp_path))
    await rig.serve((program,), **options)
    assert (await rig.call("limits"))["pid"] == rig.bridge().process.pid
