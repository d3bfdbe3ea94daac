"""What the command line makes of each failure: its exit status, its line, and a log nobody can forge."""

from __future__ import annotations

import logging

import pytest

from bridge_protocol.errors import (
    ApplicationError,
    Blocked,
    BridgeCrashed,
    BrokerUnavailable,
    FrameError,
    FrameKind,
    OutcomeUnknown,
    QuaybridgeError,
    UnknownService,
)
from broker.contract import AccessRefused, ChannelClosed, ConnectionRefused, TopologyMismatch
from quaybridge.exit_status import MEANINGS, ExitStatus, exit_status, explained, printable
from quaybridge.logs import FORMAT, OneLine
from quaybridge.settings import SettingsError
from worker_node.node import BridgeStartError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ApplicationError("no"), 1),
        (BridgeCrashed("no"), 1),
        (UnknownService("no"), 1),
        (Blocked("no"), 1),
        (OutcomeUnknown("no"), 1),
        (FrameError(FrameKind.BAD_JSON, "no"), 1),
        (SettingsError("no"), 2),
        (BrokerUnavailable("no"), 3),
        (ConnectionRefused("no"), 3),
        (AccessRefused("no"), 3),
        (ChannelClosed("no"), 3),
        (TopologyMismatch("no"), 4),
        (BridgeStartError("no"), 5),
    ],
)
def test_every_failure_has_its_status(error: QuaybridgeError, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(error) == status
    with pytest.raises(SystemExit) as ended, explained():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err.endswith("no\n")


def test_who_named_no_broker_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = "amqp://guest:***@127.0.0.1:5672/%2F cannot be reached"
    for error in (ConnectionRefused(nowhere), BrokerUnavailable(f"cannot connect to {nowhere}")):
        with pytest.raises(SystemExit), explained():
            raise error
        assert "QUAYBRIDGE_BROKER, or `broker` in quaybridge.toml names another" in capsys.readouterr().err


def test_the_meanings_list_every_status() -> None:
    for status in ExitStatus:
        assert f"{int(status)} " in MEANINGS


def test_a_failure_is_one_line_that_begins_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = ApplicationError("bad\x1b[2J\nworse é", message_id="m1", attempt=2, details={"exit_code": 3})
    with pytest.raises(SystemExit), explained():
        raise error
    assert capsys.readouterr().err == "application_error: bad\\x1b[2J\\nworse é\n"
    with pytest.raises(SystemExit), explained(verbose=True):
        raise error
    assert capsys.readouterr().err.splitlines()[1:] == ['  message_id: "m1"', "  attempt: 2", "  exit_code: 3"]


def test_each_problem_of_a_configuration_keeps_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explained():
        raise SettingsError("one\ntwo")
    assert capsys.readouterr().err == "one\ntwo\n"


def test_an_interrupt_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, explained():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_what_nobody_expects_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "shown"), [("plain é 日本", "plain é 日本"), ("a\nb\x07\x9b\udcff", "a\\nb\\x07\\x9b\\udcff"), ("", "")]
)
def test_only_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_log_record_is_one_line() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "stderr: %s", ("a\n2026-01-01 INFO fake",), None)
    line = OneLine(FORMAT).format(record)
    assert line.endswith("WARNING stderr: a\\n2026-01-01 INFO fake")
    assert "\n" not in line
