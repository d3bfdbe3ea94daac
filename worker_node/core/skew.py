"""Clocks that disagree, as far as a node can see: a request that was made in the future."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import lru_cache

TOLERATED = 1.0  # seconds: what is assumed of all clocks, and what deadlines are therefore exact to
SAY_EVERY = 60.0  # seconds


class Skew:
    """Looks at the timestamps of requests; `seen` says when there is something to say, and not too often."""

    def __init__(self) -> None:
        self._silent_until = -math.inf

    def __repr__(self) -> str:
        return f"<Skew, silent until {self._silent_until:.1f}>"

    def seen(self, timestamp: str, *, wall: float, now: float) -> float | None:
        """By how many seconds the producer's clock is ahead of this node's, if that is to be told now.

        `timestamp` is what the producer wrote (RFC 3339; anything else is not looked at), `wall` the time of day
        in seconds since 1970, `now` the loop's.
        """
        if now < self._silent_until:
            return None
        made = _seconds(timestamp)
        if made is None or made - wall <= TOLERATED:
            return None
        self._silent_until = now + SAY_EVERY
        return made - wall


@lru_cache(maxsize=16)
def _seconds(timestamp: str) -> float | None:
    """A timestamp in seconds since 1970: many requests are made in the same millisecond."""
    try:
        made = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return (made if made.tzinfo is not None else made.replace(tzinfo=UTC)).timestamp()
