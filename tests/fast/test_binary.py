"""Bytes in messages: the shipped vectors, there and back again, and what only looks like them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import cases, octets

from bridge_protocol import codec
from bridge_protocol.binary import KEY, encode_binary, restore, restore_args
from bridge_protocol.claim_check import claim_check, restored, with_claim
from bridge_protocol.envelope import Properties
from bridge_protocol.errors import FrameError
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import (
    Chunk,
    ErrorInfo,
    Failure,
    Request,
    Result,
    decode_message,
    decode_request,
    encode_chunk,
    encode_request,
    encode_result,
    with_deadline,
    without_binary,
)
from worker_node.core.admission import Admitted, admit
from worker_node.core.verdict import application_error

KEYS = st.sampled_from(["a", "b", KEY, KEY + "_", KEY + "__", '"', "{"])
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=3) | st.sampled_from([KEY, f'{{"{KEY}":']) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def read(message: bytes, place: str) -> Any:
    """What is in that place of a message, its bytes restored."""
    if place == "args":
        return dict(decode_request(message).arguments())
    said = decode_message(message)
    assert isinstance(said, Result | Chunk)
    value = said.result if isinstance(said, Result) else said.data
    return value if said.binary is None else restore(value, said.binary)


def bytes_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    if isinstance(value, bytes):
        yield path, value
    elif isinstance(value, dict | list):
        for step, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from bytes_in(item, (*path, step))


@pytest.mark.parametrize("case", cases("binary.json"))
def test_the_shipped_vectors(case: dict[str, Any]) -> None:
    message = octets(case["message"])
    if "error" in case:
        with pytest.raises(FrameError) as refused:
            read(message, case["place"])
        assert refused.value.kind == case["error"]
        return
    assert list(bytes_in(read(message, case["place"]))) == [
        (tuple(path), bytes.fromhex(octets)) for path, octets in case["bytes"]
    ]


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_arguments_come_back_whatever_they_look_like(args: dict[str, Any]) -> None:
    payload = encode_request(Request(id=7, command="echo", args=args))
    request = decode_request(payload)
    assert request.arguments() == args
    assert (request.binary is not None) == any(bytes_in(args))


@given(VALUES)
def test_results_and_chunks_come_back_whatever_they_look_like(value: Any) -> None:
    assert read(encode_result(7, value, binary=True), "result") == value
    assert read(encode_chunk(7, 0, value, binary=True), "data") == value


def test_without_bytes_a_message_is_as_it_ever_was() -> None:
    args = {"image": {KEY: "aGk="}}
    payload = encode_request(Request(id=7, command="echo", args=args))
    assert payload == codec.encode({"id": 7, "command": "echo", "args": args})
    assert decode_request(payload).arguments() == args
    assert encode_result(7, args, binary=True) == encode_result(7, args)


def test_bytes_of_every_kind_are_written() -> None:
    args = {"bytes": b"hi", "array": bytearray(b"hi"), "view": memoryview(b"_h_i")[1::2], "none": b""}
    payload, key = encode_binary(args)
    assert key == KEY
    assert (
        payload
        == b'{"bytes":{"$bytes":"aGk="},"array":{"$bytes":"aGk="},"view":{"$bytes":"aGk="},"none":{"$bytes":""}}'
    )
    assert restore_args(codec.decode(payload), key) == {"bytes": b"hi", "array": b"hi", "view": b"hi", "none": b""}


def test_another_key_is_chosen_where_one_is_taken() -> None:
    value = [{KEY: "text"}, {KEY + "_": 1, "more": 2}, b"hi"]
    payload, key = encode_binary(value)
    assert key == KEY + "__"
    assert codec.decode(b'{"":%s}' % payload)[""] == [*value[:2], {key: "aGk="}]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": {1, 2}}, "not JSON: Type is not JSON serializable: set"),
        ([b"hi", object()], "not JSON: Type is not JSON serializable: object"),
        ([b"hi", float("nan")], "not JSON: NaN and infinity cannot be encoded"),
        ({b"key": 1}, "not JSON: Dict key must be str"),
    ],
)
def test_what_is_neither_json_nor_bytes(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r"^not JSON") as refused:
        encode_binary(value)
    assert str(refused.value).startswith(problem)


def test_bytes_for_whoever_does_not_take_them_are_refused() -> None:
    for encode in (lambda: encode_result(7, [b"hi"]), lambda: encode_chunk(7, 0, b"hi")):
        with pytest.raises(ValueError, match="not JSON: it holds bytes, and whoever asked does not say"):
            encode()


def test_an_error_says_where() -> None:
    for value, said in [
        ({"a": {"b": [1, {KEY: "aGk"}]}}, r"a\.b\[1\] should stand for bytes, and is no base64: Incorrect padding"),
        ([{"a": {KEY: None}}], r"\[0\]\.a should stand for bytes, and is no base64: it is of the type NoneType"),
        ({KEY: "%"}, "it should stand for bytes"),
    ]:
        with pytest.raises(FrameError, match=said):
            restore(value, KEY)


def test_a_claim_check_keeps_it() -> None:
    """The arguments are in the store as JSON; the message that holds their claim says what stands for bytes in them."""
    request = Request(id=7, command="echo", args={"image": b"\xff" * 1000}, takes_binary=True)
    content, key = encode_binary(request.args)
    small = with_claim(
        encode_request(Request(id=7, command="echo", args={}, binary=key, takes_binary=True)),
        "args",
        claim_check("00112233445566778899aabbccddeeff", content),
    )
    for message in (small, with_deadline(small, 1_714_564_900_000)):
        whole = restored(message, "args", content)
        verdict = admit(whole, Properties(), limit=DEFAULT_LIMIT, max_attempts=3)
        assert isinstance(verdict, Admitted)
        assert verdict.binary
        assert decode_request(whole).arguments() == request.args


def test_a_field_of_a_bridges_own_is_taken_out_and_nothing_else() -> None:
    payload = b'{"id":7,"success":true,"result":{"$bytes":"aGk="},"binary":"$bytes","mine":1}'
    assert codec.decode(without_binary(payload)) == {"id": 7, "success": True, "result": {KEY: "aGk="}, "mine": 1}


def test_a_bridge_may_blame_the_request() -> None:
    own = application_error(Failure(id=7, error="no", info=ErrorInfo(type="bad_request")))
    blamed = application_error(Failure(id=7, error="no", info=ErrorInfo(bad_request=True)))
    assert (own.code.value, blamed.code.value) == ("application_error", "bad_request")
