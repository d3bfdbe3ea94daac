"""What `quaybridge batch` refuses before it touches a file or looks for a broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import shell

from quaybridge.failures_file import clear_failures

REQUESTS = '{"n": 1}\n'
NOWHERE = {"QUAYBRIDGE_BROKER": "amqp://user:hunter2@127.0.0.1:1/"}  # nobody listens at tcpmux


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_text(REQUESTS)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--failures requests.jsonl < requests.jsonl > replies", "is where the requests come from: name another file"),
        ("--failures link < requests.jsonl > replies", "is where the requests come from: name another file"),
        ("< replies.failures.jsonl > replies.jsonl", "is where the requests come from: name another file"),
        ("--resume < replies.failures.jsonl >> replies.jsonl", "is where the requests come from: name another file"),
        ("--failures replies < requests.jsonl > replies", "is where the replies go to: name another file"),
        ("--failures nowhere/failures < requests.jsonl > replies", "'nowhere' is no directory: name another file"),
        ("--failures . < requests.jsonl > replies", "is a directory: name another file"),
        ("--resume --failures /dev/null < requests.jsonl >> replies", "needs the failures in a file, and /dev/null is"),
    ],
)
async def test_failures_that_would_end_up_where_they_must_not(line: str, told: str, directory: Path) -> None:
    (directory / "link").symlink_to("requests.jsonl")
    (directory / "replies.failures.jsonl").write_text(REQUESTS)
    ended = await shell(f"quaybridge batch echo echo {line}", environ=NOWHERE)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.err
    assert ended.err.count("\n") == 1
    assert (directory / "requests.jsonl").read_text() == REQUESTS
    assert (directory / "replies.failures.jsonl").read_text() == REQUESTS


def test_of_failures_only_a_file_is_removed(directory: Path) -> None:
    for name in ("file", "linked"):
        (directory / name).write_text("those of another batch\n")
    (directory / "link").symlink_to("linked")
    (directory / "sink").symlink_to("/dev/null")
    for name in ("file", "link", "sink", "none"):
        clear_failures(Path(name))
    assert not (directory / "file").exists()
    assert (directory / "link").is_symlink()
    assert (directory / "linked").read_text() == ""
    assert (directory / "sink").is_symlink()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("Echo echo", "'Echo' is no service name"),
        ("control echo", "'control' is reserved"),
        ("echo ''", "which command? quaybridge call echo --describe"),
        ("echo shutdown", "the command 'shutdown' is the nodes' own"),
        (f"echo {'x' * 256}", "a command has at most 255 bytes"),
    ],
)
async def test_what_fits_no_request_is_said_once_and_not_of_each_line(names: str, told: str, directory: Path) -> None:
    ended = await shell(f"quaybridge batch {names} < requests.jsonl > replies", environ=NOWHERE)
    assert ended.status == 2
    assert told in ended.err
    assert not (directory / "replies.failures.jsonl").exists()
