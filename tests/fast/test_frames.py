"""Where frames end: the shipped vectors and random streams, cut in every way; memory; what stands after an error."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vectors import cases, octets

from bridge_protocol import frames
from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.frames import DEFAULT_LIMIT, HEADER_SIZE, LARGE, LIMIT_CEILING, FrameDecoder, encode_frame

FRAMES = cases("frames.json")
Outcome = tuple[list[bytes], FrameKind | None, str | None]


def receive_all(decoder: FrameDecoder, piece: bytes) -> Iterator[None]:
    decoder.receive(piece)
    yield


def receive_into_room(decoder: FrameDecoder, piece: bytes) -> Iterator[None]:
    """As who reads from a pipe that holds `piece`, and into room where there is some."""
    while piece:
        room = decoder.room
        if room is None:
            decoder.receive(piece)
            piece = b""
        else:
            size = min(len(room), len(piece))
            room[:size] = piece[:size]
            del room
            decoder.filled(size)
            piece = piece[size:]
        yield


def read_into_room(stream: Iterable[bytes], limit: int) -> Outcome:
    """What `read` gives, with room for whatever is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "LARGE", 1)
        return read(stream, limit, receive_into_room)


def read(
    stream: Iterable[bytes], limit: int, receive: Callable[[FrameDecoder, bytes], Iterator[None]] = receive_all
) -> Outcome:
    """The payloads in `stream`, the error that followed, and whether it came at the "bytes" or at the "end"."""
    decoder = FrameDecoder(limit)
    payloads: list[bytes] = []
    at = "bytes"
    try:
        for piece in stream:
            for _ in receive(decoder, piece):
                while (payload := decoder.next()) is not None:
                    payloads.append(bytes(payload))
        at = "end"
        decoder.receive_eof()
    except FrameError as error:
        return payloads, error.kind, at
    return payloads, None, None


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def one_by_one(stream: bytes) -> list[bytes]:
    return cut(stream, range(1, len(stream)))


def expected(case: dict[str, Any]) -> Outcome:
    kind = FrameKind(case["error"]) if case["error"] else None
    return [octets(payload) for payload in case["payloads"]], kind, case["at"] if kind else None


@pytest.mark.parametrize("case", FRAMES)
def test_a_stream_gives_the_same_however_it_is_cut(case: dict[str, Any]) -> None:
    stream, limit = octets(case["stream"]), case["limit"]
    assert read([stream], limit) == expected(case)
    assert read(one_by_one(stream), limit) == expected(case)
    assert read_into_room([stream], limit) == expected(case)
    assert read_into_room(one_by_one(stream), limit) == expected(case)
    for place in range(min(len(stream), 100)):
        assert read(cut(stream, [place]), limit) == expected(case)
        assert read_into_room(cut(stream, [place]), limit) == expected(case)
    chance = random.Random(case["name"])
    for _ in range(10):
        places = [chance.randrange(len(stream) + 1) for _ in range(chance.randrange(8))]
        assert read(cut(stream, places), limit) == expected(case), places
        assert read_into_room(cut(stream, places), limit) == expected(case), places


@pytest.mark.parametrize("case", [case for case in FRAMES if case.values[0]["error"] is None])
def test_writing_the_payloads_gives_the_stream(case: dict[str, Any]) -> None:
    payloads = [octets(payload) for payload in case["payloads"]]
    assert b"".join(encode_frame(payload, case["limit"]) for payload in payloads) == octets(case["stream"])
    assert b"".join(encode_frame(bytearray(payload)) for payload in payloads) == octets(case["stream"])


@pytest.mark.parametrize("payload_and_kind", [(b"", "empty_frame"), (b"{" + 64 * b" ", "frame_too_large")])
def test_what_a_reader_would_refuse_is_not_written(payload_and_kind: tuple[bytes, str]) -> None:
    payload, kind = payload_and_kind
    with pytest.raises(FrameError) as refused:
        encode_frame(payload, 64)
    assert refused.value.kind == kind


def test_the_default_limit_is_16_mib() -> None:
    assert FrameDecoder().limit == DEFAULT_LIMIT == 16 * 2**20
    assert read([DEFAULT_LIMIT.to_bytes(4, "big")], DEFAULT_LIMIT)[1] == FrameKind.TRUNCATED_BODY
    assert read([(DEFAULT_LIMIT + 1).to_bytes(4, "big")], DEFAULT_LIMIT)[1] == FrameKind.FRAME_TOO_LARGE


@pytest.mark.parametrize("limit", [0, -1, LIMIT_CEILING + 1])
def test_a_limit_that_cannot_be_kept_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="frame limit"):
        FrameDecoder(limit)


def test_no_text_is_a_length_within_the_ceiling() -> None:
    assert FrameDecoder(LIMIT_CEILING).limit == LIMIT_CEILING
    least = int.from_bytes(b"\t\0\0\0", "big")
    assert least == 150_994_944 > LIMIT_CEILING


@pytest.mark.parametrize("text", [b"Traceback (most", b'{"id":1}', b"\nWARNING", b"\r\n\r\n", b"\t\t\t\t"])
def test_text_at_a_frame_boundary_is_refused_for_its_length_and_quoted(text: bytes) -> None:
    decoder = FrameDecoder(LIMIT_CEILING)
    decoder.receive(text)
    with pytest.raises(FrameError, match="frame_too_large") as refused:
        decoder.next()
    assert refused.value.preview == text


def test_a_length_over_the_limit_is_told_with_the_limit() -> None:
    decoder = FrameDecoder()
    decoder.receive(b"\x7f\xff\xff\xff{}")
    with pytest.raises(FrameError, match="2,147,483,647 bytes, the limit is 16,777,216"):
        decoder.next()


@pytest.mark.parametrize(
    ("stream", "begun"),
    [
        (b"", (b"", None)),
        (b"\0\0", (b"\0\0", None)),
        (b"\0\0\0\x05", (b"", 5)),
        (b"\0\0\0\x05{", (b"{", 4)),
        (b"\0\0\0\x02{}\0\0\0\x05{abc", (b"{abc", 1)),
        (b"\0\0\0\x02{}o", (b"o", None)),
    ],
)
def test_how_far_a_frame_came_can_be_asked(stream: bytes, begun: tuple[bytes, int | None]) -> None:
    for pieces in ([stream], one_by_one(stream)):
        decoder = FrameDecoder()
        for piece in pieces:
            decoder.receive(piece)
            while decoder.next() is not None:
                pass
        assert decoder.begun() == begun


def test_the_preview_is_64_bytes_and_the_rest_can_be_quoted() -> None:
    decoder = FrameDecoder()
    noise = b"Loading model \x1b[1m" * 100
    decoder.receive(encode_frame(b"{}") + noise)
    assert decoder.next() == b"{}"
    with pytest.raises(FrameError) as refused:
        decoder.next()
    assert refused.value.preview == noise[:64]
    assert "\x1b" not in str(refused.value)
    assert decoder.rest() == noise


@pytest.mark.parametrize("stream", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x02[]"])
def test_an_error_stands_for_ever(stream: bytes) -> None:
    decoder = FrameDecoder()
    decoder.receive(stream)
    with pytest.raises(FrameError) as first:
        decoder.next()
    for call in (decoder.next, decoder.receive_eof, lambda: decoder.receive(encode_frame(b"{}"))):
        for _ in range(3):
            with pytest.raises(FrameError) as again:
                call()
            assert again.value is first.value
            # A traceback that grew with each call would hold what each call was given.
            assert len(again.traceback) <= 4


@pytest.mark.parametrize("stream", [b"", b"\0", b"\0\0\0\x02", b"\0\0\0\x02{", b"\0\0\0\x02{}", b"\0\0\0\x02{}\0"])
def test_in_frame_is_true_from_the_first_byte_to_the_last(stream: bytes) -> None:
    for pieces in ([stream], one_by_one(stream)):
        decoder = FrameDecoder()
        for piece in pieces:
            decoder.receive(piece)
            while decoder.next() is not None:
                pass
        assert decoder.in_frame == (len(stream) % 6 != 0)


def test_repr_shows_what_is_waited_for() -> None:
    decoder = FrameDecoder()
    assert repr(decoder) == "<FrameDecoder 0 bytes waiting>"
    decoder.receive(b"\0\0")
    assert repr(decoder) == "<FrameDecoder 2 bytes waiting>"
    decoder.receive(b"\0\x09{")
    decoder.next()
    assert repr(decoder) == "<FrameDecoder 1 of 9 bytes>"
    decoder.receive(b"12345678\0\0\0\0")
    decoder.next()
    with pytest.raises(FrameError):
        decoder.next()
    assert repr(decoder) == "<FrameDecoder broken: empty_frame>"


def test_what_was_handed_out_is_the_callers_own() -> None:
    decoder = FrameDecoder()
    frame = encode_frame(b'{"a":1}')
    decoder.receive(frame[:6])
    assert decoder.next() is None
    decoder.receive(frame[6:] + frame)
    first = decoder.next()
    assert first == b'{"a":1}'
    assert isinstance(first, bytearray)  # gathered in place
    first.extend(b"x" * 100)
    first[:1] = b"?"
    assert decoder.next() == b'{"a":1}'


def test_only_the_rest_of_a_large_frame_has_room() -> None:
    decoder = FrameDecoder()
    assert decoder.room is None
    for size, there_is_room in ((LARGE, False), (LARGE + 1, True)):
        decoder.receive(size.to_bytes(HEADER_SIZE, "big") + b"{")
        assert decoder.room is None
        assert decoder.next() is None
        assert (decoder.room is not None) is there_is_room
        rest = b"x" * (size - 1)
        if (room := decoder.room) is not None:
            assert len(room) == size - 1
            room[:10] = rest[:10]
            del room
            decoder.filled(10)
            assert decoder.begun() == (b"{" + rest[:10], size - 11)
            assert decoder.room is None  # what is missing is not much any more
            rest = rest[10:]
        decoder.receive(rest)
        payload = decoder.next()
        assert payload == b"{" + b"x" * (size - 1)
        assert isinstance(payload, bytearray)
        payload.append(0)  # nobody else has a hold of it


@pytest.mark.parametrize("size", [1, 1000, 4096, 65536])
def test_memory_of_a_partly_received_frame(size: int) -> None:
    """Never more than the limit and 64 KiB, whatever the reads."""
    limit = 256 * 1024 if size > 1 else 16 * 1024
    stream = limit.to_bytes(HEADER_SIZE, "big") + b"{" + bytes(limit - 2)
    pieces = cut(stream, range(size, len(stream), size))
    decoder = FrameDecoder(limit)
    tracemalloc.start()
    try:
        for piece in pieces:
            decoder.receive(piece)
            assert decoder.next() is None
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= limit + 1024
    assert peak <= limit + 64 * 1024
    decoder.receive(b"}")
    payload = decoder.next()
    assert payload == stream[HEADER_SIZE:] + b"}"


def test_a_length_over_the_limit_allocates_nothing() -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.receive(b"\x7f\xff\xff\xff{")
        with pytest.raises(FrameError):
            decoder.next()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def test_a_flood_after_an_error_is_not_kept() -> None:
    decoder = FrameDecoder()
    decoder.receive(b"\0\0\0\0")
    with pytest.raises(FrameError):
        decoder.next()
    tracemalloc.start()
    try:
        for _ in range(50):
            with pytest.raises(FrameError):
                decoder.receive(bytes(65536))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8 * 65536


# Short lengths, so that most streams hold frames; and any bytes at all.
FRAME = st.binary(max_size=40).map(lambda rest: encode_frame(b"{" + rest))
NOISE = st.one_of(st.binary(max_size=12), st.binary(max_size=4).map(lambda tail: b"\0\0\0" + tail))
STREAM = st.lists(st.one_of(FRAME, FRAME, FRAME, NOISE), max_size=8).map(b"".join)


@given(STREAM, st.data())
@example(b"\0\0\0\x01{\0\0\0\0", None)
def test_any_bytes_give_payloads_or_one_frame_error_however_cut(stream: bytes, data: st.DataObject | None) -> None:
    whole = read([stream], 64)
    assert read(one_by_one(stream), 64) == whole
    if data is not None:
        places = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
        assert read(cut(stream, places), 64) == whole
        assert read_into_room(cut(stream, places), 64) == whole
    payloads, kind, _ = whole
    assert all(payload.startswith(b"{") for payload in payloads)
    written = b"".join(encode_frame(payload) for payload in payloads)
    assert stream.startswith(written)
    assert (kind is None) == (stream == written)


@given(st.lists(st.binary(max_size=300).map(lambda rest: b"{" + rest), max_size=6), st.data())
def test_what_is_written_is_read(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert read(cut(stream, places), 301) == (payloads, None, None)


def test_the_vectors_name_known_kinds() -> None:
    kinds = {case.values[0]["error"] for case in FRAMES} - {None}
    assert kinds == {"truncated_header", "truncated_body", "empty_frame", "frame_too_large", "bad_start"}
