"""Requests for later and requests of more weight, on every RabbitMQ there is."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from responder import SERVICE, Responder
from vhost import Vhost

from bridge_protocol.errors import UnknownService
from bridge_protocol.messages import Request
from bridge_protocol.topology import request_queue, service_topology, shared_topology
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Delivery
from producer.async_producer import AsyncProducer

PATIENCE = 30.0  # seconds


def version_of(server: str) -> tuple[int, int]:
    major, minor, *_ = server.removeprefix("RabbitMQ ").split(".")
    return int(major), int(minor)


async def test_a_delay_is_held_by_the_broker(rabbitmq_each: Vhost) -> None:
    came: dict[Any, float] = {}

    def act(responder: Responder, delivery: Delivery, request: Request) -> None:
        came[request.args["n"]] = time.monotonic()
        responder.succeed(delivery, request, None)

    responder = Responder(act)
    await responder.start(AmqpBroker(parse_addresses(rabbitmq_each.url)))
    async with AsyncProducer(rabbitmq_each.url) as producer:
        with pytest.raises(UnknownService, match="start a worker that serves it first"):
            await producer.submit("nobody", "echo", delay=1)
        began = time.monotonic()
        in_two = datetime.now(UTC) + timedelta(seconds=2)
        handles = [await producer.submit(SERVICE, "echo", {"n": n}, delay=n) for n in (1, 0)]
        handles.append(await producer.submit(SERVICE, "echo", {"n": 2}, at=in_two, timeout=5))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*handles)
    assert responder.channel is not None
    await responder.channel.close()
    for n in range(3):
        assert -1 < came[n] - began - n < 1


async def test_a_priority_is_what_the_version_makes_of_it(rabbitmq_each: Vhost) -> None:
    broker = AmqpBroker(parse_addresses(rabbitmq_each.url))
    channel = await broker.open("test", on_closed=lambda _: None)
    await channel.declare([*shared_topology(), *service_topology(SERVICE)])
    given = [None, 4, 0, 9, 5, None, 7, 1, 9, 2]
    async with AsyncProducer(broker) as producer:
        for priority in given:
            await producer.publish(SERVICE, "echo", {"priority": priority}, priority=priority)
    taken: list[int | None] = []
    done = asyncio.Event()

    def take(delivery: Delivery) -> None:
        taken.append(delivery.properties.priority)
        delivery.ack()
        if len(taken) == len(given):
            done.set()

    await channel.consume(request_queue(SERVICE), take, prefetch=1)
    async with asyncio.timeout(PATIENCE):
        await done.wait()
    version = version_of(channel.server)
    await channel.close()
    if version < (4, 0):
        assert taken == given
    elif version < (4, 3):
        # Two levels, in a proportion: some of the low ones come between the high ones.
        assert [each for each in taken if (each or 0) >= 5] == [9, 5, 7, 9]
        assert [each for each in taken if (each or 0) < 5] == [None, 4, 0, None, 1, 2]
        assert taken.index(2) == len(taken) - 1
        assert taken[0] == 9
    else:
        assert [each for each in taken if each is not None] == [9, 9, 7, 5, 4, 2, 1, 0]
