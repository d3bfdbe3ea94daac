"""Bytes in JSON: what stands for them, and how a message says so.

    {"id": 7, "command": "resize", "args": {"image": {"$bytes": "iVBORw0K"}, "width": 80}, "binary": "$bytes"}

An object whose only key is the one that the message's `binary` names stands for the bytes that its value is the base64
of. Who writes a message chooses the key, and chooses another where the message holds such an object already. So there
is nothing to be escaped, and in a message without `binary` no object stands for anything but itself.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from bridge_protocol import codec
from bridge_protocol.errors import FrameError, FrameKind

BINARY = "binary"
TAKES_BINARY = "takes_binary"
KEY = "$bytes"

_ANY_KEY = re.compile(rb'\{"(\$bytes_*)":')


def encode_binary(value: Any) -> tuple[bytes, str | None]:
    """`value` as JSON, and the key of the objects in it that stand for bytes; None: there are none.

    Accepts what codec.encode does, and bytes, bytearray and memoryview. Raises ValueError for what cannot be encoded.
    """
    found = 0

    def under(key: str) -> Callable[[Any], dict[str, str]]:
        def stand_in(item: Any) -> dict[str, str]:
            nonlocal found
            if not isinstance(item, bytes | bytearray | memoryview):
                raise TypeError
            found += 1
            return {key: b2a_base64(item.tobytes() if isinstance(item, memoryview) else item, newline=False).decode()}

        return stand_in

    payload = codec.encode(value, under(KEY))
    if not found:
        return payload, None
    # Quotes within a text are escaped, so this can only begin an object. The pattern would take ten times as long.
    if payload.count(b'{"' + KEY.encode()) == found:
        return payload, KEY
    taken = frozenset(_ANY_KEY.findall(payload))
    key = next(key for n in count(1) if (key := KEY + "_" * n).encode() not in taken)
    return codec.encode(value, under(key)), key


def encode_declared(body: dict[str, Any]) -> bytes:
    """`body` as JSON; if there are bytes in it, its last field is a `binary`. Raises ValueError, as above."""
    payload, key = encode_binary(body)
    return payload if key is None else b'%s,"%s":"%s"}' % (payload[:-1], BINARY.encode(), key.encode())


def restore(value: Any, key: str) -> Any:
    """`value`, decoded from JSON, with bytes in the place of what stands for them; changed where it is.

    Raises FrameError, which says where, for an object with that key alone whose value is no base64 (RFC 4648, 4: with
    its padding, and nothing but).
    """
    with _explained():
        return _restored(value, key)


def restore_args(args: dict[str, Any], key: str) -> dict[str, Any]:
    """The same for arguments, which stand for no bytes as a whole, whatever their names."""
    with _explained():
        _fill(args, args.items(), key)
    return args


class _NotBase64(Exception):
    """`path`: the keys and indices that lead there, from the inside out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path: list[str | int] = []


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except _NotBase64 as error:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in reversed(error.path))
        text = f"{place.removeprefix('.') or 'it'} should stand for bytes, and is no base64: {error}"
        raise FrameError(FrameKind.BAD_ENVELOPE, text) from None


def _restored(value: Any, key: str) -> Any:
    if type(value) is dict:
        if len(value) == 1 and key in value:
            return _decoded(value[key])
        _fill(value, value.items(), key)
    elif type(value) is list:
        _fill(value, enumerate(value), key)
    return value


def _fill(container: Any, items: Iterable[tuple[Any, Any]], key: str) -> None:
    for place, item in items:
        if type(item) is dict or type(item) is list:
            try:
                container[place] = _restored(item, key)
            except _NotBase64 as error:
                error.path.append(place)
                raise


def _decoded(text: Any) -> bytes:
    if type(text) is not str:
        raise _NotBase64(f"it is of the type {type(text).__name__}")
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error is one
        raise _NotBase64(str(error)) from None
