"""What is overdue: one timer for all calls, where one for each would be a twentieth of what a call costs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

from producer.call import Call

# From one look to the next, for each call that waits: so that looking takes a tenth of the time at most, however many
# calls end apart.
REST = 2e-6  # seconds


class Overdue:
    """Tells of each of the calls `waiting` when its end has come, once. For one event loop."""

    def __init__(self, waiting: Mapping[str, Call], tell: Callable[[Call], None]) -> None:
        self._waiting = waiting
        self._tell = tell
        self._at = math.inf  # on the loop's clock: the next look
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Overdue: looks at {self._at:g}>"

    def watch(self, end: float) -> None:
        """A call ends at `end`."""
        if end < self._at:
            self._look_at(end)

    def close(self) -> None:
        """Nobody is told any more."""
        self._look_at(math.inf)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = moment
        self._timer = None if moment == math.inf else asyncio.get_running_loop().call_at(moment, self._look)

    def _look(self) -> None:
        # The loop may call a tick early.
        now = max(asyncio.get_running_loop().time(), self._at)
        for call in [call for call in self._waiting.values() if call.end <= now and not call.late]:
            self._tell(call)
        following = min((call.end for call in self._waiting.values() if not call.late), default=math.inf)
        self._look_at(max(following, now + len(self._waiting) * REST))
