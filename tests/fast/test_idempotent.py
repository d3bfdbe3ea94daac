"""Idempotent requests: published again after a lost connection, as they are, within their time, and not too often."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from responder import SERVICE, Responder
from scripted_broker import ScriptedBroker
from virtual_time import turns, virtual_time

from bridge_protocol.errors import (
    Blocked,
    BrokerUnavailable,
    CodedError,
    DeadlineExceeded,
    OutcomeUnknown,
    Refused,
    UnknownService,
)
from bridge_protocol.messages import Request
from broker.contract import ChannelClosed, ConnectionRefused, Delivery, Message, Unroutable
from broker.memory import MemoryBroker
from producer.async_producer import MOST_REPUBLISHES, AsyncProducer
from producer.handle import Handle
from producer.reply import Reply
from producer.sender import FIRST_PAUSE, LONGEST_PAUSE


def now() -> float:
    return asyncio.get_running_loop().time()


def silent(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Never answers."""


def published(broker: ScriptedBroker) -> list[Message]:
    """Everything that was ever published, on whatever channel."""
    return [message for channel in broker.channels for message, _ in channel.published]


async def outcome(handle: Handle) -> Any:
    """Its result, or the type of what it raises."""
    ended = await asyncio.gather(handle.result(), return_exceptions=True)
    if isinstance(ended[0], Reply):
        return ended[0].result
    assert isinstance(ended[0], CodedError)
    assert ended[0].message_id == handle.message_id
    return type(ended[0])


@virtual_time
async def test_an_unanswered_one_is_sent_again_as_it_was_to_the_new_address() -> None:
    broker, first = MemoryBroker(), Responder(silent)
    await first.start(broker)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", {"n": 1}, idempotent=True)
        await turns(5)
        broker.close_all("by the operator")
        second = Responder()
        await second.start(broker)
        assert (await handle).result == {"n": 1}
        (before, _), (after, _) = first.seen[0], second.seen[0]
        assert after.body == before.body
        assert after.properties.message_id == before.properties.message_id == handle.message_id
        assert after.properties.headers == before.properties.headers
        assert after.properties.reply_to != before.properties.reply_to
        assert producer.republished == 1
        assert now() < 1


@virtual_time
async def test_an_unconfirmed_one_is_sent_again() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        calling = await producer.submit(SERVICE, "echo", idempotent=True)
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", idempotent=True))
        await turns(2)
        broker.channel.fail("lost")
        await asyncio.sleep(2)
        again = [message for message, _ in broker.channel.published]
        assert {message.properties.message_id for message in again} == {
            message.properties.message_id for message, _ in broker.channels[0].published
        }
        assert {message.properties.reply_to for message in again} == {None, await broker.channel.declare_reply_queue()}
        for _, confirm in broker.channel.published:
            confirm.succeed()
        assert await publishing in {message.properties.message_id for message in again}
        assert producer.republished == 2
        calling.future.cancel()


@virtual_time
async def test_others_are_not() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        confirmed, unconfirmed = [await producer.submit(SERVICE, "echo") for _ in range(2)]
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo"))
        await turns(2)
        broker.channel.published[0][1].succeed()
        await turns(2)
        broker.channel.fail("lost")
        for handle in (confirmed, unconfirmed):
            assert await outcome(handle) is OutcomeUnknown
        with pytest.raises(OutcomeUnknown):
            await publishing
        await asyncio.sleep(20)
        assert len(published(broker)) == 3
        assert producer.republished == 0


@virtual_time
async def test_every_reply_to_it_but_the_first_is_dropped_and_counted() -> None:
    def answer_thrice(responder: Responder, delivery: Delivery, request: Request) -> None:
        for n in range(3):
            responder.succeed(delivery, request, n)

    broker, first = MemoryBroker(), Responder(silent)
    await first.start(broker)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", idempotent=True)
        await turns(5)
        broker.close_all("by the operator")
        await Responder(answer_thrice).start(broker)
        assert (await handle).result == 0
        await turns(5)
        assert producer.late_replies == 2


@virtual_time
async def test_with_nobody_to_answer_it_is_late() -> None:
    broker = MemoryBroker()
    await Responder(silent).start(broker)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=9, idempotent=True)
        await turns(5)
        broker.close_all("by the operator")
        assert await outcome(handle) is DeadlineExceeded
        assert now() == pytest.approx(9)


@pytest.mark.parametrize("was", ["confirmed", "unconfirmed"])
def test_one_that_may_have_run_never_ends_as_not_sent(was: str) -> None:
    """Whatever stands in the way the second time: the first may have been taken."""

    @virtual_time
    async def run() -> None:
        for obstacle in (Unroutable, Refused, Blocked, OutcomeUnknown):
            broker = ScriptedBroker()
            async with AsyncProducer(broker) as producer:
                calling = await producer.submit(SERVICE, "echo", idempotent=True)
                publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", idempotent=True))
                await turns(2)
                if was == "confirmed":
                    broker.channel.published[0][1].succeed()
                    await turns(2)
                broker.channel.fail("lost")
                await asyncio.sleep(2)
                for _, confirm in broker.channel.published:
                    confirm.fail(obstacle("in its way"))
                assert await outcome(calling) is OutcomeUnknown
                with pytest.raises(OutcomeUnknown):
                    await publishing

    run()


@virtual_time
async def test_no_connection_again_in_time_is_outcome_unknown() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        handles = [await producer.submit(SERVICE, "echo", timeout=8, idempotent=True) for _ in range(2)]
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", timeout=8, idempotent=True))
        await turns(2)
        broker.channel.published[0][1].succeed()
        await turns(2)
        broker.answers = [ConnectionRefused("down")] * 100
        broker.channel.fail("lost")
        for handle in handles:
            assert await outcome(handle) is OutcomeUnknown
        with pytest.raises(OutcomeUnknown):
            await publishing
        assert now() == pytest.approx(8, abs=0.01)
        await asyncio.sleep(30)
        assert len(published(broker)) == 3


@virtual_time
async def test_no_time_left_for_another_try_is_told_at_once() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, jitter=lambda: 1.0) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=5, idempotent=True)
        await asyncio.sleep(5 - FIRST_PAUSE / 2)
        broker.channel.fail("lost")
        assert await outcome(handle) is OutcomeUnknown
        assert now() < 5


@virtual_time
async def test_a_connection_that_is_lost_again_and_again_is_not_flooded() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, jitter=lambda: 0.0) as producer:
        sent_at: list[float] = []
        handle = await producer.submit(SERVICE, "echo", timeout=1000, idempotent=True)
        while not handle.done():
            if not broker.channel.closed and broker.channel.published:
                sent_at.append(now())
                broker.channel.fail("lost again")
            await asyncio.sleep(0.01)
        assert await outcome(handle) is OutcomeUnknown
        assert len(sent_at) == len(published(broker)) == MOST_REPUBLISHES + 1 == producer.republished + 1
        pauses = [later - earlier for earlier, later in itertools.pairwise(sent_at)]
        for number, pause in enumerate(pauses):  # no jitter: half of the full pause, and the connection's own
            assert pause >= min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) / 2
        assert now() < 60


@virtual_time
async def test_the_pauses_differ() -> None:
    broker = ScriptedBroker()
    jitters = iter([0.0, 1.0] + [0.5] * 10)
    async with AsyncProducer(broker, jitter=lambda: next(jitters)) as producer:
        for _ in range(2):
            await producer.submit(SERVICE, "echo", idempotent=True)
        # Asked for here, so that the connection's pauses do not matter.
        sender = producer.sender
        pauses = [sender._pause(call.request, 0, call.end) for call in sender.waiting.values()]
        assert pauses == [FIRST_PAUSE / 2, FIRST_PAUSE]
        for call in list(producer.sender.waiting.values()):
            call.future.cancel()


@virtual_time
async def test_how_often_is_a_choice() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_republishes=0) as producer:
        handle = await producer.submit(SERVICE, "echo", idempotent=True)
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", idempotent=True))
        await turns(2)
        broker.channel.fail("lost")
        assert await outcome(handle) is OutcomeUnknown
        with pytest.raises(OutcomeUnknown):
            await publishing


@virtual_time
async def test_a_broker_without_any_worker_is_told_at_once() -> None:
    async with AsyncProducer(MemoryBroker()) as producer:
        for send in (producer.call, producer.publish):
            with pytest.raises(UnknownService, match="no worker was ever started"):
                await send(SERVICE, "echo", idempotent=True)
        assert now() < 1
        assert producer.republished == 0


@virtual_time
async def test_what_is_sent_again_waits_for_room() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed=2) as producer:
        handles = []
        for _ in range(3):
            for _ in range(2):
                handles.append(await producer.submit(SERVICE, "echo", idempotent=True))
            for _, confirm in broker.channel.published[-2:]:
                confirm.succeed()
            await turns(2)
        broker.channel.fail("lost")
        await asyncio.sleep(2)
        for confirmed in range(6):
            assert len(broker.channel.published) == min(6, confirmed + 2)
            broker.channel.published[confirmed][1].succeed()
            await turns(5)
        again = [message.properties.message_id for message, _ in broker.channel.published]
        assert sorted(map(str, again)) == sorted(handle.message_id for handle in handles)
        for handle in handles:
            handle.future.cancel()


@virtual_time
async def test_room_that_never_comes_is_outcome_unknown_in_time() -> None:
    broker = ScriptedBroker()
    jitters = iter([1.0, 0.0])  # the second is sent again first
    async with AsyncProducer(broker, max_unconfirmed=1, jitter=lambda: next(jitters)) as producer:
        first = await producer.submit(SERVICE, "echo", timeout=5, idempotent=True)
        broker.channel.published[0][1].succeed()
        await turns(3)
        second = await producer.submit(SERVICE, "echo", timeout=60, idempotent=True)
        broker.channel.published[1][1].succeed()
        await turns(3)
        broker.channel.fail("lost")
        assert await outcome(first) is OutcomeUnknown
        assert now() == pytest.approx(5)
        second.future.cancel()


@virtual_time
async def test_whose_caller_left_is_not_sent_again() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        handles = [await producer.submit(SERVICE, "echo", idempotent=True) for _ in range(3)]
        handles[0].future.cancel()  # before the connection is lost
        broker.channel.fail("lost")
        await turns(3)
        handles[1].future.cancel()  # during the pause
        await asyncio.sleep(2)
        assert [message.properties.message_id for message, _ in broker.channel.published] == [handles[2].message_id]
        handles[2].future.cancel()


@virtual_time
async def test_close_ends_what_was_about_to_be_sent_again() -> None:
    broker = ScriptedBroker()
    producer = AsyncProducer(broker, max_unconfirmed=1)
    await producer.start()
    handles = []
    for _ in range(3):
        handles.append(await producer.submit(SERVICE, "echo", idempotent=True))
        broker.channel.published[-1][1].succeed()
        await turns(3)
    publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", idempotent=True))
    await turns(2)
    broker.channel.fail("lost")
    await asyncio.sleep(1)  # one is sent, the others wait for room
    assert len(broker.channel.published) == 1
    await producer.close()
    await turns(3)
    for handle in handles:
        assert handle.done()
        assert await outcome(handle) is OutcomeUnknown
    with pytest.raises((OutcomeUnknown, BrokerUnavailable)):
        await publishing
    assert now() == 1
    assert len(broker.channels) == 2


@virtual_time
async def test_a_map_of_idempotent_requests_survives_a_lost_connection() -> None:
    broker = MemoryBroker()
    await Responder(lambda *_: None).start(broker)
    async with AsyncProducer(broker) as producer:

        async def mapped() -> list[Any]:
            args = [{"n": n} for n in range(20)]
            return [reply.result["n"] async for reply in producer.map(SERVICE, "echo", args, idempotent=True)]

        mapping = asyncio.ensure_future(mapped())
        await turns(10)
        broker.close_all("by the operator")
        await Responder().start(broker)
        assert await mapping == list(range(20))


@virtual_time
async def test_a_channel_that_closes_over_the_message_itself_is_an_end() -> None:
    """Each time it is sent the channel closes: it ends, and so does the reconnecting."""
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_republishes=3) as producer:
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", timeout=100, idempotent=True))
        while not publishing.done():
            if not broker.channel.closed and broker.channel.published:
                broker.channel.published[0][1].fail(ChannelClosed("PRECONDITION_FAILED", 406))
                broker.channel.fail("PRECONDITION_FAILED")
            await asyncio.sleep(0.1)
        with pytest.raises(OutcomeUnknown, match="PRECONDITION_FAILED"):
            await publishing
        assert len(published(broker)) == 4
