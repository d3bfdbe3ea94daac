"""The two kinds of venue at which the contract is tried: the embedded broker, and each RabbitMQ there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from venue import Venue

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.memory import MemoryBroker


@pytest.fixture
async def embedded() -> AsyncIterator[Venue]:
    broker = MemoryBroker()

    async def delete_queue(name: str) -> None:
        broker.delete_queue(name)

    venue = Venue(broker, delete_queue)
    yield venue
    await venue.close()


@pytest.fixture
async def rabbitmq(rabbitmq_each: Any) -> AsyncIterator[Venue]:
    broker = AmqpBroker(parse_addresses(rabbitmq_each.url))
    venue = Venue(broker, partial(asyncio.to_thread, rabbitmq_each.delete_queue))
    yield venue
    await venue.close()
