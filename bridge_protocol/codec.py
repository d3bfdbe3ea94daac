"""JSON in and out: the one home of orjson.

Peers read JSON with other parsers, and the parsers differ: on NaN, on integers past 64 bits, on lone
surrogates, on a byte order mark, on depth, on a key given twice. What they might read differently is refused
here, so that a request means the same to producer, node and bridge, whatever they are written in.

The check is cheap where it matters: a body that re-encodes to itself, byte for byte, holds no surprise. Only
the others (other encoders, with their spaces and escapes) are read a second time, by the standard library.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any

import orjson

from bridge_protocol.errors import FrameError, FrameKind

MAX_DEPTH = 128

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEPTH_CHANGE = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_INTEGERS = range(-(2**63), 2**64)


def encode(value: Any) -> bytes:
    """`value` as JSON. Raises ValueError, saying what cannot be encoded.

    Accepts what orjson does (str, int within 64 bits, float, bool, None, list, tuple, dict with text keys,
    dataclass, datetime, enum, UUID). Refuses NaN and infinities, and nesting deeper than 128.
    """
    try:
        payload = orjson.dumps(value)
    except TypeError as error:  # orjson.JSONEncodeError is a TypeError
        raise ValueError(f"not JSON: {error}") from error
    # orjson writes NaN and infinities as null, silently.
    if b"null" in payload and _holds_no_number(value):
        raise ValueError("not JSON: NaN and infinity cannot be encoded")
    if _depth(payload) > MAX_DEPTH:
        raise ValueError(f"not JSON: nested deeper than {MAX_DEPTH}")
    return payload


def decode(payload: bytes | bytearray) -> dict[str, Any]:
    """The object that `payload` encodes. Raises FrameError: bad_utf8, bad_json, too_deep or bad_start."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _refusal(payload, error) from None
    if not isinstance(value, dict):
        raise FrameError(FrameKind.BAD_START, "a message must be a JSON object", bytes(payload[:64]))
    if _depth(payload) > MAX_DEPTH:
        raise FrameError(FrameKind.TOO_DEEP, f"nested deeper than {MAX_DEPTH}", bytes(payload[:64]))
    if orjson.dumps(value) != payload:
        _check_strictly(payload)
    return value


def _refusal(payload: bytes | bytearray, error: ValueError) -> FrameError:
    preview = bytes(payload[:64])
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return FrameError(FrameKind.BAD_UTF8, f"byte {wrong.start} is not UTF-8", preview)
    if "depth" in str(error):
        return FrameError(FrameKind.TOO_DEEP, f"nested deeper than {MAX_DEPTH}", preview)
    return FrameError(FrameKind.BAD_JSON, str(error), preview)


def _depth(payload: bytes | bytearray) -> int:
    """How deep `payload` nests, or any number up to MAX_DEPTH where it cannot be more than that."""
    most = payload.count(b"[") + payload.count(b"{")
    if most <= MAX_DEPTH:
        return most
    brackets = _STRING.sub(b"", payload).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_DEPTH_CHANGE.__getitem__, brackets)), default=0)


def _check_strictly(payload: bytes | bytearray) -> None:
    """Read `payload` as the standard library does, and refuse what the two would read differently."""
    outermost: list[tuple[str, Any]] = []

    def integer(text: str) -> int:
        # int() itself refuses 4,300 digits and more, with a plain ValueError.
        if len(text) > 20 or int(text) not in _INTEGERS:
            raise FrameError(FrameKind.BAD_JSON, f"the integer {text[:24]} does not fit 64 bits")
        return int(text)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal outermost
        outermost = items  # the outermost object is the last to be completed
        return dict(items)

    try:
        json.loads(payload, parse_int=integer, object_pairs_hook=pairs)
    except ValueError as error:
        raise FrameError(FrameKind.BAD_JSON, str(error), bytes(payload[:64])) from None
    keys = [key for key, _ in outermost]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise FrameError(FrameKind.BAD_ENVELOPE, f"the key {twice[:64]!r} is given twice")


def _holds_no_number(value: Any) -> bool:
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
        elif hasattr(item, "__dataclass_fields__"):
            waiting.extend(getattr(item, name) for name in item.__dataclass_fields__)
    return False
