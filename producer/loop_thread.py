"""An event loop in a thread of its own, which a forked child can let go of."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

FORKED = "this process was forked from the one that began it, which has what belongs to it: begin it here anew"

T = TypeVar("T")


class Run(Protocol):
    """Have an event loop in another thread run a coroutine, and wait for what it gives or raises: see Producer."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Wait for it."""


class LoopThread:
    """Runs from when it is made until `stop`. `loop`: what it runs."""

    def __init__(self, name: str) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._selector = selectors.DefaultSelector()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name=name, daemon=True)
        self._thread.start()
        self.loop = started.result()

    def stop(self, *, wait: bool) -> None:
        """End the loop; `wait` for its thread."""
        self.loop.call_soon_threadsafe(self._stop.set)
        if wait:
            self._thread.join()

    def let_go(self) -> None:
        """After a fork, in the child: give up what it shares with the parent, without a word to anybody.

        Closing a connection would tell its peer; a selector's `unregister` would reach the parent's epoll, which is
        shared.
        """
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            for descriptor in [key.fd for key in self._selector.get_map().values()]:
                os.dup2(nowhere, descriptor, inheritable=False)
        finally:
            os.close(nowhere)

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def live() -> None:
            started.set_result(asyncio.get_running_loop())
            await self._stop.wait()

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(self._selector)) as runner:
            runner.run(live())


def of_another_thread(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """`loop`. Raises RuntimeError in its own thread."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        return loop
    if here is loop:
        raise RuntimeError("in the thread of its event loop a Producer would wait for itself: use AsyncProducer there")
    return loop
