"""The properties and headers of requests and replies: those named, and never anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol import envelope
from bridge_protocol.envelope import (
    History,
    Properties,
    message_id_problem,
    read_history,
    read_traceparent,
    reply_properties,
    reply_to_problem,
    request_properties,
)
from bridge_protocol.errors import Code
from bridge_protocol.topology import REPLY_PREFIX

REQUEST_HEADERS = {
    "protocol",
    "deadline",
    "session",
    "session-epoch",
    "attempt",
    "traceparent",
    "first-failed",
    "replays",
}


def test_a_request_with_the_least() -> None:
    assert request_properties(message_id="m1", command="echo") == Properties(
        message_id="m1",
        correlation_id="m1",
        type="echo",
        content_type="application/json",
        delivery_mode=2,
        headers={"protocol": 1},
    )


def test_a_request_with_everything() -> None:
    properties = request_properties(
        message_id="m1",
        command="echo",
        correlation_id="c1",
        reply_to="amq.gen-x",
        deadline=1_714_564_800_000,
        attempt=2,
        traceparent="00-ab-cd-01",
    )
    assert properties == Properties(
        message_id="m1",
        correlation_id="c1",
        reply_to="amq.gen-x",
        type="echo",
        headers={"protocol": 1, "deadline": 1_714_564_800_000, "attempt": 2, "traceparent": "00-ab-cd-01"},
    )
    assert set(properties.headers) <= REQUEST_HEADERS
    assert properties.expiration is None  # it would end a request without an outcome


@pytest.mark.parametrize("code", [None, *Code])
@pytest.mark.parametrize("redelivered", [True, False])
def test_a_reply(code: Code | None, redelivered: bool) -> None:
    properties = reply_properties(correlation_id="c1", code=code, attempt=2, node="n1", redelivered=redelivered)
    assert properties == Properties(
        message_id="c1",
        correlation_id="c1",
        type="result" if code is None else str(code),
        headers={"protocol": 1, "attempt": 2, "node": "n1", **({"redelivered": True} if redelivered else {})},
    )
    assert type(properties.type) is str  # an AMQP library may know nothing of enums
    assert properties.reply_to is None


def test_no_code_passes_for_a_result() -> None:
    assert envelope.RESULT == "result"
    assert "result" not in set(Code)


def test_a_request_that_failed_before_or_was_replayed_says_so() -> None:
    history = History(first_failed=1_714_564_800_000, replays=2)
    headers = request_properties(message_id="m1", command="echo", history=history).headers
    assert headers == {"protocol": 1, "first-failed": 1_714_564_800_000, "replays": 2}
    assert read_history(headers, 1_714_564_800_000) == history


@pytest.mark.parametrize("nonsense", [-1, 0, True, 1.5, "1", None, [], 1_714_564_800, 1_714_564_800_001, 2**63 - 1])
def test_a_first_failure_that_makes_no_sense_counts_as_none(nonsense: object) -> None:
    assert read_history({"first-failed": nonsense}, 1_714_564_800_000) == History()


@pytest.mark.parametrize("nonsense", [-1, 0, True, 1.5, "1", None, []])
def test_replays_that_make_no_sense_count_as_none_and_too_many_as_the_most(nonsense: object) -> None:
    assert read_history({"replays": nonsense}, None) == History()
    assert read_history({"replays": 2**62}, None).replays == 1_000_000


@pytest.mark.parametrize("nonsense", [None, 1, "", "a b", "a\n", "é", "x" * 129])
def test_a_traceparent_that_could_not_be_sent_on_is_none(nonsense: object) -> None:
    assert read_traceparent({"traceparent": nonsense}) is None
    assert read_traceparent({"traceparent": "00-ab-cd-01"}) == "00-ab-cd-01"


@pytest.mark.parametrize(
    "reply_to",
    [
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA0NDU2.Nf0+/=",
        "amq.gen-JzTY20BRgKO-HjmUJj0wLg",
        "quaybridge.reply.billing",
        REPLY_PREFIX + "a",
        "quaybridge.reply.Host-1.local_2",
    ],
)
def test_an_address_a_reply_may_be_sent_to(reply_to: str) -> None:
    assert reply_to_problem(reply_to) is None


@pytest.mark.parametrize(
    "reply_to",
    [
        "",
        "amq.rabbitmq.reply-to",  # what a client writes; a node is always given one client's own address
        "amq.rabbitmq.reply-to.",
        "amq.gen-",
        "amq.gen",
        "amq.genx",
        "amq_gen-x",
        "quaybridge.reply.",
        "quaybridge.reply",
        "quaybridge.reply.a b",
        "quaybridge.reply.a\n",
        "quaybridge.reply.é",
        "quaybridge.reply.#",
        "quaybridge_reply.a",
        " quaybridge.reply.a",
        "quaybridge.analyse",
        "quaybridge.analyse.dead",
        "quaybridge.control",
        "quaybridge.delay.3",
        "somebody.elses.queue",
        "amq.gen-x\n",
        "amq.gen-x y",
        "amq.gen-" + "x" * 250,
        "quaybridge.reply." + "x" * 250,
        "xamq.gen-x",
    ],
)
def test_an_address_that_is_somebody_elses(reply_to: str) -> None:
    assert "reply_to must be" in (reply_to_problem(reply_to) or "")


@pytest.mark.parametrize("message_id", [None, "m", "0123456789abcdef" * 2, "!~", "x" * 128])
def test_a_message_id(message_id: str | None) -> None:
    assert message_id_problem(message_id) is None


@pytest.mark.parametrize("message_id", ["", " ", "a b", "a\n", "\n", "é", "a\0", "\x7f", "x" * 129, "x" * 100_000])
def test_no_message_id(message_id: str) -> None:
    assert "message_id must be" in (message_id_problem(message_id) or "")


@given(st.text())
def test_no_address_or_id_that_is_accepted_can_harm_a_log_or_a_frame(text: str) -> None:
    for problem in (reply_to_problem, message_id_problem):
        if problem(text) is None:
            assert text.isascii()
            assert text.isprintable()
            assert 1 <= len(text) <= 255
