"""What is on its way to a reader: bounded, in order, coalesced; checked step by step, and against a model."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol.control import WINDOW_BYTES, WINDOW_CHUNKS
from bridge_protocol.frames import FrameDecoder
from worker_node.core.outflow import MOST_BYTES_TOGETHER, MOST_TOGETHER, Outflow

DELAY = 0.005


def payloads(frames: bytes) -> list[bytes]:
    decoder = FrameDecoder()
    decoder.receive(frames)
    found = []
    while (payload := decoder.next()) is not None:
        found.append(bytes(payload))
    decoder.receive_eof()
    return found


def test_the_first_is_due_at_once_and_those_that_follow_soon_wait_for_each_other() -> None:
    flow = Outflow(DELAY)
    assert flow.due() == math.inf
    flow.take(b"{0}")
    assert flow.due() == -math.inf
    assert flow.flush(100.0) == (0, b"\0\0\0\3{0}")
    assert flow.due() == math.inf
    flow.take(b"{1}")
    flow.take(b"{2}")
    assert flow.due() == 100.0 + DELAY
    seq, frames = flow.flush(100.0 + DELAY)
    assert (seq, payloads(frames)) == (1, [b"{1}", b"{2}"])


def test_enough_of_them_wait_for_no_more() -> None:
    flow = Outflow(DELAY)
    flow.flush(0.0)
    for _ in range(MOST_TOGETHER - 1):
        flow.take(b"{}")
    assert flow.due() == DELAY
    flow.take(b"{}")
    assert flow.due() == -math.inf
    flow.flush(0.0)
    flow.take(b"{" + b" " * MOST_BYTES_TOGETHER + b"}")
    assert flow.due() == -math.inf


def test_the_last_that_there_is_credit_for_is_due_at_once() -> None:
    flow = Outflow(DELAY)
    for _ in range(WINDOW_CHUNKS - 1):
        flow.take(b"{}")
    flow.flush(0.0)
    assert flow.has_credit
    flow.take(b"{}")
    assert not flow.has_credit
    assert flow.due() == -math.inf


def test_one_chunk_may_go_over_the_bytes_and_no_other_follows_it() -> None:
    flow = Outflow(DELAY)
    assert flow.has_credit
    flow.take(b"x" * 3 * WINDOW_BYTES)
    assert not flow.has_credit
    assert flow.grant(1)
    assert flow.has_credit


def test_credit_is_what_was_taken_all_in_all_and_never_more_than_was_sent() -> None:
    flow = Outflow(DELAY)
    for _ in range(WINDOW_CHUNKS):
        flow.take(b"{}")
    assert flow.grant(10)
    assert not flow.grant(10), "said again, it says nothing new"
    assert not flow.grant(3), "one that was overtaken"
    assert flow.grant(2**60)
    assert not flow.grant(2**61)
    flow.take(b"{}")
    assert flow.grant(2**62)
    assert flow.has_credit


@given(st.lists(st.one_of(st.integers(1, 300_000), st.just("flush"), st.integers(-600, 0)), max_size=200))
def test_nothing_is_lost_and_the_window_holds(events: list[int | str]) -> None:
    """Positive: a chunk of that size, where there is credit. Negative or 0: a grant of so many."""
    flow = Outflow(DELAY)
    sizes: list[int] = []
    granted = came = 0

    def flush() -> None:
        nonlocal came
        seq, frames = flow.flush(0.0)
        found = [len(payload) for payload in payloads(frames)]
        assert seq == came
        assert found == sizes[came:]
        came += len(found)

    for event in events:
        unread = sizes[granted:]
        assert flow.has_credit == (len(unread) < WINDOW_CHUNKS and sum(unread) < WINDOW_BYTES)
        if isinstance(event, str):
            flush()
        elif event > 0:
            if flow.has_credit:
                flow.take(b"{" * event)
                sizes.append(event)
        else:
            flow.grant(-event)
            granted = max(granted, min(-event, len(sizes)))
    flush()
    assert came == flow.taken == len(sizes)
