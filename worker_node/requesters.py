"""Are those still there who asked? Of requests that shall end with their requester, looked up every few seconds.

A direct reply address exists as long as the channel it was given to. The broker tells who declares it passively,
"on a disposable channel" (rabbitmq.com/docs/direct-reply-to): when it is gone that channel is closed with 404.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from broker.contract import Broker, BrokerError, Channel, ChannelClosed

LOOK_EVERY = 5.0  # seconds
PATIENCE = 5.0  # seconds for the broker to answer

_CONNECTION_FORCED, _NOT_FOUND, _RESOURCE_LOCKED = 320, 404, 405

logger = logging.getLogger("quaybridge.node")


class Requesters:
    """Looks after the addresses that `watched` names; `on_gone` is called with each whose requester is gone.

    Has a connection of its own while there is something to look after, since a requester that is gone costs it.
    """

    def __init__(
        self, broker: Broker, name: str, *, watched: Callable[[], Iterable[str]], on_gone: Callable[[str], None]
    ) -> None:
        self._broker = broker
        self._name = f"{name} requesters"
        self._watched = watched
        self._on_gone = on_gone
        self._channel: Channel | None = None
        self._looking: asyncio.Task[None] | None = None
        self._unanswerable: set[str] = set()  # addresses that no broker gave to anybody

    def __repr__(self) -> str:
        return f"<Requesters {len(set(self._watched()))} watched>"

    def start(self) -> None:
        """Begin to look."""
        self._looking = asyncio.get_running_loop().create_task(self._look(), name=self._name)

    async def close(self) -> None:
        """Look no more. Does nothing if it was not started, or is closed."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        await self._drop()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            watched = set(self._watched())
            self._unanswerable &= watched
            for address in watched - self._unanswerable:
                try:
                    gone = await self._gone(address)
                except (BrokerError, TimeoutError) as error:
                    logger.debug("%s: not known whether they are there: %s", self._name, error)
                    await self._drop()
                    break  # what is wrong is not the address: there is a next time
                if gone:
                    self._on_gone(address)
            if not watched:
                await self._drop()

    async def _gone(self, address: str) -> bool:
        """Raises BrokerError or TimeoutError if the broker cannot tell."""
        async with asyncio.timeout(PATIENCE):
            if self._channel is None or self._channel.closed:
                await self._drop()
                self._channel = await self._broker.open(self._name, on_closed=lambda _: None)
            try:
                await self._channel.queue_length(address)
            except ChannelClosed as error:
                if error.code in (0, _CONNECTION_FORCED):
                    raise
                if error.code == _RESOURCE_LOCKED:
                    return False  # a queue of the requester's own
                if error.code != _NOT_FOUND:
                    # RabbitMQ 4.3 even closes the connection (541) over an address that it cannot decode.
                    logger.warning("%s: %s cannot be asked after: %s", self._name, address, error.reason)
                    self._unanswerable.add(address)
                return error.code == _NOT_FOUND
        return False

    async def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(BrokerError):
                await channel.close()
