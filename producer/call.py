"""A call: a request that was sent, and waits for its reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from producer.handle import Listener
from producer.reply import Reply
from producer.request import PreparedRequest


class Call:
    """A request that waits for its reply, until `end` on the loop's clock. `forget` is called once it does no more.

    `sending`: a publish of it is under way. `confirmed`: the last one was, and its reply can still come. `late`: its
    time was over while it was being sent. `republished`: how often it was published beyond the first time. `listener`:
    who is told what it says before its reply.
    """

    __slots__ = ("_forget", "confirmed", "end", "future", "late", "listener", "republished", "request", "sending")

    def __init__(
        self, request: PreparedRequest, future: asyncio.Future[Reply], end: float, forget: Callable[[Call], None]
    ) -> None:
        self.request = request
        self.future = future
        self.end = end
        self.sending = True
        self.confirmed = False
        self.late = False
        self.listener: Listener | None = None
        self.republished = 0
        self._forget = forget
        future.add_done_callback(self._on_done)

    def __repr__(self) -> str:
        state = "sending" if self.sending else "confirmed" if self.confirmed else "interrupted"
        return f"<Call {self.request.message_id} {state}>"

    def finish(self, outcome: Reply | BaseException) -> None:
        """It ends, if whoever awaits it has not given it up."""
        future = self.future
        # Told here, and not a turn later: that takes a handle of the loop for each.
        future.remove_done_callback(self._on_done)
        self._forget(self)
        if future.done():
            return
        if isinstance(outcome, Reply):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def _on_done(self, _: asyncio.Future[Reply]) -> None:
        """Whoever awaits it gave it up."""
        self._forget(self)
