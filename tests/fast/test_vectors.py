"""The shipped vectors in every reader there is: a node's, of requests and of replies, and the SDK's. They agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from vectors import DIRECTORY, cases, octets

from bridge_protocol import control, messages
from bridge_protocol.envelope import Properties
from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.frames import LIMIT_CEILING, FrameDecoder, encode_frame
from bridge_protocol.handshake import Capabilities, Stacks, read_capabilities
from bridge_protocol.messages import Request
from bridge_sdk.inbox import Inbox
from worker_node.core.admission import Admitted, Refused, admit


def in_inbox(data: bytes, limit: int = LIMIT_CEILING, *, bytewise: bool = False) -> Iterator[Request | FrameKind]:
    """What the SDK makes of the bytes on its stdin, cancels left out."""
    inbox = Inbox(limit)
    for position in range(0, len(data), 1 if bytewise else max(1, len(data))):
        inbox.receive(data[position : position + 1] if bytewise else data)
    while (item := inbox.next()) is not None:
        yield item.kind if isinstance(item, FrameError) else item


def at_admission(body: bytes) -> Admitted | str:
    """What a node makes of the body of a message from a queue: the kind of its error, as its failure tells it."""
    verdict = admit(body, Properties(), limit=LIMIT_CEILING, max_attempts=3)
    return verdict.fault.message.partition(":")[0] if isinstance(verdict, Refused) else verdict


def from_bridge(payload: bytes) -> FrameKind | None:
    """What a node makes of a frame from a bridge: the kind of its error."""
    decoder = FrameDecoder()
    decoder.receive(encode_frame(payload))
    try:
        while (found := decoder.next()) is not None:
            messages.decode_message(found)
    except FrameError as error:
        return error.kind
    return None


BAD_STREAMS = [case for case in cases("frames.json") if case.values[0]["error"] and case.values[0]["at"] == "bytes"]
BAD_PAYLOADS = [
    case for case in cases("payloads.json") if "error" in case.values[0] and octets(case.values[0]["payload"])
]
BAD_REQUESTS = [
    case for case in cases("requests.json") if "error" in case.values[0] and octets(case.values[0]["payload"])
]


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_a_bad_stream_has_the_same_kind_in_a_node_and_in_the_sdk(case: dict[str, Any]) -> None:
    stream, limit = octets(case["stream"]), case["limit"]
    decoder = FrameDecoder(limit)
    decoder.receive(stream)
    payloads: list[bytes | bytearray | None] = []
    with pytest.raises(FrameError) as in_node:
        payloads.extend(iter(decoder.next, None))
    whole = len(payloads)
    assert (in_node.value.kind, whole) == (case["error"], len(case["payloads"]))
    for bytewise in (False, True):
        found = list(in_inbox(stream, limit, bytewise=bytewise))
        assert (found[-1], len(found)) == (case["error"], whole + 1)


@pytest.mark.parametrize("case", [case for case in cases("frames.json") if case.values[0]["at"] == "end"])
def test_a_stream_that_may_go_on_is_no_error_yet(case: dict[str, Any]) -> None:
    stream = octets(case["stream"])
    for bytewise in (False, True):
        assert len(list(in_inbox(stream, case["limit"], bytewise=bytewise))) == len(case["payloads"])


@pytest.mark.parametrize("case", BAD_PAYLOADS)
def test_a_bad_payload_has_the_same_kind_everywhere(case: dict[str, Any]) -> None:
    payload, kind = octets(case["payload"]), case["error"]
    assert list(in_inbox(encode_frame(payload))) == [kind]
    assert at_admission(payload) == kind
    assert from_bridge(payload) == kind


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_has_the_same_kind_in_a_node_and_in_the_sdk(case: dict[str, Any]) -> None:
    payload, kind = octets(case["payload"]), case["error"]
    assert list(in_inbox(encode_frame(payload))) == [kind]
    assert at_admission(payload) == kind


@pytest.mark.parametrize("case", [case for case in cases("requests.json") if "request" in case.values[0]])
def test_a_good_request_is_the_same_in_the_sdk(case: dict[str, Any]) -> None:
    request = Request(**case["request"])
    expected = [] if request.command == messages.CANCEL else [request]
    assert list(in_inbox(encode_frame(octets(case["payload"])))) == expected


@pytest.mark.parametrize("case", [case for case in cases("replies.json") if "error" in case.values[0]])
def test_a_bad_reply_has_its_kind_in_a_node(case: dict[str, Any]) -> None:
    assert from_bridge(octets(case["payload"])) == case["error"]


@pytest.mark.parametrize("case", cases("capabilities.json"))
def test_what_a_handshake_claims(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(FrameError) as refused:
            read_capabilities(case["result"])
        assert refused.value.kind == case["error"]
        return
    claims = dict(case["claims"])
    if "commands" in claims:
        claims["commands"] = tuple(claims["commands"])
    if "stacks" in claims:
        claims["stacks"] = Stacks(**claims["stacks"])
    assert read_capabilities(case["result"]) == Capabilities(**claims)


@pytest.mark.parametrize("case", cases("control.json"))
def test_control_messages(case: dict[str, Any]) -> None:
    body = octets(case["body"])
    if "error" in case:
        with pytest.raises(FrameError) as refused:
            control.decode_control(body)
        assert refused.value.kind == case["error"]
        return
    said = control.decode_control(body)
    kind = "credit" if isinstance(said, control.Credit) else "cancel"
    assert (None if said is None else asdict(said)) == case[kind]
    if isinstance(said, control.Credit):
        assert (control.encode_credit(said) == body) == case["canonical"]
    elif said is not None:
        assert isinstance(said, control.Cancel)
        assert (control.encode_cancel(said) == body) == case["canonical"]


def test_the_readme_lists_the_files_and_each_says_what_it_is_about() -> None:
    readme = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in DIRECTORY.glob("*.json"))
    assert sorted(name for name in files if f"| `{name}` |" in readme) == files
    for name in files:
        loaded = json.loads((DIRECTORY / name).read_text(encoding="utf-8"))
        assert loaded.keys() == {"about", "cases"}
        assert loaded["about"]
