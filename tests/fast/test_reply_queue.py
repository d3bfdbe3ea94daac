"""Durable replies: each to the call that awaits it, or to whoever collects; nothing lost on the way, on any of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from responder import SERVICE, Responder
from virtual_time import turns, virtual_time

from bridge_protocol import messages
from bridge_protocol.envelope import reply_properties, reply_to_problem
from bridge_protocol.errors import (
    ApplicationError,
    BadRequest,
    BrokerUnavailable,
    Code,
    DeadlineExceeded,
    OutcomeUnknown,
    RequestFailed,
)
from bridge_protocol.messages import Request
from bridge_protocol.topology import REPLY_PREFIX, UNLIMITED, durable_reply_queue, request_queue
from broker.contract import Delivery, Message
from broker.memory import MemoryBroker
from producer import mailbox as module
from producer.async_producer import AsyncProducer
from producer.reply import Reply

QUEUE = f"{REPLY_PREFIX}batch"


def silent(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Never answers."""


async def served(act: Any = None) -> tuple[MemoryBroker, Responder]:
    broker, responder = MemoryBroker(), Responder(act)
    await responder.start(broker)
    return broker, responder


def batch(broker: MemoryBroker, **options: Any) -> AsyncProducer:
    return AsyncProducer(broker, reply_queue="batch", **options)


async def taken(replies: AsyncIterator[Reply | RequestFailed], count: int) -> list[Reply | RequestFailed]:
    """The next `count`."""
    return [await anext(replies) for _ in range(count)]


def held(broker: MemoryBroker) -> int:
    """How many replies the broker still has."""
    return sum(broker.counts(QUEUE))


# The queue.


@virtual_time
async def test_the_queue_is_durable_and_forgives_every_look() -> None:
    broker = MemoryBroker()
    async with batch(broker):
        declared = broker._vhost.queues[QUEUE].declared
    assert declared == durable_reply_queue("batch")
    assert (declared.exclusive, declared.arguments["x-queue-type"]) == (False, "quorum")
    assert declared.arguments["x-delivery-limit"] == UNLIMITED
    assert reply_to_problem(QUEUE) is None


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "a" * 201, "a\n"])
def test_a_name_that_cannot_be_one(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a reply queue"):
        AsyncProducer(MemoryBroker(), reply_queue=name)


def test_at_least_one_reply_must_be_held() -> None:
    with pytest.raises(ValueError, match="reply prefetch must be at least 1, not 0"):
        AsyncProducer(MemoryBroker(), reply_queue="batch", reply_prefetch=0)


@virtual_time
async def test_collecting_needs_a_reply_queue() -> None:
    broker = MemoryBroker()
    async with AsyncProducer(broker) as producer:
        with pytest.raises(RuntimeError, match="give the producer a reply_queue"):
            await anext(producer.collect())


@virtual_time
async def test_what_would_end_with_its_requester_cannot_outlive_it() -> None:
    async with batch(MemoryBroker()) as producer:
        for send in (producer.call, producer.submit):
            with pytest.raises(BadRequest, match="a reply queue outlives its producer"):
                await send(SERVICE, "echo", cancel_on_disconnect=True)


# Calls.


@virtual_time
async def test_calls_get_their_replies_and_the_queue_is_left_empty() -> None:
    broker, responder = await served()
    async with batch(broker) as producer:
        replies = await asyncio.gather(*(producer.call(SERVICE, "echo", {"n": n}) for n in range(50)))
        assert [reply.result["n"] for reply in replies] == list(range(50))
        await turns(3)
        assert held(broker) == 0
        assert {delivery.properties.reply_to for delivery, _ in responder.seen} == {QUEUE}
        assert producer.late_replies == 0


@virtual_time
async def test_a_confirmed_call_survives_the_loss_of_its_connection_and_runs_once() -> None:
    broker, responder = await served(silent)
    async with batch(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", {"n": 1})
        await turns(5)
        broker.close_all("by the operator")
        await turns(3)
        assert not handle.done()
        second = Responder()
        await second.start(broker)
        second.reply(responder.seen[0][0], messages.encode_result(1, "kept"))
        assert (await handle).result == "kept"
        assert second.seen == []


@virtual_time
async def test_an_unconfirmed_call_does_not() -> None:
    broker, _ = await served(silent)
    async with batch(broker) as producer:
        handle = await producer.submit(SERVICE, "echo")
        broker.close_all("by the operator")
        with pytest.raises(OutcomeUnknown):
            await handle


@virtual_time
async def test_late_and_second_replies_are_dropped_and_counted() -> None:
    def answer_twice(responder: Responder, delivery: Delivery, request: Request) -> None:
        if request.command == "twice":
            responder.succeed(delivery, request, 1)
            responder.succeed(delivery, request, 2)

    broker, responder = await served(answer_twice)
    async with batch(broker) as producer:
        assert (await producer.call(SERVICE, "twice")).result == 1
        with pytest.raises(DeadlineExceeded):
            await producer.call(SERVICE, "late", timeout=1)
        responder.succeed(*responder.seen[1], "late")
        await turns(5)
        assert producer.late_replies == 2
        assert held(broker) == 0


@virtual_time
async def test_what_is_no_reply_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    def garbage(responder: Responder, delivery: Delivery, request: Request) -> None:
        responder.reply(delivery, b"not json")
        if request.command == "call":
            responder.succeed(delivery, request, "good")

    broker, _ = await served(garbage)
    async with batch(broker) as producer:
        assert (await producer.call(SERVICE, "call")).result == "good"
        await producer.publish(SERVICE, "publish")
        with caplog.at_level(logging.WARNING, "quaybridge.producer"):
            assert [reply async for reply in producer.collect(idle_timeout=1)] == []
        assert "not a reply, dropped" in caplog.text
        assert held(broker) == 0


@virtual_time
async def test_closing_leaves_the_replies_of_calls_under_way_to_be_collected() -> None:
    broker, responder = await served(silent)
    producer = batch(broker)
    await producer.start()
    handle = await producer.submit(SERVICE, "echo")
    await turns(5)
    await producer.close()
    with pytest.raises(OutcomeUnknown):
        await handle
    responder.succeed(*responder.seen[0], "after all")
    async with batch(broker) as another:
        (reply,) = [reply async for reply in another.collect(idle_timeout=1)]
        assert isinstance(reply, Reply)
        assert (reply.result, reply.message_id) == ("after all", handle.message_id)


# Collecting.


@virtual_time
async def test_what_was_published_is_collected_whoever_published_it() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        ids = [await producer.publish(SERVICE, "echo", {"n": n}) for n in range(3)]
    async with batch(broker) as another:
        ids += [await another.publish(SERVICE, "echo", {"n": n}) for n in range(3, 5)]
        replies = [reply async for reply in another.collect(idle_timeout=1)]
        assert [(reply.message_id, reply.result["n"]) for reply in replies if isinstance(reply, Reply)] == [
            (message_id, n) for n, message_id in enumerate(ids)
        ]
        await turns(3)
        assert held(broker) == 0


@virtual_time
async def test_failures_are_given_not_raised() -> None:
    def fail(responder: Responder, delivery: Delivery, request: Request) -> None:
        responder.fail(delivery, request, Code.APPLICATION_ERROR, "as asked")

    broker, _ = await served(fail)
    async with batch(broker) as producer:
        message_id = await producer.publish(SERVICE, "echo")
        (failure,) = [reply async for reply in producer.collect(idle_timeout=1)]
        assert isinstance(failure, ApplicationError)
        assert failure.message_id == message_id


@virtual_time
async def test_each_is_acknowledged_when_the_next_is_asked_for() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        for n in range(3):
            await producer.publish(SERVICE, "echo", {"n": n})
        await turns(5)
        async with aclosing(producer.collect()) as replies:
            for left in (3, 2, 1):
                await anext(replies)
                await turns(3)
                assert held(broker) == left
            asking = asyncio.ensure_future(anext(replies))
            await turns(3)
            assert held(broker) == 0
            asking.cancel()
            await turns(2)


@virtual_time
async def test_who_stops_after_one_gets_it_again() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        ids = [await producer.publish(SERVICE, "echo") for _ in range(3)]
        async with aclosing(producer.collect()) as replies:
            await taken(replies, 2)
        async with aclosing(producer.collect()) as replies:  # here,
            assert [reply.message_id for reply in await taken(replies, 2)] == ids[1:]
    async with batch(broker) as another:  # and elsewhere
        (again,) = [reply async for reply in another.collect(idle_timeout=1)]
        assert again.message_id == ids[2]


@virtual_time
async def test_a_lost_connection_is_waited_out_and_loses_nothing() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        ids = [await producer.publish(SERVICE, "echo") for _ in range(5)]
        await turns(5)
        async with aclosing(producer.collect()) as replies:
            first = [reply.message_id for reply in await taken(replies, 2)]
            broker.close_all("by the operator")
            rest = [reply.message_id for reply in await taken(replies, 4)]
        assert first == ids[:2]
        assert rest == ids[1:]  # the second was not acknowledged yet
        assert not broker.counts(QUEUE).ready


@virtual_time
async def test_collecting_ends_when_nothing_comes_and_when_the_producer_is_closed() -> None:
    broker, _ = await served()
    producer = batch(broker)
    await producer.start()
    loop = asyncio.get_running_loop()
    assert [reply async for reply in producer.collect(idle_timeout=7)] == []
    assert loop.time() == 7
    collecting = asyncio.ensure_future(anext(producer.collect()))
    await turns(3)
    await producer.close()
    with pytest.raises(BrokerUnavailable, match="the producer is closed"):
        await collecting
    with pytest.raises(BrokerUnavailable, match="the producer is closed"):
        await anext(producer.collect())


@virtual_time
async def test_calls_and_collecting_go_together() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        collected: list[str | None] = []

        async def collect() -> None:
            async for reply in producer.collect(idle_timeout=5):
                collected.append(reply.message_id)

        collecting = asyncio.ensure_future(collect())
        called = [await producer.call(SERVICE, "echo", {"n": n}) for n in range(10)]
        published = [await producer.publish(SERVICE, "echo") for _ in range(10)]
        await collecting
        assert collected == published
        assert [reply.result["n"] for reply in called] == list(range(10))


@virtual_time
async def test_what_is_held_is_bounded_and_said(caplog: pytest.LogCaptureFixture) -> None:
    broker, _ = await served()
    async with batch(broker, reply_prefetch=3) as producer:
        with caplog.at_level(logging.WARNING, "quaybridge.producer"):
            for _ in range(10):
                await producer.publish(SERVICE, "echo")
            await turns(5)
        assert broker.counts(QUEUE) == (7, 3)
        assert "3 replies in quaybridge.reply.batch wait to be collected" in caplog.text
        call = await producer.submit(SERVICE, "echo", timeout=100)
        await asyncio.sleep(10)
        assert not call.done()  # as was said
        assert len([reply async for reply in producer.collect(idle_timeout=1)]) == 10
        assert call.done()
        assert repr(producer._mailbox) == "<Mailbox quaybridge.reply.batch 0/3 kept>"


@virtual_time
async def test_two_who_collect_share_what_comes() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        got: list[list[str | None]] = [[], []]

        async def collect(place: int) -> None:
            async for reply in producer.collect(idle_timeout=5):
                got[place].append(reply.message_id)
                await asyncio.sleep(0.1)

        collecting = asyncio.gather(collect(0), collect(1))
        ids = [await producer.publish(SERVICE, "echo") for _ in range(20)]
        await collecting
        assert sorted(map(str, got[0] + got[1])) == sorted(ids)
        assert all(got)


@virtual_time
async def test_ended_calls_are_remembered_only_so_far_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    broker, responder = await served()
    async with batch(broker) as producer:
        for n in range(5):
            await producer.call(SERVICE, "echo", {"n": n})
        assert producer._mailbox is not None
        assert len(producer._mailbox._ended) == 3
        for delivery, request in responder.seen:
            responder.succeed(delivery, request, "again")
        again = [reply async for reply in producer.collect(idle_timeout=1)]
        assert [reply.message_id for reply in again] == [
            delivery.properties.message_id for delivery, _ in responder.seen[:2]
        ]
        assert producer.late_replies == 3


@virtual_time
async def test_a_reply_that_names_no_request_can_be_collected() -> None:
    broker, responder = await served()
    async with batch(broker) as producer:
        assert responder.channel is not None
        envelope = reply_properties(correlation_id=None, code=None, attempt=1, node="alpha", redelivered=False)
        body = messages.encode_result(1, "whose?")
        await responder.channel.publish(
            Message(exchange="", routing_key=QUEUE, body=body, properties=envelope), timeout=5
        )
        (reply,) = [reply async for reply in producer.collect(idle_timeout=1)]
        assert isinstance(reply, Reply)
        assert (reply.result, reply.message_id) == ("whose?", "")


@virtual_time
async def test_the_queue_deleted_under_it_is_made_anew() -> None:
    broker, _ = await served()
    async with batch(broker) as producer:
        broker.delete_queue(QUEUE)
        await asyncio.sleep(2)
        assert (await producer.call(SERVICE, "echo", {"n": 1})).result == {"n": 1}
        assert request_queue(SERVICE) in broker._vhost.queues
