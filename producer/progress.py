"""Progress: how far a running request is, as its bridge says."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from bridge_protocol.envelope import ATTEMPT
from bridge_protocol.errors import FrameError
from bridge_protocol.messages import Progress as ProgressEvent
from bridge_protocol.messages import decode_message
from broker.contract import Delivery

MOST_KEPT = 64  # of those that nobody has looked at; of more, the oldest go


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`data` is what the bridge said, any JSON; where it says `done`, `total` and `note` as the SDK does, so do these.

    `attempt`: a retry begins anew.
    """

    data: Any
    attempt: int = 1

    @property
    def done(self) -> float | None:
        """How much is done, in the bridge's own unit."""
        return self._number("done")

    @property
    def total(self) -> float | None:
        """How much there is to do."""
        return self._number("total")

    @property
    def note(self) -> str | None:
        """A few words for a person."""
        note = self.data.get("note") if isinstance(self.data, dict) else None
        return note if isinstance(note, str) else None

    def _number(self, name: str) -> float | None:
        value = self.data.get(name) if isinstance(self.data, dict) else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class ProgressFeed:
    """What a request says of its progress until it has `ended`, for whoever iterates; `on_progress` is told at once."""

    def __init__(self, ended: asyncio.Future[Any], on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self._ended = ended
        self._kept: deque[Progress] = deque(maxlen=MOST_KEPT)
        self._changed = asyncio.Event()
        ended.add_done_callback(lambda _: self._changed.set())

    def on_event(self, delivery: Delivery) -> None:
        """A message of progress came. One that cannot be read is passed over: nothing hangs on it."""
        try:
            said = decode_message(delivery.body)
        except FrameError:
            return
        if not isinstance(said, ProgressEvent) or self._ended.done():
            return
        attempt = delivery.properties.headers.get(ATTEMPT)
        progress = Progress(data=said.data, attempt=attempt if type(attempt) is int else 1)
        self._kept.append(progress)
        self._changed.set()
        if self._on_progress is not None:
            # Not from in here: what it raises must not cost the connection.
            asyncio.get_running_loop().call_soon(self._on_progress, progress)

    def on_reply(self, delivery: Delivery) -> None:
        """The final reply came: nothing is said after it."""

    async def __aiter__(self) -> AsyncIterator[Progress]:
        while True:
            while self._kept:
                yield self._kept.popleft()
            if self._ended.done():
                return
            self._changed.clear()
            await self._changed.wait()
