"""What a bridge's noise is guessed to be."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_node.core.noise import guess, guess_unfinished

REPLY = b'{"id":1,"success":true,"result":"x"}'
FRAME = struct.pack(">I", len(REPLY)) + REPLY
TRACEBACK = (
    b'Traceback (most recent call last):\n  File "<stdin>", line 1, in <module>\nValueError: no such model: \xc3\xa9\n'
)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"Loading model weights...\n", "text: did the program print to stdout, or is its stderr merged into it?"),
        (b"Loading\n" + FRAME, "text: did the program print"),
        (b"\n" + FRAME, "text: did the program print"),
        (b"ok", "text: did the program print"),
        ("Übung macht den Meister".encode(), "text: did the program print"),
        ("模型加载中".encode(), "text: did the program print"),
        ("模型加载中".encode()[:-1], "text: did the program print"),  # cut by the read
        (b"\tindented", "text: did the program print"),
        (b"\x1b[31mERROR\x1b[0m no GPU", "text for a terminal: did the program print to stdout?"),
        (b"50%\x1b[K\r", "text for a terminal"),
        (TRACEBACK, "a Python traceback (ValueError: no such model: é): is the program's stderr merged"),
        (b"Warning\n" + TRACEBACK, "a Python traceback (ValueError"),
        (TRACEBACK[:40], "a Python traceback: is the program's stderr merged"),
        (TRACEBACK.replace(b"ValueError: ", b"KeyboardInterrupt\nx: "), "a Python traceback"),
        (REPLY, "JSON without its length"),
        (REPLY + b"\n" + REPLY + b"\n", "JSON without its length"),
        (b"  " + REPLY, "white space before JSON"),
        (b'[{"id":1}]', "a JSON array"),
        (b"Content-Length: 36\r\n\r\n" + REPLY, "the headers of another protocol"),
        (struct.pack("<I", len(REPLY)) + REPLY, "a little-endian length"),
        (struct.pack("<I", 300) + REPLY, "a little-endian length"),
        (struct.pack(">Q", len(REPLY)) + REPLY, "a length of eight bytes"),
        (struct.pack(">H", len(REPLY)) + REPLY, "a length of two bytes"),
        (b"\xef\xbb\xbf" + REPLY, "a byte order mark"),
        (REPLY.decode().encode("utf-16"), "UTF-16"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}", "a pickle"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b'"}', "the end of the frame before it"),
        (b'"}}]}' + FRAME, "the end of the frame before it"),
    ],
)
def test_what_it_looks_like(data: bytes, said: str) -> None:
    guessed = guess(data)
    assert guessed.startswith("looks like ")
    assert said in guessed


@pytest.mark.parametrize(
    "data", [b"", b"\xde\xad\xbe\xef" * 16, b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\0\0\0", bytes(range(64))]
)
def test_where_there_is_no_telling_nothing_is_said(data: bytes) -> None:
    assert guess(data) == ""


@pytest.mark.parametrize(
    ("received", "missing", "said"),
    [
        (REPLY, 4, "does its length count the four bytes of the length itself?"),
        (REPLY, 2, "counted in something else than bytes?"),
        (REPLY[:10], 26, ""),
        (b"", 36, ""),
        (b"ok\n", None, "looks like text"),
        (b"\0\0", None, ""),
    ],
)
def test_why_a_frame_stopped(received: bytes, missing: int | None, said: str) -> None:
    guessed = guess_unfinished(received, missing)
    assert said in guessed
    assert bool(said) == bool(guessed)


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_one_printable_line_or_nothing(data: bytes) -> None:
    for prefix in (b"", TRACEBACK[:35], b"{"):
        guessed = guess(prefix + data)
        assert guessed.isprintable()
        assert len(guessed) < 400
    assert guess_unfinished(data, None).isprintable()
