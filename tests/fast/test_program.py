"""Whether a bridge's program can be started: asked of the file system before anything is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from quaybridge.command_worker import stop_advice
from quaybridge.program import program_problem
from worker_node.settings import ServiceSettings


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    """A directory with a program, a text and a directory in it."""
    program, text = tmp_path / "program", tmp_path / "text"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text.write_text("hello")
    text.chmod(0o644)
    (tmp_path / "below").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("program", None),
        ("{bin}/program", None),
        ("./program", None),
        ("below/../program", None),
        ("missing", "'missing' is not found on PATH: install it, or give its full path"),
        ("text", "'text' is not found on PATH"),
        ("below", "'below' is not found on PATH"),
        ("./missing", "'./missing' does not exist: correct the command"),
        ("./below", "'./below' is a directory: name a program"),
        ("./text", "'./text' is not executable: chmod +x it, or name its interpreter first"),
        ("./text/x", "'./text/x' does not exist"),
    ],
)
def test_programs(bin_directory: Path, program: str, problem: str | None) -> None:
    command = (program.replace("{bin}", str(bin_directory)), "argument")
    service = ServiceSettings(name="a", command=command, directory=str(bin_directory))
    told = program_problem(service, {"PATH": str(bin_directory)})
    assert told == problem if problem is None else (told or "").startswith(problem)


def test_the_services_own_path_counts(bin_directory: Path) -> None:
    service = ServiceSettings(name="a", command=("program",), environment={"PATH": str(bin_directory)})
    assert program_problem(service, {"PATH": "/nowhere"}) is None
    assert program_problem(service.model_copy(update={"environment": {}}), {"PATH": "/nowhere"}) is not None


def test_a_directory_that_is_none() -> None:
    service = ServiceSettings(name="a", command=("program",), directory="/no/such/place")
    assert program_problem(service, {}) == "'/no/such/place' is no directory: correct services.a.directory"


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_names_no_environment_can_hold(name: str) -> None:
    service = ServiceSettings(name="a", command=("sh",), environment={name: "x"})
    told = program_problem(service, {"PATH": "/bin:/usr/bin"}) or ""
    assert told.startswith(f"{name!r} is no name for a variable: correct services.a.environment")


@pytest.mark.parametrize(
    ("drain_timeout", "contained", "advised"),
    [(30, True, True), (10, True, True), (9, True, False), (30, False, False)],
)
def test_a_container_needs_more_time_to_stop_than_its_worker(
    drain_timeout: float, contained: bool, advised: bool
) -> None:
    advice = stop_advice(drain_timeout, contained=contained)
    assert (advice is not None) is advised
    assert advice is None or f"node.drain_timeout is {drain_timeout} s: give this container longer" in advice
