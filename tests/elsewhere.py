"""An event loop in another thread, with an embedded broker on it: for producers that threads use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from broker.memory import MemoryBroker

PATIENCE = 20.0  # seconds for what takes milliseconds on an idle machine

T = TypeVar("T")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a broker does in its own time."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Elsewhere:
    """An event loop in another thread, with an embedded broker on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.broker = MemoryBroker()
        self._thread = threading.Thread(target=self.loop.run_forever, name="elsewhere")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def do(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return self.run(run())

    def until(self, condition: Callable[[], bool]) -> None:
        self.run(until(condition))

    def end(self) -> None:
        assert self.do(lambda: len(asyncio.all_tasks())) == 1  # the one that looks
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
