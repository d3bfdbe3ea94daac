"""What a test of this layer may leave behind: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest
from rig import Rig, descriptors, until


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """After the test no process, task or descriptor may be there that was not there before."""
    processes = set(psutil.Process().children(recursive=True))
    opened = descriptors()
    yield
    await until(lambda: set(psutil.Process().children(recursive=True)) <= processes)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await until(lambda: descriptors() <= opened)  # a thread may be about to close one


@pytest.fixture
async def rig(nothing_left: None) -> AsyncIterator[Rig]:
    """The embedded broker, a producer, and the nodes a test starts."""
    made = Rig()
    yield made
    await made.close()
