"""A queue that stays as long as it is while it is consumed: what one request costs with so many waiting behind it."""

from __future__ import annotations

import asyncio
import time

from benchmarks.loops import Count
from benchmarks.order import Measure, Order
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Channel
from producer.async_producer import AsyncProducer

QUEUE = "quaybridge.echo"
PUBLISHERS = 256
LOOK = 0.1  # seconds between two looks at the queue


async def fill(order: Order) -> Measure:
    """Publish `order.depth` requests."""
    count = Count(order)
    async with AsyncProducer(order.url) as producer:
        await _publish(producer, order, order.depth)
    return count.measure(order.depth)


async def stand(order: Order) -> Measure:
    """Keep the queue at its depth while nodes consume it, and measure what they consume."""
    channel = await AmqpBroker(parse_addresses(order.url)).open("standing queue", on_closed=lambda _: None)
    async with AsyncProducer(order.url) as producer:
        await _consumed(channel, producer, order, order.warm)
        count = Count(order)
        measure = count.measure(await _consumed(channel, producer, order, order.seconds))
    await channel.close()
    return measure


async def _consumed(channel: Channel, producer: AsyncProducer, order: Order, seconds: float) -> int:
    """Keep the depth for so long; how many left the queue. It may be looked at only while nothing is published."""
    before = await channel.queue_length(QUEUE)
    end = time.perf_counter() + seconds
    published = 0
    while True:
        length = await channel.queue_length(QUEUE)
        if time.perf_counter() >= end:
            return before + published - length
        missing = max(0, order.depth - length)
        await _publish(producer, order, missing)
        published += missing
        if not missing:
            await asyncio.sleep(LOOK)


async def _publish(producer: AsyncProducer, order: Order, number: int) -> None:
    left = iter(range(number))
    argument = order.argument()

    async def again() -> None:
        for _ in left:
            await producer.publish("echo", "echo", {"text": argument}, timeout=120)

    await asyncio.gather(*(again() for _ in range(min(number, PUBLISHERS))))
