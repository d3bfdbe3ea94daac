"""Replies on RabbitMQ: kept ones outlive connection and producer, and what nobody can take never goes in circles."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest
from relay import relay
from vhost import Vhost

from bridge_protocol.envelope import CANCEL_ON_DISCONNECT, request_properties
from bridge_protocol.errors import ApplicationError, Cancelled, OutcomeUnknown, RequestFailed
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import EXCHANGE, REPLY_PREFIX, UNDELIVERABLE, dead_letter_queue, request_queue
from broker.address import parse_address, parse_addresses
from broker.amqp import AmqpBroker, AmqpChannel
from broker.contract import Delivery, Message
from producer.async_producer import AsyncProducer
from producer.producer import Producer
from producer.reply import Reply
from worker_node import requesters
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

SERVICE = "echo"
QUEUE = f"{REPLY_PREFIX}batch"
PATIENCE = 60.0  # seconds for what takes one on an idle machine


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[Node]:
    """A node, in this process, with a real bridge."""
    command = (sys.executable, "-m", "examples.echo")
    node = Node(
        NodeSettings(services=(ServiceSettings(name=SERVICE, command=command, bridges=1),)),
        AmqpBroker(parse_addresses(url)),
    )
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@asynccontextmanager
async def channel_to(url: str) -> AsyncIterator[AmqpChannel]:
    """Anybody's own connection there."""
    channel = await AmqpBroker(parse_addresses(url)).open("test", on_closed=lambda _: None)
    try:
        yield channel
    finally:
        await channel.close()


async def length_is(channel: AmqpChannel, queue: str, length: int) -> None:
    """Wait until so many messages are ready."""
    async with asyncio.timeout(PATIENCE):
        while await channel.queue_length(queue) != length:
            await asyncio.sleep(0.02)


async def all_acked(url: str) -> None:
    """Nothing is left in the request queue: the node has stopped, and what it had not acked would be back."""
    async with channel_to(url) as channel:
        await length_is(channel, request_queue(SERVICE), 0)


def request(reply_to: str | None, *, message_id: str = "m1", command: str = "echo", **options: bool) -> Message:
    """A request as anybody could publish it."""
    return Message(
        exchange=EXCHANGE,
        routing_key=SERVICE,
        body=encode_request(Request(id=7, command=command, args={"n": 1} if command == "echo" else {"seconds": 0.7})),
        properties=request_properties(message_id=message_id, command=command, reply_to=reply_to, **options),
    )


async def one_of(channel: AmqpChannel, queue: str) -> Delivery:
    """The first message there."""
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    await channel.consume(queue, came.put_nowait, prefetch=10)
    return await asyncio.wait_for(came.get(), PATIENCE)


# Durable replies.


async def test_replies_outlive_their_producer_and_every_look(rabbitmq_vhost: Vhost) -> None:
    url = rabbitmq_vhost.url
    async with serving(url) as node, channel_to(url) as channel:
        async with AsyncProducer(url, reply_queue="batch") as producer:
            ids = [await producer.publish(SERVICE, "echo", {"n": n}) for n in range(5)]
            ids.append(await producer.publish(SERVICE, "fail"))
        await until(lambda: node.counts[SERVICE].succeeded == 5 and node.counts[SERVICE].failed == 1)
        await length_is(channel, QUEUE, 6)
        # More looks than the broker's own limit forgives (20), each of them broken off.
        for _ in range(25):
            async with (
                AsyncProducer(url, reply_queue="batch") as looking,
                aclosing(looking.collect(idle_timeout=PATIENCE)) as replies,
            ):
                assert (await anext(replies)).message_id in ids
        async with AsyncProducer(url, reply_queue="batch") as collecting:
            taken: list[Reply | RequestFailed] = []
            async with aclosing(collecting.collect(idle_timeout=PATIENCE)) as replies:
                async for reply in replies:
                    taken.append(reply)
                    if len(taken) == 6:
                        break
        assert sorted(str(reply.message_id) for reply in taken) == sorted(ids)
        assert sorted(reply.result["n"] for reply in taken if isinstance(reply, Reply)) == [0, 1, 2, 3, 4]
        assert [type(reply) for reply in taken if not isinstance(reply, Reply)] == [ApplicationError]
        await length_is(channel, QUEUE, 1)  # the last one was not acknowledged: nobody asked for another


async def test_threads_collect(rabbitmq_vhost: Vhost) -> None:
    url = rabbitmq_vhost.url

    def use() -> None:
        with Producer(url, reply_queue="batch") as producer:
            assert producer.call(SERVICE, "echo", {"n": 1}).result == {"n": 1}
            ids = [producer.publish(SERVICE, "echo", {"n": n}) for n in range(3)]
            for message_id, reply in zip(ids, producer.collect(), strict=False):
                assert reply.message_id == message_id
            # Nobody asked for a fourth, so the third was not acknowledged.
            assert [reply.message_id for reply in producer.collect(idle_timeout=0.5)] == ids[2:]

    async with serving(url), channel_to(url) as channel:
        await asyncio.to_thread(use)
        await length_is(channel, QUEUE, 0)


async def test_a_call_outlives_its_connection_and_runs_once(rabbitmq_vhost: Vhost) -> None:
    address = parse_address(rabbitmq_vhost.url)
    async with serving(rabbitmq_vhost.url) as node, relay(address.host, address.port) as between:
        broker = AmqpBroker([replace(address, host="127.0.0.1", port=between.port)])
        async with AsyncProducer(broker, reply_queue="batch") as kept, AsyncProducer(broker) as direct:
            handles = [
                await producer.submit(SERVICE, "sleep", {"seconds": 1}, timeout=PATIENCE) for producer in (kept, direct)
            ]
            await until(lambda: all(call.confirmed for p in (kept, direct) for call in p.sender.waiting.values()))
            between.cut()
            assert (await handles[0]).result == 1
            with pytest.raises(OutcomeUnknown):
                await handles[1]
        await until(lambda: node.counts[SERVICE].succeeded == 2)
        assert node.counts[SERVICE].redelivered == 0


# Replies nobody can take.


async def test_a_reply_to_a_queue_that_is_gone_is_parked_once(rabbitmq_each: Vhost) -> None:
    url, missing = rabbitmq_each.url, f"{REPLY_PREFIX}gone"
    async with serving(url) as node, channel_to(url) as channel:
        await channel.publish(request(missing), timeout=PATIENCE)
        await channel.publish(request(missing, message_id="m2", command="fail"), timeout=PATIENCE)
        await until(lambda: node.counts[SERVICE].replies_parked == 2)
        await length_is(channel, UNDELIVERABLE, 2)
        parked = await one_of(channel, UNDELIVERABLE)
        assert parked.properties.correlation_id in ("m1", "m2")
        assert parked.properties.type in ("result", "application_error")
        assert parked.properties.reply_to == missing  # where it should have gone
        assert node.counts[SERVICE].redelivered == 0
    await all_acked(url)


async def test_a_direct_reply_nobody_takes_is_let_go(rabbitmq_each: Vhost) -> None:
    url = rabbitmq_each.url
    async with serving(url) as node, channel_to(url) as channel:
        producer = AsyncProducer(url)
        await producer.start()
        handle = await producer.submit(SERVICE, "sleep", {"seconds": 1})
        await until(lambda: any(node.services[0].pool.tickets()))
        await producer.close()
        with pytest.raises(OutcomeUnknown):
            await handle
        await until(lambda: node.counts[SERVICE].succeeded == 1)
        async with AsyncProducer(url) as another:
            assert (await another.call(SERVICE, "echo", {"n": 1}, timeout=PATIENCE)).result == {"n": 1}
        assert await channel.queue_length(UNDELIVERABLE) == 0
        assert node.counts[SERVICE].redelivered == 0
    await all_acked(url)


@pytest.mark.parametrize("address", [request_queue(SERVICE), dead_letter_queue(SERVICE), UNDELIVERABLE, "anywhere"])
async def test_an_address_that_is_nobodys_to_name_is_refused(rabbitmq_vhost: Vhost, address: str) -> None:
    url = rabbitmq_vhost.url
    async with serving(url) as node, channel_to(url) as channel:
        await channel.publish(request(address), timeout=PATIENCE)
        await until(lambda: node.counts[SERVICE].dead == 1)
        letter = await one_of(channel, dead_letter_queue(SERVICE))
        assert letter.properties.headers["code"] == "bad_request"
        assert "reply_to must be" in letter.properties.headers["error"]
        assert node.counts[SERVICE].succeeded == 0
        assert await channel.queue_length(UNDELIVERABLE) == 0
    await all_acked(url)


# Cancelling.


async def test_cancelling_what_runs_and_what_is_queued(rabbitmq_vhost: Vhost) -> None:
    async with serving(rabbitmq_vhost.url) as node, AsyncProducer(rabbitmq_vhost.url) as producer:
        pid = (await producer.call(SERVICE, "pid", timeout=PATIENCE)).result
        runs, queued, after = [
            await producer.submit(SERVICE, command, args, timeout=PATIENCE)
            for command, args in (("sleep", {"seconds": 1000}), ("echo", {}), ("pid", {}))
        ]
        await until(lambda: any(node.services[0].pool.tickets()))
        assert not await queued.cancel(timeout=0.5)
        assert await runs.cancel()
        for handle in (runs, queued):
            with pytest.raises(Cancelled):
                await handle
        assert await queued.cancel()
        assert (await after).result == pid  # the bridge was told, and lived on
        assert not await after.cancel()
        assert node.counts[SERVICE].failed == 2
    await all_acked(rabbitmq_vhost.url)


async def test_what_shall_end_with_its_requester_does(rabbitmq_each: Vhost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requesters, "LOOK_EVERY", 0.1)
    url = rabbitmq_each.url
    async with serving(url) as node, channel_to(url) as channel:
        service = node.services[0]
        gone = AsyncProducer(url)
        await gone.start()
        handle = await gone.submit(
            SERVICE, "sleep", {"seconds": 1000}, timeout=PATIENCE * 10, cancel_on_disconnect=True
        )
        await until(lambda: any(service.pool.tickets()))
        await asyncio.sleep(0.5)  # several looks: the requester is there
        assert not handle.done()
        await gone.close()
        with pytest.raises(OutcomeUnknown):
            await handle
        await until(lambda: node.counts[SERVICE].failed == 1)
        assert await channel.queue_length(dead_letter_queue(SERVICE)) == 0
        async with AsyncProducer(url) as stays:
            reply = await stays.call(SERVICE, "sleep", {"seconds": 0.5}, timeout=PATIENCE, cancel_on_disconnect=True)
            assert reply.result == 0.5
    await all_acked(url)


async def test_an_address_no_broker_gave_is_asked_after_once(
    rabbitmq_each: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ ends the connection that asks after it, which is nobody else's: the node serves on."""
    monkeypatch.setattr(requesters, "LOOK_EVERY", 0.1)
    url = rabbitmq_each.url
    opened: list[str] = []
    connect = AmqpBroker.open

    async def counted(broker: AmqpBroker, name: str, **callbacks: Callable[..., None]) -> AmqpChannel:
        opened.append(name)
        return await connect(broker, name, **callbacks)  # type: ignore[arg-type]

    async with serving(url) as node, channel_to(url) as channel:
        monkeypatch.setattr(AmqpBroker, "open", counted)
        # Of the form of one, and with nothing behind it that could be decoded.
        forged = request("amq.rabbitmq.reply-to.g1h2AA5yZXBseUA.x", command="sleep", cancel_on_disconnect=True)
        assert forged.properties.headers[CANCEL_ON_DISCONNECT] is True
        await channel.publish(forged, timeout=PATIENCE)
        counts = node.counts[SERVICE]
        await until(lambda: counts.succeeded + counts.failed == 1)
        await asyncio.wait_for(node.services[0].settlement.wait_idle(), PATIENCE)
        assert len(opened) <= 2
        assert counts.redelivered == 0
    await all_acked(url)
