"""Stderr, whatever a bridge writes there."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_node.stderr import LONGEST_LINE, STACK_LINES, TAIL_BYTES, TAIL_LINES, StderrLines, printable


def lines(*pieces: bytes) -> list[str]:
    """What is logged of these pieces, and of what remains at the end."""
    seen: list[str] = []
    stderr = StderrLines(seen.append)
    for piece in pieces:
        stderr.receive(piece)
    stderr.receive_eof()
    return seen


def test_lines_come_whole_however_they_were_cut() -> None:
    assert lines(b"one\ntw", b"o\n", b"", b"\nfour") == ["one", "two", "", "four"]


def test_nothing_is_no_line() -> None:
    assert lines() == []
    assert lines(b"one\n") == ["one"]


def test_the_line_ends_of_other_systems_are_no_part_of_a_line() -> None:
    assert lines(b"one\r\ntwo\r\n") == ["one", "two"]


def test_a_character_cut_in_two_by_a_read_is_whole_again() -> None:
    euro = "€".encode()
    assert lines(euro[:1], euro[1:] + b"\n") == ["€"]


def test_what_is_no_utf8_is_shown_as_bytes() -> None:
    assert lines(b"caf\xe9\n") == [r"caf\xe9"]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        (b"\x1b]0;title\x07", r"\x1b]0;title\x07"),
        (b"back\x08space", r"back\x08space"),
        (b"progress 1%\rprogress 2%", r"progress 1%\rprogress 2%"),
        (b"nul\x00", r"nul\x00"),
        ("line\u2028separator".encode(), r"line\u2028separator"),
        ("\u202eevil".encode(), r"\u202eevil"),
        (b"\xc2\x9b31m", r"\x9b31m"),
        ("tab\tand ünïcode 漢字".encode(), "tab\tand ünïcode 漢字"),
    ],
)
def test_nothing_can_move_a_cursor_or_begin_a_line(written: bytes, shown: str) -> None:
    assert lines(written + b"\n") == [shown]


def test_a_line_too_long_is_cut_and_says_by_how_much() -> None:
    (line,) = lines(b"x" * LONGEST_LINE, b"y" * 1000, b"\n")
    assert line == "x" * LONGEST_LINE + " … (1,000 bytes more)"
    assert lines(b"x" * LONGEST_LINE + b"\n") == ["x" * LONGEST_LINE]


def test_a_flood_without_an_end_of_line_takes_no_memory() -> None:
    seen: list[str] = []
    stderr = StderrLines(seen.append)
    piece = b"x" * 65536
    tracemalloc.start()
    try:
        for _ in range(1024):
            stderr.receive(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 + 4 * LONGEST_LINE
    assert not seen
    stderr.receive_eof()
    assert seen == ["x" * LONGEST_LINE + f" … ({64 * 1024 * 1024 - LONGEST_LINE:,} bytes more)"]


@given(st.binary(max_size=400), st.data())
def test_any_bytes_in_any_pieces_give_the_same_safe_lines(written: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    edges = [0, *cuts, len(written)]
    pieces = [written[start:end] for start, end in itertools.pairwise(edges)]
    seen = lines(*pieces)
    assert seen == lines(written)
    assert all(c.isprintable() or c == "\t" for line in seen for c in line)
    assert len(seen) == written.count(b"\n") + (bool(written) and not written.endswith(b"\n"))


# Too many lines.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_of_too_many_lines_the_rest_is_counted_and_the_last_are_kept() -> None:
    seen: list[str] = []
    clock = Clock()
    stderr = StderrLines(seen.append, lines_per_second=10, clock=clock)
    stderr.receive(b"".join(b"line %d\n" % n for n in range(100)))
    assert seen == [f"line {n}" for n in range(10)]
    clock.now += 1.0
    stderr.receive(b"later\n")
    assert seen[10:] == ["… (90 lines left out)", "later"]
    stderr.receive(b"more\n" * 30)
    stderr.receive_eof()
    assert seen[12:] == ["more"] * 9 + ["… (21 lines left out)"]
    assert stderr.tail()[-32:] == ["line 99", "later", *["more"] * 30]


@given(st.integers(0, 300), st.integers(1, 400), st.integers(1, 200))
def test_however_many_are_left_out_their_number_and_the_tail_are_right(short: int, count: int, step: int) -> None:
    written = b"".join(b"%d %s\n" % (n, b"x" * (n % 5) * short) for n in range(count))
    seen: list[str] = []
    stderr = StderrLines(seen.append, lines_per_second=1, clock=Clock())
    for start in range(0, len(written), step * 50):
        stderr.receive(written[start : start + step * 50])
    stderr.receive_eof()
    assert seen[0] == "0 "
    assert seen[1:] == ([f"… ({count - 1:,} lines left out)"] if count > 1 else [])
    assert stderr.tail() == tail(written)


def test_a_flood_of_lines_takes_little_time() -> None:
    stderr = StderrLines(lambda line: None)
    began = time.process_time()
    for _ in range(256):
        stderr.receive(b"\n" * 65536)
    assert time.process_time() - began < 8  # 17 million lines: half a minute and more, one by one


# The tail.


def tail(*pieces: bytes) -> list[str]:
    stderr = StderrLines(lambda line: None)
    for piece in pieces:
        stderr.receive(piece)
    stderr.receive_eof()
    return stderr.tail()


def test_the_tail_is_the_last_lines_the_latest_last() -> None:
    written = [f"line {n}" for n in range(200)]
    assert tail("\n".join(written).encode()) == written[-TAIL_LINES:]


def test_the_tail_is_short_even_if_its_lines_are_long() -> None:
    kept = tail(*[f"{n} {'x' * 1000}\n".encode() for n in range(40)])
    assert kept[-1].startswith("39 ")
    assert 1 < len(kept) < 10
    assert sum(len(line) + 1 for line in kept) <= TAIL_BYTES


@pytest.mark.parametrize("letter", [b"x", b"\xff", "€".encode()])
def test_a_single_long_line_is_kept_as_far_as_there_is_room(letter: bytes) -> None:
    (kept,) = tail(b"before\n", letter * 100_000)
    assert TAIL_BYTES - 8 <= len(kept.encode()) < TAIL_BYTES


def test_of_a_deep_stack_the_innermost_calls_are_kept_and_the_thread_written_last() -> None:
    def stack(name: str, depth: int) -> list[str]:
        return [f"{name} (most recent call first):"] + [f'  File "x.py", line {n} in {name[:3]}' for n in range(depth)]

    watcher = stack("Thread 0x00007f01c3fff6c0", 3)
    main = stack("Current thread 0x00007f01e3b0b740", 90)
    written = [*[f"line {n}" for n in range(60)], "", *watcher, "", *main, "  no call", '  File "y"']
    seen: list[str] = []
    stderr = StderrLines(seen.append)
    stderr.receive("\n".join(written).encode() + b"\n")
    kept = stderr.tail()
    assert seen == written  # the log has it all
    assert kept[-3 - STACK_LINES :] == [*main[: 1 + STACK_LINES], *written[-2:]]
    assert kept[-4 - STACK_LINES - len(watcher) : -4 - STACK_LINES] == watcher
    assert len(kept) == TAIL_LINES


def test_text_that_is_printable_is_left_as_it_is() -> None:
    text = "just a line"
    assert printable(text) is text


def test_a_repr_says_what_is_held() -> None:
    stderr = StderrLines(lambda line: None)
    stderr.receive(b"one\ntwo")
    assert repr(stderr) == "<StderrLines 3 bytes of a line, 1 lines kept>"
