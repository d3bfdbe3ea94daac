"""Failpoints: what arms them, and what the loss of the connection means at each point that a broker is passed by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bridge_protocol.envelope import Properties, request_properties
from bridge_protocol.topology import (
    EXCHANGE,
    REPLY_PREFIX,
    Queue,
    dead_letter_queue,
    delay_route,
    request_queue,
    service_topology,
    shared_topology,
)
from broker.contract import Channel, ChannelClosed, Delivery, Message
from broker.failpoints import FailingBroker, Failpoints, Point
from broker.memory import MemoryBroker
from quaybridge.failpoints import armed_failpoints
from quaybridge.settings import SettingsError

PATIENCE = 10  # seconds until a test gives up waiting
SERVICE = "echo"
REPLIES = REPLY_PREFIX + "test"


def request() -> Message:
    properties = request_properties(message_id="m1", command="echo", reply_to=REPLIES)
    return Message(exchange=EXCHANGE, routing_key=SERVICE, body=b"{}", properties=properties)


def reply() -> Message:
    return Message(exchange="", routing_key=REPLIES, body=b"{}", properties=Properties(message_id="m1"))


class Bench:
    """A channel with armed failpoints, a plain one beside it, and what both saw."""

    def __init__(self, armed: str) -> None:
        self.broker = MemoryBroker()
        self.failing = FailingBroker(self.broker, Failpoints.parse(armed))
        self.closings: list[ChannelClosed] = []
        self.taken: list[Delivery] = []
        self.plain: Channel
        self.channel: Channel

    async def open(self) -> None:
        self.plain = await self.broker.open("plain", on_closed=lambda _: None)
        await self.plain.declare((*shared_topology(), *service_topology(SERVICE), Queue(REPLIES)))
        self.channel = await self.failing.open("failing", on_closed=self.closings.append)

    async def until_lost(self) -> None:
        """Until the owner is told that the connection is gone, and what was under way has come back."""
        async with asyncio.timeout(PATIENCE):
            while not self.closings:
                await asyncio.sleep(0)
        assert self.channel.closed
        assert len(self.closings) == 1
        await self.channel.close()

    async def length(self, queue: str) -> int:
        return await self.plain.queue_length(queue)


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(request.param)
    await made.open()
    yield made
    await made.channel.close()
    await made.plain.close()


def at(*points: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [f"{point}:error" for point in points], indirect=True, ids=points)


# Arming.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p9.after",
        "p9.after:",
        "p0:kill",
        "p9.after:explode",
        "p9.after:kill@0",
        "p9.after:kill@x",
        "p4:kill;p5:kill",
    ],
)
def test_what_is_no_failpoint_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"write POINT:ACTION or POINT:ACTION@PASSAGE.*p9\.after.*pause"):
        Failpoints.parse(text)


def test_every_point_can_be_armed_with_every_action() -> None:
    for point in Point:
        for action in ("kill", "exit", "pause", "error"):
            assert repr(Failpoints.parse(f"{point}:{action}@2")) == f"<Failpoints {point}:{action}>"


def test_it_acts_at_its_passage_and_never_again() -> None:
    failpoints = Failpoints.parse("p9.after:error@3, p4:error")
    assert [failpoints.reached(Point.P9_AFTER) for _ in range(6)] == [False, False, True, False, False, False]
    assert [failpoints.reached(Point.P4) for _ in range(2)] == [True, False]
    assert not failpoints.reached(Point.P8)


def test_nothing_is_armed_unless_the_variable_says_so() -> None:
    assert armed_failpoints({}) is None
    assert armed_failpoints({"QUAYBRIDGE_FAILPOINT": ""}) is None
    assert repr(armed_failpoints({"QUAYBRIDGE_FAILPOINT": "p4:kill"})) == "<Failpoints p4:kill>"
    with pytest.raises(SettingsError, match="QUAYBRIDGE_FAILPOINT: 'p4' is no failpoint"):
        armed_failpoints({"QUAYBRIDGE_FAILPOINT": "p4"})


# A publish: done or not, it is said to have failed.


@at("p1.before")
async def test_nothing_is_published_before_p1(bench: Bench) -> None:
    with pytest.raises(ChannelClosed, match="failpoint"):
        await bench.channel.publish(request(), timeout=PATIENCE)
    await bench.until_lost()
    assert await bench.length(request_queue(SERVICE)) == 0


@at("p3.before")
async def test_a_confirmed_request_whose_confirm_is_lost_is_in_its_queue(bench: Bench) -> None:
    with pytest.raises(ChannelClosed, match="failpoint"):
        await bench.channel.publish(request(), timeout=PATIENCE)
    await bench.until_lost()
    assert await bench.length(request_queue(SERVICE)) == 1


@at("p1.after", "p2", "p3.after")
async def test_the_connection_is_lost_around_a_publish(bench: Bench) -> None:
    await asyncio.gather(bench.channel.publish(request(), timeout=PATIENCE), return_exceptions=True)
    await bench.until_lost()


@at("p9.before", "p10.before")
async def test_a_reply_passes_points_of_its_own(bench: Bench) -> None:
    await bench.channel.publish(request(), timeout=PATIENCE)
    with pytest.raises(ChannelClosed, match="failpoint"):
        await bench.channel.publish(reply(), timeout=PATIENCE)
    await bench.until_lost()
    assert await bench.length(request_queue(SERVICE)) == 1
    assert await bench.length(REPLIES) in (0, 1)


@at("p10.before")
@pytest.mark.parametrize("outcome", ["retry", "dead letter"])
async def test_so_do_a_retry_and_a_dead_letter(bench: Bench, outcome: str) -> None:
    exchange, key = delay_route(SERVICE, 1) if outcome == "retry" else (EXCHANGE, "echo.dead")
    message = Message(exchange=exchange, routing_key=key, body=b"{}", properties=Properties(message_id="m1"))
    with pytest.raises(ChannelClosed, match="failpoint"):
        await bench.channel.publish(message, timeout=PATIENCE)
    await bench.until_lost()
    if outcome == "dead letter":
        assert await bench.length(dead_letter_queue(SERVICE)) == 1


# A delivery.


@at("p4", "p11.before")
async def test_a_request_that_is_not_acked_comes_again(bench: Bench) -> None:
    await bench.plain.publish(request(), timeout=PATIENCE)
    await bench.channel.consume(request_queue(SERVICE), lambda delivery: delivery.ack(), prefetch=1)
    await bench.until_lost()
    await bench.plain.consume(request_queue(SERVICE), bench.taken.append, prefetch=1)
    async with asyncio.timeout(PATIENCE):
        while not bench.taken:
            await asyncio.sleep(0)
    assert bench.taken[0].redelivered


@at("p11.after", "p12")
async def test_a_request_whose_ack_is_on_its_way_is_stale(bench: Bench) -> None:
    def take(delivery: Delivery) -> None:
        bench.taken.append(delivery)
        delivery.ack()

    await bench.plain.publish(request(), timeout=PATIENCE)
    await bench.channel.consume(request_queue(SERVICE), take, prefetch=1)
    await bench.until_lost()
    assert bench.taken[0].stale


@at("p13.before", "p13.after", "p14.before", "p14.after")
async def test_a_reply_to_a_durable_queue_survives_its_reader(bench: Bench) -> None:
    def take(delivery: Delivery) -> None:
        bench.taken.append(delivery)
        delivery.ack()

    await bench.plain.publish(reply(), timeout=PATIENCE)
    await bench.channel.consume(REPLIES, take, prefetch=1)
    await bench.until_lost()
    assert len(bench.taken) + await bench.length(REPLIES) >= 1


@at("p4")
async def test_letters_that_are_looked_at_pass_no_points(bench: Bench) -> None:
    letter = Message(exchange="", routing_key=dead_letter_queue(SERVICE), body=b"{}", properties=Properties())
    await bench.plain.publish(letter, timeout=PATIENCE)
    await bench.channel.consume(dead_letter_queue(SERVICE), bench.taken.append, prefetch=1)
    async with asyncio.timeout(PATIENCE):
        while not bench.taken:
            await asyncio.sleep(0)
    bench.taken[0].ack()
    assert not bench.channel.closed
