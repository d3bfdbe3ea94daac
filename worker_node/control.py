"""What a node hears on the control exchange: a queue of its own, for as long as the channel it is attached to.

What is said while a node is not connected it never hears: whoever cancels a request says so again as long as they
wait for an answer.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from bridge_protocol.control import Cancel, Consumes, Credit, Owns, control_topology, decode_control
from bridge_protocol.errors import FrameError
from bridge_protocol.topology import CONTROL
from broker.contract import Channel, Consumer, Delivery

logger = logging.getLogger("quaybridge.node")


class Control:
    """Listens for the services of the node `name`; each `on_…` is told what concerns one.

    `queue`: where, since it was attached to a channel.

    What this node announced itself is left out.
    """

    def __init__(
        self,
        name: str,
        services: tuple[str, ...],
        *,
        on_cancel: Callable[[Cancel], None],
        on_owns: Callable[[Owns], None],
        on_consumes: Callable[[Consumes], None],
        on_credit: Callable[[Credit], None],
        on_cancelled: Callable[[Consumer], None],
    ) -> None:
        self.queue: str | None = None
        self._name = name
        self._services = services
        self._on_cancel = on_cancel
        self._on_owns = on_owns
        self._on_consumes = on_consumes
        self._on_credit = on_credit
        self._on_cancelled = on_cancelled

    def __repr__(self) -> str:
        return f"<Control of {self._name}: {', '.join(self._services)}>"

    async def attach(self, channel: Channel) -> None:
        """Listen on this new channel. Raises BrokerError if it cannot."""
        # Never the same name twice: the broker may take the connection before for alive until a heartbeat is missed.
        queue = f"{CONTROL}.{self._name}.{secrets.token_hex(4)}"
        await channel.declare(control_topology(queue, self._services))
        await channel.consume(queue, self._on_delivery, on_cancelled=self._on_cancelled, no_ack=True)
        self.queue = queue

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            said = decode_control(delivery.body)
        except FrameError as error:
            logger.warning("%s: not a control message, dropped: %s", self._name, error)
            return
        if said is None or said.service not in self._services:
            return
        if isinstance(said, Cancel):
            self._on_cancel(said)
        elif isinstance(said, Credit):
            self._on_credit(said)
        elif said.node == self._name:
            return
        elif isinstance(said, Owns):
            self._on_owns(said)
        else:
            self._on_consumes(said)
