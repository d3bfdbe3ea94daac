"""What an asynchronous caller holds while its request is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Protocol

from broker.contract import Delivery
from producer.progress import ProgressFeed
from producer.reply import Reply


class Canceller(Protocol):
    """Whoever sent the request, and can have it cancelled: see AsyncProducer."""

    async def cancel_until(
        self, service: str, message_id: str, ended: asyncio.Future[Reply], timeout: float | None
    ) -> bool:
        """Tell the nodes until the request has `ended`; whether it ended in Cancelled."""


class Listener(Protocol):
    """Who wants to know what a request says before its reply."""

    def on_event(self, delivery: Delivery) -> None:
        """A message of chunks or of progress came."""

    def on_reply(self, delivery: Delivery) -> None:
        """Its final reply came."""


class Handle:
    """A request on its way. Await it for the Reply, or for the exception that stands for its failure."""

    __slots__ = ("_feed", "_producer", "future", "message_id", "service")

    def __init__(
        self,
        producer: Canceller,
        service: str,
        message_id: str,
        future: asyncio.Future[Reply],
        feed: ProgressFeed | None = None,
    ) -> None:
        self._feed = feed
        self.service = service
        self.message_id = message_id
        self.future = future
        self._producer = producer

    def __repr__(self) -> str:
        return f"<Handle {self.message_id} {'done' if self.future.done() else 'waiting'}>"

    def __await__(self) -> Generator[Any, None, Reply]:
        return self.future.__await__()

    async def result(self) -> Reply:
        """The Reply. Raises the exception that stands for the request's failure."""
        return await self.future

    @property
    def progress(self) -> ProgressFeed:
        """What the request says of its progress, to be iterated until it ends: `async for progress in …`.

        Of what nobody looked at the latest 64 are kept. Raises RuntimeError for one that was not sent with `progress`.
        """
        if self._feed is None:
            raise RuntimeError("its progress was not asked for: submit it with progress=True")
        return self._feed

    def done(self) -> bool:
        """Whether it has come to its end, either way."""
        return self.future.done()

    async def cancel(self, *, timeout: float | None = None) -> bool:
        """Have it not run, or not run on; whether that is how it ended. Whoever awaits it is told the same.

        True: it ends in Cancelled. False, and `done()`: it had ended otherwise before, in its reply as a rule.
        False, and not `done()`: no answer came within `timeout` seconds (None: the request's own timeout); it goes
        on, and is still cancelled if it comes to a node that has heard of it. What has begun is stopped by the
        bridge itself if it can, and otherwise by ending the bridge. Best effort for what waits in a queue: a node
        that starts after the last `cancel` does not know of it.

        To stop listening, without a word to anybody, cancel `future` instead.
        """
        return await self._producer.cancel_until(self.service, self.message_id, self.future, timeout)
