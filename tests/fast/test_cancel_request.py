"""Cancelling, as the producer does it: who is told, how often, and what the answer is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from responder import SERVICE, Responder
from scripted_broker import ScriptedBroker
from virtual_time import turns, virtual_time

from bridge_protocol.control import Cancel, cancel_key, control_topology, decode_control
from bridge_protocol.errors import BadRequest, BrokerUnavailable, Cancelled, Code, DeadlineExceeded, OutcomeUnknown
from bridge_protocol.messages import Request
from bridge_protocol.topology import CONTROL
from broker.contract import ConnectionRefused, Delivery, Unroutable
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from producer.sender import CANCEL_AGAIN


def now() -> float:
    return asyncio.get_running_loop().time()


def silent(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Never answers."""


class Node(Responder):
    """Answers cancels as nodes do, if it hears them; `heard` keeps them."""

    def __init__(self, act: Any = silent, *, obeys: bool = True) -> None:
        super().__init__(act)
        self.heard: list[Cancel | None] = []
        self._obeys = obeys

    async def listen(self) -> None:
        assert self.channel is not None
        await self.channel.declare(control_topology("node", (SERVICE,)))
        await self.channel.consume("node", self._on_control, no_ack=True)

    def _on_control(self, delivery: Delivery) -> None:
        said = decode_control(delivery.body)
        self.heard.append(said)
        assert said is not None
        for request_delivery, request in self.seen if self._obeys else ():
            if request_delivery.properties.message_id == said.message_id:
                self.fail(request_delivery, request, Code.CANCELLED, "cancelled")


async def served(node: Node) -> MemoryBroker:
    broker = MemoryBroker()
    await node.start(broker)
    await node.listen()
    return broker


@virtual_time
async def test_the_caller_and_the_canceller_get_the_same_answer() -> None:
    node = Node()
    broker = await served(node)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo")
        waiting = asyncio.ensure_future(handle.result())
        await turns(5)
        assert await handle.cancel()
        with pytest.raises(Cancelled) as raised:
            await waiting
        assert raised.value.message_id == handle.message_id
        assert node.heard == [Cancel(service=SERVICE, message_id=handle.message_id)]
        assert await handle.cancel()  # again: the same answer, and nobody is asked
        assert len(node.heard) == 1
        assert now() == 0


@virtual_time
async def test_a_reply_that_was_first_is_the_answer() -> None:
    node = Node(obeys=False)
    broker = await served(node)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo")
        await turns(5)
        cancelling = asyncio.ensure_future(handle.cancel())
        await turns(5)
        node.succeed(*node.seen[0], "first")
        assert not await cancelling
        assert handle.done()
        assert (await handle).result == "first"
        assert not await handle.cancel()


@virtual_time
async def test_without_an_answer_it_is_said_again_until_the_time_given() -> None:
    node = Node(obeys=False)
    broker = await served(node)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=100)
        assert not await handle.cancel(timeout=12)
        assert now() == 12
        assert not handle.done()
        assert len(node.heard) == 3  # at 0, 5 and 10 s
        assert CANCEL_AGAIN == 5
        with pytest.raises(DeadlineExceeded):
            await handle
        assert now() == 100


@virtual_time
async def test_the_requests_own_timeout_bounds_it() -> None:
    node = Node(obeys=False)
    broker = await served(node)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=12)
        assert not await handle.cancel()
        assert now() == pytest.approx(12)
        assert handle.done()
        with pytest.raises(DeadlineExceeded):
            await handle


@virtual_time
async def test_a_node_that_comes_back_meanwhile_is_told() -> None:
    node = Node()
    broker = MemoryBroker()
    await node.start(broker)  # it does not listen yet
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=100)
        cancelling = asyncio.ensure_future(handle.cancel())
        await asyncio.sleep(7)
        assert not cancelling.done()
        await node.listen()
        assert await cancelling
        assert now() == 10


@virtual_time
async def test_a_connection_lost_meanwhile_is_an_answer_or_waited_out() -> None:
    node = Node(obeys=False)
    broker = await served(node)
    async with AsyncProducer(broker) as direct, AsyncProducer(broker, reply_queue="kept") as kept:
        handles = [await producer.submit(SERVICE, "echo", timeout=20) for producer in (direct, kept)]
        await turns(5)
        cancelling = [asyncio.ensure_future(handle.cancel()) for handle in handles]
        await turns(5)
        broker.close_all("by the operator")
        assert not await cancelling[0]
        with pytest.raises(OutcomeUnknown):
            await handles[0]
        second = Node()
        second.seen = [(delivery, request) for delivery, request in node.seen]
        await second.start(broker)
        await second.listen()
        assert await cancelling[1]
        with pytest.raises(Cancelled):
            await handles[1]


@virtual_time
async def test_no_connection_holds_nobody_up() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=30, idempotent=True)
        broker.answers = [ConnectionRefused("down")] * 100
        broker.channel.fail("lost")
        await turns(3)
        assert not await handle.cancel(timeout=7)
        assert now() == 7
        with pytest.raises(OutcomeUnknown):
            await handle


@virtual_time
async def test_close_ends_it() -> None:
    node = Node(obeys=False)
    broker = await served(node)
    producer = AsyncProducer(broker)
    await producer.start()
    handle = await producer.submit(SERVICE, "echo", timeout=100)
    await turns(5)
    cancelling = asyncio.ensure_future(handle.cancel())
    await turns(3)
    await producer.close()
    assert not await cancelling
    with pytest.raises(OutcomeUnknown):
        await handle
    assert now() == 0


@virtual_time
async def test_a_caller_that_stops_listening_tells_nobody() -> None:
    node = Node()
    broker = await served(node)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo")
        await turns(5)
        handle.future.cancel()
        await turns(5)
        assert node.heard == []
        assert not await handle.cancel()
        assert node.heard == []


@virtual_time
async def test_a_request_of_somebody_else_by_its_id() -> None:
    node = Node()
    broker = await served(node)
    async with AsyncProducer(broker) as one, AsyncProducer(broker) as other:
        handle = await one.submit(SERVICE, "echo")
        await turns(5)
        assert await other.cancel(SERVICE, handle.message_id)
        with pytest.raises(Cancelled):
            await handle
        assert not await other.cancel("nobody", handle.message_id)  # no node of that service is there to be told
        with pytest.raises(ValueError, match="service name"):
            await other.cancel("No Service", handle.message_id)
        with pytest.raises(ValueError, match="message_id"):
            await other.cancel(SERVICE, "not an id")
        with pytest.raises(BadRequest, match="timeout"):
            await other.cancel(SERVICE, handle.message_id, timeout=0)


@virtual_time
async def test_what_stands_in_the_way_of_telling_is_raised() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        for error in (Unroutable("nobody listens"), None):
            cancelling = asyncio.ensure_future(producer.cancel(SERVICE, "m1"))
            await turns(2)
            message, confirm = broker.channel.published[-1]
            assert (message.exchange, message.routing_key) == (CONTROL, cancel_key(SERVICE))
            assert message.properties.reply_to is None
            confirm.succeed() if error is None else confirm.fail(error)
            assert await cancelling is (error is None)
        cancelling = asyncio.ensure_future(producer.cancel(SERVICE, "m1"))
        await turns(2)
        broker.channel.fail("lost")
        with pytest.raises(OutcomeUnknown, match="before nodes were told: lost"):
            await cancelling
        broker.answers = [ConnectionRefused("down")] * 100
        with pytest.raises(BrokerUnavailable):
            await producer.cancel(SERVICE, "m1", timeout=1)


@virtual_time
async def test_the_option_travels_in_a_header() -> None:
    node = Node()
    broker = await served(node)
    async with AsyncProducer(broker) as producer:
        for wanted in (True, False):
            handle = await producer.submit(SERVICE, "echo", cancel_on_disconnect=wanted)
            await turns(5)
            headers = node.seen[-1][0].properties.headers
            assert headers.get("cancel-on-disconnect") is (True if wanted else None)
            handle.future.cancel()
