"""A bridge made with the SDK, on an event loop, with the commands that the conformance kit looks for."""

import asyncio
import sys
from typing import Any

from bridge_sdk import Bridge

bridge = Bridge(concurrency=8)


@bridge.command
async def echo(**args: Any) -> dict[str, Any]:
    return args


@bridge.command
async def sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@bridge.command
async def log(bytes: int) -> int:
    print(("x" * 1023 + "\n") * (bytes // 1024))
    print("a few more", file=sys.stderr)
    return bytes


bridge.serve()
