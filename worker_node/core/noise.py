"""Noise: what bytes that should have been a frame may be, in words that help whoever wrote the bridge."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from bridge_protocol.frames import HEADER_SIZE, LIMIT_CEILING

_TRACEBACK: Final = b"Traceback (most recent call last)"
_RAISED: Final = re.compile(rb"^([A-Za-z_][\w.]*(?:: [^\r\n]*)?)\r?$", re.MULTILINE)
_HTTP_LIKE: Final = re.compile(rb"content-length: *\d+\r?\n", re.IGNORECASE)
_LONGEST_RAISED: Final = 200  # bytes of a traceback's last line


def guess(data: bytes) -> str:
    """Why `data`, from where a frame or its payload should have begun, is none; empty where there is no telling."""
    for cause in _CAUSES:
        if found := cause(data):
            return found
    return ""


def guess_unfinished(received: bytes, missing: int | None) -> str:
    """Why a frame stopped: `received` of its payload, `missing` more bytes; None: its length itself is not whole."""
    if missing is None:
        return guess(received)
    if missing == HEADER_SIZE and received.endswith(b"}"):
        return "looks whole: does its length count the four bytes of the length itself?"
    if received.endswith(b"}"):
        return "looks whole: is its length counted in something else than bytes?"
    return ""


def _traceback(data: bytes) -> str:
    if _TRACEBACK not in data:
        return ""
    after = data[data.index(_TRACEBACK) + len(_TRACEBACK) :]
    raised = _RAISED.findall(after)
    shown = raised[-1][:_LONGEST_RAISED].decode("utf-8", "backslashreplace") if raised else ""
    said = f" ({shown})" if shown.isprintable() and shown else ""
    return f"looks like text: a Python traceback{said}: is the program's stderr merged into its stdout?"


def _header_of_another_protocol(data: bytes) -> str:
    if _HTTP_LIKE.match(data):
        return "looks like the headers of another protocol: a frame is four bytes of length, then JSON, and no headers"
    return ""


def _json_without_a_length(data: bytes) -> str:
    if not data.lstrip(b" \t\r\n").startswith((b'{"', b"{}", b"[{", b'["')):
        return ""
    if data[:1] in b" \t\r\n":
        return "looks like white space before JSON: a payload begins with '{'"
    if data.startswith(b"["):
        return "looks like a JSON array: a payload is an object, after its length of four bytes"
    return "looks like JSON without its length: four bytes, big-endian, come before each payload"


def _rest_of_a_frame(data: bytes) -> str:
    """The end of a JSON text, and then a good frame, or nothing."""
    end = data.find(b"}", 0, 64)
    if end < 0 or b"{" in data[:end] or not data[: end + 1].decode("utf-8", "replace").isprintable():
        return ""
    after = data[end + 1 :]
    while after.startswith((b"}", b"]")):
        after = after[1:]
    if after and not _begins_frame(after):
        return ""
    return "looks like the end of the frame before it: is its length counted in characters, not in bytes of UTF-8?"


def _other_length(data: bytes) -> str:
    big, little = (int.from_bytes(data[:HEADER_SIZE], order) for order in ("big", "little"))
    if data[HEADER_SIZE : HEADER_SIZE + 1] == b"{" and big > LIMIT_CEILING >= little > 0:
        return "looks like a little-endian length: it must be big-endian"
    if big == 0 and _begins_frame(data[HEADER_SIZE:]):
        return "looks like a length of eight bytes: it must have four"
    if data[2:3] == b"{" and data[:1] < b"\t":  # no text begins so
        return "looks like a length of two bytes: it must have four"
    return ""


def _other_format(data: bytes) -> str:
    for start, name in _FORMATS.items():
        if data.startswith(start):
            return f"looks like {name}: a payload is plain JSON in UTF-8"
    return ""


def _terminal(data: bytes) -> str:
    if b"\x1b[" in data and _is_text(data):
        return "looks like text for a terminal: did the program print to stdout?"
    return ""


def _text(data: bytes) -> str:
    if _is_text(data):
        return "looks like text: did the program print to stdout, or is its stderr merged into it?"
    return ""


_FORMATS: Final = {
    b"\xef\xbb\xbf": "a byte order mark",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"{\0": "UTF-16",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
# The more particular first.
_CAUSES: Final[tuple[Callable[[bytes], str], ...]] = (
    _traceback,
    _header_of_another_protocol,
    _other_format,
    _other_length,
    _json_without_a_length,
    _rest_of_a_frame,
    _terminal,
    _text,
)


def _begins_frame(data: bytes) -> bool:
    size = int.from_bytes(data[:HEADER_SIZE], "big")
    return 0 < size <= LIMIT_CEILING and data[HEADER_SIZE : HEADER_SIZE + 1] == b"{"


def _is_text(data: bytes) -> bool:
    """Whether it begins as UTF-8 text does. What follows may be anything: a reply, as a rule."""
    line = re.split(rb"[\r\n]", data, maxsplit=1)[0][:64]
    text = line.decode("utf-8", "ignore")
    cut = len(line) - len(text.encode())  # of the last character, at most three bytes
    return bool(text or (data and not line)) and cut <= 3 and all(c.isprintable() or c in "\t\b\x1b" for c in text)
