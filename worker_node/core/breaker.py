"""The breaker: tells a service whose bridges cannot be started from one that had bad luck.

closed ──`failures` starts in a row fail within `window`, or all have failed for as long as that──▶ open
open ──one succeeds──▶ closed
"""

from __future__ import annotations

from collections import deque


class Breaker:
    """Counts starts that failed since the last that did not. `window` in seconds."""

    def __init__(self, *, failures: int, window: float) -> None:
        self.open = False
        self._window = window
        self._latest: deque[float] = deque(maxlen=failures)
        self._first: float | None = None  # of the failures in a row

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.open else 'closed'}, {len(self._latest)} failures>"

    def failed(self, now: float) -> None:
        """A start failed."""
        if self._first is None:
            self._first = now
        self._latest.append(now)
        often = len(self._latest) == self._latest.maxlen and now - self._latest[0] <= self._window
        self.open = self.open or often or now - self._first >= self._window

    def succeeded(self) -> None:
        """A bridge is ready."""
        self.open = False
        self._first = None
        self._latest.clear()
