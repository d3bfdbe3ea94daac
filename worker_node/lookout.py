"""The lookout of a node: looks at its request queues now and then, for a consumer that the broker has forgotten.

What a look means is decided in `worker_node.core.watchdog`; this looks, and has the channel rebuilt.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from bridge_protocol.topology import EXCHANGE, Exchange, service_topology
from broker.contract import BrokerError
from broker.link import Link
from worker_node.core.watchdog import Sight, Watchdog
from worker_node.dispatcher import Dispatcher
from worker_node.intake import Intake

LOOK_TIMEOUT = 10.0  # seconds for the broker to say how long a queue is


class Lookout:
    """Looks every `interval` seconds, from `start` to `stop`. `add` each service before that.

    It looks from the publishing connection, for the consuming one may be what is dead.
    """

    def __init__(
        self,
        *,
        publishing: Link,
        consuming: Link,
        interval: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._publishing = publishing
        self._consuming = consuming
        self._interval = interval
        self._jitter = jitter
        self._services: list[tuple[Dispatcher, Intake, Watchdog]] = []
        self._looking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Lookout every {self._interval:g} s: {', '.join(repr(dog) for *_, dog in self._services)}>"

    def add(self, dispatcher: Dispatcher, intake: Intake) -> None:
        """Look at this service's queue, which must be a plain one, too."""
        self._services.append((dispatcher, intake, Watchdog()))

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="lookout")

    async def stop(self) -> None:
        """End. May be called twice, and without `start`."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        while True:
            # Not all nodes at the same time.
            await asyncio.sleep(self._interval * (0.9 + 0.2 * self._jitter()))
            for dispatcher, intake, watchdog in self._services:
                sight = await self._sight(dispatcher, intake)
                if watchdog.looked(sight) and sight is not None:
                    waiting = f"{sight.ready} request{'s wait' if sight.ready > 1 else ' waits'}"
                    self._consuming.rebuild(f"{waiting} in {intake.queue}, where this consumer is given none")

    async def _sight(self, dispatcher: Dispatcher, intake: Intake) -> Sight | None:
        """What there is to see of a service's queue; None where nothing can be seen.

        It declares, where to look would do: that mends an exchange or a binding that was deleted, and a queue that
        is not there does not cost the connection.
        """
        consuming, publishing = self._consuming.channel, self._publishing.channel
        if consuming is None or publishing is None or publishing.blocked is not None or not intake.running:
            return None
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                await publishing.declare((Exchange(EXCHANGE), *service_topology(dispatcher.name)))
                ready = await publishing.queue_length(intake.queue)
        except (BrokerError, TimeoutError):
            return None  # a channel that closed over it says so itself
        return Sight(
            ready=ready,
            room=max(0, intake.running - dispatcher.held),
            deliveries=intake.deliveries,
            subscriptions=intake.subscriptions,
            receiving=consuming.receiving,
        )
