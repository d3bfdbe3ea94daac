"""What is called a kill for want of memory, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker_node.out_of_memory import WINDOW, OutOfMemoryKills

EVENTS = "low 0\nhigh 0\nmax 31\noom 2\noom_kill {}\noom_group_kill 9\n"


class Kernel:
    """Its count, and a clock."""

    def __init__(self, file: Path, count: int) -> None:
        self.file = file
        self.now = 100.0
        self.count(count)
        self.kills = OutOfMemoryKills(lambda: self.now, [file.with_name("absent"), file])

    def count(self, count: int) -> None:
        self.file.write_text(EVENTS.format(count))

    def pass_time(self, looks: int) -> None:
        for _ in range(looks):
            self.now += WINDOW
            self.kills.look()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "memory.events", 7)


def test_without_a_kill_there_is_no_evidence(kernel: Kernel) -> None:
    assert kernel.kills.evidence() is None
    kernel.pass_time(5)
    assert kernel.kills.evidence() is None


def test_a_kill_is_evidence_for_one_death(kernel: Kernel) -> None:
    kernel.count(8)
    assert kernel.kills.evidence() == f"oom_kill in {kernel.file} went from 7 to 8"
    assert kernel.kills.evidence() is None
    kernel.count(10)
    assert kernel.kills.evidence()
    assert kernel.kills.evidence()
    assert kernel.kills.evidence() is None


def test_a_kill_just_before_a_look_is_still_told(kernel: Kernel) -> None:
    kernel.pass_time(3)
    kernel.count(8)
    kernel.pass_time(1)
    kernel.kills.look()  # too soon to count
    assert kernel.kills.evidence()


def test_a_kill_of_something_else_a_while_ago_is_no_evidence(kernel: Kernel) -> None:
    kernel.count(8)
    kernel.pass_time(2)
    assert kernel.kills.evidence() is None


@pytest.mark.parametrize("content", ["", "oom_kill\n", "oom_kill many\n", "xoom_kill 1\n"])
def test_what_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    file = tmp_path / "memory.events"
    file.write_text(content)
    kills = OutOfMemoryKills(lambda: 0.0, [file, tmp_path / "absent", tmp_path])
    kills.look()
    assert kills.evidence() is None


def test_a_file_that_goes_says_nothing_more(kernel: Kernel) -> None:
    kernel.file.unlink()
    assert kernel.kills.evidence() is None


def test_the_kernels_own_files_are_read_where_there_are_any() -> None:
    kills = OutOfMemoryKills(lambda: 0.0)
    assert repr(kills).startswith("<OutOfMemoryKills ")
    assert kills.evidence() is None
