"""The properties and headers of requests, replies and dead letters: those named, and never anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol import envelope
from bridge_protocol.envelope import (
    Properties,
    dead_letter_properties,
    message_id_problem,
    reply_properties,
    reply_to_problem,
    request_properties,
)
from bridge_protocol.errors import Code
from bridge_protocol.topology import REPLY_PREFIX

REQUEST_HEADERS = {"protocol", "deadline", "session", "session-epoch", "attempt", "traceparent"}


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


def test_a_dead_letter_keeps_the_requests_identity_and_nothing_else_of_it() -> None:
    request = Properties(
        message_id="m1",
        correlation_id="c1",
        reply_to="quaybridge.reply.victim",
        type="echo",
        content_type="text/html",
        content_encoding="gzip",
        delivery_mode=1,
        priority=9,
        expiration="5",
        headers={"CC": ["victim"], "BCC": ["victim"], "x-delivery-count": 99, "attempt": 7, "node": "forged"},
    )
    letter = dead_letter_properties(
        request,
        code=Code.BRIDGE_CRASHED,
        error="signal 9",
        attempt=3,
        node="n1",
        service="echo",
        details="{}",
        moment="2024-05-01T12:00:00.000Z",
    )
    assert letter == Properties(
        message_id="m1",
        correlation_id="c1",
        type="echo",
        headers={
            "protocol": 1,
            "attempt": 3,
            "node": "n1",
            "service": "echo",
            "code": "bridge_crashed",
            "error": "signal 9",
            "details": "{}",
            "time": "2024-05-01T12:00:00.000Z",
        },
    )
    assert type(letter.headers["code"]) is str


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
