"""The window: how much may be published and not yet confirmed, by count and by bytes."""

from __future__ import annotations

import asyncio
from collections import deque


class Window:
    """Room for `count` messages and `size` bytes. Whoever finds none waits for it, first come first served.

    A message larger than `size` has room when it is alone.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError("a window needs room for at least one message and one byte")
        self._count = count
        self._size = size
        self._used = 0
        self._used_size = 0
        # Whoever gave up waiting stays in line until its turn would have come.
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<Window {self._used}/{self._count} messages, {self._used_size}/{self._size} bytes>"

    def try_enter(self, size: int) -> bool:
        """Take room for a message of `size` bytes if there is some and nobody waits for it."""
        if self._waiting or not self._fits(size):
            return False
        self._take(size)
        return True

    async def enter(self, size: int) -> None:
        """Take room for a message of `size` bytes, as soon as there is some. Bound it with asyncio.timeout."""
        if self.try_enter(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # those behind it may have room
            else:
                self.leave(size)  # it had just been given its own
            raise

    def leave(self, size: int) -> None:
        """Give the room back."""
        self._used -= 1
        self._used_size -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        return self._used == 0 or (self._used < self._count and self._used_size + size <= self._size)

    def _take(self, size: int) -> None:
        self._used += 1
        self._used_size += size

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size):
                    return
                self._take(size)
                turn.set_result(None)
            self._waiting.popleft()
