"""Stderr, whatever a bridge writes there."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_node.stderr import LONGEST_LINE, TAIL_BYTES, TAIL_LINES, StderrLines, printable


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


def test_text_that_is_printable_is_left_as_it_is() -> None:
    text = "just a line"
    assert printable(text) is text


def test_a_repr_says_what_is_held() -> None:
    stderr = StderrLines(lambda line: None)
    stderr.receive(b"one\ntwo")
    assert repr(stderr) == "<StderrLines 3 bytes of a line, 1 lines kept>"
