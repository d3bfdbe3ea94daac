"""The conformance kit: bridges in four languages that conform, and faulty ones, each found by its own check."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import run
from documents import blocks
from rig import BRIDGES, PYTHON, echo, foreign, misbehave, until

from quaybridge.conformance.checklist import CONVERSATION, SUMMARY, check_bridge
from quaybridge.conformance.report import Report, Row, Status

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 30.0  # seconds for what a bridge that conforms does at once

CHECKS = {"handshake", *CONVERSATION, *SUMMARY}
# The checks that fail for each fault; where these are several, one fault has several consequences.
FAULTS: dict[str, set[str]] = {
    "ignores_the_end": {"end_of_input", "end_of_input_busy"},
    "prints_at_start": {"handshake", "clean_stdout"},
    "refuses_the_handshake": {"handshake"},
    "claims_nonsense": {"handshake"},
    "ids_of_32_bits": {"ids"},
    "ids_are_floats": {"ids"},
    "rounds_fractions": {"values"},
    "ascii_alone": {"unicode"},
    "escapes_read_one_by_one": {"unicode"},
    "fields_found_by_their_text": {"any_json"},
    "cuts_at_64_kib": {"large"},
    "header_in_one_read": {"split_writes"},
    "mixes_up_results": {"concurrent"},
    "chunks_from_one": {"stream"},
    "answers_cancels": {"cancel"},
    "forgets_early_cancels": {"cancel"},
    "ignores_cancels": {"cancel"},
    "begins_before_its_turn": {"ahead"},
    "answers_out_of_turn": {"ahead"},
    "keeps_what_is_asked_back": {"ahead"},
    "calls_it_cancelled": {"ahead"},
    "gives_back_what_it_has_begun": {"ahead"},
    "remembers_what_was_asked_back": {"ahead"},
    "takes_ahead_and_cannot_cancel": {"ahead"},
    "keeps_bytes_to_itself": {"binary"},
    "finds_bytes_that_are_none": {"binary"},
    "loses_stderr": {"stderr_flood"},
    "floods_stderr": {"quiet_stderr"},
    "dies_of_unknown_commands": {"unknown_command"},
    "silent_on_unknown_commands": {"unknown_command"},
    "silent_on_malformed_args": {"malformed_args"},
    "crashes_on_malformed_args": {"malformed_args"},
    "silent_on_unreadable_frames": {"unreadable"},
    "ignores_the_end_at_work": {"end_of_input_busy"},
    "ignores_shutdown": {"shutdown"},
    "ignores_sigterm": {"sigterm"},
    "answers_twice": {"one_reply"},
    "speaks_after_its_reply": {"one_reply"},
    "prints_at_its_end": {"clean_stdout"},
    "ends_in_half_a_frame": {"clean_stdout"},
    "leaves_a_child": {"no_orphans"},
}


def faulty(fault: str = "") -> tuple[str, ...]:
    """The command of the bridge with this fault."""
    return (*PYTHON, str(BRIDGES / "faulty.py"), fault)


def rows(report: Report, status: Status) -> dict[str, str]:
    """The checks that came out so, with what was seen."""
    return {row.check: row.detail for row in report.rows if row.status is status}


async def conforming(*command: str) -> Report:
    """The report of a bridge that conforms, and leaves nothing behind."""
    before = set(psutil.Process().children(recursive=True))
    report = await check_bridge(command, timeout=PATIENCE)
    assert report.conforms, (report.problem, rows(report, Status.FAILED))
    assert {row.check for row in report.rows} == CHECKS
    await until(lambda: set(psutil.Process().children(recursive=True)) <= before)
    return report


async def test_a_bridge_without_a_fault_passes_all_of_it() -> None:
    report = await conforming(*faulty())
    assert set(rows(report, Status.PASSED)) == CHECKS - {"ahead"}
    report = await conforming(*faulty("one_at_a_time"))
    assert set(rows(report, Status.PASSED)) == CHECKS - {"concurrent"}


async def test_the_sdks_bridges_conform() -> None:
    report = await conforming(*echo())
    assert rows(report, Status.PASSED)["ahead"] == "16 in turn, and given back"
    assert "binary" in rows(report, Status.PASSED)
    assert set(rows(report, Status.NOT_CLAIMED)) <= {"concurrent", "stream", "stderr_flood"}
    report = await conforming(*echo(4))
    assert rows(report, Status.PASSED)["concurrent"] == "4 at once"


async def test_the_sdks_asynchronous_bridges_conform() -> None:
    report = await conforming(sys.executable, str(BRIDGES / "all_of_it.py"))
    assert set(rows(report, Status.NOT_CLAIMED)) <= {"stream", "ahead"}


async def test_a_bridge_that_knows_nothing_of_us_conforms() -> None:
    """Its ping echoes, so that even the checks of values can be made."""
    report = await conforming(*foreign())
    claimed = {"long_integers", "ids", "values", "unicode", "large", "split_writes", "end_of_input", "sigterm"}
    assert claimed <= set(rows(report, Status.PASSED))
    assert set(rows(report, Status.NOT_CLAIMED)) >= {"concurrent", "stream", "cancel", "ahead", "shutdown", "binary"}


async def test_a_bridge_without_an_echo_says_what_is_missing() -> None:
    report = await conforming(sys.executable, "-m", "examples.analyse")
    missing = rows(report, Status.NOT_CLAIMED)
    assert missing["values"] == missing["unicode"]
    assert "a command 'echo' that gives back its args: add one, or give --command echo=NAME" in missing["values"]
    assert "1 MiB in" in rows(report, Status.PASSED)["large"]


async def test_the_bridge_in_node_js_conforms(program: Callable[[str], str]) -> None:
    report = await conforming(program("node"), str(EXAMPLES / "node" / "bridge.js"))
    assert "9007199254740993 came back as" in rows(report, Status.NOT_CLAIMED)["long_integers"]
    assert set(rows(report, Status.PASSED)) == CHECKS - {"long_integers", "ahead"}


async def test_the_bridge_in_c_conforms(program: Callable[[str], str], tmp_path: Path) -> None:
    """Built as its first comment says, and with the compiler's checks of what it does."""
    checks = ["-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    source = EXAMPLES / "c" / "bridge.c"
    words = next(line for line in source.read_text().splitlines() if " cc " in line).split()[1:]
    assert words == ["cc", "-O2", "-Wall", "-o", "bridge", "examples/c/bridge.c"]
    built = tmp_path / "bridge"
    compiler = await asyncio.create_subprocess_exec(program("cc"), "-O2", "-Wall", *checks, "-o", built, source)
    assert await compiler.wait() == 0
    report = await conforming(str(built))
    assert set(rows(report, Status.PASSED)) == CHECKS - {"ahead", "binary"}


async def test_the_bridge_in_erlang_conforms(program: Callable[[str], str]) -> None:
    report = await conforming(program("escript"), str(EXAMPLES / "erlang" / "bridge.escript"))
    assert set(rows(report, Status.PASSED)) == CHECKS - {"ahead", "binary"}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """The report of every faulty bridge. Most of their time they are waited for in vain: so, several at once."""

    async def check(fault: str, places: asyncio.Semaphore) -> Report:
        async with places:
            return await check_bridge(faulty(fault), timeout=5.0)

    async def check_all() -> list[Report]:
        places = asyncio.Semaphore(16)
        return await asyncio.gather(*(check(fault, places) for fault in FAULTS))

    return dict(zip(FAULTS, asyncio.run(check_all()), strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_own_check(reports: dict[str, Report], fault: str) -> None:
    report = reports[fault]
    assert not report.conforms
    assert set(rows(report, Status.FAILED)) == FAULTS[fault], rows(report, Status.FAILED)
    assert all(row.fix for row in report.rows if row.status is Status.FAILED)
    not_run = set(CONVERSATION) if "handshake" in FAULTS[fault] else set()
    assert set(rows(report, Status.NOT_RUN)) == not_run


def test_every_fault_the_faulty_bridge_can_have_is_tried() -> None:
    source = (BRIDGES / "faulty.py").read_text()
    listed = source[source.index("FAULTS = (") : source.index(")\n", source.index("FAULTS = ("))]
    assert set(json.loads("[" + listed.partition("(")[2].strip().rstrip(",") + "]")) == set(FAULTS)
    assert {check for checks in FAULTS.values() for check in checks} == CHECKS - {"long_integers"}


async def test_what_a_faulty_bridge_left_is_cleared_away(reports: dict[str, Report]) -> None:
    """Its child had a session of its own, and ignored nothing but us."""
    row = next(row for row in reports["leaves_a_child"].rows if row.check == "no_orphans")
    pids = [int(word.rstrip("),")) for word in row.detail.split() if word.rstrip("),").isdecimal()]
    assert pids
    await until(lambda: not any(psutil.pid_exists(pid) and "sleep" in psutil.Process(pid).name() for pid in pids))


async def test_the_reasons_tell_what_was_seen_and_the_fixes_what_to_do(reports: dict[str, Report]) -> None:
    def row(fault: str) -> Row:
        return next(row for row in reports[fault].rows if row.check in FAULTS[fault] and row.status is Status.FAILED)

    assert row("ids_of_32_bits").detail == "a result for id 0, which it was not asked; asked was 4294967296"
    assert row("rounds_fractions").detail.startswith("fractions: [0.1,-2.5,1e-7,")
    assert row("silent_on_unknown_commands").detail == "no reply in 5 s"
    assert "KeyError: quaybridge_no_such_command" in row("dies_of_unknown_commands").detail
    assert "signal SIGKILL" in row("crashes_on_malformed_args").detail
    assert row("ignores_the_end").fix is not None
    assert 'stdout said "Goodbye!\\n' in row("prints_at_its_end").detail
    assert row("answers_twice").detail.startswith("a result for id 7 after its final reply")


# The command.


async def test_the_table_says_what_passed_and_what_failed_with_the_fix() -> None:
    ended = await run("conformance", "--", *faulty("dies_of_unknown_commands"))
    assert (ended.status, ended.err) == (1, "")
    text = " ".join(ended.out.split())
    assert "handshake pass claims 4 requests at once, cancel, stream, shutdown" in text
    assert "unknown command fail it ended: exit code 1; its last words: KeyError: quaybridge_no_such_command" in text
    assert "fix: turn whatever goes wrong in a request into a reply with success false, and serve on" in text
    assert text.endswith("does NOT conform: 23 passed, 1 failed, 1 not claimed")


async def test_json_has_every_row_and_status_0_means_all_passed() -> None:
    ended = await run("conformance", "--json", "--timeout", str(PATIENCE), "--", *faulty())
    assert (ended.status, ended.err) == (0, "")
    report: dict[str, Any] = json.loads(ended.out)
    assert report["conforms"] is True
    assert report["problem"] is None
    assert report["command"] == list(faulty())
    assert {row["check"] for row in report["rows"]} == CHECKS
    assert {row["check"] for row in report["rows"] if row["status"] != "pass"} == {"ahead"}
    assert {row["fix"] for row in report["rows"]} == {None}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("no-such-program-anywhere",), "'no-such-program-anywhere' is not found on PATH: install it"),
        (("/etc",), "'/etc' is a directory: name a program"),
        (("/etc/passwd",), "'/etc/passwd' is not executable: chmod +x it"),
        (
            misbehave("exit_at_start"),
            "it ended before it answered its handshake: exit code 1; its last words: cannot find",
        ),
        (misbehave("exit_zero_at_start"), "it ended before it answered its handshake: exit code 0"),
        (misbehave("never_ready"), "it did not answer its handshake in 2 s: it must read frames from stdin"),
        (("",), "the command is empty"),
    ],
)
async def test_one_clear_line_where_there_is_nothing_to_check(command: tuple[str, ...], said: str) -> None:
    ended = await run("conformance", "--timeout", "2", "--", *command)
    assert (ended.status, ended.out) == (5, "")
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith(f"conformance: {said}")


async def test_json_says_so_too() -> None:
    ended = await run("conformance", "--json", "--timeout", "2", "--", "no-such-program-anywhere")
    assert (ended.status, ended.err) == (5, "")
    report = json.loads(ended.out)
    assert (report["conforms"], report["rows"]) == (False, [])
    assert "is not found on PATH" in report["problem"]


async def test_a_command_of_another_name_plays_the_role_it_is_given() -> None:
    ended = await run("conformance", "--json", "--command", "mirror", "--", *faulty())
    failed = {row["check"]: row for row in json.loads(ended.out)["rows"] if row["status"] == "fail"}
    assert ended.status == 1
    assert set(failed) == {"values", "unicode", "long_integers", "large", "concurrent", "binary"}
    assert failed["values"]["detail"] == "null: the command 'mirror' does not give back its args"
    ended = await run("conformance", "--json", "--command", "fail=x", "--", *faulty())
    assert (ended.status, "'fail' is none of echo, sleep, count, log" in " ".join(ended.err.split())) == (2, True)


async def test_variables_are_given_to_the_bridge_and_ours_are_not(tmp_path: Path) -> None:
    """As a node has it: what it needs is named."""
    bridge = tmp_path / "needs.py"
    bridge.write_text("import os, sys\nsys.exit(f\"{os.environ['MODEL']} {os.environ.get('AMQP_URL')}\")\n")
    command = ("conformance", "--env", "MODEL=small=1", "--", *PYTHON, str(bridge))
    ended = await run(*command, environ={"AMQP_URL": "amqp://user:secret@nowhere"})
    assert (ended.status, ended.err.partition("last words: ")[2]) == (5, "small=1 None\n")
    ended = await run("conformance", "--env", "MODEL", "--", "true")
    assert (ended.status, "write NAME=VALUE" in " ".join(ended.err.split())) == (2, True)


async def test_the_bridge_in_thirty_lines_conforms(tmp_path: Path) -> None:
    """As it stands in docs/bridges.md."""
    source, _ = blocks("bridges.md", "python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    bridge = tmp_path / "bridge.py"
    bridge.write_text(source)
    report = await conforming(*PYTHON, str(bridge))
    assert rows(report, Status.PASSED).keys() >= {"values", "unicode", "unknown_command", "any_json", "clean_stdout"}


def test_who_was_started_by_what_ignores_its_childrens_ends_tells_them_all_the_same() -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    checked = (sys.executable, "-m", "quaybridge", "conformance", "--", sys.executable, "-m", "examples.echo")
    done = subprocess.run(
        [sys.executable, "-c", ignoring, *checked], capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
