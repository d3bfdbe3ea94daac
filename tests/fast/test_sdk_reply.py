"""Replies: whatever a command returned or raised, there is one frame for it, and a node can read it."""

from __future__ import annotations

from typing import Any

import pytest

from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.frames import DEFAULT_LIMIT, FrameDecoder
from bridge_protocol.messages import Failure, Result, decode_message
from bridge_sdk import reply
from bridge_sdk.errors import ApplicationError, ArgumentError


def read(frame: bytes, limit: int = DEFAULT_LIMIT) -> Result | Failure:
    decoder = FrameDecoder(limit)
    decoder.receive(frame)
    payload = decoder.next()
    assert payload is not None
    assert not decoder.in_frame
    message = decode_message(payload)
    assert isinstance(message, Result | Failure)
    return message


def failure(error: BaseException, limit: int = DEFAULT_LIMIT) -> Failure:
    message = read(reply.failure_frame(7, error, limit), limit)
    assert isinstance(message, Failure)
    assert message.id == 7
    assert message.info is not None
    return message


def raised(error: BaseException) -> BaseException:
    """`error` with the traceback of having been raised."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_result_is_carried() -> None:
    assert read(reply.result_frame(7, {"a": [1, None, "ä"]}, DEFAULT_LIMIT)) == Result(
        id=7, result={"a": [1, None, "ä"]}
    )


def circular() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


@pytest.mark.parametrize(
    "result",
    [object(), {1, 2}, float("nan"), 2**64, "\ud800", {1: 2}, b"bytes", circular(), eval("[" * 150 + "]" * 150)],
    ids=["object", "set", "nan", "2^64", "surrogate", "integer key", "bytes", "circular", "too deep"],
)
def test_a_result_that_is_not_json_is_a_failure_that_says_so(result: Any) -> None:
    message = read(reply.result_frame(7, result, DEFAULT_LIMIT))
    assert isinstance(message, Failure)
    assert message.id == 7
    assert message.info is not None
    assert message.info.type == "ResultError"
    assert message.error.startswith("ResultError: the result is not JSON")


def test_a_result_over_the_limit_is_a_failure_that_says_so() -> None:
    message = read(reply.result_frame(7, "x" * 2000, 1024), 1024)
    assert isinstance(message, Failure)
    assert message.info is not None
    assert message.info.type == "TooLarge"
    assert "the limit is 1,024" in message.error


def test_an_exception_is_told_with_type_message_and_traceback() -> None:
    message = failure(raised(ValueError("no such model")))
    assert message.error == "ValueError: no such model"
    assert message.info is not None
    assert message.info.type == "ValueError"
    assert message.info.message == "no such model"
    assert message.info.traceback is not None
    assert message.info.traceback.endswith("ValueError: no such model\n")
    assert not message.info.retryable


def test_an_exception_without_a_message_is_told_by_its_type() -> None:
    assert failure(KeyboardInterrupt()).error == "KeyboardInterrupt"


def test_an_application_error_is_told_with_all_it_says() -> None:
    error = ApplicationError("busy", retryable=True, retry_after=2.5, details={"gpu": 3})
    info = failure(raised(error)).info
    assert info is not None
    assert (info.type, info.retryable, info.retry_after, info.details) == ("ApplicationError", True, 2.5, {"gpu": 3})


def test_an_argument_error_has_no_traceback_for_nothing_of_the_author_ran() -> None:
    info = failure(raised(ArgumentError("missing argument 'text'"))).info
    assert info is not None
    assert info.traceback is None


def test_long_messages_and_tracebacks_are_bounded() -> None:
    error = raised(ValueError("x" * 10_000_000))
    message = failure(error)
    assert message.info is not None
    assert message.info.traceback is not None
    assert len(message.error) < reply.MAX_TEXT + 100
    assert len(message.info.message) <= reply.MAX_TEXT + 1
    assert len(message.info.traceback) <= reply.MAX_TEXT + 1


def test_text_that_json_cannot_carry_is_written_out() -> None:
    assert failure(raised(OSError("no file '\udcff'"))).error == "OSError: no file '\\udcff'"


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def test_an_exception_that_cannot_say_what_it_is_is_told_all_the_same() -> None:
    assert failure(raised(Rude())).error == "Rude: (its message could not be made)"


@pytest.mark.parametrize("details", [{"what": object()}, {"what": "x" * 5000}], ids=["not JSON", "too large"])
def test_details_that_cannot_be_carried_are_left_out(details: dict[str, Any]) -> None:
    message = failure(ApplicationError("broken", retryable=True, details=details), 4096)
    assert message.error == "ApplicationError: broken"
    assert message.info is not None
    assert message.info.retryable
    assert list(message.info.details) == ["details_left_out"]


def test_a_cancelled_request_has_its_one_reply() -> None:
    message = read(reply.cancelled_frame(7))  # one that had not begun
    assert isinstance(message, Failure)
    assert message.id == 7
    assert message.error == "cancelled"
    assert message.info is not None
    assert message.info.type == "Cancelled"


def test_what_could_not_be_read_is_answered_to_nobody() -> None:
    message = read(reply.unreadable_frame(FrameError(FrameKind.BAD_JSON, "no JSON", b"{\xff")))
    assert isinstance(message, Failure)
    assert message.id is None
    assert message.info is not None
    assert message.info.details == {"kind": "bad_json"}


def test_the_answer_to_an_unknown_command_is_bounded() -> None:
    few = reply.unknown_command("sing", {"echo": 1, "add": 2})
    assert str(few) == "'sing'; this bridge has: add, echo"
    many = reply.unknown_command("sing", {f"c{number:03}": 1 for number in range(100)})
    assert str(many).endswith("c031 and 68 more")
    assert str(reply.unknown_command("sing", {})) == "'sing'; this bridge has: no commands"
