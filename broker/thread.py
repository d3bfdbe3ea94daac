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
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def end(tell: Callable[[Any], None], outcome: object) -> None:
        if not answer.done():  # else nobody waits any more
            tell(outcome)

    def run() -> None:
        try:
            told = partial(end, answer.set_result, call(*arguments, **options))
        except Exception as error:  # noqa: BLE001  (as asyncio does it: it is raised where the call is awaited)
            told = partial(end, answer.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(told)

    try:
        threading.Thread(target=run, name="aside", daemon=True).start()
    except RuntimeError as error:  # as many as this user, or container, may have
        raise OSError(errno.EAGAIN, str(error)) from error
    return await answer
