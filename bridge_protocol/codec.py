"""JSON in and out: the one home of orjson.

Peers read JSON with other parsers, and the parsers differ: on NaN, on integers past 64 bits, on lone
surrogates, on a byte order mark, on depth, on a key given twice. What they might read differently is refused
here, so that a request means the same to producer, node and bridge, whatever they are written in.

The check is cheap where it matters: a body that re-encodes to itself, byte for byte, holds no surprise. Of the
others (other encoders, with their spaces and escapes) only those that may hold an integer past 64 bits, or a
key given twice, are read a second time, by the standard library. What is inside of a long text is none of these: a
body that has some is compared without.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import accumulate
from typing import Any

import orjson

from bridge_protocol.errors import FrameError, FrameKind

MAX_DEPTH = 128
LONG = 4096  # bytes: from here on the inside of a text is looked at apart from the rest
LARGE = 4 * LONG  # bytes: from here on it pays to look for long texts
PIECE = 64 * 1024  # bytes of a text that are looked at together

_NOT_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_DEPTH_CHANGES = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and −1 as signed bytes
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_AFTER_VALUES = (b",", b"}", b"]")  # and not after keys
_LONGEST_ESCAPE = len(rb"\ud83d\ude00")
_BACKSLASH = ord("\\")
_LONG_INTEGER = b"0" * 19  # any shorter one fits 64 bits
_INTEGERS = range(-(2**63), 2**64)


def encode(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """`value` as JSON. Raises ValueError, saying what cannot be encoded.

    Accepts what orjson does (str, int within 64 bits, float, bool, None, list, tuple, dict with text keys,
    dataclass, datetime, enum, UUID), and what `default` replaces, which is called with anything else and may raise
    TypeError. Refuses NaN and infinities, and nesting deeper than 128.
    A dataclass with `__slots__` must have them all set: on an unset one orjson 3.13.0 ends the process (SIGSEGV).
    """
    try:
        payload = orjson.dumps(value, default)
    except TypeError as error:  # orjson.JSONEncodeError is a TypeError
        raise ValueError(f"not JSON: {error}") from error
    outline = payload if len(payload) < LARGE else _outline(payload, _long_texts(payload))
    # orjson writes NaN and infinities as null, silently.
    if b"null" in outline and _holds_nan(value):
        raise ValueError("not JSON: NaN and infinity cannot be encoded")
    if _depth(outline) > MAX_DEPTH:
        raise ValueError(f"not JSON: nested deeper than {MAX_DEPTH}")
    return payload


def decode(payload: bytes | bytearray) -> dict[str, Any]:
    """The object that `payload` encodes, whose first byte must be its `{`.

    Raises FrameError: bad_start, bad_utf8, bad_json, too_deep, or bad_envelope for a key given twice in the
    outermost object. (Further inside, the last one counts for every parser we know.)
    """
    if not payload.startswith(b"{"):
        raise _refusal(FrameKind.BAD_START, "a payload must begin with '{'", payload)
    try:
        value: dict[str, Any] = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        problem = str(error)  # not the error itself: it holds the whole payload
    else:
        outline = payload if len(payload) < LARGE else _outline(payload, _long_texts(payload))
        if _depth(outline) > MAX_DEPTH:
            raise _refusal(FrameKind.TOO_DEEP, f"nested deeper than {MAX_DEPTH}", payload)
        canonical = orjson.dumps(value if outline is payload else orjson.loads(outline))
        if canonical != outline and _may_be_misread(outline, canonical):
            _check_strictly(payload)
        return value
    raise _explained(payload, problem)


def survey(payload: bytes | bytearray) -> dict[str, Any]:
    """What `decode` gives, and raises, but that long texts may be empty: for whoever passes the payload on as it is."""
    if len(payload) >= LARGE and (texts := _long_texts(payload)):
        try:
            for begin, end in texts:
                _check_text(payload, begin, end)
            return decode(_outline(payload, texts))
        except (FrameError, orjson.JSONDecodeError):
            pass  # what is wrong is told by where it is in the whole
    return decode(payload)


def _refusal(kind: FrameKind, detail: str, payload: bytes | bytearray) -> FrameError:
    return FrameError(kind, detail, bytes(payload[:64]))


def _explained(payload: bytes | bytearray, problem: str) -> FrameError:
    """What is wrong with a `payload` that orjson refused with `problem`."""
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError as wrong:
        position = wrong.start
        return FrameError(FrameKind.BAD_UTF8, f"byte {position} is not UTF-8", bytes(payload[position : position + 64]))
    if _depth(payload) > MAX_DEPTH:
        return _refusal(FrameKind.TOO_DEEP, f"nested deeper than {MAX_DEPTH}", payload)
    return _refusal(FrameKind.BAD_JSON, problem, payload)


def _long_texts(payload: bytes | bytearray) -> list[tuple[int, int]]:
    """Where the insides of the long texts of `payload` begin and end, in order, if it is JSON.

    Not of keys, and not of what is found only after many short texts.
    """
    found: list[tuple[int, int]] = []
    position = begin = 0  # `begin`: of the text that it is in; 0: it is in none
    for _ in range(32 + len(payload) // LONG * 2):
        quote = payload.find(b'"', position)
        if quote < 0:
            break
        position = quote + 1
        if not begin:
            begin = position
        elif payload[quote - 1] == _BACKSLASH:
            if payload[quote - 2] == _BACKSLASH:
                break  # escaped itself, or not
        else:
            if quote - begin >= LONG and payload.startswith(_AFTER_VALUES, position):
                found.append((begin, quote))
            begin = 0
    return found


def _outline(payload: bytes | bytearray, texts: list[tuple[int, int]]) -> bytes | bytearray:
    """`payload` with nothing inside of these texts."""
    if not texts:
        return payload
    pieces: list[bytes | bytearray] = []
    kept = 0
    for begin, end in texts:
        pieces.append(payload[kept:begin])
        kept = end
    return b"".join((*pieces, payload[kept:]))


def _check_text(payload: bytes | bytearray, begin: int, end: int) -> None:
    """Raise ValueError if what is inside of a text, from `begin` to `end`, cannot be there.

    Piece by piece: of a large text orjson makes a copy, and memory is new, and slow, from some size on.
    """
    inside = memoryview(payload)
    while begin < end:
        stop = end
        for cut in range(begin + PIECE, min(begin + PIECE + _LONGEST_ESCAPE, end)):
            # Not within a character, nor within what is escaped, a pair of surrogates at most.
            if payload[cut] & 0xC0 != 0x80 and payload.find(b"\\", cut - _LONGEST_ESCAPE, cut) < 0:
                stop = cut
                break
        orjson.loads(b"".join((b'"', inside[begin:stop], b'"')))
        begin = stop


def _depth(payload: bytes | bytearray) -> int:
    """How deep `payload` nests, or any number up to MAX_DEPTH where it cannot be more than that."""
    most = payload.count(b"[") + payload.count(b"{")
    if most <= MAX_DEPTH:
        return most
    marks = _unescaped(payload).translate(None, _NOT_MARKS).replace(b'""', b"")
    brackets = b"".join(marks.split(b'"')[::2])
    return max(accumulate(array("b", brackets.translate(_DEPTH_CHANGES))), default=0)


def _may_be_misread(payload: bytes | bytearray, canonical: bytes) -> bool:
    """Whether `payload` may hold an integer past 64 bits, or lost a key on the way to `canonical`."""
    if _LONG_INTEGER in payload.translate(_DIGITS_AS_ZEROS):
        return True
    return _unescaped(payload).count(b'"') != _unescaped(canonical).count(b'"')


def _unescaped(payload: bytes | bytearray) -> bytes | bytearray:
    """`payload` without escaped backslashes and quotes: each quote left begins or ends a string."""
    if b"\\" not in payload:
        return payload
    return payload.replace(rb"\\", b"").replace(rb"\"", b"")


def _check_strictly(payload: bytes | bytearray) -> None:
    """Read `payload` as the standard library does, and refuse what the two would read differently."""
    outermost: list[tuple[str, Any]] = []

    def integer(text: str) -> int:
        # int() itself refuses 4,300 digits and more, with a plain ValueError.
        if len(text) > 20 or int(text) not in _INTEGERS:
            raise _refusal(FrameKind.BAD_JSON, f"the integer {text[:24]} does not fit 64 bits", payload)
        return int(text)

    def pairs(items: list[tuple[str, Any]]) -> None:
        nonlocal outermost
        outermost = items  # the outermost object is the last to be completed

    try:
        json.loads(payload, parse_int=integer, object_pairs_hook=pairs)
    except ValueError as error:
        raise _refusal(FrameKind.BAD_JSON, str(error), payload) from None
    seen: set[str] = set()
    for key, _ in outermost:
        if key in seen:
            raise _refusal(FrameKind.BAD_ENVELOPE, f"the key {key[:64]!r} is given twice", payload)
        seen.add(key)


def _holds_nan(value: Any) -> bool:
    """Whether a float in `value` is NaN or infinite: looked for only where the encoding holds a null."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, Enum):
            waiting.append(item.value)
        elif is_dataclass(item):
            # orjson writes the fields, and what else was set on the instance.
            names = {field.name for field in fields(item)} | getattr(item, "__dict__", {}).keys()
            waiting.extend(getattr(item, name, None) for name in names if not name.startswith("_"))
    return False
