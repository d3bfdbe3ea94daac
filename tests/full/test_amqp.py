"""What RabbitMQ does that the embedded broker cannot show: refusals, alarms, lost connections, foreign headers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pika
import pytest
from elsewhere import until
from pika import frame, spec
from relay import relay
from vhost import Vhost

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties
from bridge_protocol.errors import Blocked, OutcomeUnknown
from bridge_protocol.topology import (
    EXCHANGE,
    Binding,
    Exchange,
    Queue,
    request_queue,
    service_topology,
    shared_topology,
)
from broker import amqp_connection
from broker.address import Address, parse_address
from broker.amqp import FIRST_PAUSE, AmqpBroker, AmqpChannel
from broker.contract import AccessRefused, ChannelClosed, ConnectionRefused, Delivery, Message, TopologyMismatch

PATIENCE = 20.0  # seconds for what takes milliseconds on an idle machine
QUEUE = Queue("work", {"x-queue-type": "quorum"})


class Listener:
    """Keeps what a channel reports."""

    def __init__(self) -> None:
        self.closings: list[ChannelClosed] = []
        self.alarms: list[str | None] = []
        self.deliveries: list[Delivery] = []
        self._changed = asyncio.Event()

    def closed(self, reason: ChannelClosed) -> None:
        self.closings.append(reason)
        self._changed.set()

    def blocked(self, reason: str | None) -> None:
        self.alarms.append(reason)
        self._changed.set()

    def delivered(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something reported makes `condition` true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def message(number: int = 1, *, queue: str = QUEUE.name, body: bytes = b"{}") -> Message:
    return Message(exchange="", routing_key=queue, body=body, properties=Properties(message_id=f"{number}"))


@contextlib.asynccontextmanager
async def opened(address: Address | str, listener: Listener, name: str = "test") -> AsyncIterator[AmqpChannel]:
    """A channel there, closed at the end."""
    where = parse_address(address) if isinstance(address, str) else address
    channel = await AmqpBroker([where]).open(name, on_closed=listener.closed, on_blocked=listener.blocked)
    try:
        yield channel
    finally:
        await channel.close()


async def length_reaches(channel: AmqpChannel, length: int) -> None:
    """Wait until so many messages are ready."""
    async with asyncio.timeout(PATIENCE):
        while await channel.queue_length(QUEUE.name) != length:
            await asyncio.sleep(0.01)


async def publish_raw(url: str, properties: spec.BasicProperties, headers: bytes | None, body: bytes = b"{}") -> None:
    """Publish with headers that no client would encode: `headers` are the bytes of the table."""

    class Raw(spec.BasicProperties):  # type: ignore[misc]  # pika's spec has no annotations
        def encode(self) -> list[bytes]:
            # Without headers of its own, the flags come first; the table goes where content_encoding would end.
            flags, *rest = super().encode()
            assert headers is not None
            table = struct.pack(">I", len(headers)) + headers
            return [struct.pack(">H", struct.unpack(">H", flags)[0] | self.FLAG_HEADERS), table, *rest]

    def publish() -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", QUEUE.name, body, Raw(**vars(properties)) if headers is not None else properties)

    await asyncio.to_thread(publish)


# Opening.


async def test_wrong_credentials_and_vhosts_are_access_refused(rabbitmq_each: Vhost) -> None:
    address = parse_address(rabbitmq_each.url)
    for wrong in (
        replace(address, password="wrong"),
        replace(address, user="nobody"),
        replace(address, vhost="no such vhost"),
    ):
        with pytest.raises(AccessRefused) as refusal:
            await AmqpBroker([wrong]).open("test", on_closed=lambda _: None)
        assert str(wrong) in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert address.password not in str(refusal.value)


async def test_a_full_vhost_is_worth_another_try(rabbitmq_vhost: Vhost) -> None:
    await asyncio.to_thread(rabbitmq_vhost.control, "set_vhost_limits", '{"max-connections": 0}')
    with pytest.raises(ConnectionRefused, match="limit"):
        await AmqpBroker([parse_address(rabbitmq_vhost.url)]).open("test", on_closed=lambda _: None)


async def test_operators_see_the_name(rabbitmq_vhost: Vhost) -> None:
    async with opened(rabbitmq_vhost.url, Listener(), "node alpha, publishing"):
        seen = await asyncio.to_thread(rabbitmq_vhost.rabbitmq.control, "list_connections", "client_properties")
    assert "node alpha, publishing" in seen
    assert "quaybridge" in seen


async def test_it_says_which_version_it_is(rabbitmq_each: Vhost) -> None:
    async with opened(rabbitmq_each.url, Listener()) as channel:
        version = (await asyncio.to_thread(rabbitmq_each.rabbitmq.control, "version")).strip()
        assert channel.server == f"RabbitMQ {version}"


# Declaring.


async def test_the_whole_topology_is_declared_and_declared_again(rabbitmq_each: Vhost) -> None:
    topology = [*shared_topology(), *service_topology("echo")]
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare(topology)
        await channel.declare(topology)
        await channel.declare([])
        assert await channel.queue_length("quaybridge.echo") == 0
    assert listener.closings == []


async def test_a_queue_with_other_arguments_is_a_mismatch_that_says_what_to_do(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, Listener()) as channel:
        await channel.declare([Queue("work", {"x-queue-type": "quorum", "x-delivery-limit": 7})])
    async with opened(rabbitmq_each.url, listener) as channel:
        declaring = channel.declare(
            [Queue("work", {"x-queue-type": "quorum", "x-delivery-limit": 8}), Exchange("after")]
        )
        with pytest.raises(TopologyMismatch) as mismatch:
            await declaring
    text = str(mismatch.value)
    assert f"queue 'work' in vhost '{rabbitmq_each.name}' exists with another x-delivery-limit: there it is" in text
    assert "'7'" in text
    assert "'8'" in text
    assert f"rabbitmqctl --vhost {rabbitmq_each.name} delete_queue work" in text
    assert [reason.code for reason in listener.closings] == [406]


async def test_an_exchange_of_another_type_is_a_mismatch(rabbitmq_each: Vhost) -> None:
    async with opened(rabbitmq_each.url, Listener()) as channel:
        with pytest.raises(TopologyMismatch, match=r"exchange 'amq.fanout'.* exists with another type.*fanout.*topic"):
            await channel.declare([Exchange("amq.fanout")])


@pytest.fixture
def reader(rabbitmq_vhost: Vhost) -> Iterator[Address]:
    """A user who may read the vhost, and nothing else."""
    address = replace(parse_address(rabbitmq_vhost.url), user=f"reader of {rabbitmq_vhost.name}")
    rabbitmq_vhost.rabbitmq.control("add_user", address.user, address.password)
    rabbitmq_vhost.control("set_permissions", address.user, "", "", ".*")
    yield address
    rabbitmq_vhost.rabbitmq.control("delete_user", address.user)


async def test_what_the_user_may_not_do_is_access_refused(reader: Address) -> None:
    listener = Listener()
    async with opened(reader, listener) as channel:
        with pytest.raises(AccessRefused, match="configure access to exchange 'quaybridge'"):
            await channel.declare([Exchange(EXCHANGE), QUEUE, Binding(EXCHANGE, "#", QUEUE.name)])
    async with opened(reader, listener) as channel:
        # Not of a declaration: there the contract knows only the end of the channel.
        with pytest.raises(ChannelClosed, match="write access"):
            await channel.publish(replace(message(), exchange="amq.topic"), timeout=PATIENCE)
    assert [reason.code for reason in listener.closings] == [403, 403]


# Consuming.


async def test_cancelling_under_load_loses_nothing_and_nothing_comes_after(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await asyncio.gather(*[channel.publish(message(number), timeout=PATIENCE) for number in range(500)])

        def take(delivery: Delivery) -> None:
            listener.delivered(delivery)
            delivery.ack()

        consumer = await channel.consume(QUEUE.name, take, prefetch=50)
        await listener.until(lambda: len(listener.deliveries) >= 10)
        await asyncio.gather(channel.cancel(consumer), channel.cancel(consumer))
        taken = [delivery.properties.message_id for delivery in listener.deliveries]
        assert taken == [f"{number}" for number in range(len(taken))]
        assert len(taken) < 500, "nothing was on its way: the test shows nothing"
        # What the queue had assigned to the consumer, and not sent yet, it takes back in its own time.
        await length_reaches(channel, 500 - len(taken))
        await channel.publish(message(), timeout=PATIENCE)
        await length_reaches(channel, 500 - len(taken) + 1)
        assert len(listener.deliveries) == len(taken)
    assert listener.closings == []


async def test_what_still_comes_after_a_subscriptions_end_does_not_reach_its_limit(
    rabbitmq_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 4.3 may go on, for a while after it was started, to give what is handed back to the same consumer."""
    listener = Listener()
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([*shared_topology(), *service_topology("work")])
        consumer = await channel.consume(request_queue("work"), listener.delivered, prefetch=1)
        del channel._subscriptions[consumer.tag]  # as if it had confirmed the cancel
        times, returns = [asyncio.get_running_loop().time()], 3

        def reject(tag: int, *, requeue: bool) -> None:
            times.append(asyncio.get_running_loop().time())
            AmqpChannel.reject(channel, tag, requeue=requeue)

        monkeypatch.setattr(channel, "reject", reject)
        await channel.publish(message(queue=request_queue("work")), timeout=PATIENCE)
        await until(lambda: len(times) > returns)
    for number, (before, after) in enumerate(pairwise(times)):
        assert after - before > 0.9 * FIRST_PAUSE * 2**number  # at once, it would be at its limit by now
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.consume(request_queue("work"), listener.delivered, prefetch=1)
        await listener.until(lambda: listener.deliveries)
        assert returns <= listener.deliveries[0].delivery_count <= returns + 1  # by the end of the connection


async def test_an_ack_of_what_came_later_settles_no_late_delivery(rabbitmq_vhost: Vhost) -> None:
    """One of a subscription that has ended waits to be handed back, while others are acked: it is handed back once."""
    listener = Listener()
    others = Queue("others", arguments={"x-queue-type": "quorum"})
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([*shared_topology(), *service_topology("work"), others])
        consumer = await channel.consume(request_queue("work"), listener.delivered, prefetch=1)
        await channel.consume(others.name, listener.delivered, prefetch=10)
        del channel._subscriptions[consumer.tag]  # as if it had confirmed the cancel
        await channel.publish(message(queue=request_queue("work")), timeout=PATIENCE)
        await until(lambda: bool(channel._unsettled))
        await asyncio.gather(*[channel.publish(message(n, queue=others.name), timeout=PATIENCE) for n in range(3)])
        await listener.until(lambda: len(listener.deliveries) == 3)
        for delivery in listener.deliveries:
            delivery.ack()
        await until(lambda: channel.closed or max(channel._unsettled, default=0) > 4)  # it came back
        assert not channel.closed, listener.closings
        assert await channel.queue_length(others.name) == 0


async def test_acks_in_any_order_settle_what_they_name(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await asyncio.gather(*[channel.publish(message(number), timeout=PATIENCE) for number in range(10)])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=10)
        await listener.until(lambda: len(listener.deliveries) == 10)
        deliveries = listener.deliveries
        # In one turn: 0 to 2 are a row, 5 and 7 are not, 1 is on neither side.
        for number in (2, 7, 0, 5):
            deliveries[number].ack()
        deliveries[9].reject(requeue=False)
        deliveries[1].ack()
        await asyncio.sleep(0)
        deliveries[3].ack()
    async with opened(rabbitmq_each.url, Listener()) as channel:
        assert await channel.queue_length(QUEUE.name) == 3
        again = Listener()
        await channel.consume(QUEUE.name, again.delivered, prefetch=10)
        await again.until(lambda: len(again.deliveries) == 3)
        assert {delivery.properties.message_id for delivery in again.deliveries} == {"4", "6", "8"}
    assert listener.closings == []


@pytest.mark.parametrize("second", ["ack", "reject"])
async def test_settling_twice_closes_the_channel(rabbitmq_vhost: Vhost, second: str) -> None:
    listener = Listener()
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([QUEUE])
        await channel.publish(message(), timeout=PATIENCE)
        await channel.consume(QUEUE.name, listener.delivered, prefetch=1)
        await listener.until(lambda: listener.deliveries)
        (delivery,) = listener.deliveries
        delivery.ack()
        delivery.ack() if second == "ack" else delivery.reject(requeue=True)
        await listener.until(lambda: listener.closings)
        assert listener.closings[0].code == 406


async def test_an_on_delivery_that_raises_ends_the_channel_and_keeps_the_message(rabbitmq_vhost: Vhost) -> None:
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context.get("exception")))
    listener = Listener()
    mistake = RuntimeError("a mistake")

    def make_a_mistake(delivery: Delivery) -> None:
        raise mistake

    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([QUEUE])
        await channel.consume(QUEUE.name, make_a_mistake, prefetch=1)
        published = channel.publish(message(), timeout=PATIENCE)
        await listener.until(lambda: listener.closings)
        assert listener.closings[0].reason == "on_delivery raised RuntimeError: a mistake"
        with contextlib.suppress(ChannelClosed):
            await published
    assert raised == [mistake]
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.consume(QUEUE.name, listener.delivered, prefetch=1)
        await listener.until(lambda: listener.deliveries)
        assert listener.deliveries[0].redelivered
    assert len(listener.closings) == 1


async def test_a_forged_delivery_count_is_not_believed(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=1)
        forged = Properties(message_id="forged", headers={"x-delivery-count": 99, "x-acquired-count": 99})
        await channel.publish(replace(message(), properties=forged), timeout=PATIENCE)
        await listener.until(lambda: listener.deliveries)
        first = listener.deliveries[0]
        assert (first.redelivered, first.delivery_count) == (False, 0)
        first.reject(requeue=True)
        await listener.until(lambda: len(listener.deliveries) == 2)
        assert listener.deliveries[1].redelivered
        assert listener.deliveries[1].delivery_count == 1


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x00F" + struct.pack(">I", len(table)) + table
    return table


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"\x01hT" + b"\x7f" + b"\xff" * 7, id="a date in year 292 billion"),
        pytest.param(b"\x01hD\xff\x7f\xff\xff\xff", id="a decimal with 255 places"),
        pytest.param(b"\x01hS\x00\x00\x00\x02\xff\xfe", id="text that is no UTF-8"),
        pytest.param(b"\x02\xff\xfet\x01", id="a name that is no UTF-8"),
        pytest.param(nested(5000), id="5,000 tables in one another"),
        pytest.param(b"\x01hA" + struct.pack(">I", 30_000) + b"V" * 30_000, id="30,000 elements"),
    ],
)
async def test_headers_of_others_do_not_end_the_connection(rabbitmq_each: Vhost, headers: bytes) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=10)
        await publish_raw(rabbitmq_each.url, pika.BasicProperties(message_id="foreign", delivery_mode=2), headers)
        await channel.publish(message(), timeout=PATIENCE)
        await listener.until(lambda: len(listener.deliveries) == 2)
        assert [delivery.properties.message_id for delivery in listener.deliveries] == ["foreign", "1"]
        # As it came back, too: then the broker has encoded the headers anew.
        listener.deliveries[0].reject(requeue=True)
        await listener.until(lambda: len(listener.deliveries) == 3)
        assert listener.deliveries[2].properties.message_id == "foreign"
        assert listener.deliveries[2].delivery_count == 1
        assert repr(listener.deliveries[2])
    assert listener.closings == []


async def test_properties_that_are_no_utf8_do_not_end_the_connection(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=10)
        foreign = pika.BasicProperties(message_id=b"\xff", correlation_id=b"\xfe", reply_to=b"\xff", type=b"\xff")
        await publish_raw(rabbitmq_each.url, foreign, None)
        await listener.until(lambda: listener.deliveries)
        assert listener.deliveries[0].properties.message_id == "\ufffd"
    assert listener.closings == []


# Publishing.


async def test_a_turn_of_the_loop_leaves_in_one_piece(rabbitmq_vhost: Vhost) -> None:
    address = parse_address(rabbitmq_vhost.url)
    async with (
        relay(address.host, address.port) as wire,
        opened(replace(address, host="127.0.0.1", port=wire.port), Listener()) as channel,
    ):
        await channel.declare([QUEUE])
        wire.received.clear()
        await asyncio.gather(*[channel.publish(message(number), timeout=PATIENCE) for number in range(100)])
        assert len(wire.received) == 1


async def test_what_is_not_confirmed_in_time_is_of_unknown_outcome(rabbitmq_vhost: Vhost) -> None:
    address = parse_address(rabbitmq_vhost.url)
    listener = Listener()
    async with (
        relay(address.host, address.port) as wire,
        opened(replace(address, host="127.0.0.1", port=wire.port), listener) as channel,
    ):
        await channel.declare([QUEUE])
        wire.stall()
        loop = asyncio.get_running_loop()
        started = loop.time()
        late = channel.publish(message(1), timeout=0.2)
        patient = channel.publish(message(2), timeout=PATIENCE)
        with pytest.raises(OutcomeUnknown) as unknown:
            await late
        assert 0.2 <= loop.time() - started < 1.2
        assert unknown.value.message_id == "1"
        assert not patient.done()
        wire.flow()
        await patient
        assert await channel.queue_length(QUEUE.name) == 2, "it was sent, and only its confirm came too late"
    assert listener.closings == []


async def test_a_lost_connection_ends_everything_once(rabbitmq_vhost: Vhost) -> None:
    address = parse_address(rabbitmq_vhost.url)
    listener = Listener()
    async with (
        relay(address.host, address.port) as wire,
        opened(replace(address, host="127.0.0.1", port=wire.port), listener) as channel,
    ):
        await channel.declare([QUEUE])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=1)
        await channel.publish(message(), timeout=PATIENCE)
        await listener.until(lambda: listener.deliveries)
        wire.stall()
        publishes = [channel.publish(message(number), timeout=PATIENCE) for number in range(10)]
        length = asyncio.create_task(channel.queue_length(QUEUE.name))
        await asyncio.sleep(0)
        wire.cut()
        outcomes = await asyncio.gather(*publishes, length, return_exceptions=True)
        assert [getattr(outcome, "code", None) for outcome in outcomes] == [0] * 11
        assert len(set(map(id, outcomes))) == 11, "each needs an exception of its own"
        assert channel.closed
        (held,) = listener.deliveries
        assert held.stale
        held.ack()
        held.reject(requeue=True)
        with pytest.raises(ChannelClosed, match="was lost"):
            channel.publish(message(), timeout=PATIENCE)
    (reason,) = listener.closings
    assert reason.code == 0
    assert str(replace(address, host="127.0.0.1", port=wire.port)) in reason.reason


async def test_closing_a_stalled_connection_does_not_hang(
    rabbitmq_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    address = parse_address(rabbitmq_vhost.url)
    listener = Listener()
    async with (
        relay(address.host, address.port) as wire,
        opened(replace(address, host="127.0.0.1", port=wire.port), listener) as channel,
    ):
        await channel.declare([QUEUE])
        wire.stall()
        unconfirmed = channel.publish(message(), timeout=PATIENCE)
        async with asyncio.timeout(5):
            await channel.close()
        with pytest.raises(ChannelClosed):
            await unconfirmed
    assert listener.closings == []


async def test_what_was_acked_before_closing_stays_acked(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await asyncio.gather(*[channel.publish(message(number), timeout=PATIENCE) for number in range(100)])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=100)
        await listener.until(lambda: len(listener.deliveries) == 100)
        for delivery in listener.deliveries:
            delivery.ack()
    async with opened(rabbitmq_each.url, listener) as channel:
        assert await channel.purge(QUEUE.name) == 0


async def test_a_connection_closed_by_an_operator_says_so(rabbitmq_vhost: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([QUEUE])
        close = functools.partial(rabbitmq_vhost.control, "close_all_connections", "for maintenance")
        await asyncio.to_thread(close)
        await listener.until(lambda: listener.closings)
        assert channel.closed
    (reason,) = listener.closings
    assert reason.code == 320
    assert "for maintenance" in reason.reason


@pytest.fixture
def memory_alarm(rabbitmq_vhost: Vhost) -> Iterator[Callable[[bool], None]]:
    """Raises the broker's memory alarm, and ends it."""
    control = rabbitmq_vhost.rabbitmq.control
    before = control("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()

    def alarm(on: bool) -> None:
        control("set_vm_memory_high_watermark", "0.000001" if on else before)

    yield alarm
    alarm(False)


async def test_an_alarm_holds_publishes_back(rabbitmq_vhost: Vhost, memory_alarm: Callable[[bool], None]) -> None:
    listener = Listener()
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([QUEUE])
        assert channel.blocked is None
        await asyncio.to_thread(memory_alarm, True)
        # The broker says so only to who publishes.
        first = channel.publish(message(1), timeout=60)
        await listener.until(lambda: listener.alarms)
        assert channel.blocked == listener.alarms[0] == "low on memory"
        held_too_long = channel.publish(message(2), timeout=0.2)
        held = channel.publish(message(3), timeout=60)
        with pytest.raises(Blocked, match="low on memory") as blocked:
            await held_too_long
        assert blocked.value.message_id == "2"
        assert not first.done()
        assert not held.done()
        await asyncio.to_thread(memory_alarm, False)
        await asyncio.gather(first, held)
        assert channel.blocked is None
        assert listener.alarms == ["low on memory", None]
        assert await channel.queue_length(QUEUE.name) == 2, "what was Blocked must not have been sent"
    assert listener.closings == []


async def test_closing_while_blocked_takes_little_time(
    rabbitmq_vhost: Vhost, memory_alarm: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    listener = Listener()
    async with opened(rabbitmq_vhost.url, listener) as channel:
        await channel.declare([QUEUE])
        await asyncio.to_thread(memory_alarm, True)
        sent = channel.publish(message(1), timeout=60)
        await listener.until(lambda: listener.alarms)
        held = channel.publish(message(2), timeout=60)
        async with asyncio.timeout(5):
            await channel.close()
        with pytest.raises(ChannelClosed):
            await sent
        with pytest.raises(Blocked, match="low on memory"):  # it was never sent, and so is known not to run
            await held


async def test_a_direct_reply_is_confirmed_once_it_is_there(rabbitmq_each: Vhost) -> None:
    # As mandatory, RabbitMQ 4.0 would deliver it and return it too.
    asking, answering = Listener(), Listener()
    async with opened(rabbitmq_each.url, asking) as requester, opened(rabbitmq_each.url, answering) as node:
        await node.declare([QUEUE])
        await node.consume(QUEUE.name, answering.delivered, prefetch=1)
        await requester.consume(await requester.declare_reply_queue(), asking.delivered, no_ack=True)
        request = replace(message(), properties=Properties(message_id="1", reply_to=DIRECT_REPLY_TO))
        await requester.publish(request, timeout=PATIENCE)
        await answering.until(lambda: answering.deliveries)
        address = answering.deliveries[0].properties.reply_to
        assert address is not None
        await node.publish(message(2, queue=address), timeout=PATIENCE)
        await asking.until(lambda: asking.deliveries)
        assert asking.deliveries[0].properties.message_id == "2"


async def test_frames_of_every_size_around_the_largest_arrive(rabbitmq_each: Vhost) -> None:
    listener = Listener()
    async with opened(rabbitmq_each.url, listener) as channel:
        await channel.declare([QUEUE])
        await channel.consume(QUEUE.name, listener.delivered, prefetch=100)
        largest = 131_072 - len(frame.Body(1, b"").marshal())
        bodies = [
            bytes([size % 251]) * size for size in (largest - 1, largest, largest + 1, 2 * largest, 2 * largest + 1)
        ]
        await asyncio.gather(*[channel.publish(message(body=body), timeout=PATIENCE) for body in bodies])
        await listener.until(lambda: len(listener.deliveries) == len(bodies))
        assert [delivery.body for delivery in listener.deliveries] == bodies


def test_a_vhost_of_a_test_is_its_own(rabbitmq_each: Vhost) -> None:
    vhosts: Any = rabbitmq_each.rabbitmq.control("list_vhosts", "name")
    assert rabbitmq_each.name in vhosts
    assert rabbitmq_each.url.endswith(f"/{quote(rabbitmq_each.name)}")
