"""What a service takes from its queue: how many requests the broker may have given to this node at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from broker.contract import MAX_PREFETCH, BrokerError, Channel, Consumer, Delivery


class Intake:
    """The consumers of one queue, kept at the size that is wanted.

    Two of them, for prefetch is a consumer's own: one for what can run at once, and one, of lower priority,
    for the lookahead, which so gets only what no other node has a free place for.

    `wary`: until `trust`, one delivery at a time is taken. So it is on each new channel, where the first
    deliveries may be what the last node died of: see `worker_node.isolation`.
    """

    def __init__(
        self,
        queue: str,
        on_delivery: Callable[[Intake, Delivery], None],
        on_cancelled: Callable[[Consumer], None],
    ) -> None:
        self.queue = queue
        self._on_delivery = partial(on_delivery, self)
        self._on_cancelled = on_cancelled
        self._channel: Channel | None = None
        self.wary = True
        self._wanted = (0, 0)
        self._consumers: list[tuple[Consumer | None, int]] = [(None, 0), (None, 0)]
        self._adjusting: asyncio.Task[None] | None = None  # one at a time, or a consumer would be made twice
        self.deliveries = 0  # that came, and
        self.subscriptions = 0  # that were made, since the start

    def __repr__(self) -> str:
        running, ahead = (size for _, size in self._consumers)
        return f"<Intake of {self.queue}: {running} to run, {ahead} ahead>"

    @property
    def stopped(self) -> bool:
        """Whether there is no consumer."""
        return all(consumer is None for consumer, _ in self._consumers)

    @property
    def running(self) -> int:
        """The prefetch of the consumer for what can run at once; 0: there is none."""
        return self._consumers[0][1]

    def attach(self, channel: Channel) -> None:
        """Consume on this new channel."""
        self.detach()
        self._channel = channel
        self._adjusting = None  # what is left of it ends with the channel before
        self._begin_adjusting()

    def detach(self) -> None:
        """The channel is gone, and its consumers with it."""
        self._channel = None
        self.wary = True
        self._consumers = [(None, 0), (None, 0)]

    def want(self, running: int, ahead: int) -> None:
        """From now on take `running` requests to run and `ahead` more to wait, MAX_PREFETCH at most; 0 and 0: none."""
        wanted = (min(running, MAX_PREFETCH), min(ahead, MAX_PREFETCH))
        if self._wanted != wanted:
            self._wanted = wanted
            self._begin_adjusting()

    def trust(self) -> None:
        """The queue gave what is beyond suspicion: take all that is wanted."""
        self.wary = False
        self._begin_adjusting()

    def distrust(self) -> None:
        """The queue gave what may kill a node: from now on take one at a time, until `trust`."""
        self.wary = True
        self._begin_adjusting()

    async def settled(self) -> None:
        """Wait until what is wanted is so, or the channel is gone: after `want(0, 0)` no more deliveries come."""
        if self._adjusting is not None:
            await asyncio.wait([self._adjusting])

    def _begin_adjusting(self) -> None:
        if self._channel is not None and (self._adjusting is None or self._adjusting.done()):
            self._adjusting = asyncio.get_running_loop().create_task(self._follow(self._channel))

    async def _follow(self, channel: Channel) -> None:
        try:
            await self._adjust(channel)
        except BrokerError:
            # The channel closed under it: its link opens another, and attaches that.
            if not channel.closed:
                raise

    async def _adjust(self, channel: Channel) -> None:
        while self._channel is channel:
            running, ahead = self._wanted
            sizes = (min(running, 1), 0) if self.wary else (running, ahead)
            place = next((n for n, wanted in enumerate(sizes) if self._consumers[n][1] != wanted), None)
            if place is None:
                return
            consumer, _ = self._consumers[place]
            wanted = sizes[place]
            if consumer is not None:
                await channel.cancel(consumer)
                consumer = None
            if wanted:
                consumer = await channel.consume(
                    self.queue,
                    self._deliver,
                    on_cancelled=self._on_cancelled,
                    prefetch=wanted,
                    priority=-place if place else None,
                )
                self.subscriptions += 1
            if self._channel is channel:
                self._consumers[place] = (consumer, wanted if consumer is not None else 0)

    def _deliver(self, delivery: Delivery) -> None:
        self.deliveries += 1
        self._on_delivery(delivery)
