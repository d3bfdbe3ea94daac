"""The mailbox: replies on a durable queue that no call of this process awaits, kept until they are collected.

    reply ──┬─ of a call that awaits it ──▶ the call, and acknowledged
            ├─ of a call that has ended ──▶ dropped: it came twice, or too late
            └─ of anything else ──▶ the mailbox ──▶ collect() ──▶ acknowledged when the next one is asked for

What is kept is unacknowledged: it is the broker's until then, which gives it out again if this process ends. So it
is bounded by the prefetch; once as many are kept, no reply comes, not even to a call, until some are collected.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator

from bridge_protocol.errors import BadRequest, BrokerUnavailable, FrameError, RequestFailed
from bridge_protocol.topology import Queue
from broker.contract import Delivery
from broker.store import Store
from broker.thread import in_thread
from producer.reply import Reply, claim_of, claim_restored, read_reply

REMEMBERED = 16 * 1024  # calls that have ended, by whose ids a second reply to them is known

logger = logging.getLogger("quaybridge.producer")


class Mailbox:
    """What is kept of `queue`, at most `prefetch` replies."""

    def __init__(self, queue: Queue, prefetch: int) -> None:
        if prefetch < 1:
            raise ValueError(f"a reply prefetch must be at least 1, not {prefetch}")
        self.queue = queue
        self.prefetch = prefetch
        self._kept: deque[Delivery] = deque()
        self._ended: dict[str, None] = {}  # in the order in which they ended
        self._changed = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Mailbox {self.queue.name} {len(self._kept)}/{self.prefetch} kept>"

    def remember(self, message_id: str) -> None:
        """A call has ended: what still comes for it is of no use to anybody."""
        self._ended[message_id] = None
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def remembers(self, message_id: str) -> bool:
        """Whether the reply is one of a call that has ended here, as far back as is known."""
        return message_id in self._ended

    def keep(self, delivery: Delivery) -> None:
        """A reply that no call awaits."""
        self._kept.append(delivery)
        if len(self._kept) == self.prefetch:
            logger.warning(
                "%d replies in %s wait to be collected: until then no other reply comes, not even to a call",
                *(self.prefetch, self.queue.name),
            )
        self._changed.set()

    def forget(self) -> None:
        """There is a new channel: what was kept comes again."""
        self._kept.clear()

    def close(self) -> None:
        """Nothing comes any more."""
        self._kept.clear()
        self._closed = True
        self._changed.set()

    async def collect(
        self, idle_timeout: float | None, store: Store | None
    ) -> AsyncGenerator[Reply | RequestFailed, None]:
        """The replies, as they come, until none has for `idle_timeout` seconds (None: for ever).

        Raises BrokerUnavailable when the producer is closed.
        """
        while (delivery := await self._next(idle_timeout)) is not None:
            message_id = delivery.properties.correlation_id or ""
            reply: Reply | RequestFailed
            try:
                whole = delivery
                if (claim := claim_of(delivery)) is not None:
                    whole = await in_thread(claim_restored, store, delivery, claim)
                reply = read_reply(whole, message_id)
            except BadRequest as error:
                error.message_id = message_id
                reply = error
            except FrameError as error:
                logger.warning("not a reply, dropped: %s", error)
                delivery.ack()
                continue
            try:
                yield reply
            except BaseException:
                # Whoever took it may not be done with it: it is kept for the next one who collects.
                if not delivery.stale:
                    self._kept.appendleft(delivery)
                    self._changed.set()
                raise
            delivery.ack()

    async def _next(self, idle_timeout: float | None) -> Delivery | None:
        try:
            async with asyncio.timeout(idle_timeout):
                while True:
                    while self._kept and self._kept[0].stale:
                        self._kept.popleft()
                    if self._kept:
                        return self._kept.popleft()
                    if self._closed:
                        raise BrokerUnavailable("the producer is closed")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
