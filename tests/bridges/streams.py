"""A bridge that streams, well and badly: the chunks of commands that return, fail, wait, die, and break the rules."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

from bridge_protocol.frames import encode_frame
from bridge_protocol.messages import encode_chunk, encode_progress, encode_result
from bridge_sdk import ApplicationError, Bridge
from bridge_sdk.stdio import claim

bridge = Bridge(concurrency=int(sys.argv[1]) if len(sys.argv) > 1 else 1)


@bridge.command
def count(to: int, size: int = 0, pause: float = 0.0) -> Generator[str, None, int]:
    for number in range(to):
        yield f"{number:0{size}}"
        if pause:
            time.sleep(pause)
    return to


@bridge.command
def sizes(of: list[int]) -> Iterator[str]:
    for size in of:
        yield "x" * size


@bridge.command
def endless(note: str | None = None) -> Iterator[int]:
    """Counts until it is told to stop, and then says so in the file `note`."""
    number = 0
    try:
        while True:
            yield number
            number += 1
            time.sleep(0.001)
    finally:
        if note is not None:
            Path(note).write_text("stopped")


@bridge.command
def fails(after: int) -> Iterator[int]:
    yield from range(after)
    raise ApplicationError("no more", details={"after": after})


@bridge.command
def dies(to: int, attempts: int) -> Generator[list[int], None, int]:
    """Kills itself half-way in its first `attempts` tries."""
    attempt = bridge.request.attempt
    for number in range(to):
        if attempt <= attempts and number == to // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield [attempt, number]
    return attempt


@bridge.command
def nothing() -> Iterator[int]:
    yield from ()


@bridge.command
def strange() -> Iterator[Any]:
    yield 1
    yield object()


@bridge.command
def steps(to: int, pause: float = 0.0) -> int:
    for number in range(to):
        bridge.progress(number, to, f"step {number}")
        time.sleep(pause)
    return to


@bridge.command
def breaks(how: str) -> int:
    """Breaks the rules of events in its own frames."""
    request = bridge.request.id
    said = {
        "gap": [encode_chunk(request, 0, "a"), encode_chunk(request, 2, "c")],
        "repeated": [encode_chunk(request, 0, "a"), encode_chunk(request, 0, "a")],
        "late": [encode_chunk(request, 0, "a"), encode_result(request, 1), encode_chunk(request, 1, "b")],
        "stranger": [encode_progress(request + 1, 1)],
    }
    os.write(claim().sink, b"".join(map(encode_frame, said[how])))
    time.sleep(60)
    return 0


if bridge._concurrency > 1:

    @bridge.command
    async def ticks(to: int, pause: float = 0.0) -> AsyncIterator[int]:
        for number in range(to):
            yield number
            await asyncio.sleep(pause)

    @bridge.command
    async def echo(text: str) -> str:
        return text


if __name__ == "__main__":
    bridge.serve()
