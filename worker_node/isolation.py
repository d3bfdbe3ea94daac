"""Requests that may be what kills nodes: each runs alone in its node, so that no other is charged for its crash.

When a node dies, the broker counts that against every delivery the node held, and keeps as a dead letter what
came back too often: the one that killed it, and those that only happened to be there. So a suspect, which came
back SUSPECT_FROM times, runs when nothing else is unacked in the process:

    suspect ─▶ consume nothing ─▶ finish what is here ─▶ run the suspect ─▶ consume again, one at a time

What was delivered with it runs first, and costs nobody anything. Several suspects run one after the other, in
the order of a lot: those that wait are charged if the node dies, but the one that kills it does not always come
first. (To hand them back would charge them in any case: RabbitMQ before 4.3 knows no way that does not.) That
they are few is seen to by `Intake.wary`: whoever begins to consume takes one delivery at a time, until the queue
gives one that is beyond suspicion. What came back is at the head of a quorum queue.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from broker.contract import Delivery
from worker_node.dispatcher import Dispatcher
from worker_node.intake import Intake

SUSPECT_FROM = 3  # returns, by the broker's own count

logger = logging.getLogger("quaybridge.node")


class Isolation:
    """Brings deliveries to their services; suspects one by one.

    `on_change` is called when consuming may go on; `draw` gives a number below its argument: who is next.
    """

    def __init__(
        self,
        services: Sequence[tuple[Dispatcher, Intake]],
        on_change: Callable[[], None],
        draw: Callable[[int], int] = random.randrange,
    ) -> None:
        self._services = services
        self._on_change = on_change
        self._draw = draw
        self._running: asyncio.Task[None] | None = None
        self._held: list[tuple[Dispatcher, Delivery]] = []  # suspects that were not begun

    def __repr__(self) -> str:
        return f"<Isolation {'of a suspect' if self.active else 'of nothing'}, {len(self._held)} held>"

    @property
    def active(self) -> bool:
        """Whether a suspect waits or runs: then nothing is consumed."""
        return self._running is not None

    def on_delivery(self, dispatcher: Dispatcher, intake: Intake, delivery: Delivery) -> None:
        """A message came from the request queue of a service."""
        # 0 unless the broker says it redelivers: before that the count may be the publisher's own.
        if delivery.delivery_count < SUSPECT_FROM or dispatcher.knows(delivery):
            if intake.wary:
                intake.trust()
            dispatcher.on_delivery(delivery)
            return
        intake.distrust()
        self._held.append((dispatcher, delivery))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run(), name="isolation of a suspect")

    async def close(self) -> None:
        """Hand back what was not begun. What runs is the dispatcher's, as any other request."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None  # if it was cancelled before its first step
        held, self._held = self._held, []
        for dispatcher, delivery in held:
            dispatcher.settlement.hand_back(delivery)

    async def _run(self) -> None:
        try:
            for _, intake in self._services:
                intake.want(0, 0)
            for _, intake in self._services:
                await intake.settled()
            await self._until_idle()
            while self._held:
                dispatcher, suspect = self._held.pop(self._draw(len(self._held)))
                if not suspect.stale:
                    name = suspect.properties.message_id or "(without an id)"
                    logger.warning(
                        "%s: request %s came back %d times: it runs alone in this node",
                        *(dispatcher.name, name, suspect.delivery_count),
                    )
                    dispatcher.on_delivery(suspect)
                    await self._until_idle()
        finally:
            self._running = None
            self._on_change()

    async def _until_idle(self) -> None:
        for dispatcher, _ in self._services:
            await dispatcher.wait_idle()
