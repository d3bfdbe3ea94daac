"""Reading a stream: the order of its chunks, what is missing, and runs that take each other's place."""

from __future__ import annotations

import random
from typing import Any

from bridge_protocol.control import WINDOW_CHUNKS
from bridge_protocol.envelope import CHUNKS, event_properties, reply_properties
from bridge_protocol.frames import encode_frame
from bridge_protocol.messages import encode_chunk, encode_progress
from producer.chunks import GRANT_BYTES, GRANT_CHUNKS, GRANT_EVERY, Chunks, Grant

QUEUE = "quaybridge.control.n1.ab"


def headers(run: str = "a", attempt: int = 1, seq: int | None = 0, queue: str | None = QUEUE) -> dict[str, Any]:
    made = event_properties(
        kind=CHUNKS,
        correlation_id="m",
        attempt=attempt,
        node="n1",
        run=run,
        number=0,
        seq=seq,
        control_queue=queue,
    )
    return dict(made.headers)


def ended(run: str = "a", chunks: int = 0, attempt: int = 1) -> dict[str, Any]:
    made = reply_properties(
        correlation_id="m", code=None, attempt=attempt, node="n1", redelivered=False, run=run, chunks=chunks
    )
    return dict(made.headers)


def body(first: int, last: int) -> bytes:
    return b"".join(encode_frame(encode_chunk(7, seq, seq)) for seq in range(first, last + 1))


def receive(chunks: Chunks, first: int, last: int, *, now: float = 0.0, **options: Any) -> Grant | None:
    return chunks.receive(headers(seq=first, **options), body(first, last), now)


def taken(chunks: Chunks, most: int = 1000) -> list[Any]:
    return [piece.data for piece in chunks.take(most)]


def test_chunks_are_given_out_in_order_however_they_are_packed() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    cuts = random.Random(seed)
    chunks = Chunks()
    found: list[Any] = []
    first = 0
    while first < 500:
        last = first + cuts.randrange(40)
        receive(chunks, first, last)
        first = last + 1
        found += taken(chunks, cuts.randrange(50))
    found += taken(chunks)
    assert found == list(range(first))
    chunks.end(ended(chunks=first))
    assert chunks.gap is None


def test_what_comes_twice_counts_once() -> None:
    chunks = Chunks()
    receive(chunks, 0, 3)
    receive(chunks, 0, 3)
    receive(chunks, 2, 6)
    assert taken(chunks) == list(range(7))
    assert chunks.gap is None


def test_what_is_missing_is_a_gap_and_nothing_after_it_is_given_out() -> None:
    chunks = Chunks()
    receive(chunks, 0, 2)
    receive(chunks, 5, 6)
    assert chunks.gap == "chunk 3 is missing: the next one that came is 5"
    receive(chunks, 3, 8)
    assert taken(chunks) == [0, 1, 2]


def test_the_last_ones_are_missed_by_the_reply() -> None:
    chunks = Chunks()
    receive(chunks, 0, 2)
    chunks.end(ended(chunks=4))
    assert chunks.gap == "it had 4 chunks, and 3 came"
    none = Chunks()
    none.end(ended(chunks=1))
    assert none.gap == "it had 1 chunks, and 0 came"
    plain = Chunks()
    plain.end({})
    assert plain.gap is None, "a node that does not say tells nothing"


def test_what_cannot_be_read_is_a_gap() -> None:
    for wrong in (b"\0\0\0\2{", b"\0\0\0\1x", encode_frame(encode_progress(7, 1)), encode_frame(encode_chunk(7, 3, 1))):
        chunks = Chunks()
        chunks.receive(headers(), wrong, 0.0)
        assert chunks.gap is not None
    for seq in (None, -1, "0", True):
        chunks = Chunks()
        chunks.receive({**headers(), "seq": seq}, body(0, 0), 0.0)
        assert chunks.gap is not None


def test_a_message_of_no_run_is_nobodys() -> None:
    chunks = Chunks()
    for wrong in ({}, {"run": 7, "attempt": 1}, {"run": "a", "attempt": "1"}):
        chunks.receive(wrong, body(0, 0), 0.0)
    assert not chunks
    assert chunks.gap is None


def test_a_later_attempt_takes_the_place_of_one_that_nobody_saw() -> None:
    chunks = Chunks()
    receive(chunks, 0, 5)
    receive(chunks, 0, 1, run="b", attempt=2)
    assert not chunks.restarted
    assert taken(chunks) == [0, 1]
    receive(chunks, 6, 9)
    assert not chunks, "what still comes of the one before is dropped"
    assert chunks.gap is None


def test_whoever_saw_chunks_of_the_one_before_is_told() -> None:
    chunks = Chunks()
    receive(chunks, 0, 5)
    assert taken(chunks, 1) == [0]
    receive(chunks, 0, 0, run="b", attempt=2)
    assert (chunks.restarted, chunks.attempt) == (True, 2)
    chunks.restart()
    assert taken(chunks) == [0]


def test_another_run_of_the_same_attempt_is_another_run() -> None:
    """A node that is cut off runs on while another begins: the first is not heard any more."""
    chunks = Chunks()
    receive(chunks, 0, 5)
    receive(chunks, 0, 1, run="b")
    receive(chunks, 6, 7)
    receive(chunks, 2, 2, run="b")
    assert taken(chunks) == [0, 1, 2]
    chunks.end(ended(run="b", chunks=3))
    assert chunks.gap is None
    chunks.end(ended(run="a", chunks=8))
    assert chunks.gap == "its reply is that of an earlier run", "one run's chunks are no part of another's result"


def test_a_new_request_in_the_place_of_one_begins_with_its_first_attempt() -> None:
    chunks = Chunks()
    receive(chunks, 0, 1, run="b", attempt=3)
    assert taken(chunks, 1) == [0]
    receive(chunks, 0, 1, run="c")
    assert not chunks.restarted
    chunks.anew()
    receive(chunks, 0, 1, run="d")
    assert (chunks.restarted, chunks.attempt) == (True, 1)


def test_a_reply_of_a_run_none_of_whose_chunks_came_begins_it() -> None:
    chunks = Chunks()
    receive(chunks, 0, 1)
    taken(chunks)
    chunks.end(ended(run="b", attempt=2, chunks=0))
    assert chunks.restarted
    assert chunks.gap is None
    chunks.end(ended(run="c", attempt=3, chunks=2))
    assert chunks.gap == "it had 2 chunks, and 0 came"


def test_a_gap_of_one_run_is_none_of_the_next() -> None:
    chunks = Chunks()
    receive(chunks, 1, 1)
    assert chunks.gap is not None
    receive(chunks, 0, 0, run="b", attempt=2)
    assert chunks.gap is None


def test_credit_is_given_by_count_by_bytes_and_by_time() -> None:
    chunks = Chunks()
    assert receive(chunks, 0, WINDOW_CHUNKS - 1) is None
    taken(chunks)
    for count in range(1, GRANT_CHUNKS):
        assert chunks.done_with("a", 1, 1, 0.0) is None, count
    assert chunks.done_with("a", 1, 1, 0.0) == Grant(QUEUE, "a", GRANT_CHUNKS)
    assert chunks.done_with("a", 1, 1, 0.0) is None
    assert chunks.done_with("a", 1, GRANT_BYTES, 0.0) == Grant(QUEUE, "a", GRANT_CHUNKS + 2)
    assert chunks.done_with("a", 1, 1, GRANT_EVERY / 2) is None
    assert chunks.done_with("a", 1, 1, GRANT_EVERY) == Grant(QUEUE, "a", GRANT_CHUNKS + 4)


def test_what_was_taken_of_a_run_before_is_no_credit_of_this_one() -> None:
    chunks = Chunks()
    receive(chunks, 0, 99)
    taken(chunks)
    receive(chunks, 0, 99, run="b", attempt=2)
    assert chunks.done_with("a", GRANT_CHUNKS, 1, 5.0) is None
    assert chunks.done_with("b", 1, 1, 5.0) == Grant(QUEUE, "b", 1)


def test_a_new_control_queue_is_told_again_what_was_taken() -> None:
    chunks = Chunks()
    receive(chunks, 0, 9)
    taken(chunks)
    chunks.done_with("a", 5, 5, 0.0)
    again = chunks.receive(headers(seq=10, queue="quaybridge.control.n1.cd"), b"", 0.0)
    assert again == Grant("quaybridge.control.n1.cd", "a", 5)
    assert chunks.gap is None
    assert chunks.receive(headers(seq=10, queue=None), body(10, 10), 0.0) is None


def test_credit_goes_to_control_queues_alone() -> None:
    chunks = Chunks()
    receive(chunks, 0, 99, queue="quaybridge.echo")
    assert chunks.done_with("a", GRANT_CHUNKS, 1, 5.0) is None
