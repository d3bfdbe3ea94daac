"""What a dead letter says, written and read by the same page; and letters that nodes did not write."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from bridge_protocol.dead_letter import LONGEST_DETAILS, DeadLetter, dead_letter, read_dead_letter
from bridge_protocol.envelope import Properties, SessionClaim
from bridge_protocol.errors import Code
from bridge_protocol.topology import partition_of, session_key
from broker.contract import Message
from broker.limits import check_message

BODY = b'{"id":7,"command":"echo","args":{}}'
REQUEST = Properties(
    message_id="m1",
    correlation_id="c1",
    reply_to="quaybridge.reply.billing",
    type="echo",
    priority=9,
    headers={
        "protocol": 1,
        "deadline": 1_714_564_800_000,
        "traceparent": "00-ab-cd-01",
        "first-failed": 1_714_000_000_000,
        "replays": 1,
        "attempt": 3,
    },
)
WHOLE = DeadLetter(
    body=BODY,
    service="echo",
    code="bridge_crashed",
    error="signal 9",
    message_id="m1",
    correlation_id="c1",
    command="echo",
    reply_to="quaybridge.reply.billing",
    attempt=3,
    node="n1",
    slot=2,
    details={"exit_code": None, "signal": "SIGKILL", "stderr": ["last", "words"]},
    first_time=1_714_000_000.0,
    time=1_714_000_060.125,
    replays=1,
    deadline=1_714_564_800_000,
    priority=9,
    traceparent="00-ab-cd-01",
)


def made(request: Properties = REQUEST, details: dict[str, Any] | None = None) -> DeadLetter:
    return dead_letter(
        request,
        BODY,
        service="echo",
        code=Code.BRIDGE_CRASHED,
        error="signal 9",
        attempt=3,
        node="n1",
        slot=2,
        details=WHOLE.details if details is None else details,
        now=1_714_000_060.125,
    )


def test_a_letter_holds_what_became_of_a_request_and_what_sends_it_again() -> None:
    assert made() == WHOLE


def test_a_letter_that_is_written_can_be_read() -> None:
    properties = WHOLE.properties()
    check_message(Message(exchange="quaybridge", routing_key="echo.dead", body=BODY, properties=properties))
    assert read_dead_letter(properties, BODY, service="echo") == WHOLE
    least = DeadLetter(body=b"", service="echo", code="bad_request", error="")
    assert read_dead_letter(least.properties(), b"", service="echo") == least


def test_its_envelope_has_these_headers_and_no_others() -> None:
    assert WHOLE.properties() == Properties(
        message_id="m1",
        correlation_id="c1",
        reply_to="quaybridge.reply.billing",
        type="echo",
        headers={
            "protocol": 1,
            "attempt": 3,
            "node": "n1",
            "service": "echo",
            "code": "bridge_crashed",
            "error": "signal 9",
            "details": '{"exit_code":null,"signal":"SIGKILL","stderr":["last","words"]}',
            "slot": 2,
            "first-time": "2024-04-24T23:06:40.000Z",
            "time": "2024-04-24T23:07:40.125Z",
            "replays": 1,
            "deadline": 1_714_564_800_000,
            "priority": 9,
            "traceparent": "00-ab-cd-01",
        },
    )
    assert type(WHOLE.properties().headers["code"]) is str
    assert WHOLE.properties().priority is None  # it would pass the letters before it


def test_a_letter_of_a_session_goes_back_to_the_queue_of_its_session() -> None:
    claim = SessionClaim(id="user-7", epoch="e@n1", lenient=True)
    said = {"session": "user-7", "session-epoch": "e@n1", "session-mode": "prefer"}
    written = made(replace(REQUEST, headers={**REQUEST.headers, **said}))
    assert written == replace(WHOLE, session=claim)
    letter = read_dead_letter(written.properties(), BODY, service="echo")
    assert letter == written
    assert letter.routing_key == session_key("echo", partition_of("user-7"))
    properties = letter.replay_properties(deadline=None)
    assert {name: properties.headers[name] for name in said} == said
    assert properties.priority is None  # a session's requests have none
    check_message(Message(exchange="quaybridge", routing_key=letter.routing_key, body=BODY, properties=properties))


@pytest.mark.parametrize("session", ["", "two\nlines", "x" * 257, 7, None])
def test_what_cannot_be_a_session_is_not_kept(session: object) -> None:
    letter = made(replace(REQUEST, headers={**REQUEST.headers, "session": session, "session-epoch": "e@n1"}))
    assert letter.session is None
    assert letter.routing_key == "echo"
    assert made(replace(REQUEST, headers={"session": "a", "session-epoch": 7})).session == SessionClaim(id="a")


def test_nothing_else_of_a_request_is_kept() -> None:
    forged = {
        "CC": ["victim"],
        "BCC": ["victim"],
        "x-death": [{}],
        "x-delivery-count": 99,
        "node": "other",
        "code": "x",
    }
    request = replace(
        REQUEST,
        content_type="text/html",
        content_encoding="gzip",
        delivery_mode=1,
        expiration="5",
        headers={**REQUEST.headers, **forged},
    )
    assert made(request) == WHOLE


@pytest.mark.parametrize("reply_to", ["amq.rabbitmq.reply-to.g1h2AA5yZXBs", "amq.gen-x", "quaybridge.echo", "x" * 250])
def test_an_address_that_ends_with_its_requester_or_is_somebody_elses_is_not_kept(reply_to: str) -> None:
    assert made(replace(REQUEST, reply_to=reply_to)).reply_to is None


def test_what_could_not_be_sent_on_is_not_kept() -> None:
    unusable = "\ufffd" * 200
    letter = made(replace(REQUEST, message_id=unusable, correlation_id=unusable, type=unusable))
    assert (letter.message_id, letter.correlation_id, letter.command) == (None, None, None)
    assert letter.id.startswith("sha256:")


def test_a_first_failure_is_this_one_unless_there_was_one_before() -> None:
    assert made(replace(REQUEST, headers={})).first_time == WHOLE.time
    assert made(replace(REQUEST, headers={"first-failed": 1_914_000_000_000})).first_time == WHOLE.time  # in the future


def test_of_a_long_stderr_the_last_lines_are_kept_and_all_else() -> None:
    lines = [f'{number}: "\t\\' + "x" * 900 for number in range(50)]
    details = {"exit_code": 3, "stderr": lines, "slot": 1}
    encoded = made(details=details).properties().headers["details"]
    assert LONGEST_DETAILS - 1000 < len(encoded.encode()) <= LONGEST_DETAILS
    kept = json.loads(encoded)
    assert kept == {"exit_code": 3, "stderr": kept["stderr"], "slot": 1}
    assert kept["stderr"] == lines[-len(kept["stderr"]) :]


@pytest.mark.parametrize(
    "details", [{"a": "x" * 20_000}, {"a": "x" * 20_000, "stderr": ["y"]}, {"stderr": "x" * 20_000}]
)
def test_other_details_that_do_not_fit_are_left_out_and_say_so(details: dict[str, Any]) -> None:
    kept = json.loads(made(details=details).properties().headers["details"])
    assert list(kept) == ["omitted"]


def test_the_largest_letter_can_be_sent() -> None:
    letter = replace(
        WHOLE,
        error="\U0001f4a5" * 100_000,
        details={"stderr": ["\U0001f4a5" * 100] * 1000},
        node="n" * 128,
        service="s" * 64,
        traceparent="t" * 128,
    )
    check_message(Message(exchange="", routing_key="", body=BODY, properties=letter.properties()))


def test_a_letter_without_an_id_is_called_by_its_body() -> None:
    letter = replace(WHOLE, message_id=None)
    assert re.fullmatch("sha256:[0-9a-f]{16}", letter.id)
    assert replace(letter, body=b"other").id != letter.id
    assert WHOLE.id == "m1"


# Letters of the broker.

DEATH = {"reason": "delivery_limit", "queue": "quaybridge.echo", "time": datetime(2024, 4, 24, 23, 7, 40), "count": 1}  # noqa: DTZ001 (as pika reads it)
EXPIRED = {"reason": "expired", "queue": "quaybridge.delay.0", "time": datetime(2024, 4, 24, 23, 0, 0), "count": 1}  # noqa: DTZ001


@pytest.mark.parametrize(
    "account",
    [
        {"x-death": [DEATH, EXPIRED], "x-first-death-reason": "expired", "x-last-death-reason": "delivery_limit"},
        {"x-death": [DEATH, EXPIRED], "x-first-death-reason": "expired"},  # before 4.0
        {"x-first-death-reason": "expired", "x-last-death-reason": "delivery_limit"},  # the embedded broker
        {"x-first-death-reason": "delivery_limit"},
    ],
)
def test_a_letter_of_the_broker_has_the_brokers_reason_for_the_last_time(account: dict[str, Any]) -> None:
    forged = {"code": "forged", "error": "forged", "node": "forged", "details": "{}", "slot": 9, "time": "2001-01-01"}
    properties = replace(REQUEST, headers={**REQUEST.headers, **account, **forged})
    letter = read_dead_letter(properties, BODY, service="echo")
    died = 1_714_000_060.0 if "x-death" in account else None
    assert letter == replace(
        WHOLE,
        code="delivery_limit",
        by_broker=True,
        error=letter.error,
        node=None,
        slot=None,
        details={},
        time=died,
    )
    assert "came back unsettled too often" in letter.error


@pytest.mark.parametrize("account", [{"x-death": [DEATH, EXPIRED]}, {"x-last-death-reason": "news", "x-death": "x"}])
def test_any_reason_of_the_broker_is_told(account: dict[str, Any]) -> None:
    letter = read_dead_letter(replace(REQUEST, headers=account), BODY, service="echo")
    assert letter.by_broker
    assert letter.code in letter.error or letter.code == "delivery_limit"


# Letters of anybody.


@pytest.mark.parametrize(
    "value", [None, -1, 2**62, True, 1.5, "", "text", "{", "[" * 5000, [], [[]], {"a": []}, b"\xff"]
)
def test_whatever_somebody_put_there_is_read_and_could_be_sent_again(value: Any) -> None:
    names = [*WHOLE.properties().headers, "x-death", "first-failed"]
    properties = Properties(
        message_id="a b", correlation_id="", reply_to="x", type="\n", headers=dict.fromkeys(names, value)
    )
    letter = read_dead_letter(properties, b"\xff", service="echo")
    check_message(Message(exchange="", routing_key="", body=b"", properties=letter.properties()))
    check_message(Message(exchange="", routing_key="", body=b"", properties=letter.replay_properties(deadline=None)))


def test_a_letter_that_says_nothing_says_that() -> None:
    assert read_dead_letter(Properties(), b"", service="echo").code == "unknown"


# The request, again.


def test_a_replay_is_the_same_request_as_a_first_attempt_and_counts() -> None:
    assert WHOLE.replay_properties(deadline=1_914_000_000_000) == Properties(
        message_id="m1",
        correlation_id="c1",
        reply_to="quaybridge.reply.billing",
        type="echo",
        priority=9,
        headers={
            "protocol": 1,
            "deadline": 1_914_000_000_000,
            "traceparent": "00-ab-cd-01",
            "first-failed": 1_714_000_000_000,
            "replays": 2,
        },
    )
    least = DeadLetter(body=b"", service="echo", code="bad_request", error="")
    assert least.replay_properties(deadline=None).headers == {"protocol": 1, "replays": 1}
