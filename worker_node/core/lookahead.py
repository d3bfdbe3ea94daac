"""How many requests a node may hold beyond those that run.

The broker needs a moment to send the next request after an ack. When requests are short that moment counts, so
a few are kept waiting in the node; when they are long none is, so that no request waits behind a busy slot
while another node idles. Of those that wait, a few may do so in a bridge's pipe: see `Pool`.
"""

from __future__ import annotations

from collections import deque

BUDGET = 0.05  # seconds a request may expect to wait in the node, and as long in a bridge's pipe
MOST_PER_SLOT = 128
SAMPLES = 64
ENOUGH = 16


class Lookahead:
    """Watches how long requests run; `wanted` says how many more to take than can run at once."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=SAMPLES)
        self._each = 0  # the latest answer, for one slot

    def __repr__(self) -> str:
        return f"<Lookahead {len(self._durations)} runs seen>"

    def ran(self, seconds: float) -> None:
        """A request ran for so long."""
        self._durations.append(seconds)

    def wanted(self, capacity: int) -> int:
        """How many requests to hold in waiting for `capacity` places: a power of two for each, or none.

        It falls at once and rises only by a clear margin. A consumer's prefetch is changed by cancelling it, and what
        the broker had sent it by then comes again as redelivered, though nobody saw it (tried on 4.0 and 4.3).
        """
        if len(self._durations) < ENOUGH:
            return 0
        usual = sorted(self._durations)[len(self._durations) // 2]
        fitting = min(MOST_PER_SLOT, int(BUDGET / usual) if usual > 0 else MOST_PER_SLOT)
        if fitting < self._each or fitting >= min(4 * self._each, MOST_PER_SLOT):
            self._each = 1 << (fitting.bit_length() - 1) if fitting else 0
        return capacity * self._each

    def piped(self, most: int) -> int:
        """How many requests may wait in one bridge's pipe, at most `most`. Here a few that take long count too."""
        if len(self._durations) < ENOUGH:
            return 0
        usual = sum(self._durations) / len(self._durations)
        return min(most, int(BUDGET / usual)) if usual > 0 else most
