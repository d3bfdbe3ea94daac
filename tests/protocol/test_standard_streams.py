"""The command line where a standard stream is closed, full or in another locale, or Ctrl-C comes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ECHO, run, shell

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOST = "stdout cannot be written: {}: what was done is done, and its output is lost\n"


@pytest.mark.parametrize(
    ("stdout", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
async def test_stdout_that_takes_nothing_is_a_failure_and_one_line(stdout: str, reason: str) -> None:
    for command in ("--help", "call --help", f"conformance --json -- {ECHO}"):
        ended = await shell(f"quaybridge {command} {stdout}")
        assert (ended.status, ended.err) == (1, LOST.format(reason))


async def test_a_closed_stderr_costs_nothing() -> None:
    ended = await shell(f"quaybridge conformance --json -- {ECHO} 2>&-")
    assert (ended.status, ended.out[:11]) == (0, '{"command":')
    ended = await shell(f"quaybridge conformance --json -- {ECHO} 2>&- <&-")
    assert (ended.status, ended.out[:11]) == (0, '{"command":')


async def test_a_closed_stdin_cannot_be_read() -> None:
    ended = await shell("quaybridge call echo echo --args - <&-")
    assert ended.status == 2
    assert "--args -: stdin cannot be read: Bad file descriptor" in ended.err


async def test_what_the_locale_cannot_encode_is_escaped() -> None:
    ended = await run("call", "--help", environ=ASCII)
    assert (ended.status, ended.err) == (0, "")
    assert "key@=file \\u2026" in ended.out
    ended = await run("conformance", "--", *ECHO.split(), environ=ASCII)
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("pair", ["text=\udcff", "\udcff=1", 'text:="\udcff"'])
async def test_an_argument_that_is_no_utf_8_says_how_bytes_are_sent(pair: str) -> None:
    ended = await run("call", "echo", "echo", pair)
    assert ended.status == 2
    assert "is not UTF-8: for bytes write" in ended.err


def test_ctrl_c_while_the_program_is_still_imported_is_quiet(tmp_path: Path) -> None:
    # The first thing that the command line imports.
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from quaybridge.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
