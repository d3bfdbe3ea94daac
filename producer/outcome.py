"""What a thread holds while the event loop works for it: a concurrent.futures.Future that ends as a Handle does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from bridge_protocol.errors import OutcomeUnknown
from producer.handle import Handle
from producer.reply import Reply


class Outcome(Future[Reply]):
    """A request on its way: ends with its Reply, or with the exception that stands for its failure.

    `cancel` gives it up here: it is not sent if it was not yet, and a reply that comes after all is counted as late.
    `cancel_request` stops the work itself. Callbacks run in the event loop's thread, and must not block.

    In a process that was forked from the one that sent it nobody will ever hear how it ends: there `result`,
    `exception`, `cancel`, `cancel_request` and `add_done_callback` raise OutcomeUnknown, unless it had ended before.
    """

    def __init__(
        self,
        service: str,
        message_id: str,
        loop: asyncio.AbstractEventLoop,
        cancel_until: Callable[[Outcome, float | None], bool],
    ) -> None:
        super().__init__()
        self.service = service
        self.message_id = message_id
        self._process = os.getpid()
        self._loop = loop
        self._cancel_until = cancel_until
        # Both for the loop's thread only.
        self._source: asyncio.Future[Reply] | None = None
        self._ended = False

    def cancel(self) -> bool:
        """Give it up; False if it has ended otherwise."""
        self._check_process()
        if not super().cancel():
            return False
        with suppress(RuntimeError):  # the loop is closed: there is nothing to recall any more
            self._loop.call_soon_threadsafe(self._recall)
        return True

    def result(self, timeout: float | None = None) -> Reply:
        """Its Reply, waited for; see concurrent.futures.Future."""
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it ended in, waited for, or None; see concurrent.futures.Future."""
        self._check_process()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Reply]], object]) -> None:
        """Have `fn` called with it when it has ended; see concurrent.futures.Future."""
        self._check_process()
        super().add_done_callback(fn)

    def cancel_request(self, timeout: float | None = None) -> bool:
        """Have the request not run, or not run on; whether that is how it ended: see Handle.cancel.

        Waits for the answer, for at most `timeout` seconds (None: the request's own timeout); `result` raises
        Cancelled then. Raises BrokerUnavailable if the producer is closed meanwhile.
        """
        self._check_process()
        return self._cancel_until(self, timeout)

    def follow(self, handle: Handle) -> None:
        """End as `handle` does. Loop's thread only, like `fail`."""
        self._source = handle.future
        self._source.add_done_callback(self._copy)
        if self.cancelled():
            self._recall()

    def fail(self, error: BaseException) -> None:
        """End with `error`."""
        if self._may_end():
            self.set_exception(error)

    def _check_process(self) -> None:
        if self._process != os.getpid() and not self._ended:
            text = f"its reply goes to process {self._process}, which sent it; this one was forked from that"
            raise OutcomeUnknown(text, message_id=self.message_id)

    def _copy(self, source: asyncio.Future[Reply]) -> None:
        if source.cancelled():  # by _recall
            return
        error = source.exception()
        if error is not None:
            self.fail(error)
        elif self._may_end():
            self.set_result(source.result())

    def _recall(self) -> None:
        self._may_end()
        if self._source is not None:
            self._source.cancel()

    def _may_end(self) -> bool:
        """Whether it may be given its end, now. A cancelled one is not; whoever waits for it is told so."""
        if self._ended:
            return False
        self._ended = True
        return self.set_running_or_notify_cancel()
