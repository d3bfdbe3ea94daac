"""A look at a service's dead letters, on any broker: page by page, in order, and without removing one.

    async with looking(broker, "echo") as look:
        async for page in look.pages(take):     # what `take` made of each letter, in the order of the queue
            look.remove(tag)                    # only what is named here is gone when the look ends

A letter that was looked at is held, unsettled, until the look ends, however it ends; the queue has it again then. As
long as it is held no other look sees it. Looking costs a letter nothing: its queue has no delivery limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from bridge_protocol.dead_letter import DeadLetter, read_dead_letter
from bridge_protocol.errors import UnknownService
from bridge_protocol.topology import dead_letter_queue
from broker.contract import Broker, Channel, ChannelClosed, Consumer, Delivery, Message, Unroutable

PAGE = 256  # letters, at least
# Each page takes a consumer of its own: only acks would give the first one more. RabbitMQ 4.0 gives back what a channel
# held consumer by consumer, in order only as long as they are no more than this (tried with 100: in no order).
MOST_PAGES = 32
MOST_IN_A_PAGE = 65_535  # AMQP has two bytes for a consumer's prefetch
QUIET = 2.0  # seconds without a letter after which no more are waited for
PUBLISH_TIMEOUT = 30.0  # seconds

_NOT_FOUND = 404

T = TypeVar("T")


@asynccontextmanager
async def looking(broker: Broker, service: str) -> AsyncIterator[Look]:
    """Look at `service`'s dead letters.

    Raises UnknownService if it has no queue for them, ConnectionRefused, AccessRefused, and ChannelClosed if the
    connection is lost: everything is back in the queue then, but what was removed.
    """
    look = Look(service)
    channel = await broker.open(f"dead letters of {service}", on_closed=look.on_closed)
    try:
        try:
            total = await channel.queue_length(look.queue)
        except ChannelClosed as error:
            if error.code != _NOT_FOUND:
                raise
            raise UnknownService(
                f"there is no queue {look.queue} at {broker.address}: no worker has served {service!r} there yet"
            ) from None
        look.attach(channel, total)
        yield look
        await look.settled()
    finally:
        await channel.close()


class Look:
    """Made by `looking`. `total`: how many letters were there when it began; `seen`: how many it has come to."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.queue = dead_letter_queue(service)
        self.total = 0
        self.seen = 0
        self._channel: Channel
        self._trouble: Exception | None = None
        self._came = asyncio.Event()
        self.missed = 0  # how many of them did not come: another look has them, or they were taken away

    def __repr__(self) -> str:
        return f"<Look at {self.queue}: {self.seen} of {self.total} letters>"

    def attach(self, channel: Channel, total: int) -> None:
        """Give it its channel. Once, before anything else."""
        self._channel = channel
        self.total = total

    async def pages(self, take: Callable[[DeadLetter, Delivery], T | None]) -> AsyncGenerator[list[T], None]:
        """What `take` makes of each letter, without the Nones; it may raise OSError.

        Memory is bounded by what `take` returns for a page: PAGE letters, or a 32nd of them all. What comes to the
        queue meanwhile is not waited for; if fewer letters come than there were, somebody else holds or took them.
        """
        size = min(max(PAGE, -(-self.total // MOST_PAGES)), MOST_IN_A_PAGE)
        for _ in range(MOST_PAGES):
            wanted = min(size, self.total - self.seen)
            if wanted <= 0:
                break
            page: list[T] = []
            before = self.seen
            await self._fill(page, wanted, take)
            yield page
            if self.seen - before < wanted:
                break
        self.missed = max(self.total - self.seen, 0)

    async def _fill(self, page: list[T], wanted: int, take: Callable[[DeadLetter, Delivery], T | None]) -> None:
        end = self.seen + wanted

        def on_delivery(delivery: Delivery) -> None:
            self._came.set()
            self.seen += 1
            if self._trouble is not None:
                return
            letter = read_dead_letter(delivery.properties, delivery.body, service=self.service)
            try:
                taken = take(letter, delivery)
            except OSError as error:
                self._trouble = error
            else:
                if taken is not None:
                    page.append(taken)

        consumer = await self._channel.consume(
            self.queue, on_delivery, on_cancelled=self._on_cancelled, prefetch=wanted
        )
        while self.seen < end and self._trouble is None:
            self._came.clear()
            try:
                async with asyncio.timeout(QUIET):
                    await self._came.wait()
            except TimeoutError:
                break
        if self._trouble is not None:
            raise self._trouble
        await self._channel.cancel(consumer)

    def remove(self, tags: Iterable[int]) -> None:
        """Remove the letters that came as the deliveries of these tags, for good."""
        for tag in tags:
            self._channel.ack(tag)

    async def settled(self) -> None:
        """Wait until what was removed is removed: a method that is answered comes after all acks."""
        await self._channel.queue_length(self.queue)

    async def publish(self, message: Message) -> None:
        """Publish; returns when the broker has it safe. Raises UnknownService, or what Channel.publish says."""
        try:
            await self._channel.publish(message, timeout=PUBLISH_TIMEOUT)
        except Unroutable:
            lacking = "it" if message.routing_key == self.service else "it with sessions.enabled"
            raise UnknownService(
                f"no queue takes requests for {message.routing_key!r}: start a worker that serves {lacking} first",
                message_id=message.properties.message_id,
            ) from None

    def on_closed(self, reason: ChannelClosed) -> None:
        """The broker's word that the channel is gone."""
        self._trouble = reason
        self._came.set()

    def _on_cancelled(self, consumer: Consumer) -> None:
        self.on_closed(ChannelClosed(f"the broker ended the look at {consumer.queue}: was it deleted?"))
