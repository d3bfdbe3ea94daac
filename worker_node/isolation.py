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

Session queues are consumed on: to leave them would give the sessions to another node, which ends them. What comes
from them waits here until the suspects are done, and is charged if one of them kills the node; but a suspect's
count is far ahead of theirs, so the broker gives up the suspect long before them. A suspect of a session is one only
after SESSION_SUSPECT_FROM returns, for nodes hand such deliveries to each other when they have just connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge_protocol.topology import DELIVERY_LIMIT
from broker.contract import Delivery
from worker_node.dispatcher import Dispatcher
from worker_node.intake import Intake

SUSPECT_FROM = 3  # returns, by the broker's own count
SESSION_SUSPECT_FROM = DELIVERY_LIMIT // 2
# Seconds for the broker to confirm that nothing more comes. A queue whose majority is gone answers nobody.
SETTLED_WITHIN = 5.0

logger = logging.getLogger("quaybridge.node")


@dataclass(frozen=True, slots=True)
class _Taken:
    """A delivery, and whose it is. `partition`: of the session queue it came by."""

    dispatcher: Dispatcher
    delivery: Delivery
    partition: int | None

    def begin(self) -> None:
        """Bring it to its service, unless it will come again."""
        if not self.delivery.stale:
            self.dispatcher.on_delivery(self.delivery, self.partition)


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
        self._held: list[_Taken] = []  # suspects that were not begun
        self._later: list[_Taken] = []  # of session queues, beyond suspicion, and not begun

    def __repr__(self) -> str:
        held = len(self._held) + len(self._later)
        return f"<Isolation {'of a suspect' if self.active else 'of nothing'}, {held} held>"

    @property
    def active(self) -> bool:
        """Whether a suspect waits or runs: then no request queue is consumed, and no session's request begun."""
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
        self._hold(_Taken(dispatcher, delivery, None))

    def on_session_delivery(self, dispatcher: Dispatcher, delivery: Delivery, partition: int) -> None:
        """A message came from the queue of a partition of a service's sessions."""
        suspect = delivery.delivery_count >= SESSION_SUSPECT_FROM
        if not (suspect or self.active) or dispatcher.knows(delivery):
            dispatcher.on_delivery(delivery, partition)
        elif suspect:
            self._hold(_Taken(dispatcher, delivery, partition))
        else:
            self._later.append(_Taken(dispatcher, delivery, partition))

    def _hold(self, suspect: _Taken) -> None:
        self._held.append(suspect)
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run(), name="isolation of a suspect")

    async def close(self) -> None:
        """Hand back what was not begun. What runs is the dispatcher's, as any other request."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None  # if it was cancelled before its first step
        held, self._held, self._later = self._held + self._later, [], []
        for taken in held:
            taken.dispatcher.settlement.hand_back(taken.delivery)

    async def _run(self) -> None:
        try:
            for _, intake in self._services:
                intake.want(0, 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLED_WITHIN):
                    for _, intake in self._services:
                        await intake.settled()
            await self._until_idle()
            while self._held:
                suspect = self._held.pop(self._draw(len(self._held)))
                if not suspect.delivery.stale:
                    name = suspect.delivery.properties.message_id or "(without an id)"
                    logger.warning(
                        "%s: request %s came back %d times: it runs alone in this node",
                        *(suspect.dispatcher.name, name, suspect.delivery.delivery_count),
                    )
                    suspect.begin()
                    await self._until_idle()
            later, self._later = self._later, []
            for taken in later:
                taken.begin()
        finally:
            self._running = None
            self._on_change()

    async def _until_idle(self) -> None:
        for dispatcher, _ in self._services:
            await dispatcher.wait_idle()
