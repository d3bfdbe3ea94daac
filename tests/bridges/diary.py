"""Keeps notes by session, and tells its process: asynchronously too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator
from typing import Any

from bridge_sdk import Bridge

bridge = Bridge()


@bridge.command
def pid() -> int:
    return os.getpid()


@bridge.command
async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@bridge.command
def note(text: str) -> list[str]:
    notes: list[str] = bridge.session.state.setdefault("notes", [])
    notes.append(text)
    return notes


@bridge.command
def pages(count: int) -> Generator[int, None, str]:
    for number in range(count):
        bridge.progress(number, count)
        yield number
    return "the end"


@bridge.command
async def later_pages(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number
