"""Requests that were cancelled before they came: known by their message ids, so that they do not run when they come.

A message cannot be taken out of a queue. It is ended when it gets here, which may be as late as the longest delay.
"""

from __future__ import annotations

from bridge_protocol.topology import MAX_DELAY

KEPT = float(MAX_DELAY + 3600)  # seconds: a retry that waited as long as there is may wait for a bridge, too


class Tombstones:
    """At most `most` of them, each kept for KEPT seconds; of more, the oldest go first. `most` may be changed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._laid: dict[str, float] = {}  # message id to when, oldest first
        self.dropped = 0  # before their time, for want of room

    def __repr__(self) -> str:
        return f"<Tombstones {len(self._laid)}/{self.most}>"

    def __len__(self) -> int:
        return len(self._laid)

    def __contains__(self, message_id: str | None) -> bool:
        """Whether the request was cancelled, as far as is known."""
        return message_id in self._laid

    def lay(self, message_id: str, now: float) -> None:
        """The request was cancelled. Said again, it is kept anew."""
        self._laid.pop(message_id, None)
        self._laid[message_id] = now
        while (oldest := next(iter(self._laid))) != message_id:
            if now - self._laid[oldest] < KEPT:
                if len(self._laid) <= self.most:
                    return
                self.dropped += 1
            del self._laid[oldest]
