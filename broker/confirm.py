"""What becomes of one publish: known once, told in the turn of the loop in which it is.

A future would tell it a turn later, by a callback that the loop has to keep, and cannot be given up by one of those
who wait for it alone. There is one of these for each message, on both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any


class Confirm:
    """Awaitable, by any number of tasks, each of which may be cancelled: None, or the exception that it ended with."""

    __slots__ = ("_ended", "_error", "_told")

    def __init__(self) -> None:
        self._ended = False
        self._error: Exception | None = None
        self._told: tuple[Callable[[Confirm], object], ...] = ()

    def __repr__(self) -> str:
        how = "pending" if not self._ended else "confirmed" if self._error is None else repr(self._error)
        return f"<{type(self).__name__} {how}>"

    def __await__(self) -> Generator[Any, None, None]:
        if not self._ended:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
            yield from waiter
        if self._error is not None:
            raise self._error

    def done(self) -> bool:
        """Whether it has ended, either way."""
        return self._ended

    def exception(self) -> Exception | None:
        """What it ended with; None: the broker has the message, or it has not ended."""
        return self._error

    def add_done_callback(self, callback: Callable[[Confirm], object]) -> None:
        """Have `callback` called when it ends: from inside of `succeed` or `fail`, or soon if it has ended.

        What that raises goes to the loop's exception handler.
        """
        if self._ended:
            asyncio.get_running_loop().call_soon(callback, self)
        else:
            self._told += (callback,)

    def succeed(self) -> None:
        """The broker has it. Without effect once it has ended."""
        if not self._ended:
            self._ended = True
            if self._told:
                self._tell()

    def fail(self, error: Exception) -> None:
        """It ended with `error`. Without effect once it has ended."""
        if not self._ended:
            self._ended = True
            self._error = error
            if self._told:
                self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, ()
        for callback in told:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001  (as asyncio does it: the others are told all the same)
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"{callback!r} raised, told of {self!r}", "exception": error}
                )
