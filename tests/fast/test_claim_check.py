"""Claim checks: the shipped vectors, and there and back again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vectors import cases, octets

from bridge_protocol import codec
from bridge_protocol.claim_check import claim_check, read_claim, reference_problem, restored, with_claim
from bridge_protocol.envelope import Properties
from bridge_protocol.errors import FrameError
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import Request, decode_request, encode_request, with_deadline
from worker_node.core.admission import Admitted, Refused, admit

REFERENCE = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize("case", cases("claims.json"))
def test_the_shipped_vectors(case: dict[str, Any]) -> None:
    message, place = octets(case["message"]), case["place"]
    if "error" in case:
        with pytest.raises(FrameError, match=case["error"]):
            read_claim(codec.decode(message), place)
        verdict = admit(message, Properties(), limit=DEFAULT_LIMIT, max_attempts=3)
        assert isinstance(verdict, Refused)
        assert verdict.fault.message.startswith(case["error"])
        return
    claim = read_claim(codec.decode(message), place)
    assert claim is not None
    content = None if case["content"] is None else octets(case["content"])
    problem = claim.problem(content)
    if "problem" in case:
        assert problem is not None
        assert case["problem"] in problem
        assert REFERENCE in problem
    else:
        assert problem is None
        assert content is not None
        assert restored(message, place, content) == octets(case["restored"])


def test_a_request_goes_in_and_comes_out() -> None:
    request = Request(id=7, command="echo", args={"text": "é" * 1000, "n": [1, 2.5, None]}, deadline=1_714_564_800_000)
    whole, content = encode_request(request), codec.encode(request.args)
    small = with_claim(whole, "args", claim_check(REFERENCE, content))
    assert len(small) < 300
    verdict = admit(small, Properties(), limit=DEFAULT_LIMIT, max_attempts=3)
    assert isinstance(verdict, Admitted)
    assert verdict.claim == claim_check(REFERENCE, content)
    assert decode_request(restored(small, "args", content)) == request
    later = with_deadline(small, 1_714_564_900_000)  # as a replay has it
    assert decode_request(restored(later, "args", content)).deadline == 1_714_564_900_000


def test_a_message_without_one_has_none() -> None:
    assert read_claim({"id": 7, "command": "echo", "args": {"claim": 1}}, "args") is None


@pytest.mark.parametrize("content", [b"[]", b"7", b'{}, "command": "shutdown"', b"{", b'{"x": NaN}'])
def test_what_is_put_back_is_judged_as_any_request(content: bytes) -> None:
    small = with_claim(encode_request(Request(id=7, command="echo", args={})), "args", claim_check(REFERENCE, content))
    verdict = admit(restored(small, "args", content), Properties(), limit=DEFAULT_LIMIT, max_attempts=3)
    assert isinstance(verdict, Refused)


def test_references_are_safe_names() -> None:
    assert reference_problem(REFERENCE) is None
    for reference in ("", "..", "/etc/passwd", REFERENCE + "/..", REFERENCE.upper(), REFERENCE + "\n", "٣" * 32, None):
        assert reference_problem(reference) is not None, json.dumps(reference)
