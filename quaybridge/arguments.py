"""The arguments of a request, as a command line gives them: `key=text`, `key:=json`, `key@=file`, `--args JSON`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bridge_protocol.codec import decode
from bridge_protocol.errors import FrameError

_PAIR = re.compile(r"(?P<key>[^=]+?)(?P<kind>[:@])?=(?P<value>.*)", re.DOTALL)


def read_arguments(pairs: Iterable[str], whole: str | bytes | None = None) -> dict[str, Any]:
    """One object made of `whole`, a JSON object, and `pairs`. Raises ValueError, naming what is wrong and the fix.

    `key=value` gives a text, `key:=value` any JSON value, `key@=path` the bytes in that file. No key twice.
    """
    arguments: dict[str, Any] = {}
    if whole is not None:
        try:
            arguments.update(decode(whole.encode() if isinstance(whole, str) else whole))
        except (FrameError, UnicodeEncodeError) as error:
            raise ValueError(f"--args should be a JSON object: {error}") from None
    for pair in pairs:
        found = _PAIR.fullmatch(pair)
        if found is None:
            raise ValueError(f"{pair[:80]!r} is no argument: write key=text, key:=json or key@=file")
        if any("\ud800" <= letter <= "\udfff" for letter in pair):  # how Python shows bytes that it cannot decode
            raise ValueError(f"{pair[:80]!r} is not UTF-8: for bytes write key@=file")
        key = found["key"]
        if key in arguments:
            raise ValueError(f"the argument {key[:80]!r} is given twice")
        match found["kind"]:
            case ":":
                arguments[key] = _value(key, found["value"])
            case "@":
                arguments[key] = _content(key, found["value"])
            case _:
                arguments[key] = found["value"]
    return arguments


def _value(key: str, text: str) -> object:
    try:
        value: object = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{key[:80]}:= is nested too deep") from None
    except ValueError as error:
        quoted = json.dumps(text[:80], ensure_ascii=False)
        raise ValueError(f"{key[:80]}:={text[:80]} is not JSON ({error}): a text is {key[:80]}:={quoted}") from None
    return value


def _content(key: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{key[:80]}@={path[:80]} cannot be read: {reason}") from None


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")
