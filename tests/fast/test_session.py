"""A producer's session on the embedded broker, on a clock that does not wait; a script stands in for its node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from virtual_time import turns, virtual_time

from bridge_protocol import messages
from bridge_protocol.envelope import SESSION_EPOCH, Properties, reply_properties
from bridge_protocol.errors import Cancelled, Code, DeadlineExceeded, SessionLost
from bridge_protocol.topology import PARTITIONS, service_topology, session_queue, session_topology, shared_topology
from broker.contract import Channel, Delivery, Message
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer

Act = Callable[["Script", Delivery], None]


class Script:
    """Takes the requests of sessions; `act` decides what becomes of each."""

    def __init__(self, act: Act) -> None:
        self.seen: list[tuple[str, str | None]] = []  # command, and the epoch it asked for
        self.last: Delivery
        self._act = act
        self._channel: Channel

    async def start(self) -> MemoryBroker:
        broker = MemoryBroker()
        self._channel = await broker.open("script", on_closed=lambda _: None)
        await self._channel.declare([*shared_topology(), *service_topology("work"), *session_topology("work")])
        for partition in range(PARTITIONS):
            await self._channel.consume(session_queue("work", partition), self._on_delivery, prefetch=10)
        return broker

    def reply(self, delivery: Delivery, result: object, epoch: str) -> None:
        request = messages.decode_request(delivery.body)
        self._send(delivery, messages.encode_result(request.id, result), None, epoch)

    def lose(self, delivery: Delivery, epoch: str) -> None:
        request = messages.decode_request(delivery.body)
        self._send(delivery, messages.encode_failure(request.id, "it is gone"), Code.SESSION_LOST, epoch)

    def _send(self, delivery: Delivery, body: bytes, code: Code | None, epoch: str) -> None:
        asked: Properties = delivery.properties
        envelope = reply_properties(
            correlation_id=asked.correlation_id, code=code, attempt=1, node="alpha", redelivered=False, epoch=epoch
        )
        assert asked.reply_to is not None
        message = Message(exchange="", routing_key=asked.reply_to, body=body, properties=envelope)
        self._channel.publish(message, timeout=5).add_done_callback(lambda sent: sent.exception())

    def _on_delivery(self, delivery: Delivery) -> None:
        self.last = delivery
        command = messages.decode_request(delivery.body).command
        self.seen.append((command, delivery.properties.headers.get(SESSION_EPOCH)))
        delivery.ack()
        self._act(self, delivery)


def numbered(epoch: str) -> Act:
    """Answers how many requests it has seen."""

    def act(script: Script, delivery: Delivery) -> None:
        script.reply(delivery, len(script.seen), epoch)

    return act


@virtual_time
async def test_a_reply_of_an_epoch_that_is_over_is_dropped_and_counted_and_the_right_one_still_counts() -> None:
    """An owner that was held up answers what its successor is answering."""

    def act(script: Script, delivery: Delivery) -> None:
        match len(script.seen):
            case 1:
                script.reply(delivery, "old", "e1")
            case 2:
                script.reply(delivery, "new", "e2")
            case 3:
                script.reply(delivery, "from the one held up", "e1")
                asyncio.get_running_loop().call_later(1, script.reply, delivery, "newer", "e2")

    script = Script(act)
    async with AsyncProducer(await script.start()) as producer:
        session = producer.session("s", service="work", mode="prefer")
        assert [(await session.call("go")).result for _ in range(2)] == ["old", "new"]
        assert producer.late_replies == 0
        reply = await session.call("go")
        assert (reply.result, reply.session_epoch, producer.late_replies) == ("newer", "e2", 1)
    assert script.seen == [("go", None), ("go", "e1"), ("go", "e2")]


@virtual_time
async def test_after_a_loss_no_reply_of_the_lost_epoch_counts() -> None:
    def act(script: Script, delivery: Delivery) -> None:
        match len(script.seen):
            case 1:
                script.reply(delivery, 1, "e1")
            case 2:
                script.lose(delivery, "e1")
            case 3:
                script.reply(delivery, "ghost", "e1")
                script.reply(delivery, 1, "e2")

    script = Script(act)
    async with AsyncProducer(await script.start()) as producer:
        session = producer.session("s", service="work")
        await session.call("go")
        with pytest.raises(SessionLost):
            await session.call("go")
        # The loss is said in the name of the epoch that is gone, and is listened to: it is what was asked.
        assert (session.epoch, session.lost, producer.late_replies) == (None, 1, 0)
        assert (await session.call("go")).result == 1
        assert producer.late_replies == 1


@virtual_time
async def test_one_request_at_a_time_goes_out_in_the_order_given() -> None:
    script = Script(lambda script, delivery: None)
    async with AsyncProducer(await script.start()) as producer:
        session = producer.session("s", service="work")
        handles = [await session.submit(f"c{number}") for number in range(5)]
        for number in range(5):
            await turns(20)
            assert [command for command, _ in script.seen] == [f"c{n}" for n in range(number + 1)]
            script.reply(script.last, number, "e1")
        assert [(await handle).result for handle in handles] == list(range(5))


@virtual_time
async def test_a_full_line_makes_submit_wait_and_ends_it_in_time() -> None:
    script = Script(lambda script, delivery: None)
    async with AsyncProducer(await script.start()) as producer:
        session = producer.session("s", service="work", max_waiting=1)
        first = await session.submit("a", timeout=60)
        await turns(20)
        second = await session.submit("b", timeout=60)
        with pytest.raises(DeadlineExceeded, match="it was not sent"):
            await session.submit("c", timeout=2)
        assert await second.cancel()
        with pytest.raises(Cancelled):
            await second
        script.reply(script.last, 1, "e1")
        await first
        assert script.seen == [("a", None)]


@virtual_time
async def test_a_session_in_rebuild_sends_its_journal_again_before_the_request_that_found_the_loss() -> None:
    def act(script: Script, delivery: Delivery) -> None:
        if len(script.seen) == 4:
            script.lose(delivery, "e1")
        else:
            script.reply(delivery, len(script.seen), "e1" if len(script.seen) < 4 else "e2")

    script = Script(act)
    async with AsyncProducer(await script.start()) as producer:
        session = producer.session("s", service="work", mode="rebuild", journal=["make", "set"])
        for command in ("make", "look", "set", "look"):
            reply = await session.call(command)
        assert (reply.session_epoch, session.lost, session.rebuilt) == ("e2", 1, 1)
    assert script.seen == [
        *(("make", None), ("look", "e1"), ("set", "e1"), ("look", "e1")),
        *(("make", None), ("set", "e2"), ("look", "e2")),
    ]


@virtual_time
async def test_a_stream_that_is_left_while_its_session_is_rebuilt_is_not_sent_again() -> None:
    held: list[Delivery] = []

    def act(script: Script, delivery: Delivery) -> None:
        match script.seen[-1]:
            case ("read", _):
                script.lose(delivery, "e1")
            case ("make", None) if len(script.seen) > 1:
                held.append(delivery)
            case (_, epoch):
                script.reply(delivery, len(script.seen), epoch or "e1")

    script = Script(act)
    async with AsyncProducer(await script.start()) as producer:
        session = producer.session("s", service="work", mode="rebuild", journal=["make", "set"])
        await session.call("make")
        await session.call("set")
        stream = session.stream("read")
        chunks = asyncio.create_task(anext(aiter(stream), None))
        await turns(40)
        await stream.aclose()
        assert await chunks is None
        asked = await session.submit("look")
        script.reply(held[0], 1, "e2")
        assert (await asked).session_epoch == "e2"
    assert script.seen == [
        *(("make", None), ("set", "e1"), ("read", "e1")),
        *(("make", None), ("set", "e2"), ("look", "e2")),
    ]


@virtual_time
async def test_a_session_that_never_had_a_bridge_closes_without_a_word() -> None:
    script = Script(numbered("e1"))
    async with AsyncProducer(await script.start()) as producer:
        async with producer.session("s", service="work"):
            pass
        async with producer.session("t", service="work") as session:
            await session.call("go")
    assert [command for command, _ in script.seen] == ["go", "cleanup_session"]
