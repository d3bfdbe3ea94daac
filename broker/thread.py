"""A call that blocks, in a thread of its own that nobody ever waits for.

asyncio has such calls made by the threads of its executor, and waits for them at the end of the loop, as the
interpreter does at its own: with a name server or a file system that does not answer, a process that has nothing more
to do would stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `call` returns or raises; OSError if no thread can be started now.

    Cancelled, it is not waited for any more, and goes on.
    """
    return await _begun(partial(call, *arguments, **options), lambda: None)


class Threads:
    """Calls of one kind, at most so many at once: one that hangs keeps its place, also when nobody waits for it."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def run(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """As `in_thread`, once there is a place."""
        await self._places.acquire()
        return await _begun(partial(call, *arguments, **options), self._places.release)


def _begun(call: Callable[[], T], on_end: Callable[[], None]) -> asyncio.Future[T]:
    """The future of what `call` returns or raises; `on_end` is called when it has, if the loop still runs then."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def end(tell: Callable[[Any], None], outcome: object) -> None:
        on_end()
        if not answer.done():  # else nobody waits any more
            tell(outcome)

    def run() -> None:
        try:
            told = partial(end, answer.set_result, call())
        except Exception as error:  # noqa: BLE001  (as asyncio does it: it is raised where the call is awaited)
            told = partial(end, answer.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(told)

    try:
        threading.Thread(target=run, name="aside", daemon=True).start()
    except RuntimeError as error:  # as many as this user, or container, may have
        on_end()
        answer.set_exception(OSError(errno.EAGAIN, str(error)))
    return answer
