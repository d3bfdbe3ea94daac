"""Every way a publish can end, on RabbitMQ: each within its time, and each the truth."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
from relay import Relay, relay
from responder import SERVICE, Responder
from vhost import Vhost

from bridge_protocol.errors import Blocked, BrokerUnavailable, OutcomeUnknown, Refused, UnknownService
from bridge_protocol.messages import Request
from bridge_protocol.topology import request_queue
from broker.address import parse_address, parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Delivery
from producer.async_producer import AsyncProducer

PATIENCE = 60.0  # seconds for what takes one on an idle machine
SLACK = 5.0  # seconds a busy machine may be late with the end of a timeout


def silent(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Never answers."""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def served(vhost: Vhost, act: Callable[[Responder, Delivery, Request], None] | None) -> AsyncIterator[Responder]:
    """Somebody who serves there, on a connection that nothing happens to."""
    responder = Responder(act)
    await responder.start(AmqpBroker(parse_addresses(vhost.url)))
    assert responder.channel is not None
    try:
        yield responder
    finally:
        await responder.channel.close()


@asynccontextmanager
async def behind_a_relay(vhost: Vhost) -> AsyncIterator[tuple[AsyncProducer, Relay]]:
    """A producer, and what lies between it and the broker."""
    address = parse_address(vhost.url)
    async with relay(address.host, address.port) as between:
        broker = AmqpBroker([replace(address, host="127.0.0.1", port=between.port)])
        async with AsyncProducer(broker) as producer:
            yield producer, between
            between.flow()


async def ends_in(producer: AsyncProducer, expected: type[Exception], *, timeout: float) -> None:
    """A publish and a call, at once: how both end, and that it is in time."""
    began = time.monotonic()
    ends = await asyncio.gather(
        producer.publish(SERVICE, "echo", timeout=timeout),
        producer.call(SERVICE, "echo", timeout=timeout),
        return_exceptions=True,
    )
    assert [type(end) for end in ends] == [expected, expected]
    assert time.monotonic() - began < timeout + SLACK


async def test_no_queue_for_the_service(rabbitmq_each: Vhost) -> None:
    async with AsyncProducer(rabbitmq_each.url) as producer:
        await ends_in(producer, UnknownService, timeout=PATIENCE)  # nobody ever served here
        async with served(rabbitmq_each, None):
            await producer.publish(SERVICE, "echo", timeout=PATIENCE)
            with pytest.raises(UnknownService):
                await producer.publish("nobody", "echo", timeout=PATIENCE)


async def test_a_full_queue_refuses(rabbitmq_each: Vhost) -> None:
    async with served(rabbitmq_each, None) as responder, AsyncProducer(rabbitmq_each.url) as producer:
        await producer.publish(SERVICE, "echo", timeout=PATIENCE)
        assert responder.channel is not None
        await responder.channel.close()  # what is published now stays in the queue
        limit = json.dumps({"max-length": 1})
        set_policy = partial(rabbitmq_each.control, "set_policy", "full", f"^{request_queue(SERVICE)}$", limit)
        await asyncio.to_thread(set_policy, "--apply-to", "queues")

        async def refused() -> None:
            while True:  # the policy takes effect a moment later, and the limit is overshot by a few
                await producer.publish(SERVICE, "echo", timeout=PATIENCE)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(PATIENCE):
            with pytest.raises(Refused, match=SERVICE) as raised:
                await refused()
        assert raised.value.message_id
        await ends_in(producer, Refused, timeout=PATIENCE)


@pytest.fixture
def alarm(rabbitmq_each: Vhost) -> Iterator[Callable[[bool], None]]:
    """Raises the broker's memory alarm, and ends it."""
    control = rabbitmq_each.rabbitmq.control
    before = control("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()

    def alarm(on: bool) -> None:
        control("set_vm_memory_high_watermark", "0.000001" if on else before)

    yield alarm
    alarm(False)


async def test_an_alarm(rabbitmq_each: Vhost, alarm: Callable[[bool], None]) -> None:
    async with served(rabbitmq_each, None) as responder, AsyncProducer(rabbitmq_each.url) as producer:
        await producer.publish(SERVICE, "echo", {"n": 0}, timeout=PATIENCE)
        await asyncio.to_thread(alarm, True)
        # The broker tells nobody until they publish: what it did not take then, it may yet take.
        began = time.monotonic()
        with pytest.raises((OutcomeUnknown, Blocked)):
            await producer.publish(SERVICE, "echo", {"n": 1}, timeout=1)
        await until(lambda: producer.sender.link.channel is not None and producer.sender.link.channel.blocked)
        with pytest.raises(Blocked, match="low on memory"):
            await producer.publish(SERVICE, "echo", {"n": 2}, timeout=1)
        await ends_in(producer, Blocked, timeout=1)
        assert time.monotonic() - began < 3 + 3 * SLACK
        waiting = asyncio.ensure_future(producer.publish(SERVICE, "echo", {"n": 3}, timeout=PATIENCE))
        await asyncio.to_thread(alarm, False)
        await waiting
        await until(lambda: any(request.args.get("n") == 3 for _, request in responder.seen))
        numbers = [request.args.get("n") for _, request in responder.seen]
        assert 2 not in numbers, "what ended in Blocked was sent all the same"


async def test_a_black_hole(rabbitmq_vhost: Vhost) -> None:
    async with served(rabbitmq_vhost, None), behind_a_relay(rabbitmq_vhost) as (producer, between):
        assert (await producer.call(SERVICE, "echo", {"n": 1}, timeout=PATIENCE)).result == {"n": 1}
        between.stall()
        await ends_in(producer, OutcomeUnknown, timeout=1)
        # The connection is found dead, and no other can be had: what is sent now is known not to be.
        between.cut()
        await until(lambda: not producer.sender.link.up)
        await ends_in(producer, BrokerUnavailable, timeout=1)
        between.flow()
        assert (await producer.call(SERVICE, "echo", {"n": 2}, timeout=PATIENCE)).result == {"n": 2}


async def test_an_unanswered_idempotent_call_is_published_again(rabbitmq_each: Vhost) -> None:
    def answer_the_second(responder: Responder, delivery: Delivery, request: Request) -> None:
        if len(responder.seen) > 1:
            responder.succeed(delivery, request, "second")

    async with (
        served(rabbitmq_each, answer_the_second) as responder,
        behind_a_relay(rabbitmq_each) as (producer, between),
    ):
        handle = await producer.submit(SERVICE, "echo", {"n": 1}, timeout=PATIENCE, idempotent=True)
        await until(lambda: responder.seen)
        between.cut()
        assert (await handle).result == "second"
        (first, _), (second, _) = responder.seen
        assert first.body == second.body
        assert first.properties.message_id == second.properties.message_id == handle.message_id
        assert first.properties.reply_to != second.properties.reply_to


async def test_a_map_of_idempotent_requests_through_five_cuts(rabbitmq_vhost: Vhost) -> None:
    async with (
        served(rabbitmq_vhost, None) as responder,
        behind_a_relay(rabbitmq_vhost) as (producer, between),
    ):
        received = 0
        args = ({"n": n} for n in range(500))
        async for reply in producer.map(SERVICE, "echo", args, in_flight=50, timeout=PATIENCE, idempotent=True):
            assert reply.result == {"n": received}
            received += 1
            if received % 100 == 50:
                between.cut()
        assert received == 500
        assert producer.republished > 0
        assert set(responder.numbers) == set(range(500))
        assert len(responder.seen) <= 500 + producer.republished
