"""A bridge made with the SDK that takes bytes and gives bytes; `async` as its argument: on an event loop."""

import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from bridge_sdk import Bridge

bridge = Bridge()
last: dict[str, bytes] = {}


def echo(**args: Any) -> dict[str, Any]:
    return args


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def make(size: int) -> dict[str, bytes]:
    return {"data": b"\xff" * size}


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def keep(data: bytes) -> bytes:
    """What was kept before, in this session."""
    before = bridge.session.state.get("data", b"")
    bridge.session.state["data"] = data
    return bytes(before)


def crash(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if sys.argv[1:] == ["async"]:

    async def async_echo(**args: Any) -> dict[str, Any]:
        return args

    async def async_cut(data: bytes, size: int) -> AsyncIterator[bytes]:
        for piece in cut(data, size):
            yield piece

    bridge.command("echo")(async_echo)
    bridge.command("cut")(async_cut)
else:
    bridge.command(echo)
    bridge.command(cut)
for function in (sha256, make, keep, crash):
    bridge.command(function)

bridge.serve()
