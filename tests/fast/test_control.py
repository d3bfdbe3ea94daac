"""Control messages: what is written is read, and what is nonsense is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge_protocol.control import (
    Cancel,
    Consumes,
    cancel_key,
    control_topology,
    decode_control,
    encode_cancel,
    encode_consumes,
    owns_key,
)
from bridge_protocol.errors import FrameError
from bridge_protocol.topology import CONTROL, Exchange, Queue, request_queue
from broker.routing import matches

CANCEL = Cancel(service="echo", message_id="0123456789abcdef" * 2)


CONSUMES = Consumes(service="echo", partitions=(0, 7, 31), node="n1")


def body(**changes: Any) -> bytes:
    """A cancel with other fields; None: without that field."""
    said = {"protocol": 1, "control": "cancel", "service": "echo", "message_id": "m1", **changes}
    return json.dumps({key: value for key, value in said.items() if value is not None}).encode()


def test_a_cancel_is_read_as_it_was_written() -> None:
    assert decode_control(encode_cancel(CANCEL)) == CANCEL


def test_a_cancel_on_the_wire() -> None:
    assert json.loads(encode_cancel(CANCEL)) == {
        "protocol": 1,
        "control": "cancel",
        "service": "echo",
        "message_id": "0123456789abcdef0123456789abcdef",
    }


def test_what_a_node_consumes_is_read_as_it_was_written() -> None:
    assert decode_control(encode_consumes(CONSUMES)) == CONSUMES


@pytest.mark.parametrize(
    "changes",
    [
        {"partitions": None},
        {"partitions": 7},
        {"partitions": ["7"]},
        {"partitions": [True]},
        {"partitions": [0, 32]},
        {"partitions": [-1]},
        {"node": None},
        {"node": ""},
        {"node": "n" * 129},
        {"service": "Echo"},
    ],
)
def test_nonsense_about_what_a_node_consumes_is_a_frame_error(changes: dict[str, Any]) -> None:
    right = {"control": "consumes", "partitions": [7], "node": "n1"}
    assert decode_control(body(**right)) == Consumes(service="echo", partitions=(7,), node="n1")
    with pytest.raises(FrameError):
        decode_control(body(**{**right, **changes}))


@pytest.mark.parametrize("changes", [{"control": "session"}, {"protocol": 2}, {"protocol": 2, "service": 7}])
def test_what_a_later_version_may_say_is_passed_over(changes: dict[str, Any]) -> None:
    assert decode_control(body(**changes)) is None


def test_further_fields_are_ignored() -> None:
    assert decode_control(body(because="it is late")) == Cancel(service="echo", message_id="m1")


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"cancel",
        b"[]",
        b'{"protocol": 1',
        b"\xff\xfe",
        body(protocol=None),
        body(protocol="1"),
        body(protocol=True),
        body(protocol=1.0),
        body(control=None),
        body(control=7),
        body(service=None),
        body(service=7),
        body(service="Echo"),
        body(service="control"),
        body(service="a" * 65),
        body(message_id=None),
        body(message_id=7),
        body(message_id=""),
        body(message_id="two words"),
        body(message_id="m" * 129),
        b'{"protocol": 1, "control": "cancel", "control": "session", "service": "echo", "message_id": "m1"}',
    ],
)
def test_nonsense_is_a_frame_error(broken: bytes) -> None:
    with pytest.raises(FrameError):
        decode_control(broken)


@pytest.mark.parametrize(("service", "message_id"), [("Echo", "m1"), ("echo", ""), ("echo", "é"), ("echo", "m" * 129)])
def test_nonsense_is_not_written(service: str, message_id: str) -> None:
    with pytest.raises(ValueError, match=r"service name|message_id"):
        encode_cancel(Cancel(service=service, message_id=message_id))


def test_a_node_hears_of_its_own_services_alone() -> None:
    queue, *bindings = control_topology("mine", ("echo", "parse"))
    assert queue == Queue("mine", exclusive=True)
    assert not isinstance(queue, Exchange)
    keys = [binding.key for binding in bindings if not isinstance(binding, Queue)]
    assert {binding.source for binding in bindings if not isinstance(binding, Queue)} == {CONTROL}
    for service, heard in (("echo", True), ("parse", True), ("other", False), ("echo2", False)):
        for routing_key in (cancel_key(service), owns_key(service)):
            assert any(matches(key, routing_key.split(".")) for key in keys) is heard
    assert request_queue("echo") != "mine"
