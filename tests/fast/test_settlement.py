"""The one funnel: what is published before a delivery is let go, on the embedded broker."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from bridge_protocol.envelope import ATTEMPT, DEADLINE, TRACEPARENT, History, Properties, request_properties
from bridge_protocol.errors import Code
from bridge_protocol.messages import Failure, Request, decode_message, encode_request, encode_result
from bridge_protocol.topology import EXCHANGE, service_topology, shared_topology
from broker.contract import Channel, Delivery, Message
from broker.limits import MAX_BODY, check_message
from broker.link import Link
from broker.memory import MemoryBroker
from worker_node import settlement as module
from worker_node.core.fate import Fault, RetryPolicy
from worker_node.settings import RetrySettings
from worker_node.settlement import Case, Settlement

PATIENCE = 10  # seconds until a test gives up waiting
QUEUE, DEAD, UNDELIVERABLE = "quaybridge.echo", "quaybridge.echo.dead", "quaybridge.undeliverable"
DURABLE = "quaybridge.reply.durable"
BODY = encode_request(Request(id=7, command="echo", args={"text": "hi"}))
REPLY = encode_result(7, {"text": "hi"})
CRASHED = Fault(code=Code.BRIDGE_CRASHED, message="it fell over", details={"exit_code": 3})
BAD = Fault(code=Code.BAD_REQUEST, message="nonsense")


class Bench:
    """A settlement on a broker, a consumer that took requests from the queue, and a requester with an address."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.taken: asyncio.Queue[Delivery] = asyncio.Queue()
        self.replies: asyncio.Queue[Delivery] = asyncio.Queue()
        self.link = Link(broker, "replies", set_up=self._nothing)
        self.settlement = Settlement(
            self.link,
            node="n1",
            service="echo",
            policy=RetryPolicy(max_attempts=3, first_delay=RetrySettings().first_delays, factor=5, max_delay=600),
            publish_timeout=5.0,
            stall_timeout=15.0,
            wall=lambda: 1_700_000_000.0,
            jitter=lambda: 1.0,
        )

    async def _nothing(self, channel: Channel) -> None:
        pass

    async def open(self) -> None:
        self.consuming = await self.broker.open("requests", on_closed=lambda _: None)
        await self.consuming.declare((*shared_topology(), *service_topology("echo")))
        await self.consuming.consume(QUEUE, self.taken.put_nowait, prefetch=10)
        self.requester = await self.broker.open("requester", on_closed=lambda _: None)
        self.address = await self.requester.declare_reply_queue()
        await self.requester.consume(self.address, self.replies.put_nowait, no_ack=True)
        await self.link.start(PATIENCE)

    async def request(self, *, reply_to: str | None = "", **options: Any) -> Delivery:
        """A request as it is delivered; `reply_to` is the requester's address unless given."""
        properties = request_properties(
            message_id="m1", command="echo", reply_to=self.address if reply_to == "" else reply_to, **options
        )
        message = Message(exchange=EXCHANGE, routing_key="echo", body=BODY, properties=properties)
        await self.requester.publish(message, timeout=PATIENCE)
        return await asyncio.wait_for(self.taken.get(), PATIENCE)

    async def request_while_blocked(self, **options: Any) -> Delivery:
        """The same, published past an alarm, which holds back the rest."""
        reason, self.broker._blocked = self.broker._blocked, None
        delivery = await self.request(**options)
        self.broker._blocked = reason
        return delivery

    async def reply(self) -> Delivery:
        return await asyncio.wait_for(self.replies.get(), PATIENCE)

    async def settled(self) -> None:
        """Until all is settled; acks take effect in the broker's next turn."""
        await asyncio.wait_for(self.settlement.wait_idle(), PATIENCE)
        await turns()

    @property
    def unacked(self) -> int:
        return self.broker.counts(QUEUE).unacked

    @property
    def ready(self) -> int:
        return self.broker.counts(QUEUE).ready


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(MemoryBroker())
    await made.open()
    yield made
    await made.link.close()


async def turns() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until_said(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    async with asyncio.timeout(PATIENCE):
        while caplog.text.count(text) < times:
            await asyncio.sleep(0.001)


def case(delivery: Delivery, *, attempt: int = 1, remaining: float = math.inf) -> Case:
    return Case(delivery=delivery, attempt=attempt, request_id=7, command="echo", remaining=remaining)


def failure(delivery: Delivery) -> Failure:
    said = decode_message(delivery.body)
    assert isinstance(said, Failure)
    return said


# Success.


async def test_a_reply_goes_back_byte_for_byte_and_then_the_request_is_acked(bench: Bench) -> None:
    delivery = await bench.request()
    assert bench.unacked == 1
    bench.settlement.succeed(case(delivery), REPLY)
    reply = await bench.reply()
    await bench.settled()
    assert reply.body == REPLY
    assert reply.properties == Properties(
        message_id="m1",
        correlation_id="m1",
        type="result",
        headers={"protocol": 1, "attempt": 1, "node": "n1"},
    )
    assert (bench.ready, bench.unacked) == (0, 0)
    assert bench.settlement.counts.succeeded == 1


async def test_a_request_nobody_waits_for_is_acked_without_a_reply(bench: Bench) -> None:
    bench.settlement.succeed(case(await bench.request(reply_to=None)), REPLY)
    await bench.settled()
    assert (bench.ready, bench.unacked) == (0, 0)
    assert bench.replies.empty()


async def test_until_the_reply_is_confirmed_the_request_is_not_acked(bench: Bench) -> None:
    delivery = await bench.request()
    bench.broker.block("disk full")
    bench.settlement.succeed(case(delivery), REPLY)
    await turns()
    assert bench.unacked == 1
    assert repr(bench.settlement) == "<Settlement of echo: 1 pending>"
    bench.broker.unblock()
    await bench.settled()
    assert bench.unacked == 0
    assert (await bench.reply()).body == REPLY


async def test_a_reply_that_cannot_be_published_is_tried_until_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    bench.settlement._publish_timeout = 0.001
    delivery = await bench.request()
    bench.broker.block("disk full")
    bench.settlement.succeed(case(delivery), REPLY)
    await until_said(caplog, "not published yet", 3)
    assert bench.unacked == 1
    bench.broker.unblock()
    await bench.settled()
    assert bench.unacked == 0
    assert (await bench.reply()).body == REPLY
    await turns()
    assert bench.replies.empty()  # it went out once


async def test_the_attempt_and_a_redelivery_are_told_with_the_reply(bench: Bench) -> None:
    (await bench.request()).reject(requeue=True)
    again = await asyncio.wait_for(bench.taken.get(), PATIENCE)
    bench.settlement.succeed(case(again, attempt=2), REPLY)
    headers = (await bench.reply()).properties.headers
    assert headers == {"protocol": 1, "attempt": 2, "node": "n1", "redelivered": True}
    assert bench.settlement.counts.redelivered == 1


# Nobody to reply to.


async def test_a_direct_reply_to_a_requester_that_is_gone_is_counted_and_dropped(bench: Bench) -> None:
    delivery = await bench.request()
    await bench.requester.close()
    bench.settlement.succeed(case(delivery), REPLY)
    await bench.settled()
    assert bench.unacked == 0
    assert bench.settlement.counts.replies_dropped == 1
    assert not bench.broker.messages(UNDELIVERABLE)


async def test_a_reply_to_a_durable_queue_that_is_missing_is_parked(bench: Bench) -> None:
    bench.settlement.succeed(case(await bench.request(reply_to=DURABLE)), REPLY)
    await bench.settled()
    (parked,) = bench.broker.messages(UNDELIVERABLE)
    assert parked.body == REPLY
    assert parked.properties.correlation_id == "m1"
    assert parked.properties.reply_to == DURABLE  # where it should have gone
    assert bench.unacked == 0
    assert bench.settlement.counts.replies_parked == 1


async def test_a_failure_is_parked_too_and_its_dead_letter_written_once(bench: Bench) -> None:
    bench.settlement.fail(case(await bench.request(reply_to=DURABLE), attempt=3), CRASHED)
    await bench.settled()
    assert len(bench.broker.messages(UNDELIVERABLE)) == 1
    assert len(bench.broker.messages(DEAD)) == 1
    assert bench.unacked == 0


# Failures.


async def test_the_bridges_own_failure_goes_back_byte_for_byte_under_the_nodes_code(bench: Bench) -> None:
    payload = b'{"id":7,"success":false,"error":"no such file","extra":[1,2]}'
    fault = Fault(code=Code.APPLICATION_ERROR, message="no such file")
    bench.settlement.fail(case(await bench.request()), fault, payload)
    reply = await bench.reply()
    assert reply.body == payload
    assert reply.properties.type == "application_error"
    await bench.settled()
    assert not bench.broker.messages(DEAD)
    assert bench.settlement.counts.failed == 1


async def test_a_crash_is_published_for_another_try_and_then_acked(bench: Bench) -> None:
    deadline = 1_700_000_060_000
    delivery = await bench.request(deadline=deadline, traceparent="00-abc-def-01")
    bench.settlement.fail(case(delivery, remaining=60), CRASHED)
    await bench.settled()
    (retry,) = bench.broker.messages("quaybridge.delay.0")
    assert retry.body == BODY
    assert retry.properties == replace(
        delivery.properties,
        headers={
            "protocol": 1,
            ATTEMPT: 2,
            DEADLINE: deadline,
            TRACEPARENT: "00-abc-def-01",
            "first-failed": 1_700_000_000_000,
        },
    )
    assert bench.unacked == 0
    assert bench.replies.empty()
    assert bench.settlement.counts.retried == 1


async def test_a_retry_that_is_not_confirmed_is_not_acked(bench: Bench) -> None:
    delivery = await bench.request()
    bench.broker.block("disk full")
    bench.settlement.fail(case(delivery), CRASHED)
    await turns()
    assert bench.unacked == 1
    bench.broker.unblock()
    await bench.settled()
    assert bench.unacked == 0
    assert len(bench.broker.messages("quaybridge.delay.0")) == 1


async def test_the_last_crash_is_a_failure_and_a_dead_letter_that_says_all_of_it(bench: Bench) -> None:
    bench.settlement.fail(case(await bench.request(), attempt=3), CRASHED)
    reply = await bench.reply()
    said = failure(reply)
    assert reply.properties.type == "bridge_crashed"
    assert (said.id, said.error) == (7, "it fell over")
    assert said.info is not None
    assert said.info.details == {"exit_code": 3}
    await bench.settled()
    (letter,) = bench.broker.messages(DEAD)
    assert letter.body == BODY
    assert letter.properties == Properties(
        message_id="m1",
        correlation_id="m1",
        type="echo",
        headers={
            "protocol": 1,
            "attempt": 3,
            "node": "n1",
            "service": "echo",
            "code": "bridge_crashed",
            "error": "it fell over",
            "details": '{"exit_code":3}',
            "first-time": "2023-11-14T22:13:20.000Z",
            "time": "2023-11-14T22:13:20.000Z",
        },
    )
    assert (bench.settlement.counts.failed, bench.settlement.counts.dead) == (1, 1)


async def test_the_dead_letter_comes_before_the_failure_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    publish = bench.link.publish

    def watched(message: Message, *, timeout: float) -> asyncio.Future[None]:
        published.append(message.routing_key)
        return publish(message, timeout=timeout)

    monkeypatch.setattr(bench.link, "publish", watched)
    bench.settlement.fail(case(await bench.request()), BAD)
    await bench.settled()
    assert published == ["echo.dead", bench.address]


async def test_a_failure_nobody_waits_for_is_kept(bench: Bench) -> None:
    fault = Fault(code=Code.APPLICATION_ERROR, message="no such file")
    bench.settlement.fail(case(await bench.request(reply_to=None)), fault, b"{}")
    await bench.settled()
    assert bench.broker.messages(DEAD)[0].properties.headers["code"] == "application_error"
    assert bench.unacked == 0


async def test_what_could_not_run_here_is_handed_back(bench: Bench) -> None:
    delivery = await bench.request()
    bench.settlement.fail(case(delivery), Fault(code=Code.BRIDGE_UNAVAILABLE, message="no bridge"))
    again = await asyncio.wait_for(bench.taken.get(), PATIENCE)
    assert again.redelivered
    assert again.body == BODY
    assert bench.settlement.counts.handed_back == 1


@pytest.mark.parametrize("attempt", [1, 3])
async def test_nothing_of_a_requests_headers_is_copied(bench: Bench, attempt: int) -> None:
    delivery = await bench.request()
    # No producer of ours can publish these; somebody else's can.
    forged = {"CC": [QUEUE], "BCC": [QUEUE], "x-death": [], "x-delivery-count": 99, "code": "forged", "node": "other"}
    properties = replace(delivery.properties, headers={**delivery.properties.headers, **forged}, expiration="1")
    delivery = replace(delivery, properties=properties)
    bench.settlement.fail(case(delivery, attempt=attempt), CRASHED)
    await bench.settled()
    published = bench.broker.messages("quaybridge.delay.0") + bench.broker.messages(DEAD)
    if attempt == 3:
        published.append(Message(exchange="", routing_key="", body=b"", properties=(await bench.reply()).properties))
    assert published
    for message in published:
        headers = message.properties.headers
        assert not {"CC", "BCC", "x-death", "x-delivery-count"} & set(headers)
        assert headers.get("code") != "forged"
        assert headers.get("node") != "other"
        assert message.properties.expiration is None
    assert (bench.ready, bench.unacked) == (0, 0)


async def test_a_request_that_is_retried_keeps_when_it_first_failed_and_how_often_it_was_replayed(bench: Bench) -> None:
    delivery = await bench.request(history=History(first_failed=1_600_000_000_000, replays=2))
    bench.settlement.fail(case(delivery, attempt=2), CRASHED)
    bench.settlement.fail(replace(case(delivery, attempt=3), slot=5), CRASHED)
    await turns()
    (retry,) = bench.broker.messages("quaybridge.delay.2")
    assert (retry.properties.headers["first-failed"], retry.properties.headers["replays"]) == (1_600_000_000_000, 2)
    headers = bench.broker.messages(DEAD)[0].properties.headers
    assert headers["first-time"] == "2020-09-13T12:26:40.000Z"
    assert headers["time"] == "2023-11-14T22:13:20.000Z"
    assert (headers["replays"], headers["slot"]) == (2, 5)


@pytest.mark.parametrize("traceparent", ["x" * 40_000, "a b", 7])
async def test_a_traceparent_that_could_not_be_sent_on_costs_no_request_its_retry(
    bench: Bench, traceparent: object
) -> None:
    delivery = await bench.request()
    headers = {**delivery.properties.headers, TRACEPARENT: traceparent}
    delivery = replace(delivery, properties=replace(delivery.properties, headers=headers))
    bench.settlement.fail(case(delivery), CRASHED)
    await bench.settled()
    (retry,) = bench.broker.messages("quaybridge.delay.0")
    assert TRACEPARENT not in retry.properties.headers
    assert not bench.broker.messages(DEAD)


async def test_long_errors_and_large_details_are_cut_in_a_dead_letter_alone(bench: Bench) -> None:
    fault = Fault(code=Code.BRIDGE_CRASHED, message="\U0001f4a5" * 100_000, details={"stderr": ["x" * 20_000]})
    bench.settlement.fail(case(await bench.request(), attempt=3), fault)
    assert failure(await bench.reply()).error == fault.message  # a body has room for it
    await bench.settled()
    (letter,) = bench.broker.messages(DEAD)
    check_message(letter)
    assert letter.properties.headers["error"] == "\U0001f4a5" * 2048
    assert json.loads(letter.properties.headers["details"]) == {"omitted": "20,015 bytes of details"}


# Deliveries that are no longer ours.


async def test_a_delivery_whose_channel_is_gone_is_let_go(bench: Bench) -> None:
    delivery = await bench.request()
    bench.broker.close_all("maintenance")
    bench.settlement.succeed(case(delivery), REPLY)
    await bench.settled()
    assert bench.replies.empty()
    assert bench.ready == 1


async def test_a_delivery_whose_channel_goes_while_its_reply_waits_is_let_go(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    bench.settlement._publish_timeout = 0.001
    delivery = await bench.request()
    bench.broker.block("disk full")
    bench.settlement.succeed(case(delivery), REPLY)
    await until_said(caplog, "not published yet")
    await bench.consuming.close()
    await bench.settled()
    bench.broker.unblock()
    await turns()
    assert bench.replies.empty()
    assert bench.ready == 1


async def test_what_lost_its_channel_while_its_reply_waits_need_not_be_waited_for(bench: Bench) -> None:
    bench.broker.block("disk full")
    bench.settlement.succeed(case(await bench.request_while_blocked()), REPLY)
    waiting = asyncio.ensure_future(bench.settlement.wait_idle())
    await turns()
    assert not waiting.done()
    await bench.consuming.close()
    bench.settlement.forget()
    await asyncio.wait_for(waiting, 1)
    assert bench.settlement.pending == 1  # it may still be answered, when the alarm is over


# When the broker takes nothing.


async def test_replies_that_are_not_taken_are_a_stall_until_one_is(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.settlement._stall_timeout = 0.05
    assert not bench.settlement.check_stall()
    bench.broker.block("disk full")
    for _ in range(2):
        bench.settlement.succeed(case(await bench.request_while_blocked()), REPLY)
    assert not bench.settlement.check_stall()
    await asyncio.sleep(0.06)
    assert bench.settlement.check_stall()
    assert bench.settlement.check_stall()
    assert bench.settlement.stalled
    bench.broker.unblock()
    await bench.settled()
    assert not bench.settlement.check_stall()
    stalls = [line for line in caplog.messages if line.startswith("echo:")]
    assert stalls == [
        "echo: no more requests are taken: 2 are done, and for 0.05 s the broker has taken no reply",
        "echo: requests are taken again: the broker takes replies",
    ]


async def test_having_nothing_to_publish_is_no_stall(bench: Bench) -> None:
    bench.settlement._stall_timeout = 0.01
    bench.broker.block("disk full")
    await asyncio.sleep(0.02)
    assert not bench.settlement.check_stall()
    bench.settlement.succeed(case(await bench.request_while_blocked(reply_to=None)), REPLY)
    await asyncio.sleep(0.02)
    assert not bench.settlement.check_stall()


async def test_a_queue_of_ours_that_was_deleted_is_declared_again_for_what_goes_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)

    async def declare(channel: Channel) -> None:
        await channel.declare((*shared_topology(), *service_topology("echo")))

    await bench.link.close()
    bench.link = bench.settlement._link = Link(bench.broker, "replies", set_up=declare)
    await bench.link.start(PATIENCE)
    delivery = await bench.request()
    bench.broker.delete_queue(DEAD)
    bench.settlement.fail(case(delivery), BAD)
    await bench.settled()
    assert len(bench.broker.messages(DEAD)) == 1


# What no broker would take.


async def test_a_reply_too_large_for_the_broker_becomes_the_failure_that_says_so(bench: Bench) -> None:
    bench.settlement.succeed(case(await bench.request()), b'{"x":"' + b"x" * MAX_BODY + b'"}')
    reply = await bench.reply()
    assert reply.properties.type == "too_large"
    assert "16,777,216" in failure(reply).error
    await bench.settled()
    (letter,) = bench.broker.messages(DEAD)
    assert letter.properties.headers["code"] == "too_large"
    assert letter.body == BODY
    assert bench.unacked == 0
    counts = bench.settlement.counts
    assert (counts.succeeded, counts.failed, counts.dead) == (0, 1, 1)


async def test_a_failure_too_large_for_the_broker_becomes_a_shorter_one(bench: Bench) -> None:
    fault = Fault(code=Code.APPLICATION_ERROR, message="long")
    bench.settlement.fail(case(await bench.request()), fault, b'{"x":"' + b"x" * MAX_BODY + b'"}')
    assert (await bench.reply()).properties.type == "too_large"
    await bench.settled()
    assert (bench.settlement.counts.succeeded, bench.settlement.counts.failed) == (0, 1)


@pytest.mark.parametrize("fault", [CRASHED, BAD])
async def test_a_request_too_large_to_be_sent_again_is_kept_by_the_broker_itself(bench: Bench, fault: Fault) -> None:
    # RabbitMQ 3.10 takes larger ones than we would publish.
    delivery = replace(await bench.request(), body=b"{" + b" " * MAX_BODY)
    bench.settlement.fail(case(delivery), fault)
    reply = await bench.reply()
    assert reply.properties.type == ("too_large" if fault is CRASHED else "bad_request")
    await bench.settled()
    (letter,) = bench.broker.messages(DEAD)
    assert letter.properties.headers["x-first-death-reason"] == "rejected"
    assert (bench.ready, bench.unacked) == (0, 0)


async def test_ids_that_could_not_be_sent_on_are_left_out(bench: Bench) -> None:
    delivery = await bench.request()
    # What undecodable bytes become: three bytes for each of theirs, and too many for a short string.
    unusable = "\ufffd" * 200
    properties = replace(delivery.properties, message_id=unusable, correlation_id=unusable, type=unusable)
    bench.settlement.fail(case(replace(delivery, properties=properties)), BAD)
    assert (await bench.reply()).properties.correlation_id is None
    await bench.settled()
    (letter,) = bench.broker.messages(DEAD)
    assert (letter.properties.message_id, letter.properties.correlation_id, letter.properties.type) == (None,) * 3
    assert bench.unacked == 0


async def test_nothing_a_bridge_or_a_requester_wrote_can_forge_a_log_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fault = Fault(code=Code.BRIDGE_CRASHED, message="one\nforged: by its text\x1b[2J" + "x" * 10_000)
    for attempt in (1, 3):
        delivery = await bench.request()
        properties = replace(delivery.properties, message_id="m1\nforged: by its id")
        bench.settlement.fail(case(replace(delivery, properties=properties), attempt=attempt), fault)
    assert len(caplog.messages) == 2
    for line in caplog.messages:
        assert line.isprintable()
        assert "by its id" not in line
        assert len(line) < 1000
    await bench.settled()


async def test_a_retry_keeps_its_priority_and_what_its_requester_takes(bench: Bench) -> None:
    delivery = await bench.request(priority=7, claims=True)
    bench.settlement.fail(case(delivery, remaining=60), CRASHED)
    await bench.settled()
    (retry,) = bench.broker.messages("quaybridge.delay.0")
    assert (retry.properties.priority, retry.properties.headers["claims"]) == (7, True)
