"""Where the contract is tried: a broker, what an operator could do to it, and what tests watch it with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from broker.contract import Broker, Channel, ChannelClosed, Delivery

PATIENCE = 20.0  # seconds for what takes milliseconds on an idle machine


class Inbox:
    """An `on_delivery` that keeps what comes, in order."""

    def __init__(self) -> None:
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self._deliveries.put_nowait(delivery)

    def __len__(self) -> int:
        """How many have come and were not taken."""
        return self._deliveries.qsize()

    async def take(self) -> Delivery:
        """The next one; waits for it."""
        async with asyncio.timeout(PATIENCE):
            return await self._deliveries.get()


@dataclass
class Venue:
    """A broker under test, fresh for each test. `closings`: every `on_closed` call, as (channel's name, reason)."""

    broker: Broker
    delete_queue: Callable[[str], Awaitable[None]]
    closings: list[tuple[str, ChannelClosed]] = field(default_factory=list)
    _channels: list[Channel] = field(default_factory=list)

    async def open(self, name: str = "test") -> Channel:
        """A channel; the fixture closes it if the test leaves it open."""
        channel = await self.broker.open(name, on_closed=lambda reason: self.closings.append((name, reason)))
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            await channel.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what a broker does in its own time and reports to nobody."""
    async with asyncio.timeout(PATIENCE):
        # Nobody could set an event: the broker is another program.
        while not await condition():
            await asyncio.sleep(0.01)
