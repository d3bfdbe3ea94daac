"""Who may come in. The good requests are the project's own; only the malformed ones are made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from bridge_protocol.envelope import (
    ATTEMPT,
    DEADLINE,
    PROTOCOL,
    REPLAYS,
    SESSION,
    SESSION_EPOCH,
    SESSION_MODE,
    Properties,
    SessionClaim,
    request_properties,
)
from bridge_protocol.errors import Code
from bridge_protocol.handshake import handshake
from bridge_protocol.messages import CANCEL, MAX_ID, PING, SHUTDOWN, Request, encode_request
from bridge_protocol.topology import PARTITIONS, partition_of
from worker_node.core.admission import Admitted, Refused, admit, identity_of, reply_address

NOW = 1_700_000_000_000  # Unix milliseconds
LIMIT = 4096
PROPERTIES = request_properties(message_id="m1", command="echo", reply_to="quaybridge.reply.a")


def body(**changes: Any) -> bytes:
    return encode_request(replace(Request(id=7, command="echo", args={"text": "hi"}), **changes))


def judge(
    payload: bytes | None = None,
    properties: Properties = PROPERTIES,
    *,
    headers: Mapping[str, Any] | None = None,
    max_attempts: int = 3,
    partition: int | None = None,
    **changes: Any,
) -> Admitted | Refused:
    if headers is not None:
        properties = replace(properties, headers={**properties.headers, **headers})
    payload = body() if payload is None else payload
    return admit(payload, replace(properties, **changes), limit=LIMIT, max_attempts=max_attempts, partition=partition)


def refusal(*arguments: Any, **options: Any) -> str:
    """Judge what must be refused as a bad request; why it is."""
    verdict = judge(*arguments, **options)
    assert isinstance(verdict, Refused)
    assert verdict.fault.code is Code.BAD_REQUEST
    return verdict.fault.message


def admitted(*arguments: Any, **options: Any) -> Admitted:
    verdict = judge(*arguments, **options)
    assert isinstance(verdict, Admitted), verdict
    return verdict


def test_a_request_of_our_own_is_let_in() -> None:
    assert judge() == Admitted(request_id=7, command="echo", deadline=None, attempt=1, timestamp="")


def test_a_request_without_any_properties_is_let_in() -> None:
    assert admitted(properties=Properties(content_type=None, delivery_mode=None)).request_id == 7


def test_anyone_may_ping() -> None:
    assert admitted(body(command=PING), type=PING).command == PING


# The body.


def test_a_body_over_the_limit_is_too_large_and_one_at_the_limit_is_not() -> None:
    filler = "x" * (LIMIT - len(body(args={"text": ""})))
    at_limit = body(args={"text": filler})
    assert len(at_limit) == LIMIT
    assert isinstance(judge(at_limit), Admitted)
    verdict = judge(body(args={"text": filler + "x"}))
    assert isinstance(verdict, Refused)
    assert verdict.fault.code is Code.TOO_LARGE
    assert "4,097" in verdict.fault.message
    assert "4,096" in verdict.fault.message


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "bad_start"),
        (b"[]", "bad_start"),
        (b'"text"', "bad_start"),
        (b"\xef\xbb\xbf" + body(), "bad_start"),
        (body().decode().encode("utf-16"), "bad_start"),
        (b" " + body(), "bad_start"),
        (b"\x80\x04\x95pickle", "bad_start"),
        (b"{not JSON}", "bad_json"),
        (body() + b"}", "bad_json"),
        (b'{"id":7,"command":"echo","args":{"x":NaN}}', "bad_json"),
        (b'{"id":7,"command":"echo","args":{"x":18446744073709551616}}', "bad_json"),
        (b'{"id":7,"command":"echo","args":{"x":"\\ud800"}}', "bad_json"),
        (b'{"id":7,"command":"echo","args":{"x":"\xff"}}', "bad_utf8"),
        (b'{"id":7,"command":"echo","args":' + b'{"a":' * 200 + b"1" + b"}" * 201, "too_deep"),
        (b'{"id":7,"id":8,"command":"echo","args":{}}', "twice"),
        (b"{}", "command"),
        (b'{"id":7,"args":{}}', "command"),
        (b'{"id":7,"command":5,"args":{}}', "command must be text"),
        (b'{"id":7,"command":"","args":{}}', "empty"),
        (b'{"id":7,"command":"a\\u001b[2J","args":{}}', "control characters"),
        (b'{"id":7,"command":"' + b"x" * 256 + b'","args":{}}', "255 bytes"),
        (b'{"id":7,"command":"echo","args":[1]}', "args must be an object"),
        (b'{"id":7,"command":"echo","args":"x"}', "args must be an object"),
        (b'{"command":"echo","args":{}}', "id must be"),
        (b'{"id":"7","command":"echo","args":{}}', "id must be"),
        (b'{"id":7.0,"command":"echo","args":{}}', "id must be"),
        (b'{"id":true,"command":"echo","args":{}}', "id must be"),
        (b'{"id":null,"command":"echo","args":{}}', "id must be"),
        (b'{"id":-1,"command":"echo","args":{}}', "id must be"),
        (b'{"id":%d,"command":"echo","args":{}}' % (MAX_ID + 1), "id must be"),
        (b'{"id":7,"command":"echo","args":{},"deadline":"soon"}', "deadline must be"),
        (b'{"id":7,"command":"echo","args":{},"deadline":-5}', "deadline must be"),
        (b'{"id":7,"command":"echo","args":{},"traceparent":5}', "traceparent must be"),
        (b'{"id":7,"command":"echo","args":{},"attempt":"2"}', "attempt must be"),
    ],
)
def test_a_body_that_is_no_request_is_refused_and_says_why(payload: bytes, said: str) -> None:
    assert said in refusal(payload)


def test_the_handshakes_id_is_not_for_requests() -> None:
    assert "handshake" in refusal(encode_request(handshake("me")), type=PING)


@pytest.mark.parametrize("command", [CANCEL, SHUTDOWN])
def test_what_only_the_node_may_say_is_refused_from_the_queue(command: str) -> None:
    assert "the node's own" in refusal(body(command=command), type=command)


@pytest.mark.parametrize("attempt", [2, 1])
def test_an_attempt_in_the_body_is_the_nodes_to_write(attempt: int) -> None:
    # The encoder leaves out a first attempt; somebody else's may not.
    assert "'attempt'" in refusal(body()[:-1] + b',"attempt":%d}' % attempt)


def test_a_refusal_names_the_request_where_its_id_could_be_read() -> None:
    verdict = judge(body(command=CANCEL), type=CANCEL)
    assert isinstance(verdict, Refused)
    assert verdict.request_id == 7
    nameless = judge(b"{}")
    assert isinstance(nameless, Refused)
    assert nameless.request_id is None


# The properties.


def test_the_type_property_must_be_the_command_where_it_is_given() -> None:
    assert isinstance(judge(type=None), Admitted)
    assert "the type property says 'ping', the command is 'echo'" in refusal(type="ping")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-python-serialize", ""])
def test_another_content_type_is_refused(content_type: str) -> None:
    assert "content_type" in refusal(content_type=content_type)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "binary"])
def test_a_body_that_would_need_unpacking_is_refused(encoding: str) -> None:
    assert encoding in refusal(content_encoding=encoding)


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "identity"])
def test_an_encoding_that_changes_nothing_is_let_in(encoding: str | None) -> None:
    assert isinstance(judge(content_encoding=encoding), Admitted)


@pytest.mark.parametrize("name", ["message_id", "correlation_id"])
@pytest.mark.parametrize("value", ["", "with space", "new\nline", "x" * 129, "\ufffd" * 20, "é"])
def test_an_id_that_could_not_be_logged_or_sent_on_is_refused(name: str, value: str) -> None:
    assert "message_id must be" in refusal(**{name: value})


@pytest.mark.parametrize(
    "address",
    [
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA.abc==",
        "amq.gen-JzTY20BRgKO-HjmUJj0wLg",
        "quaybridge.reply.team_a-7.results",
        "quaybridge.reply." + "x" * 200,
    ],
)
def test_replies_go_to_addresses_for_replies(address: str) -> None:
    assert isinstance(judge(reply_to=address), Admitted)
    assert reply_address(Properties(reply_to=address)) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.",
        "quaybridge.echo",
        "quaybridge.echo.dead",
        "quaybridge.undeliverable",
        "quaybridge.delay.3",
        "quaybridge.reply.",
        "quaybridge.reply.a b",
        "quaybridge.reply." + "x" * 201,
        "somebody-elses-queue",
        "amq.gen-\n",
        "quaybridge.reply.a\n",
        "x quaybridge.reply.a",
    ],
)
def test_nobody_can_have_the_node_write_to_a_queue_of_somebody_elses(address: str) -> None:
    assert "reply_to must be" in refusal(reply_to=address)
    assert reply_address(Properties(reply_to=address)) is None


def test_no_address_is_fire_and_forget() -> None:
    assert isinstance(judge(reply_to=None), Admitted)
    assert reply_address(Properties()) is None


# The headers.


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5, [1], {"a": 1}])
def test_another_version_of_the_protocol_is_refused(version: Any) -> None:
    assert "this node speaks 1" in refusal(headers={PROTOCOL: version})


def test_the_deadline_is_the_headers_or_else_the_bodys() -> None:
    assert admitted(headers={DEADLINE: NOW}).deadline == NOW
    assert admitted(body(deadline=NOW)).deadline == NOW
    assert admitted(body(deadline=NOW), headers={DEADLINE: NOW + 5}).deadline == NOW + 5


def test_a_deadline_that_has_passed_is_for_the_pool_to_judge() -> None:
    assert admitted(headers={DEADLINE: 10**11}).deadline == 10**11


@pytest.mark.parametrize("deadline", ["1700000000000", 1.7e12, True, [NOW], {"deep": [1]}, b"17", None])
def test_a_deadline_of_the_wrong_type_is_refused(deadline: Any) -> None:
    assert "Unix milliseconds" in refusal(headers={DEADLINE: deadline})


@pytest.mark.parametrize("deadline", [0, -1, NOW // 1000, 10**11 - 1, 10**14 + 1, 2**63])
def test_a_deadline_in_seconds_or_of_another_age_is_refused(deadline: int) -> None:
    assert "seconds?" in refusal(headers={DEADLINE: deadline})


def test_a_deadline_in_seconds_is_refused_in_the_body_too() -> None:
    assert "seconds?" in refusal(body(deadline=NOW // 1000))


@pytest.mark.parametrize(
    ("header", "attempt"),
    [(1, 1), (2, 2), (3, 3), (4, 3), (10**12, 3), (0, 3), (-1, 3), ("2", 3), (1.0, 3), (True, 3), (None, 3), ([1], 3)],
)
def test_an_attempt_is_clamped_and_nonsense_counts_as_the_last(header: Any, attempt: int) -> None:
    assert admitted(headers={ATTEMPT: header}).attempt == attempt


def test_what_anyone_can_forge_is_not_looked_at() -> None:
    forged = {"x-death": [{"count": 99}], "x-delivery-count": 99, "x-acquired-count": 99, "CC": ["victim"]}
    assert admitted(headers=forged) == admitted()


def test_a_session_named_twice_must_be_the_same_one() -> None:
    here = partition_of("s")
    admitted = judge(body(args={"session_id": "s"}), headers={SESSION: "s"}, partition=here)
    assert isinstance(admitted, Admitted)
    assert admitted.session == SessionClaim(id="s")
    assert isinstance(judge(body(args={"session_id": "s"})), Admitted)
    assert "disagree" in refusal(body(args={"session_id": "t"}), headers={SESSION: "s"}, partition=here)


def test_what_a_request_says_of_its_session_is_read() -> None:
    headers = {SESSION: "é", SESSION_EPOCH: "abc@n1", SESSION_MODE: "prefer"}
    admitted = judge(headers=headers, partition=partition_of("é"))
    assert isinstance(admitted, Admitted)
    assert admitted.session == SessionClaim(id="é", epoch="abc@n1", lenient=True)


def test_a_session_is_served_by_its_own_queue_alone() -> None:
    assert "queue of its session" in refusal(headers={SESSION: "s"})
    assert "go to partition" in refusal(headers={SESSION: "s"}, partition=(partition_of("s") + 1) % PARTITIONS)
    assert "priority" in refusal(headers={SESSION: "s"}, partition=partition_of("s"), priority=7)


def test_a_header_of_any_depth_is_refused_without_being_walked() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    try:
        assert "list" in refusal(headers={PROTOCOL: deep})
        assert "list" in refusal(headers={DEADLINE: deep})
    finally:
        while deep:  # or its own end would recurse
            deep = deep.pop()


@pytest.mark.parametrize(
    ("headers", "identity"),
    [
        ({}, ("m1", 1, 0)),
        ({ATTEMPT: 2}, ("m1", 2, 0)),
        ({REPLAYS: 3}, ("m1", 1, 3)),
        ({REPLAYS: -1}, ("m1", 1, 0)),
        ({REPLAYS: "2"}, ("m1", 1, 0)),
        ({REPLAYS: True}, ("m1", 1, 0)),
        ({REPLAYS: 2**63 - 1}, ("m1", 1, 1_000_000)),
    ],
)
def test_neither_a_retry_nor_a_replay_is_the_request_it_was(headers: Mapping[str, Any], identity: Any) -> None:
    properties = replace(PROPERTIES, headers=headers)
    assert identity_of(properties, admitted(properties=properties).attempt) == identity


def test_a_request_without_a_name_cannot_be_told_from_another() -> None:
    assert identity_of(replace(PROPERTIES, message_id=None), 1) is None
