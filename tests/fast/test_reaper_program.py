"""Whom the reaper may kill: what a run id says, read once more."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import worker_node.reaper_program as program
from worker_node.reaper_program import MOST_SCANS, Hunt, Sweep, lives, read
from worker_node.run_id import own_run_id

OURS = own_run_id().encode()
BOOT, NAMESPACE, PID, START, RANDOM = OURS.split(b":")


def test_a_run_id_names_its_boot_its_pid_namespace_and_its_process() -> None:
    assert re.fullmatch(rb"[0-9a-f-]{36}:\d+:\d+:\d+:[0-9a-f]{16}", OURS)
    assert int(PID) == os.getpid()
    assert os.readlink("/proc/self/ns/pid") == f"pid:[{NAMESPACE.decode()}]"
    assert own_run_id().encode() != OURS


def test_a_process_lives_only_with_the_start_it_had() -> None:
    assert lives(PID, START)
    assert not lives(PID, str(int(START) + 1).encode())
    assert not lives(b"4194305", START)  # more than Linux ever gives


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        (OURS + b"/7", True),
        (OURS + b"/70", False),
        (OURS + b"/6", False),
        (OURS, False),
        (OURS + b"/7/1", True),
        (b"x" + OURS + b"/7", False),
        (b"", False),
    ],
)
def test_a_bridge_is_told_from_all_others(run: bytes, wanted: bool) -> None:
    assert Hunt(b"", OURS + b"/7", 1).wants(run) is wanted


def test_a_run_is_all_of_its_bridges() -> None:
    hunt = Hunt(b"end", OURS, 1)
    assert hunt.wants(OURS + b"/1")
    assert hunt.wants(OURS + b"/22")
    assert not hunt.wants(OURS[:-1] + b"/1")
    assert not hunt.wants(OURS + b"0/1")


def run_id(
    *, boot: bytes = BOOT, namespace: bytes = NAMESPACE, pid: bytes = PID, start: bytes = START, end: bytes = b"/1"
) -> bytes:
    return b":".join((boot, namespace, pid, start, RANDOM)) + end


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        (run_id(), False),
        (run_id(pid=b"4194305"), True),
        (run_id(start=b"1"), True),
        (run_id(pid=b"4194305", boot=b"0" * 36), False),
        (run_id(pid=b"4194305", namespace=b"1"), False),
        (run_id(pid=b"../self"), False),
        (run_id(pid=b""), False),
        (run_id(pid=b"-1"), False),
        (run_id(pid=b"0"), False),
        (run_id(pid=b"9" * 30), False),
        (run_id(pid=b"4194305").replace(RANDOM, b"a:b"), False),
        (b":".join((BOOT, NAMESPACE)), False),
        (b"1", False),
        (b"\xff\xfe", False),
    ],
)
def test_a_sweep_is_for_runs_of_this_boot_and_namespace_whose_node_is_dead(run: bytes, wanted: bool) -> None:
    assert Sweep(OURS).wants(run) is wanted


def test_a_hunt_ends_with_scans_that_find_nothing_or_after_many_that_do() -> None:
    hunt = Hunt(b"", OURS, 2)
    assert [hunt.scanned(found) for found in (True, False, True, False, False)] == [False] * 4 + [True]
    hunt = Hunt(b"", OURS, 2)
    assert [hunt.scanned(True) for _ in range(MOST_SCANS)] == [False] * (MOST_SCANS - 1) + [True]


def test_what_cannot_be_read_is_empty() -> None:
    assert read(b"/no/such/file") == b""
    assert read(b"/") == b""
    assert read(b"/proc/self/stat").startswith(PID + b" ")


def test_it_imports_next_to_nothing() -> None:
    """A node waits for it to start, and it takes memory as long as the node lives."""
    source = Path(str(program.__file__)).read_text()
    imported = re.findall(r"^(?:from|import) (\S+)", source, re.MULTILINE)
    assert imported == ["__future__", "os", "select", "signal", "sys"]
