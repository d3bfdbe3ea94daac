"""The frame log: what is written, what never is, and how much."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from worker_node.frame_log import LARGEST_SHOWN, REDACTED, FrameLog, without_secrets
from worker_node.settings import DebugSettings


def log(directory: Path, **changes: Any) -> FrameLog:
    settings = DebugSettings.model_validate({"directory": str(directory), **changes})
    return FrameLog(settings, "n1.work", clock=lambda: 0.0)


def lines(directory: Path) -> list[str]:
    return (directory / "n1.work.frames.log").read_text().splitlines()


REQUEST = b'{"id":7,"command":"login","args":{"user":"me","password":"hunter2"}}'


def test_a_line_a_frame_without_its_arguments(tmp_path: Path) -> None:
    made = log(tmp_path / "new" / "directory")
    made.sent(3, REQUEST)
    made.received(3, bytearray(b'{"id":7,"event":"progress","data":0.5}'))
    made.received(3, b'{"id":7,"success":true,"result":"secret"}')
    made.received(0, b'{"id":null,"success":false,"error":"no"}')
    made.received(0, b"{nonsense")
    made.close()
    assert lines(tmp_path / "new" / "directory") == [
        "1970-01-01T00:00:00.000Z > [3] 68 bytes id=7 login",
        "1970-01-01T00:00:00.000Z < [3] 38 bytes id=7 progress",
        "1970-01-01T00:00:00.000Z < [3] 41 bytes id=7 success",
        "1970-01-01T00:00:00.000Z < [0] 40 bytes id=None failure",
        "1970-01-01T00:00:00.000Z < [0] 9 bytes (bad_json)",
    ]
    assert (tmp_path / "new" / "directory" / "n1.work.frames.log").stat().st_mode & 0o077 == 0


def test_arguments_are_written_where_that_is_wanted_and_secrets_never(tmp_path: Path) -> None:
    made = log(tmp_path, args=True)
    made.sent(0, REQUEST)
    made.received(0, b'{"id":7,"success":true,"result":{"api_key":"hunter2","n":[1,"\xe2\x82\xac"]}}')
    made.received(0, b'{"id":7,"success":false,"error":"amqp://me:hunter2@host/ is down"}')
    made.close()
    sent, succeeded, failed = lines(tmp_path)
    assert sent.endswith('login {"user":"me","password":"[redacted]"}')
    assert succeeded.endswith('success {"api_key":"[redacted]","n":[1,"€"]}')
    assert "amqp://[redacted]@host/ is down" in failed


def test_what_is_long_is_cut_and_what_is_huge_is_not_looked_into(tmp_path: Path) -> None:
    made = log(tmp_path, args=True, arg_bytes=20)
    made.sent(0, json.dumps({"id": 1, "command": "x" * 300, "args": {"text": "€" * 100}}).encode())
    made.sent(0, b'{"id":1,"command":"c","args":{"t":"' + b"x" * LARGEST_SHOWN + b'"}}')
    made.close()
    cut, huge = lines(tmp_path)
    assert cut.endswith('{"text":"€€€ … (291 bytes more)')
    assert len(cut) < 500
    assert huge.endswith("(too large to be looked into)")


def test_a_line_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    made = log(tmp_path, args=True)
    made.sent(0, json.dumps({"id": "\n", "command": "a\nb\x1b[2J", "args": {"\u2028": "\r\n\x1b"}}).encode())
    made.close()
    (line,) = lines(tmp_path)
    assert line.isprintable()


@pytest.mark.parametrize("files", [1, 3])
def test_the_files_never_grow_over_their_limit(tmp_path: Path, files: int) -> None:
    made = log(tmp_path, args=True, max_bytes=4096, files=files, arg_bytes=65536)
    for number in range(400):
        made.sent(0, b'{"id":%d,"command":"echo","args":{"t":"%s"}}' % (number, b"x" * (number * 7 % 9000)))
        found = list(tmp_path.iterdir())
        assert len(found) <= files
        assert sum(file.stat().st_size for file in found) <= files * 4096
    made.close()
    assert "id=399" in (tmp_path / "n1.work.frames.log").read_text()


def test_it_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    for _ in range(2):
        made = log(tmp_path, max_bytes=4096)
        for _ in range(60):
            made.sent(0, REQUEST)
        made.close()
    assert len(lines(tmp_path)) < 120
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_full_ends_the_log_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    made = log(Path("/dev"))
    made._path = Path("/dev/full")
    for _ in range(3):
        made.sent(0, REQUEST)
    (record,) = caplog.records
    assert record.getMessage() == "/dev/full: no frames are written from now on: No space left on device"


def test_a_directory_that_cannot_be_ends_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    made = log(tmp_path / "file" / "directory")
    made.sent(0, REQUEST)
    made.sent(0, REQUEST)
    assert len(caplog.records) == 1


def test_a_pipe_in_its_place_does_not_hold_it_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "n1.work.frames.log")
    log(tmp_path).sent(0, REQUEST)
    assert len(caplog.records) == 1


SECRETS = (
    "password Passwd db_passphrase client_secret token accessToken API-KEY apikey api_key Authorization auth cookie "
    "Set-Cookie aws_secret_access_key private_key credentials dsn pwd"
)


@pytest.mark.parametrize("key", SECRETS.split())
def test_what_is_named_like_a_secret_is_one(key: str) -> None:
    assert without_secrets([{"a": {key: "hunter2"}}]) == [{"a": {key: REDACTED}}]
    assert without_secrets({key: ["hunter2"]}) == {key: REDACTED}
    assert without_secrets({key: 1234}) == {key: REDACTED}


def test_what_is_not_is_not() -> None:
    harmless = {
        "max_tokens": 100,
        "author": "me",
        "use_auth": True,
        "token": None,
        "compass": "N",
        "keyboard": "qwerty",
    }
    assert without_secrets(harmless) == harmless
