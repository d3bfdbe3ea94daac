"""What comes back, from the bytes and properties that carry it; and what is no reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge_protocol import messages
from bridge_protocol.envelope import ATTEMPT, NODE, Properties, reply_properties
from bridge_protocol.errors import Code, FrameError, RequestFailed, exception_for
from bridge_protocol.messages import ErrorInfo
from broker.contract import Delivery
from producer.reply import Reply, read_reply

REPLY_CODES = [code for code in Code if issubclass(exception_for(code), RequestFailed)]
PRODUCERS_OWN = [code for code in Code if code not in REPLY_CODES]
RESULT = messages.encode_result(7, {"x": [1, None, "é"]})
FAILURE = messages.encode_failure(7, "no such file")


def properties(code: Code | None = None, *, attempt: int = 2, redelivered: bool = True) -> Properties:
    return reply_properties(correlation_id="id", code=code, attempt=attempt, node="alpha", redelivered=redelivered)


def delivery(body: bytes, properties: Properties) -> Delivery:
    return Delivery(
        body=body,
        properties=properties,
        exchange="",
        routing_key="",
        redelivered=False,
        delivery_count=0,
        tag=1,
        channel=None,  # type: ignore[arg-type]  # replies are not acknowledged
    )


def test_a_result() -> None:
    assert read_reply(delivery(RESULT, properties()), "id") == Reply(
        result={"x": [1, None, "é"]}, message_id="id", attempt=2, redelivered=True, node="alpha"
    )


def test_a_first_try_is_not_called_redelivered() -> None:
    reply = read_reply(delivery(RESULT, properties(attempt=1, redelivered=False)), "id")
    assert isinstance(reply, Reply)
    assert (reply.attempt, reply.redelivered) == (1, False)


@pytest.mark.parametrize("code", REPLY_CODES)
def test_every_code_a_reply_can_carry_is_its_exception(code: Code) -> None:
    info = ErrorInfo(type="X", message="no such file", details={"exit_code": 3})
    failed = read_reply(delivery(messages.encode_failure(7, "no such file", info=info), properties(code)), "id")
    assert type(failed) is exception_for(code)
    assert failed.code is code
    assert str(failed) == failed.message == "no such file"
    assert (failed.message_id, failed.attempt, failed.node) == ("id", 2, "alpha")
    assert failed.details["exit_code"] == 3


def test_those_are_the_codes_of_the_documentation() -> None:
    assert {code.value for code in PRODUCERS_OWN} == {
        "unknown_service",
        "refused",
        "blocked",
        "broker_unavailable",
        "outcome_unknown",
    }


def test_an_application_is_quoted_whole() -> None:
    info = ErrorInfo(type="KeyError", traceback="Traceback …", details={"key": "a", "type": "its own"})
    failed = read_reply(delivery(messages.encode_failure(7, "e", info=info), properties(Code.APPLICATION_ERROR)), "id")
    assert isinstance(failed, RequestFailed)
    assert failed.details == {"type": "KeyError", "traceback": "Traceback …", "key": "a"}


def test_a_failure_without_any_information() -> None:
    failed = read_reply(delivery(FAILURE, properties(Code.APPLICATION_ERROR)), "id")
    assert isinstance(failed, RequestFailed)
    assert failed.details == {}


def test_a_failure_whose_bridge_could_not_read_the_request() -> None:
    failed = read_reply(delivery(messages.encode_failure(None, "e"), properties(Code.BAD_REQUEST)), "id")
    assert type(failed) is exception_for(Code.BAD_REQUEST)


@pytest.mark.parametrize(
    ("headers", "attempt", "node"),
    [
        ({}, 1, None),
        ({ATTEMPT: True, NODE: 5}, 1, None),
        ({ATTEMPT: "3"}, 1, None),
        ({ATTEMPT: 0}, 1, None),
        ({ATTEMPT: -4}, 1, None),
        ({ATTEMPT: 4, NODE: "beta"}, 4, "beta"),
    ],
)
def test_headers_of_other_types_count_as_missing(headers: dict[str, Any], attempt: int, node: str | None) -> None:
    for body, code in ((RESULT, None), (FAILURE, Code.CANCELLED)):
        found = read_reply(delivery(body, replace(properties(code), headers=headers)), "id")
        assert (found.attempt, found.node) == (attempt, node)


@pytest.mark.parametrize("type", [None, "", "echo", "Result", "no_such_code", "\0", *PRODUCERS_OWN])
@pytest.mark.parametrize("body", [RESULT, FAILURE], ids=["result", "failure"])
def test_other_types_are_no_replies(type: str | None, body: bytes) -> None:
    with pytest.raises(FrameError, match="a reply of type"):
        read_reply(delivery(body, replace(properties(), type=type)), "id")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (FAILURE, None),
        (RESULT, Code.APPLICATION_ERROR),
        (messages.encode_progress(7, 1), None),
        (messages.encode_chunk(7, 0, 1), None),
        (messages.encode_progress(7, 1), Code.CANCELLED),
    ],
)
def test_a_body_that_contradicts_its_type_is_no_reply(body: bytes, code: Code | None) -> None:
    with pytest.raises(FrameError, match="that holds a"):
        read_reply(delivery(body, properties(code)), "id")


@pytest.mark.parametrize("code", [None, Code.BRIDGE_CRASHED])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"id":1}', b'{"id":1,"success":"yes"}', b"Traceback", b"{" * 200],
)
def test_garbage_is_no_reply(body: bytes, code: Code | None) -> None:
    with pytest.raises(FrameError):
        read_reply(delivery(body, properties(code)), "id")
