"""What is said in frames: the shipped vectors both ways, rules of the writers, and any JSON into the readers."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import cases, octets

from bridge_protocol import codec, messages
from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.handshake import Capabilities, Stacks, handshake, read_capabilities
from bridge_protocol.messages import (
    HANDSHAKE_ID,
    MAX_ID,
    RESERVED_COMMANDS,
    Chunk,
    ErrorInfo,
    Failure,
    Progress,
    Request,
    Result,
)

KINDS = {"result": Result, "failure": Failure, "progress": Progress, "chunk": Chunk}
Message = Result | Failure | Progress | Chunk


def message(kind: str, fields: dict[str, Any]) -> Message:
    info = fields.get("info")
    return KINDS[kind](**{**fields, "info": ErrorInfo(**info)} if info is not None else fields)


def written(said: Message) -> bytes:
    match said:
        case Result(id=id, result=result, recycle=recycle):
            return messages.encode_result(id, result, recycle=recycle)
        case Failure(id=id, error=error, info=info, recycle=recycle):
            return messages.encode_failure(id, error, info=info, recycle=recycle)
        case Progress(id=id, data=data):
            return messages.encode_progress(id, data)
        case Chunk(id=id, seq=seq, data=data):
            return messages.encode_chunk(id, seq, data)


@pytest.mark.parametrize("case", cases("requests.json"))
def test_a_request_is_read_and_written(case: dict[str, Any]) -> None:
    payload = octets(case["payload"])
    if "error" in case:
        with pytest.raises(FrameError) as refused:
            messages.decode_request(payload)
        assert refused.value.kind == case["error"]
        return
    request = Request(**case["request"])
    assert messages.decode_request(payload) == messages.decode_request(bytearray(payload)) == request
    assert messages.decode_request(messages.encode_request(request)) == request
    assert (messages.encode_request(request) == payload) == case["canonical"]


@pytest.mark.parametrize("case", cases("replies.json"))
def test_what_a_bridge_says_is_read_and_written(case: dict[str, Any]) -> None:
    payload = octets(case["payload"])
    if "error" in case:
        with pytest.raises(FrameError) as refused:
            messages.decode_message(payload)
        assert refused.value.kind == case["error"]
        with pytest.raises(FrameError) as refused:
            messages.survey_message(payload)
        assert refused.value.kind == case["error"]
        return
    said = message(case["kind"], case["fields"])
    assert messages.decode_message(payload) == messages.decode_message(bytearray(payload)) == said
    assert messages.survey_message(payload) == said
    assert (written(said) == payload) == case["canonical"]


def test_a_survey_leaves_out_long_texts_but_those_of_failures() -> None:
    text = "long" * codec.LONG
    info = ErrorInfo(type="T", message=text, traceback=text, details={"a": text})
    failure = Failure(id=7, error=text, info=info)
    for said, surveyed in (
        (Result(id=7, result=[text, 1], recycle=True), Result(id=7, result=["", 1], recycle=True)),
        (Chunk(id=7, seq=3, data={"a": text}), Chunk(id=7, seq=3, data={"a": ""})),
        (Progress(id=7, data=text), Progress(id=7, data="")),
        (failure, failure),
    ):
        assert messages.survey_message(written(said)) == surveyed


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b'{"id":"7\\n","command":"echo"}', "id must be an integer from 0 to 2^53−1, not '7\\n'"),
        (b'{"id":7,"command":"echo","args":["secret"]}', "args must be an object, not list"),
        (b'{"id":7,"command":{"a":1}}', "command must be text, not dict"),
        (b'{"id":7,"command":"echo","deadline":"tomorrow"}', "deadline must be Unix milliseconds, not 'tomorrow'"),
    ],
)
def test_a_refusal_names_the_field_and_does_not_repeat_the_payload(payload: bytes, said: str) -> None:
    with pytest.raises(FrameError) as refused:
        messages.decode_request(payload)
    assert str(refused.value) == f"bad_envelope: {said}"


def test_a_refusal_quotes_little_of_a_long_value() -> None:
    with pytest.raises(FrameError) as refused:
        messages.decode_request(codec.encode({"id": "x" * 10_000, "command": "echo"}))
    assert len(str(refused.value)) < 200


# ---- the writers' rules


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": -1},
        {"id": MAX_ID + 1},
        {"command": ""},
        {"command": "a\nb"},
        {"command": "é" * 128},
        {"command": "\ud800"},
        {"deadline": -1},
        {"deadline": 2**64},
        {"attempt": 0},
        {"args": {"a": float("nan")}},
        {"args": {"a": object()}},
        {"args": {1: 2}},
        {"traceparent": "\ud800"},
    ],
    ids=str,
)
def test_a_request_no_reader_would_take_is_not_written(wrong: dict[str, Any]) -> None:
    request = Request(id=7, command="echo", args={})
    assert messages.encode_request(request)
    with pytest.raises(ValueError, match=r"\w"):
        messages.encode_request(replace(request, **wrong))


def test_a_result_that_cannot_be_encoded_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        messages.encode_result(7, float("nan"))


def test_timestamps_are_written_where_given() -> None:
    stamp = messages.format_timestamp(1_714_564_800.0416)
    assert stamp == "2024-05-01T12:00:00.041Z"
    assert messages.format_timestamp(0) == "1970-01-01T00:00:00.000Z"
    for payload in (
        messages.encode_request(Request(id=7, command="echo", args={}, timestamp=stamp)),
        messages.encode_result(7, 1, timestamp=stamp),
        messages.encode_failure(7, "x", timestamp=stamp),
    ):
        assert codec.decode(payload)["timestamp"] == stamp
    assert "timestamp" not in codec.decode(messages.encode_result(7, 1))


def test_error_info_repeats_the_error_where_it_has_no_message_and_leaves_out_what_it_does_not_say() -> None:
    payload = messages.encode_failure(7, "boom", info=ErrorInfo(type="ValueError"))
    assert codec.decode(payload)["error_info"] == {"type": "ValueError", "message": "boom"}


@pytest.mark.parametrize(
    "case", [case for case in cases("requests.json") if "attempt" not in case.values[0].get("request", ["attempt"])]
)
@pytest.mark.parametrize("attempt", [2, 100])
def test_an_attempt_is_spliced_in_and_the_rest_stays_byte_for_byte(case: dict[str, Any], attempt: int) -> None:
    payload = octets(case["payload"])
    spliced = messages.with_attempt(payload, attempt)
    assert spliced.endswith(payload[1:])
    assert messages.decode_request(spliced) == replace(messages.decode_request(payload), attempt=attempt)


# ---- the handshake


def test_the_handshake_is_a_ping_with_id_0() -> None:
    request = handshake("node-1-0", "2024-05-01T12:00:00.000Z")
    assert request.id == HANDSHAKE_ID == 0
    assert request.command == "ping"
    assert request.args == {"initialization": True, "worker_id": "node-1-0", "protocol": 1}
    assert messages.decode_request(messages.encode_request(request)) == request


def test_only_cancel_and_shutdown_are_reserved() -> None:
    assert {"cancel", "shutdown"} == RESERVED_COMMANDS


@pytest.mark.parametrize(
    "result",
    [
        None,
        "pong",
        [],
        {},
        {"status": "ok", "protocol": 1, "concurrency": 8},  # only `capabilities` is believed
        {"args": {"capabilities": {"concurrency": 8}}},  # an older bridge that echoes
        {"capabilities": None},
        {"capabilities": ["cancel"]},
        {"capabilities": {}},
        {"capabilities": {"cancel": 1, "stream": "true", "shutdown": None, "commands": "echo", "protocol": "1"}},
        {"capabilities": {"protocol": True}},
        {"capabilities": {"stacks": 64}},
        {"capabilities": {"stacks": {"pid": 0, "signal": 64}}},
        {"capabilities": {"stacks": {"pid": 7, "signal": 65}}},
        {"capabilities": {"stacks": {"pid": 7, "signal": True}}},
        {"capabilities": {"stacks": {"pid": -1, "signal": 9}}},
        {"capabilities": {"stacks": {"pid": 2**40, "signal": 9}}},
        {"capabilities": {"stacks": {"signal": 9}}},
    ],
    ids=str,
)
def test_a_bridge_that_claims_nothing_gets_the_least(result: Any) -> None:
    assert read_capabilities(result) == Capabilities()
    assert Capabilities() == Capabilities(
        protocol=0, concurrency=1, cancel=False, stream=False, shutdown=False, commands=(), stacks=None, ahead=0
    )


def test_claims_are_read() -> None:
    claimed = {"protocol": 1, "concurrency": 1024, "cancel": True, "stream": True, "shutdown": True}
    assert read_capabilities({"capabilities": {**claimed, "commands": ["a", 1, "b"]}}) == Capabilities(
        **claimed, commands=("a", "b")
    )


def test_how_to_ask_for_stacks_is_read() -> None:
    claimed = {"capabilities": {"stacks": {"pid": 7, "signal": 64}}}
    assert read_capabilities(claimed).stacks == Stacks(pid=7, signal=64)


@pytest.mark.parametrize("concurrency", [0, -1, 1025, "2", 1.0, True, None, []])
def test_a_concurrency_that_makes_no_sense_is_refused(concurrency: Any) -> None:
    with pytest.raises(FrameError, match="concurrency must be 1 … 1024") as refused:
        read_capabilities({"capabilities": {"concurrency": concurrency}})
    assert refused.value.kind == FrameKind.BAD_ENVELOPE


def test_how_many_it_takes_ahead_is_read() -> None:
    assert read_capabilities({"capabilities": {"ahead": 16}}).ahead == 16


@pytest.mark.parametrize("ahead", [-1, 1025, "2", 1.0, True, None, []])
def test_a_number_ahead_that_makes_no_sense_is_refused(ahead: Any) -> None:
    with pytest.raises(FrameError, match="ahead must be 0 … 1024") as refused:
        read_capabilities({"capabilities": {"ahead": ahead}})
    assert refused.value.kind == FrameKind.BAD_ENVELOPE


def test_a_failure_that_gives_a_request_back_is_known_by_its_type() -> None:
    assert Failure(id=1, error="any", info=ErrorInfo(type=messages.GIVEN_BACK)).given_back
    assert not Failure(id=1, error=messages.GIVEN_BACK, info=ErrorInfo(type="Cancelled")).given_back
    assert not Failure(id=1, error=messages.GIVEN_BACK).given_back


# ---- anything at all

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
ODD = st.one_of(VALUE, st.sampled_from([0, 1, -1, 2**53, "echo", "chunk", "progress", True, False, {}, None]))
FIELDS = {field.name for said in (Request, Result, Failure, Chunk) for field in fields(said)}
BODY = st.dictionaries(st.sampled_from(sorted({*FIELDS, "success", "error_info", "event"})), ODD)
INFO = st.builds(
    ErrorInfo,
    type=TEXT,
    message=TEXT.filter(bool),
    traceback=st.none() | TEXT,
    retryable=st.booleans(),
    retry_after=st.none() | st.floats(0, 1e9),
    details=st.dictionaries(TEXT, VALUE, max_size=3),
)
ID = st.integers(0, MAX_ID)
MESSAGE = st.one_of(
    st.builds(Result, id=ID, result=VALUE, recycle=st.booleans()),
    st.builds(Failure, id=st.none() | ID, error=TEXT, info=st.none() | INFO, recycle=st.booleans()),
    st.builds(Progress, id=ID, data=VALUE),
    st.builds(Chunk, id=ID, seq=st.integers(0, 2**63), data=VALUE),
)
REQUEST = st.builds(
    Request,
    id=ID,
    command=TEXT.filter(lambda text: messages.command_problem(text) is None),
    args=st.dictionaries(TEXT, VALUE, max_size=3),
    timestamp=TEXT,
    deadline=st.none() | st.integers(0, 2**63),
    traceparent=st.none() | TEXT,
    attempt=st.integers(1, 100),
)


@given(REQUEST)
def test_every_request_goes_both_ways(request_: Request) -> None:
    assert messages.decode_request(messages.encode_request(request_)) == request_


@given(MESSAGE)
def test_every_message_goes_both_ways(said: Message) -> None:
    assert messages.decode_message(written(said)) == said


@given(BODY)
def test_any_object_is_a_message_or_one_frame_error(body: dict[str, Any]) -> None:
    payload = codec.encode(body)
    for read in (messages.decode_request, messages.decode_message):
        try:
            assert isinstance(read(payload), Request | Result | Failure | Progress | Chunk)
        except FrameError as error:
            assert error.kind == FrameKind.BAD_ENVELOPE  # noqa: PT017  # either is right


@given(VALUE)
def test_any_handshake_result_gives_capabilities_or_one_frame_error(claimed: Any) -> None:
    for result in (claimed, {"capabilities": claimed}, {"capabilities": {"concurrency": claimed, "commands": claimed}}):
        try:
            assert read_capabilities(result).concurrency >= 1
        except FrameError as error:
            assert error.kind == FrameKind.BAD_ENVELOPE  # noqa: PT017  # either is right
