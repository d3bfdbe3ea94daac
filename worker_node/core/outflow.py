"""The chunks of one run, on their way to their reader: in order, within its credit, several to a message.

    take ──▶ pending ──flush──▶ outstanding ──grant──▶ (the reader took them)

What is pending or outstanding is bounded: when WINDOW_CHUNKS of them, or WINDOW_BYTES, are, there is no credit, and
no more is to be read until the reader has taken some. The last that is taken may go over the bytes.

The first chunk is due at once, and so is every one that comes when nothing was sent for `delay` seconds; those that
follow sooner wait until then, and travel together.
"""

from __future__ import annotations

import math
from collections import deque

from bridge_protocol.control import WINDOW_BYTES, WINDOW_CHUNKS
from bridge_protocol.frames import HEADER_SIZE

# So much is not kept waiting for more: half of the window, so that one half is on its way while the other is taken.
MOST_TOGETHER = WINDOW_CHUNKS // 2
MOST_BYTES_TOGETHER = 64 * 1024


class Outflow:
    """`taken`: how many chunks came from the bridge, all in all; the next one's seq. `delay` in seconds."""

    __slots__ = ("_delay", "_flushed_at", "_granted", "_pending", "_pending_bytes", "_sizes", "_unread_bytes", "taken")

    def __init__(self, delay: float) -> None:
        self.taken = 0
        self._delay = delay
        self._flushed_at = -math.inf
        self._granted = 0
        self._sizes: deque[int] = deque()  # of the chunks that the reader has not taken
        self._unread_bytes = 0
        self._pending: list[bytes | bytearray] = []
        self._pending_bytes = 0

    def __repr__(self) -> str:
        return f"<Outflow {self.taken} taken, {len(self._pending)} pending, {len(self._sizes)} unread>"

    @property
    def has_credit(self) -> bool:
        """Whether one more chunk may be taken."""
        return len(self._sizes) < WINDOW_CHUNKS and self._unread_bytes < WINDOW_BYTES

    def take(self, payload: bytes | bytearray) -> None:
        """The bridge sent the next chunk."""
        size = len(payload)
        self.taken += 1
        self._sizes.append(size)
        self._unread_bytes += size
        self._pending += (size.to_bytes(HEADER_SIZE, "big"), payload)
        self._pending_bytes += size

    def due(self) -> float:
        """When to flush what is pending: a moment that may be over; infinite if nothing is."""
        if not self._pending:
            return math.inf
        together = len(self._pending) // 2
        if together >= MOST_TOGETHER or self._pending_bytes >= MOST_BYTES_TOGETHER or not self.has_credit:
            return -math.inf
        return self._flushed_at + self._delay

    def flush(self, now: float) -> tuple[int, bytes]:
        """What is pending, as frames, and the seq of the first of them."""
        seq = self.taken - len(self._pending) // 2
        frames = b"".join(self._pending)
        self._pending = []
        self._pending_bytes = 0
        self._flushed_at = now
        return seq, frames

    def grant(self, chunks: int) -> bool:
        """The reader has taken so many, all in all; whether that is more than was known."""
        more = min(chunks, self.taken) - self._granted
        if more <= 0:
            return False
        self._granted += more
        for _ in range(more):
            self._unread_bytes -= self._sizes.popleft()
        return True
