"""AsyncProducer on the embedded broker, on a clock that does not wait: every way a request can end."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import math
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType
from typing import Any

import pytest
from responder import SERVICE, Responder
from scripted_broker import ScriptedBroker
from virtual_time import turns, virtual_time

from bridge_protocol import messages
from bridge_protocol.errors import (
    ApplicationError,
    BadRequest,
    Blocked,
    BridgeCrashed,
    BrokerUnavailable,
    Code,
    DeadlineExceeded,
    OutcomeUnknown,
    Refused,
    RequestFailed,
    TooLarge,
    UnknownService,
    exception_for,
)
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import ErrorInfo, Request
from broker.contract import AccessRefused, ConnectionRefused, Delivery, Message, Unroutable
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from producer.reply import Reply

WALL = 1_800_000_000.5


def now() -> float:
    return asyncio.get_running_loop().time()


def silent(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Never answers."""


async def served(act: Any = None) -> tuple[MemoryBroker, Responder]:
    broker, responder = MemoryBroker(), Responder(act)
    await responder.start(broker)
    return broker, responder


# Success.


@virtual_time
async def test_a_call_brings_its_reply() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        reply = await producer.call(SERVICE, "echo", {"text": "é"})
    assert reply == Reply(result={"text": "é"}, message_id=reply.message_id, node="alpha")


@virtual_time
async def test_what_a_request_looks_like_on_the_wire() -> None:
    broker, responder = await served()
    async with AsyncProducer(broker, wall=lambda: WALL) as producer:
        reply = await producer.call(SERVICE, "summarise", {"n": 1}, timeout=30)
        await producer.publish(SERVICE, "summarise")
    (call, request), (published, plain) = responder.seen
    deadline = int((WALL + 30) * 1000)
    assert (request.command, request.args, request.deadline, request.attempt) == ("summarise", {"n": 1}, deadline, 1)
    assert request.timestamp == "2027-01-15T08:00:00.500Z"
    assert 1 <= request.id <= messages.MAX_ID
    properties = call.properties
    assert properties.message_id == properties.correlation_id == reply.message_id
    assert (properties.type, properties.content_type, properties.delivery_mode) == ("summarise", "application/json", 2)
    assert properties.headers == {"protocol": 1, "deadline": deadline}
    assert properties.expiration is None
    assert (plain.args, plain.deadline, published.properties.headers) == ({}, None, {"protocol": 1})
    assert published.properties.reply_to is None


@virtual_time
async def test_message_ids_are_128_random_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    token_hex = secrets.token_hex

    def watched(size: int | None = None) -> str:
        given.append(token_hex(size))
        return given[-1]

    monkeypatch.setattr(secrets, "token_hex", watched)
    broker, responder = await served()
    async with AsyncProducer(broker) as producer:
        handles = [await producer.submit(SERVICE, "echo") for _ in range(500)]
        await asyncio.gather(*handles)
    ids = [handle.message_id for handle in handles]
    assert ids == given
    assert len(set(ids)) == 500
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in ids)
    assert len({request.id for _, request in responder.seen}) == 500


@virtual_time
async def test_each_reply_goes_to_its_caller_in_whatever_order_they_come() -> None:
    def backwards(responder: Responder, delivery: Delivery, request: Request) -> None:
        if len(responder.seen) == 50:
            for earlier, asked in reversed(responder.seen):
                responder.succeed(earlier, asked, asked.args)

    broker, _ = await served(backwards)
    async with AsyncProducer(broker) as producer:
        replies = await asyncio.gather(*(producer.call(SERVICE, "echo", {"n": n}) for n in range(50)))
    assert [reply.result["n"] for reply in replies] == list(range(50))


@virtual_time
async def test_a_handle_says_how_it_stands() -> None:
    broker, responder = await served(silent)
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", {"n": 1})
        await turns(5)
        assert not handle.done()
        assert repr(handle) == f"<Handle {handle.message_id} waiting>"
        assert repr(producer).endswith("1 awaiting replies>")
        responder.succeed(*responder.seen[0], "done")
        assert (await handle).result == (await handle.result()).result == "done"
        assert repr(handle) == f"<Handle {handle.message_id} done>"
        assert repr(producer).endswith("0 awaiting replies>")


@virtual_time
async def test_publish_returns_once_a_queue_has_it() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", {"n": 1}))
        await asyncio.sleep(3)
        assert not publishing.done()
        message, confirm = broker.channel.published[0]
        confirm.succeed()
        assert await publishing == message.properties.message_id


# Failures that a reply reports.


@pytest.mark.parametrize("code", [code for code in Code if exception_for(code).__mro__[1].__name__ == "RequestFailed"])
def test_a_failure_is_raised_as_its_exception(code: Code) -> None:
    def fail(responder: Responder, delivery: Delivery, request: Request) -> None:
        responder.fail(delivery, request, code, "as told", ErrorInfo(details={"exit_code": 3}))

    @virtual_time
    async def run() -> None:
        broker, _ = await served(fail)
        async with AsyncProducer(broker) as producer:
            handle = await producer.submit(SERVICE, "echo")
            with pytest.raises(exception_for(code), match="as told") as raised:
                await handle
        error = raised.value
        assert (error.code, error.message_id, error.attempt, error.node) == (code, handle.message_id, 1, "alpha")
        assert error.details == {"exit_code": 3}

    run()


# What cannot be sent.


@pytest.mark.parametrize(
    ("service", "command", "args", "timeout", "problem"),
    [
        ("Echo", "echo", {}, 30, "Echo"),
        ("", "echo", {}, 30, "service"),
        ("control", "echo", {}, 30, "control"),
        ("a" * 65, "echo", {}, 30, "service"),
        ("echo.session", "echo", {}, 30, "echo.session"),
        (SERVICE, "", {}, 30, "empty"),
        (SERVICE, "e" * 256, {}, 30, "255 bytes"),
        (SERVICE, "a\nb", {}, 30, "control characters"),
        (SERVICE, "shutdown", {}, 30, "the nodes' own"),
        (SERVICE, "cancel", {}, 30, "the nodes' own"),
        (SERVICE, "echo", {"x": math.nan}, 30, "NaN"),
        (SERVICE, "echo", {"x": [math.inf]}, 30, "infinity"),
        (SERVICE, "echo", {"x": object()}, 30, "not JSON"),
        (SERVICE, "echo", {1: 2}, 30, "not JSON"),
        (SERVICE, "echo", {"x": 2**64}, 30, "not JSON"),
        (SERVICE, "echo", {"x": "\ud800"}, 30, "not JSON"),
        (SERVICE, "echo", [("x", 1)], 30, "args must be a mapping of names to values, not list"),
        (SERVICE, "echo", "text", 30, "args must be a mapping"),
        (SERVICE, "echo", {}, 0, "more than 0 seconds and finite, not 0"),
        (SERVICE, "echo", {}, -1, "more than 0 seconds"),
        (SERVICE, "echo", {}, math.nan, "more than 0 seconds"),
        (SERVICE, "echo", {}, math.inf, "finite"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_sent(
    service: str, command: str, args: Any, timeout: float, problem: str
) -> None:
    @virtual_time
    async def run() -> None:
        broker = ScriptedBroker()
        async with AsyncProducer(broker) as producer:
            for send in (producer.call, producer.submit, producer.publish):
                with pytest.raises(BadRequest, match=re.escape(problem)):
                    await send(service, command, args, timeout=timeout)
        assert broker.channel.published == []

    run()


@virtual_time
async def test_a_request_over_the_limit_is_refused_before_anything_is_sent() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        with pytest.raises(TooLarge, match="the limit is 16,777,216"):
            await producer.call(SERVICE, "echo", {"x": "x" * DEFAULT_LIMIT})
    assert broker.channel.published == []


@virtual_time
async def test_a_mapping_of_any_kind_will_do() -> None:
    class Lazy(dict[str, int]):
        pass

    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        for args in (MappingProxyType({"n": 1}), Lazy(n=1)):
            assert (await producer.call(SERVICE, "echo", args)).result == {"n": 1}


@virtual_time
async def test_an_unknown_service_is_told_at_once() -> None:
    broker, _ = await served(silent)
    async with AsyncProducer(broker) as producer:
        others = [await producer.submit(SERVICE, "echo", timeout=60) for _ in range(20)]
        with pytest.raises(UnknownService, match="no queue for service 'nobody': start a worker") as called:
            await producer.call("nobody", "echo", timeout=60)
        with pytest.raises(UnknownService) as published:
            await producer.publish("nobody", "echo", timeout=60)
        assert now() == 0
        assert called.value.message_id
        assert published.value.message_id
        assert not any(handle.done() for handle in others)
        for handle in others:
            handle.future.cancel()


@virtual_time
async def test_a_broker_that_refuses() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        calling = asyncio.ensure_future(producer.call(SERVICE, "echo"))
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo"))
        await turns(2)
        for _, confirm in broker.channel.published:
            confirm.fail(Refused("its queue is full"))
        for sending in (calling, publishing):
            with pytest.raises(Refused, match="its queue is full") as raised:
                await sending
            assert raised.value.message_id


# Time.


@virtual_time
async def test_no_reply_in_time() -> None:
    broker, responder = await served(silent)
    async with AsyncProducer(broker) as producer:
        await asyncio.sleep(5)
        handle = await producer.submit(SERVICE, "echo", timeout=3)
        with pytest.raises(DeadlineExceeded, match="no reply in time") as raised:
            await handle
        assert now() == pytest.approx(8)
        assert raised.value.message_id == handle.message_id
        responder.succeed(*responder.seen[0], "too late")
        await turns(5)
        assert producer.late_replies == 1


@virtual_time
async def test_a_caller_that_stops_waiting_is_forgotten() -> None:
    broker, responder = await served(silent)
    async with AsyncProducer(broker) as producer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await producer.call(SERVICE, "echo", timeout=30)
        assert repr(producer).endswith("0 awaiting replies>")
        responder.succeed(*responder.seen[0], "too late")
        await turns(5)
        assert producer.late_replies == 1


@virtual_time
async def test_a_publish_that_is_not_confirmed_speaks_for_its_call() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=3)
        await asyncio.sleep(3.05)
        assert not handle.done()  # whether a queue has it is about to be told
        broker.channel.published[0][1].fail(OutcomeUnknown("not confirmed in time"))
        with pytest.raises(OutcomeUnknown, match="not confirmed in time"):
            await handle


@virtual_time
async def test_a_confirm_that_comes_late_leaves_it_at_the_deadline() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        handle = await producer.submit(SERVICE, "echo", timeout=3)
        await asyncio.sleep(3.05)
        broker.channel.published[0][1].succeed()
        with pytest.raises(DeadlineExceeded):
            await handle
        assert now() == pytest.approx(3.05)


@virtual_time
async def test_an_alarm_is_told_within_the_timeout() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker, max_unconfirmed=2) as producer:
        broker.block("low on memory")
        calls = [asyncio.ensure_future(producer.call(SERVICE, "echo", timeout=3)) for _ in range(4)]
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo", timeout=3))
        for sending in (*calls, publishing):  # the last three found no room either
            with pytest.raises(Blocked, match="low on memory") as raised:
                await sending
            assert raised.value.message_id
        assert now() == pytest.approx(3)
        broker.unblock()
        assert (await producer.call(SERVICE, "echo", {"n": 1})).result == {"n": 1}


@virtual_time
async def test_what_an_alarm_held_back_goes_on_when_it_is_over() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        broker.block("low on memory")
        calling = asyncio.ensure_future(producer.call(SERVICE, "echo", {"n": 1}, timeout=30))
        await asyncio.sleep(10)
        broker.unblock()
        assert (await calling).result == {"n": 1}
        assert now() == 10


# The connection.


@virtual_time
async def test_no_connection_is_told_with_its_reason() -> None:
    for error in (ConnectionRefused("nobody listens there"), AccessRefused("wrong password")):
        producer = AsyncProducer(ScriptedBroker([error] * 100), connect_timeout=2)
        with pytest.raises(BrokerUnavailable, match=f"cannot connect to scripted: {error}"):
            await producer.start()
        with pytest.raises(BrokerUnavailable, match="closed here"):
            await producer.call(SERVICE, "echo")
    assert now() == 2  # the first was tried again, the second was not


@virtual_time
async def test_a_lost_connection_ends_what_was_sent_and_only_that() -> None:
    broker, _ = await served(silent)
    async with AsyncProducer(broker) as producer:
        confirmed = [await producer.submit(SERVICE, "echo", {"n": n}) for n in range(3)]
        await turns(5)
        unconfirmed = [await producer.submit(SERVICE, "echo", {"n": 3})]
        broker.close_all("by the operator")
        unsent = [await producer.submit(SERVICE, "echo", {"n": n}) for n in range(4, 7)]
        for handle in confirmed + unconfirmed:
            with pytest.raises(OutcomeUnknown, match="by the operator") as raised:
                await handle
            assert raised.value.message_id == handle.message_id
        assert now() == 0
        second = Responder()
        await second.start(broker)
        assert [(await handle).result["n"] for handle in unsent] == [4, 5, 6]
        assert now() < 1
        sent_again = [n for n in second.numbers if n < 3]
        assert sent_again == []
        assert (await producer.call(SERVICE, "echo", {"n": 7})).result == {"n": 7}


@virtual_time
async def test_replies_to_what_waited_come_by_the_new_connection() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        broker.channel.fail("lost")
        await turns(3)
        waiting = await producer.submit(SERVICE, "echo")
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo"))
        await asyncio.sleep(1)
        (call, _), (published, _) = broker.channel.published
        assert call.properties.reply_to == await broker.channel.declare_reply_queue()
        assert call.properties.reply_to != await broker.channels[0].declare_reply_queue()
        assert published.properties.reply_to is None
        waiting.future.cancel()
        for _, confirm in broker.channel.published:
            confirm.succeed()
        await publishing


@virtual_time
async def test_what_is_not_sent_before_its_timeout_never_is() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        broker.answers = [ConnectionRefused("down")] * 6
        broker.channel.fail("lost")
        await turns(3)
        with pytest.raises(BrokerUnavailable, match="not sent: no connection to scripted in time: down") as raised:
            await producer.call(SERVICE, "echo", timeout=1)
        assert now() == pytest.approx(1)
        assert raised.value.message_id
        await asyncio.sleep(20)
        assert len(broker.channels) == 2
        assert broker.channel.published == []


@virtual_time
async def test_a_reply_subscription_that_ended_is_made_anew() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        await producer.call(SERVICE, "echo")
        replies = next(name for name in broker._vhost.queues if name.startswith("amq.rabbitmq.reply-to"))
        broker.cancel_consumers(replies)
        await asyncio.sleep(1)
        assert (await producer.call(SERVICE, "echo", {"n": 1})).result == {"n": 1}


@virtual_time
async def test_use_before_the_start_is_told_at_once() -> None:
    producer = AsyncProducer(ScriptedBroker())
    for send in (producer.call, producer.publish):
        with pytest.raises(BrokerUnavailable, match="not sent: the connection was not started"):
            await send(SERVICE, "echo")
    assert now() == 0


@virtual_time
async def test_it_is_started_once() -> None:
    producer = AsyncProducer(ScriptedBroker())
    async with producer:
        with pytest.raises(RuntimeError, match="started or closed before"):
            await producer.start()
    with pytest.raises(RuntimeError, match="started or closed before"):
        await producer.start()


@pytest.mark.parametrize("url", ["http://somewhere", "amqp://guest@far.away", "amqp://", ""])
def test_what_is_no_broker_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$"):
        AsyncProducer(url)


# Closing.


@virtual_time
async def test_close_ends_every_call_under_way() -> None:
    broker = ScriptedBroker()
    producer = AsyncProducer(broker, max_unconfirmed=3)
    await producer.start()
    confirmed = [await producer.submit(SERVICE, "echo") for _ in range(2)]
    for _, confirm in broker.channel.published:
        confirm.succeed()
    await turns(2)
    unconfirmed = [await producer.submit(SERVICE, "echo") for _ in range(3)]
    unsent = [asyncio.ensure_future(producer.call(SERVICE, "echo")) for _ in range(5)]
    unsent += [asyncio.ensure_future(producer.publish(SERVICE, "echo"))]  # type: ignore[list-item]
    await turns(2)
    await producer.close()
    for handle in confirmed:
        assert handle.done()
        with pytest.raises(OutcomeUnknown, match="the producer was closed before its reply came"):
            await handle
    for handle in unconfirmed:
        with pytest.raises(OutcomeUnknown, match="before the broker confirmed"):
            await handle
    for call in unsent:
        with pytest.raises(BrokerUnavailable, match="closed here"):
            await call
    await producer.close()
    with pytest.raises(BrokerUnavailable, match="closed here"):
        await producer.call(SERVICE, "echo")
    assert len(broker.channel.published) == 5
    assert now() == 0


@virtual_time
async def test_a_confirm_that_is_heard_after_the_loss_does_not_leave_its_call_waiting() -> None:
    broker = ScriptedBroker()
    producer = AsyncProducer(broker)
    await producer.start()
    broker.channel.fail("lost")
    await turns(3)
    handle = await producer.submit(SERVICE, "echo")  # waits, and so hears of its confirm a turn later
    await asyncio.sleep(1)
    broker.channel.published[0][1].succeed()
    await producer.close()
    with pytest.raises(OutcomeUnknown):
        await handle
    assert now() == 1


@virtual_time
async def test_nothing_is_sent_once_it_closes() -> None:
    broker, responder = await served(silent)
    producer = AsyncProducer(broker)
    await producer.start()
    closing = asyncio.ensure_future(producer.close())
    calls = []
    while not closing.done():
        calls.append(asyncio.ensure_future(producer.call(SERVICE, "echo", {"n": len(calls)})))
        await turns(1)
    assert len(calls) > 2
    for call in calls:
        with pytest.raises(BrokerUnavailable, match="closed here"):
            await call
    assert now() == 0
    assert responder.seen == []


@virtual_time
async def test_close_without_start_is_safe() -> None:
    await AsyncProducer(ScriptedBroker()).close()


# The window.


@virtual_time
async def test_unconfirmed_publishes_are_bounded_by_count() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed=3) as producer:
        sending = [asyncio.ensure_future(producer.publish(SERVICE, "echo", {"n": n})) for n in range(10)]
        await asyncio.sleep(1)
        published = broker.channel.published
        for confirmed in range(10):
            assert len(published) == min(10, confirmed + 3)
            published[confirmed][1].succeed()
            await turns(4)
        await asyncio.gather(*sending)
        assert [messages.decode_request(message.body).args["n"] for message, _ in published] == list(range(10))


@virtual_time
async def test_unconfirmed_publishes_are_bounded_by_bytes() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed_bytes=1000) as producer:
        sizes = [500, 100, 500, 5000, 10]
        sending = [asyncio.ensure_future(producer.publish(SERVICE, "echo", {"x": "x" * size})) for size in sizes]
        await turns(3)
        published = broker.channel.published
        for confirmed, sent in enumerate([2, 3, 3, 4, 5]):  # the fourth is over the bound, and goes alone
            assert len(published) == sent
            published[confirmed][1].succeed()
            await turns(4)
        await asyncio.gather(*sending)


@virtual_time
async def test_no_room_in_time_is_told() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed=1) as producer:
        first = await producer.submit(SERVICE, "echo", timeout=60)
        for send in (producer.call, producer.submit, producer.publish):
            with pytest.raises(BrokerUnavailable, match="confirmed none of what was sent before within 2 s") as raised:
                await send(SERVICE, "echo", timeout=2)
            assert raised.value.message_id
        assert now() == 6
        assert len(broker.channel.published) == 1
        first.future.cancel()


@virtual_time
async def test_waiting_for_room_counts_toward_the_timeout() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed=1) as producer:
        first = asyncio.ensure_future(producer.publish(SERVICE, "echo"))
        calling = asyncio.ensure_future(producer.call(SERVICE, "echo", timeout=5))
        await asyncio.sleep(3)
        broker.channel.published[0][1].succeed()
        await turns(4)
        broker.channel.published[1][1].succeed()
        with pytest.raises(DeadlineExceeded):
            await calling
        assert now() == pytest.approx(5)
        await first


@virtual_time
async def test_who_is_cancelled_while_waiting_gives_the_room_on() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed=1) as producer:
        first = asyncio.ensure_future(producer.publish(SERVICE, "echo", {"n": 0}))
        waiting = [asyncio.ensure_future(producer.call(SERVICE, "echo", {"n": n})) for n in (1, 2)]
        await turns(3)
        waiting[0].cancel()
        broker.channel.published[0][1].succeed()
        await first
        await turns(4)
        assert [messages.decode_request(message.body).args["n"] for message, _ in broker.channel.published] == [0, 2]
        waiting[1].cancel()


@virtual_time
async def test_a_publish_whose_caller_left_keeps_its_room_until_it_is_confirmed() -> None:
    broker = ScriptedBroker()
    async with AsyncProducer(broker, max_unconfirmed=1) as producer:
        publishing = asyncio.ensure_future(producer.publish(SERVICE, "echo"))
        await turns(3)
        publishing.cancel()
        second = asyncio.ensure_future(producer.publish(SERVICE, "echo"))
        await turns(4)
        assert len(broker.channel.published) == 1
        broker.channel.published[0][1].fail(Unroutable("nobody hears this"))
        await turns(4)
        broker.channel.published[1][1].succeed()
        await second


# Replies nobody should believe.


@virtual_time
async def test_garbage_forgeries_and_repetitions_reach_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def attack(responder: Responder, delivery: Delivery, request: Request) -> None:
        good = messages.encode_result(request.id, "good")
        # For this call, and broken: dropped.
        responder.reply(delivery, b"\xff\x00")
        responder.reply(delivery, b"not json")
        responder.reply(delivery, messages.encode_failure(request.id, "of type result"))
        responder.reply(delivery, good, code=Code.BRIDGE_CRASHED)
        responder.reply(delivery, messages.encode_failure(request.id, "x"), code=Code.OUTCOME_UNKNOWN)
        # For nobody who waits: counted.
        responder.reply(delivery, good, correlation_id="unknown")
        responder.reply(delivery, good, correlation_id="0" * 32)
        assert responder.channel is not None
        assert delivery.properties.reply_to is not None
        without_id = Message(
            exchange="",
            routing_key=delivery.properties.reply_to,
            body=good,
            properties=dataclasses.replace(delivery.properties, correlation_id=None, reply_to=None),
        )
        responder.channel.publish(without_id, timeout=5)
        # The right one, and again.
        responder.succeed(delivery, request, request.args)
        responder.succeed(delivery, request, "second")
        responder.fail(delivery, request, Code.CANCELLED, "third")

    broker, _ = await served(attack)
    async with AsyncProducer(broker) as producer:
        with caplog.at_level(logging.WARNING, "quaybridge.producer"):
            replies = await asyncio.gather(*(producer.call(SERVICE, "echo", {"n": n}) for n in range(5)))
            await turns(5)
        assert [reply.result["n"] for reply in replies] == list(range(5))
        assert producer.late_replies == 5 * 5
    dropped = [message for message in caplog.messages if message.startswith("not a reply, dropped: ")]
    assert len(dropped) == 5 * 5
    assert all(message.isprintable() for message in dropped)


# map.


async def drained(replies: AsyncIterator[Reply]) -> tuple[list[Any], RequestFailed | None]:
    """The results that came, and the failure that ended them."""
    results = []
    try:
        async for reply in replies:
            results.append(reply.result)
    except RequestFailed as failure:
        return results, failure
    return results, None


class Counted:
    """An input of `count` items that knows how many were taken."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._count = count

    def __iter__(self) -> Iterator[dict[str, int]]:
        while self.taken < self._count:
            self.taken += 1
            yield {"n": self.taken - 1}


@pytest.mark.parametrize("in_flight", [1, 7, 100, 1000])
def test_map_keeps_the_order_and_the_bound(in_flight: int) -> None:
    open_requests: list[tuple[Delivery, Request]] = []
    most = 0

    def shuffled(responder: Responder, delivery: Delivery, request: Request) -> None:
        nonlocal most
        open_requests.append((delivery, request))
        most = max(most, len(open_requests))

        def answer() -> None:
            open_requests.remove((delivery, request))
            responder.succeed(delivery, request, request.args)

        asyncio.get_running_loop().call_later(1 + request.args["n"] * 7919 % 13, answer)

    @virtual_time
    async def run() -> None:
        broker, _ = await served(shuffled)
        args = Counted(300)
        async with AsyncProducer(broker) as producer:
            received = 0
            async for reply in producer.map(SERVICE, "echo", args, in_flight=in_flight, timeout=1000):
                assert reply.result == {"n": received}
                received += 1
                assert args.taken <= received - 1 + in_flight
        assert received == 300
        assert most == min(in_flight, 300)

    run()


@virtual_time
async def test_map_of_nothing() -> None:
    async with AsyncProducer(ScriptedBroker()) as producer:
        assert [reply async for reply in producer.map(SERVICE, "echo", [])] == []


@pytest.mark.parametrize("in_flight", [0, -1])
def test_map_needs_one_in_flight(in_flight: int) -> None:
    @virtual_time
    async def run() -> None:
        async with AsyncProducer(ScriptedBroker()) as producer:
            with pytest.raises(ValueError, match="in_flight must be at least 1"):
                await anext(aiter(producer.map(SERVICE, "echo", [], in_flight=in_flight)))

    run()


@virtual_time
async def test_map_raises_the_first_failure_in_its_turn_and_leaves_nothing_behind() -> None:
    def some_fail(responder: Responder, delivery: Delivery, request: Request) -> None:
        match request.args["n"]:
            case 3:
                loop.call_later(5, responder.fail, delivery, request, Code.BRIDGE_CRASHED, "3 crashed")
            case 5 | 7:  # before the third, and unheard
                responder.fail(delivery, request, Code.APPLICATION_ERROR, "nobody hears this")
            case 8:  # still running then
                pass
            case n:
                responder.succeed(delivery, request, n)

    loop = asyncio.get_running_loop()
    broker, responder = await served(some_fail)
    async with AsyncProducer(broker) as producer:
        args = Counted(100)
        received, failure = await drained(producer.map(SERVICE, "echo", args, in_flight=6))
        assert received == [0, 1, 2]
        assert isinstance(failure, BridgeCrashed)
        assert args.taken == 9
        await turns(2)
        assert repr(producer).endswith("0 awaiting replies>")
        responder.succeed(*responder.seen[8], "late")
        await turns(5)
        assert producer.late_replies == 1


@virtual_time
async def test_map_raises_what_cannot_be_sent_in_its_turn() -> None:
    broker, responder = await served()
    async with AsyncProducer(broker) as producer:
        args = [{"n": 0}, {"n": 1}, {"n": math.nan}, {"n": 3}]
        received, failure = await drained(producer.map(SERVICE, "echo", args))
        assert received == [{"n": 0}, {"n": 1}]
        assert isinstance(failure, BadRequest)
        assert responder.numbers == [0, 1]


@virtual_time
async def test_map_can_be_left_early() -> None:
    broker, _ = await served(lambda responder, delivery, request: None)
    async with AsyncProducer(broker) as producer:
        replies = producer.map(SERVICE, "echo", Counted(100), in_flight=10)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(aiter(replies))
        await turns(2)
        assert repr(producer).endswith("0 awaiting replies>")


@virtual_time
async def test_map_waits_for_room() -> None:
    broker, responder = await served()
    async with AsyncProducer(broker, max_unconfirmed=2) as producer:
        replies = [reply.result["n"] async for reply in producer.map(SERVICE, "echo", Counted(50), in_flight=20)]
    assert replies == responder.numbers == list(range(50))


@virtual_time
async def test_failures_nobody_asks_for_are_not_complained_about() -> None:
    """What is left of a map; asyncio's complaint would come when the futures are collected."""

    def fail(responder: Responder, delivery: Delivery, request: Request) -> None:
        responder.fail(delivery, request, Code.APPLICATION_ERROR, "as asked")

    broker, _ = await served(fail)
    async with AsyncProducer(broker) as producer:
        received, failure = await drained(producer.map(SERVICE, "echo", Counted(20)))
        assert received == []
        assert isinstance(failure, ApplicationError)
    gc.collect()
