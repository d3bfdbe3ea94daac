"""The file that tells a container's health check that the worker serves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from quaybridge.heartbeat import Heartbeat

INTERVAL = 0.005  # seconds


class Health:
    """What a heartbeat asks, and a way to wait until it has asked and done what follows from the answer."""

    def __init__(self, good: bool) -> None:
        self.good = good
        self._asked = asyncio.Event()

    def __call__(self) -> bool:
        self._asked.set()
        return self.good

    async def heeded(self) -> None:
        for _ in range(2):  # when it asks again, what followed from the first answer is done
            self._asked.clear()
            async with asyncio.timeout(20):
                await self._asked.wait()


def make_old(file: Path) -> None:
    os.utime(file, (0, 0))


def is_there(file: Path) -> bool:
    return file.exists()


def is_young(file: Path) -> bool:
    return file.exists() and file.stat().st_mtime > 0


async def test_it_beats_while_healthy_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "health"
    health = Health(good=True)
    heartbeat = Heartbeat(file, health, INTERVAL)
    heartbeat.start()
    assert repr(heartbeat) == f"<Heartbeat {file} beating>"
    for good in (True, False, True):
        health.good = good
        await health.heeded()
        make_old(file)
        await health.heeded()
        assert is_young(file) is good
    heartbeat.stop()
    assert not is_there(file)
    assert repr(heartbeat) == f"<Heartbeat {file} stopped>"
    heartbeat.stop()


async def test_it_beats_as_soon_as_it_is_healthy(tmp_path: Path) -> None:
    file = tmp_path / "health"
    health = Health(good=False)
    heartbeat = Heartbeat(file, health, interval=3600)
    heartbeat.start()
    health.good = True
    async with asyncio.timeout(20):
        while not is_there(file):
            await asyncio.sleep(0.01)
    heartbeat.stop()


async def test_a_file_left_by_another_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "health"
    file.write_bytes(b"")
    heartbeat = Heartbeat(file, Health(good=False), INTERVAL)
    heartbeat.start()
    assert not is_there(file)
    heartbeat.stop()


async def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heartbeat = Heartbeat(tmp_path / "missing" / "health", Health(good=True), INTERVAL)
    heartbeat.start()
    await asyncio.sleep(INTERVAL * 4)  # for a second line, which must not come
    heartbeat.stop()
    assert [record.getMessage() for record in caplog.records] == [
        f"no heartbeat: {tmp_path}/missing/health cannot be written: No such file or directory"
    ]
