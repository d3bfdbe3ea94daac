"""The contract every broker keeps (broker/contract.py), tried on the embedded broker and on each RabbitMQ.

RabbitMQ is the truth: where the two would differ, the embedded broker is wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from dataclasses import replace
from functools import partial

import pytest
from venue import PATIENCE, Inbox, Venue, until

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties, reply_properties, reply_to_problem, request_properties
from bridge_protocol.errors import BadRequest, Refused, TooLarge
from bridge_protocol.messages import Request, encode_request, encode_result
from bridge_protocol.topology import (
    DELAY,
    EXCHANGE,
    Binding,
    Exchange,
    Queue,
    Resource,
    dead_letter_key,
    dead_letter_queue,
    delay_route,
    request_queue,
    service_topology,
    shared_topology,
)
from broker.confirm import Confirm
from broker.contract import (
    MAX_PREFETCH,
    Channel,
    ChannelClosed,
    Consumer,
    Delivery,
    Message,
    TopologyMismatch,
    Unroutable,
)
from broker.failpoints import FailingBroker, Failpoints
from broker.limits import MAX_BODY

SERVICE = "echo"
REQUESTS = request_queue(SERVICE)
DEAD = dead_letter_queue(SERVICE)
# The service's queues without the 17 delay queues, which take RabbitMQ a second.
TOPOLOGY: tuple[Resource, ...] = (Exchange(EXCHANGE), Exchange(DELAY), *service_topology(SERVICE))
QUORUM = {"x-queue-type": "quorum"}
TIMEOUT = PATIENCE


def request(number: int = 1, *, reply_to: str | None = None, service: str = SERVICE) -> Message:
    """A request as producers publish it; `number` is its id."""
    body = encode_request(Request(id=number, command="echo", args={"number": number}))
    properties = request_properties(message_id=f"{number:032x}", command="echo", reply_to=reply_to, deadline=2**41)
    return Message(exchange=EXCHANGE, routing_key=service, body=body, properties=properties)


def to_queue(queue: str, number: int = 1) -> Message:
    """A request published straight to a queue."""
    return replace(request(number), exchange="", routing_key=queue)


def number_of(delivery: Delivery) -> int:
    """The `number` of the request in `delivery`."""
    assert delivery.properties.message_id is not None
    return int(delivery.properties.message_id, 16)


async def publish(channel: Channel, *messages: Message) -> None:
    """Publish them in order; returns when all are confirmed."""
    await asyncio.gather(*[channel.publish(message, timeout=TIMEOUT) for message in messages])


async def ready(channel: Channel, queue: str, count: int) -> None:
    """Wait until `queue` has `count` messages ready."""

    async def reached() -> bool:
        return await channel.queue_length(queue) == count

    await until(reached)


async def closing_of(venue: Venue, name: str = "test") -> ChannelClosed:
    """Wait for the `on_closed` of the channel `name`: its reason."""

    async def told() -> bool:
        return name in dict(venue.closings)

    await until(told)
    return dict(venue.closings)[name]


def version_of(channel: Channel) -> tuple[int, ...]:
    """RabbitMQ's version; the embedded broker stands for 4.0."""
    found = re.search(r"RabbitMQ (\d+)\.(\d+)", channel.server)
    return (int(found[1]), int(found[2])) if found else (4, 0)


class Contract:
    """Every test of it gets a `venue`: an empty broker."""

    # Publishing.

    async def test_a_published_message_is_confirmed_and_arrives_as_it_was_sent(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=10)
        sent = request(7, reply_to="quaybridge.reply.someone")
        confirmed = channel.publish(sent, timeout=TIMEOUT)
        assert not confirmed.done()
        assert not len(inbox)
        await confirmed
        delivery = await inbox.take()
        assert delivery.body == sent.body
        assert type(delivery.body) is bytes
        assert delivery.properties == sent.properties
        assert (delivery.exchange, delivery.routing_key) == (EXCHANGE, SERVICE)
        assert (delivery.redelivered, delivery.delivery_count, delivery.stale) == (False, 0, False)
        assert delivery.channel is channel

    async def test_every_property_arrives(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=10)
        properties = Properties(
            message_id="m",
            correlation_id="c",
            reply_to="quaybridge.reply.größer",
            type="t",
            content_type="text/plain",
            content_encoding="identity",
            priority=3,
            headers={"text": "größer", "yes": True, "no": False, "least": -(2**63), "most": 2**63 - 1, "small": 5},
        )
        await publish(channel, replace(request(), properties=properties))
        assert (await inbox.take()).properties == properties
        bare = Properties(content_type=None, headers={})
        await publish(channel, replace(request(), properties=bare))
        assert (await inbox.take()).properties == bare

    @pytest.mark.parametrize("size", [0, 1, 64 * 1024, 1024 * 1024, 15 * 1024 * 1024, MAX_BODY])
    async def test_a_body_arrives_verbatim(self, venue: Venue, size: int) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=1)
        body = random.Random(size).randbytes(size)
        await publish(channel, replace(request(), body=body))
        delivery = await inbox.take()
        assert len(delivery.body) == size
        assert hashlib.sha256(delivery.body).digest() == hashlib.sha256(body).digest()

    async def test_a_thousand_publishes_are_confirmed_and_delivered_in_order(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=1000)
        confirmed: list[int] = []

        def confirm(number: int, done: Confirm) -> None:
            if done.exception() is None:
                confirmed.append(number)

        for number in range(1000):
            channel.publish(request(number), timeout=TIMEOUT).add_done_callback(partial(confirm, number))
        arrived = [number_of(await inbox.take()) for _ in range(1000)]
        assert arrived == list(range(1000))

        async def all_confirmed() -> bool:
            return len(confirmed) == 1000

        await until(all_confirmed)
        # Each once; RabbitMQ promises no order among confirms.
        assert sorted(confirmed) == list(range(1000))

    async def test_a_message_without_a_queue_is_returned(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        for unroutable in (request(service="nobody"), to_queue("no.such.queue")):
            with pytest.raises(Unroutable, match=re.escape(unroutable.routing_key)):
                await channel.publish(unroutable, timeout=TIMEOUT)
        await publish(channel, request())
        assert not channel.closed

    async def test_of_many_only_the_unroutable_are_returned(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        futures = [
            channel.publish(request(number, service="nobody" if number % 3 else SERVICE), timeout=TIMEOUT)
            for number in range(60)
        ]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [isinstance(outcome, Unroutable) for outcome in outcomes] == [number % 3 > 0 for number in range(60)]
        await ready(channel, REQUESTS, 20)

    async def test_an_unknown_exchange_closes_the_channel(self, venue: Venue) -> None:
        channel = await venue.open()
        future = channel.publish(replace(request(), exchange="no.such.exchange"), timeout=TIMEOUT)
        with pytest.raises(ChannelClosed, match=r"no\.such\.exchange") as refusal:
            await future
        assert refusal.value.code == 404
        assert (await closing_of(venue)).code == 404
        assert channel.closed

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(replace(request(), routing_key="k" * 256), id="long routing key"),
            pytest.param(replace(request(), exchange="e" * 256), id="long exchange"),
            *(
                pytest.param(replace(request(), properties=properties), id=name)
                for name, properties in {
                    "CC": Properties(headers={"CC": "echo"}),
                    "BCC": Properties(headers={"BCC": "echo"}),
                    "expiration": Properties(expiration="1000"),
                    "long message_id": Properties(message_id="m" * 256),
                    "long reply_to": Properties(reply_to="ö" * 128),
                    "lone surrogate": Properties(correlation_id="\ud800"),
                    "priority": Properties(priority=256),
                    "delivery_mode": Properties(delivery_mode=3),
                    "large headers": Properties(headers={"h": "v" * 33_000}),
                    "long header name": Properties(headers={"h" * 256: "v"}),
                    "wide integer": Properties(headers={"h": 2**63}),
                    "list": Properties(headers={"h": ["v"]}),
                }.items()
            ),
        ],
    )
    async def test_what_would_close_the_channel_is_refused_before_it_is_sent(
        self, venue: Venue, message: Message
    ) -> None:
        channel = await venue.open()
        with pytest.raises(BadRequest):
            channel.publish(message, timeout=TIMEOUT)
        assert not channel.closed
        await channel.declare([Queue("still.works", QUORUM)])

    async def test_a_body_over_the_limit_is_refused_before_it_is_sent(self, venue: Venue) -> None:
        channel = await venue.open()
        with pytest.raises(TooLarge):
            channel.publish(replace(request(), body=bytes(MAX_BODY + 1)), timeout=TIMEOUT)
        assert not channel.closed
        await channel.declare([Queue("still.works", QUORUM)])

    async def test_a_full_queue_refuses(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare([Queue("small", {**QUORUM, "x-max-length": 2, "x-overflow": "reject-publish"})])
        outcomes: list[Exception | None] = []
        for number in range(40):
            try:
                await channel.publish(to_queue("small", number), timeout=TIMEOUT)
            except Refused as refusal:
                outcomes.append(refusal)
            else:
                outcomes.append(None)
        # A quorum queue takes a few more than its limit before it refuses.
        assert outcomes[:2] == [None, None]
        assert isinstance(outcomes[-1], Refused)
        await ready(channel, "small", outcomes.count(None))

    # Consuming.

    async def test_prefetch_bounds_what_a_consumer_holds(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        await publish(channel, *map(request, range(10)))
        await ready(channel, REQUESTS, 10)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=3)
        held = [await inbox.take() for _ in range(3)]
        await ready(channel, REQUESTS, 7)
        assert not len(inbox)
        held[0].ack()
        assert number_of(await inbox.take()) == 3
        await ready(channel, REQUESTS, 6)
        assert not len(inbox)

    async def test_prefetch_is_counted_for_each_consumer(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare([Queue("one", QUORUM), Queue("two", QUORUM)])
        inbox = Inbox()
        for queue, prefetch in (("one", 2), ("two", 5)):
            await publish(channel, *(to_queue(queue, number) for number in range(8)))
            await channel.consume(queue, inbox, prefetch=prefetch)
        await ready(channel, "one", 6)
        await ready(channel, "two", 3)
        queues = sorted([(await inbox.take()).routing_key for _ in range(7)])
        assert queues == ["one"] * 2 + ["two"] * 5
        assert not len(inbox)

    async def test_an_acked_message_is_gone(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=10)
        await publish(channel, request(1), request(2))
        (await inbox.take()).ack()
        unacked = await inbox.take()
        await channel.close()
        other = await venue.open("other")
        # Only the unacked one comes back: had the ack been lost, there would be two.
        await ready(other, REQUESTS, 1)
        await other.consume(REQUESTS, inbox, prefetch=10)
        assert number_of(await inbox.take()) == number_of(unacked) == 2

    async def test_a_requeued_message_comes_again_and_is_counted(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=1)
        await publish(channel, request(1), request(2))
        seen = []
        for _ in range(3):
            delivery = await inbox.take()
            seen.append((number_of(delivery), delivery.redelivered, delivery.delivery_count))
            delivery.reject(requeue=True)
        # It goes back to where it was, before the second.
        assert seen == [(1, False, 0), (1, True, 1), (1, True, 2)]

    async def test_a_rejected_message_becomes_a_dead_letter(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox, dead = Inbox(), Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=1)
        await channel.consume(DEAD, dead, prefetch=1)
        sent = request(3)
        await publish(channel, sent)
        (await inbox.take()).reject(requeue=False)
        letter = await dead.take()
        assert letter.body == sent.body
        assert (letter.exchange, letter.routing_key) == (EXCHANGE, dead_letter_key(SERVICE))
        assert letter.properties.message_id == sent.properties.message_id
        assert letter.properties.type == sent.properties.type
        headers = letter.properties.headers
        assert headers["x-first-death-reason"] == "rejected"
        assert headers["x-first-death-queue"] == REQUESTS
        assert headers["x-first-death-exchange"] == EXCHANGE
        assert {key: headers[key] for key in sent.properties.headers} == sent.properties.headers

    async def test_a_dead_letter_keeps_its_routing_key_where_none_is_given(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(
            [
                Exchange("graves"),
                Queue("dying", {**QUORUM, "x-dead-letter-exchange": "graves"}),
                Queue("dead", QUORUM),
                Binding("graves", "dying", "dead"),
            ]
        )
        inbox, dead = Inbox(), Inbox()
        await channel.consume("dying", inbox, prefetch=1)
        await channel.consume("dead", dead, prefetch=1)
        await publish(channel, to_queue("dying"))
        (await inbox.take()).reject(requeue=False)
        letter = await dead.take()
        assert (letter.exchange, letter.routing_key) == ("graves", "dying")

    async def test_a_message_returned_too_often_becomes_a_dead_letter(self, venue: Venue) -> None:
        channel = await venue.open()
        limited = {**QUORUM, "x-delivery-limit": 2, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        await channel.declare([Queue("limited", limited), Queue("dead", QUORUM)])
        inbox, dead = Inbox(), Inbox()
        await channel.consume("limited", inbox, prefetch=1)
        await channel.consume("dead", dead, prefetch=1)
        await publish(channel, to_queue("limited"))
        counts = []
        for _ in range(3):
            delivery = await inbox.take()
            counts.append(delivery.delivery_count)
            delivery.reject(requeue=True)
        letter = await dead.take()
        assert counts == [0, 1, 2]
        assert letter.properties.headers["x-first-death-reason"] == "delivery_limit"
        assert not len(inbox)

    async def test_a_lost_channel_counts_as_a_return(self, venue: Venue) -> None:
        channel = await venue.open()
        limited = {**QUORUM, "x-delivery-limit": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        await channel.declare([Queue("limited", limited), Queue("dead", QUORUM)])
        await publish(channel, to_queue("limited"))
        for count in range(2):
            consuming = await venue.open("consuming")
            inbox = Inbox()
            await consuming.consume("limited", inbox, prefetch=1)
            assert (await inbox.take()).delivery_count == count
            await consuming.close()
        await ready(channel, "dead", 1)

    async def test_without_a_limit_a_message_may_return_for_ever(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await publish(channel, to_queue(DEAD))
        await channel.consume(DEAD, inbox, prefetch=1)
        for count in range(25):
            delivery = await inbox.take()
            assert delivery.delivery_count == count
            delivery.reject(requeue=True)
        assert (await inbox.take()).redelivered

    async def test_what_a_closed_channel_held_is_delivered_elsewhere(self, venue: Venue) -> None:
        first = await venue.open("first")
        await first.declare(TOPOLOGY)
        inbox, elsewhere = Inbox(), Inbox()
        await first.consume(REQUESTS, inbox, prefetch=10)
        await publish(first, *map(request, range(5)))
        held = [await inbox.take() for _ in range(5)]
        second = await venue.open("second")
        await second.consume(REQUESTS, elsewhere, prefetch=10)
        await first.close()
        again = [await elsewhere.take() for _ in range(5)]
        assert [number_of(delivery) for delivery in again] == list(range(5))
        assert {(delivery.redelivered, delivery.delivery_count) for delivery in again} == {(True, 1)}
        assert all(delivery.stale for delivery in held)
        assert not any(delivery.stale for delivery in again)

    async def test_settling_after_the_channel_closed_does_nothing(self, venue: Venue) -> None:
        first = await venue.open("first")
        await first.declare(TOPOLOGY)
        inbox = Inbox()
        await first.consume(REQUESTS, inbox, prefetch=10)
        await publish(first, request(1), request(2))
        acked, rejected = await inbox.take(), await inbox.take()
        await first.close()
        acked.ack()
        rejected.reject(requeue=False)
        second = await venue.open("second")
        await second.consume(REQUESTS, inbox, prefetch=10)
        assert [number_of(await inbox.take()) for _ in range(2)] == [1, 2]
        assert await second.queue_length(DEAD) == 0
        assert venue.closings == []

    async def test_settling_twice_closes_the_channel(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=10)
        await publish(channel, request())
        delivery = await inbox.take()
        delivery.ack()
        delivery.ack()
        assert (await closing_of(venue)).code == 406

    async def test_a_no_ack_consumer_settles_nothing_and_has_no_bound(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, no_ack=True)
        await publish(channel, *map(request, range(300)))
        assert [number_of(await inbox.take()) for _ in range(300)] == list(range(300))
        await channel.close()
        other = await venue.open("other")
        assert await other.queue_length(REQUESTS) == 0

    async def test_a_consumer_that_acks_needs_a_prefetch_amqp_can_carry(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        for prefetch in (0, -1, MAX_PREFETCH + 1):
            with pytest.raises(ValueError, match="prefetch of 1 … 65535"):
                await channel.consume(REQUESTS, Inbox(), prefetch=prefetch)
        assert not channel.closed

    async def test_equal_consumers_take_turns(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inboxes = [Inbox(), Inbox()]
        for inbox in inboxes:
            await channel.consume(REQUESTS, inbox, prefetch=10)
        await publish(channel, *map(request, range(10)))
        for inbox in inboxes:
            for _ in range(5):
                await inbox.take()

    async def test_a_consumer_of_higher_priority_is_served_first_while_it_has_room(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        low, high = Inbox(), Inbox()
        await channel.consume(REQUESTS, low, prefetch=10, priority=1)
        await channel.consume(REQUESTS, high, prefetch=3, priority=5)
        for number in range(5):
            await publish(channel, request(number))
        assert [number_of(await high.take()) for _ in range(3)] == [0, 1, 2]
        assert [number_of(await low.take()) for _ in range(2)] == [3, 4]

    async def test_a_cancelled_consumer_gets_nothing_more_and_may_settle_what_it_holds(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        cancelled: list[Consumer] = []
        consumer = await channel.consume(REQUESTS, inbox, prefetch=2, on_cancelled=cancelled.append)
        assert consumer.queue == REQUESTS
        await publish(channel, *map(request, range(5)))
        held = [await inbox.take() for _ in range(2)]
        await channel.cancel(consumer)
        for delivery in held:
            delivery.ack()
        await ready(channel, REQUESTS, 3)
        assert not len(inbox)
        await channel.cancel(consumer)
        assert not channel.closed
        assert cancelled == []
        await channel.consume(REQUESTS, inbox, prefetch=5)
        assert [number_of(await inbox.take()) for _ in range(3)] == [2, 3, 4]

    async def test_a_consumer_is_told_when_its_queue_is_deleted(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare([Queue("doomed", QUORUM)])
        told: asyncio.Future[Consumer] = asyncio.get_running_loop().create_future()
        consumer = await channel.consume("doomed", Inbox(), prefetch=1, on_cancelled=told.set_result)
        await venue.delete_queue("doomed")
        async with asyncio.timeout(PATIENCE):
            assert await told == consumer
        with pytest.raises(Unroutable):
            await channel.publish(to_queue("doomed"), timeout=TIMEOUT)

    async def test_consuming_a_queue_that_does_not_exist_closes_the_channel(self, venue: Venue) -> None:
        channel = await venue.open()
        with pytest.raises(ChannelClosed) as refusal:
            await channel.consume("no.such.queue", Inbox(), prefetch=1)
        assert refusal.value.code == 404
        assert (await closing_of(venue)).code == 404

    @pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
    async def test_an_exclusive_consumer_is_alone(self, venue: Venue, first: bool, second: bool) -> None:
        channel, other = await venue.open(), await venue.open("other")
        # Quorum queues do not heed the wish.
        await channel.declare([Queue("classic", {"x-queue-type": "classic"})])
        await channel.consume("classic", Inbox(), prefetch=1, exclusive=first)
        with pytest.raises(ChannelClosed) as refusal:
            await other.consume("classic", Inbox(), prefetch=1, exclusive=second)
        assert refusal.value.code == 403
        assert not channel.closed

    # Single active consumers.

    async def test_of_single_active_consumers_one_gets_everything(self, venue: Venue) -> None:
        first, second = await venue.open("first"), await venue.open("second")
        await first.declare([Queue("single", {**QUORUM, "x-single-active-consumer": True})])
        active, standby = Inbox(), Inbox()
        await first.consume("single", active, prefetch=3)
        await second.consume("single", standby, prefetch=3)
        await publish(first, *(to_queue("single", number) for number in range(5)))
        held = [await active.take() for _ in range(3)]
        await ready(first, "single", 2)
        for delivery in held:
            delivery.ack()
        assert [number_of(await active.take()) for _ in range(2)] == [3, 4]
        assert not len(standby)

    async def test_a_standby_takes_over_when_the_active_consumer_cancels(self, venue: Venue) -> None:
        first, second = await venue.open("first"), await venue.open("second")
        await first.declare([Queue("single", {**QUORUM, "x-single-active-consumer": True})])
        active, standby = Inbox(), Inbox()
        consumer = await first.consume("single", active, prefetch=1)
        await second.consume("single", standby, prefetch=1)
        await publish(first, to_queue("single", 1), to_queue("single", 2))
        held = await active.take()
        await first.cancel(consumer)
        # At once, although the first still holds one.
        assert number_of(await standby.take()) == 2
        held.ack()
        assert not first.closed

    async def test_a_standby_takes_over_when_the_active_channel_closes(self, venue: Venue) -> None:
        first, second = await venue.open("first"), await venue.open("second")
        await first.declare([Queue("single", {**QUORUM, "x-single-active-consumer": True})])
        active, standby = Inbox(), Inbox()
        await first.consume("single", active, prefetch=1)
        await second.consume("single", standby, prefetch=2)
        await publish(first, to_queue("single", 1), to_queue("single", 2))
        await active.take()
        await first.close()
        taken = [await standby.take() for _ in range(2)]
        # RabbitMQ may hand over before the message that was held is back.
        assert sorted((number_of(delivery), delivery.redelivered) for delivery in taken) == [(1, True), (2, False)]

    async def test_a_higher_priority_takes_over_once_the_active_consumer_has_settled(self, venue: Venue) -> None:
        first, second = await venue.open("first"), await venue.open("second")
        await first.declare([Queue("single", {**QUORUM, "x-single-active-consumer": True})])
        low, high = Inbox(), Inbox()
        await first.consume("single", low, prefetch=2, priority=1)
        await publish(first, to_queue("single", 1))
        held = await low.take()
        await second.consume("single", high, prefetch=2, priority=2)
        await publish(first, to_queue("single", 2))
        if version_of(first) < (4, 0):
            # Until 4.0 the active consumer stays so, whatever the priorities.
            assert number_of(await low.take()) == 2
            return
        await ready(first, "single", 1)
        assert not len(low)
        assert not len(high)
        held.ack()
        assert number_of(await high.take()) == 2
        await publish(first, to_queue("single", 3))
        assert number_of(await high.take()) == 3
        assert not len(low)

    # Replies.

    async def test_a_direct_reply_reaches_its_requester(self, venue: Venue) -> None:
        requester, node, answering = (
            await venue.open("requester"),
            await venue.open("node"),
            await venue.open("answers"),
        )
        await node.declare(TOPOLOGY)
        replies, inbox = Inbox(), Inbox()
        address = await requester.declare_reply_queue()
        await requester.consume(address, replies, no_ack=True)
        await node.consume(REQUESTS, inbox, prefetch=1)
        await publish(requester, request(5, reply_to=address))
        delivery = await inbox.take()
        reply_to = delivery.properties.reply_to
        assert reply_to is not None
        # The node sees an address of the requester's own, and one that it may answer to.
        assert reply_to.startswith(f"{DIRECT_REPLY_TO}.")
        assert reply_to_problem(reply_to) is None
        reply = Message(
            exchange="",
            routing_key=reply_to,
            body=encode_result(5, {"ok": True}),
            properties=reply_properties(
                correlation_id=delivery.properties.correlation_id, code=None, attempt=1, node="n", redelivered=False
            ),
        )
        await publish(answering, reply)  # on 4.0 only if it is not mandatory: it returns every direct reply
        answer = await replies.take()
        assert answer.body == reply.body
        assert answer.properties == reply.properties

    async def test_two_requesters_have_two_addresses(self, venue: Venue) -> None:
        node = await venue.open("node")
        await node.declare(TOPOLOGY)
        inbox = Inbox()
        await node.consume(REQUESTS, inbox, prefetch=2)
        addresses = set()
        for number in range(2):
            requester = await venue.open(f"requester {number}")
            address = await requester.declare_reply_queue()
            await requester.consume(address, Inbox(), no_ack=True)
            await publish(requester, request(number, reply_to=address))
            addresses.add((await inbox.take()).properties.reply_to)
        assert len(addresses) == 2

    async def test_whether_a_requester_is_still_there_can_be_asked(self, venue: Venue) -> None:
        requester, node, asking = await venue.open("requester"), await venue.open("node"), await venue.open("asking")
        await node.declare(TOPOLOGY)
        inbox = Inbox()
        address = await requester.declare_reply_queue()
        await requester.consume(address, Inbox(), no_ack=True)
        await node.consume(REQUESTS, inbox, prefetch=1)
        await publish(requester, request(reply_to=address))
        reply_to = (await inbox.take()).properties.reply_to
        assert reply_to is not None
        for _ in range(3):
            assert await asking.queue_length(reply_to) == 0
        assert not asking.closed
        await requester.close()

        async def ask_until_gone() -> None:
            async with asyncio.timeout(PATIENCE):
                while True:  # RabbitMQ may take a moment to notice
                    assert await asking.queue_length(reply_to) == 0

        for number in range(2):
            with pytest.raises(ChannelClosed) as gone:
                await ask_until_gone()
            assert gone.value.code == 404
            assert asking.closed
            asking = await venue.open(f"asking again {number}")
        assert not node.closed

    async def test_a_reply_to_one_who_is_gone_is_returned_or_dropped(self, venue: Venue) -> None:
        requester, node = await venue.open("requester"), await venue.open("node")
        await node.declare(TOPOLOGY)
        inbox = Inbox()
        address = await requester.declare_reply_queue()
        await requester.consume(address, Inbox(), no_ack=True)
        await node.consume(REQUESTS, inbox, prefetch=1)
        await publish(requester, request(reply_to=address))
        reply_to = (await inbox.take()).properties.reply_to
        assert reply_to is not None
        await requester.close()
        async with asyncio.timeout(PATIENCE):
            # 4.0 returns it; 4.3 confirms and drops it.
            outcome = (await asyncio.gather(node.publish(to_queue(reply_to), timeout=TIMEOUT), return_exceptions=True))[
                0
            ]
        assert outcome is None or isinstance(outcome, Unroutable)
        assert not node.closed

    @pytest.mark.parametrize("suffix", ["nonsense", "x.y", "g1h2AA5yZXBseUA.x", "g2EH.x", "!!!!.!!!!"])
    async def test_a_reply_to_a_forged_address_is_returned_or_dropped(self, venue: Venue, suffix: str) -> None:
        # Published to RabbitMQ 4.0 some of these would end the connection.
        channel = await venue.open()
        reply = to_queue(f"{DIRECT_REPLY_TO}.{suffix}")
        async with asyncio.timeout(PATIENCE):
            (outcome,) = await asyncio.gather(channel.publish(reply, timeout=TIMEOUT), return_exceptions=True)
        assert outcome is None or isinstance(outcome, Unroutable)
        await channel.declare([Queue("after", QUORUM)])
        assert await channel.queue_length("after") == 0
        assert venue.closings == []

    async def test_reply_to_the_pseudo_name_needs_a_reply_consumer(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        with pytest.raises(ChannelClosed) as refusal:
            await channel.publish(request(reply_to=DIRECT_REPLY_TO), timeout=TIMEOUT)
        assert refusal.value.code == 406

    # Delays.

    async def test_delayed_messages_arrive_when_they_are_due(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare([*shared_topology(), *service_topology(SERVICE)])
        arrived: asyncio.Queue[tuple[Delivery, float]] = asyncio.Queue()
        await channel.consume(REQUESTS, lambda d: arrived.put_nowait((d, time.monotonic())), prefetch=10)
        sent = time.monotonic()
        for seconds in (3, 1, 2):
            exchange, key = delay_route(SERVICE, seconds)
            await publish(channel, replace(request(seconds), exchange=exchange, routing_key=key))
        due: list[tuple[int, float]] = []
        for _ in range(3):
            async with asyncio.timeout(PATIENCE):
                delivery, moment = await arrived.get()
            assert delivery.exchange.startswith(DELAY)
            assert delivery.routing_key.endswith(f".{SERVICE}")
            assert delivery.body == request(number_of(delivery)).body
            assert delivery.delivery_count == 0
            due.append((number_of(delivery), moment - sent))
        assert [seconds for seconds, _ in due] == [1, 2, 3]
        assert all(seconds <= late < seconds + 0.8 for seconds, late in due), due

    # Queues and exchanges.

    async def test_declaring_again_changes_nothing(self, venue: Venue) -> None:
        channel, other = await venue.open(), await venue.open("other")
        await channel.declare(TOPOLOGY)
        await publish(channel, request())
        await channel.declare(TOPOLOGY)
        await other.declare(TOPOLOGY)
        await ready(other, REQUESTS, 1)
        await publish(other, request())
        await ready(channel, REQUESTS, 2)

    async def test_other_arguments_are_a_mismatch_that_names_them(self, venue: Venue) -> None:
        channel, other = await venue.open(), await venue.open("other")
        await channel.declare([Queue("declared", {**QUORUM, "x-delivery-limit": 3})])
        with pytest.raises(
            TopologyMismatch, match=r"(?s)declared.*x-delivery-limit|x-delivery-limit.*declared"
        ) as refusal:
            await other.declare([Queue("declared", {**QUORUM, "x-delivery-limit": 4})])
        assert "3" in str(refusal.value)
        assert "4" in str(refusal.value)
        assert (await closing_of(venue, "other")).code == 406
        assert other.closed
        assert not channel.closed

    async def test_binding_to_what_does_not_exist_closes_the_channel(self, venue: Venue) -> None:
        for number, binding in enumerate(
            [
                Binding("no.such.exchange", "#", "there"),
                Binding("exchange", "#", "no.such.queue"),
                Binding("exchange", "#", "no.such.exchange", to_exchange=True),
            ]
        ):
            channel = await venue.open(f"{number}")
            with pytest.raises(ChannelClosed) as refusal:
                await channel.declare([Exchange("exchange"), Queue("there", QUORUM), binding])
            assert refusal.value.code == 404

    async def test_words_and_wildcards_route(self, venue: Venue) -> None:
        channel = await venue.open()
        patterns = ["a.b", "a.*", "a.#", "#", "*", "#.b", "*.b.*", "a.#.b", "#.#", ""]
        keys = ["a.b", "a", "", "a.b.c", "b", "a.x.y.b", "a..b", "a."]
        expected = {
            "a.b": {"a.b", "a.*", "a.#", "#", "#.b", "a.#.b", "#.#"},
            "a": {"a.#", "#", "*", "#.#"},
            "": {"#", "#.#", ""},
            "a.b.c": {"a.#", "#", "*.b.*", "#.#"},
            "b": {"#", "*", "#.b", "#.#"},
            "a.x.y.b": {"a.#", "#", "#.b", "a.#.b", "#.#"},
            "a..b": {"a.#", "#", "#.b", "a.#.b", "#.#"},
            "a.": {"a.*", "a.#", "#", "#.#"},
        }
        queues = [Queue(f"q{number}", exclusive=True) for number in range(len(patterns))]
        bindings = [Binding("topic", pattern, f"q{number}") for number, pattern in enumerate(patterns)]
        await channel.declare([Exchange("topic"), *queues, *bindings])
        reached = {}
        for key in keys:
            await publish(channel, replace(request(), exchange="topic", routing_key=key))
            reached[key] = {pattern for number, pattern in enumerate(patterns) if await channel.purge(f"q{number}")}
        assert reached == expected

    async def test_a_message_reaches_a_queue_once_by_however_many_ways(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(
            [
                Exchange("in"),
                Exchange("through"),
                Queue("out", exclusive=True),
                Binding("in", "#", "out"),
                Binding("in", "a.*", "out"),
                Binding("in", "a.#", "through", to_exchange=True),
                Binding("through", "#", "out"),
                Binding("through", "#", "in", to_exchange=True),
            ]
        )
        await publish(channel, replace(request(), exchange="in", routing_key="a.b"))
        assert await channel.queue_length("out") == 1

    async def test_purge_removes_what_is_ready_and_counts_it(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        inbox = Inbox()
        await channel.consume(REQUESTS, inbox, prefetch=1)
        await publish(channel, *map(request, range(4)))
        held = await inbox.take()
        await ready(channel, REQUESTS, 3)
        assert await channel.purge(REQUESTS) == 3
        assert await channel.queue_length(REQUESTS) == 0
        assert await channel.queue_length(DEAD) == 0
        held.reject(requeue=True)
        assert number_of(await inbox.take()) == 0

    async def test_the_length_of_a_queue_that_does_not_exist_closes_the_channel(self, venue: Venue) -> None:
        channel = await venue.open()
        with pytest.raises(ChannelClosed) as refusal:
            await channel.queue_length("no.such.queue")
        assert refusal.value.code == 404

    async def test_an_exclusive_queue_is_its_channels_and_ends_with_it(self, venue: Venue) -> None:
        channel, other = await venue.open(), await venue.open("other")
        await channel.declare([Queue("mine", exclusive=True)])
        await publish(other, to_queue("mine"))
        with pytest.raises(ChannelClosed) as refusal:
            await other.consume("mine", Inbox(), prefetch=1)
        assert refusal.value.code == 405
        await channel.close()
        later = await venue.open("later")
        with pytest.raises(Unroutable):
            await later.publish(to_queue("mine"), timeout=TIMEOUT)

    # The end of a channel.

    async def test_a_closed_channel_takes_nothing(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        assert not channel.closed
        await channel.close()
        await channel.close()
        assert channel.closed
        with pytest.raises(ChannelClosed):
            channel.publish(request(), timeout=TIMEOUT)
        for call in (
            channel.declare(TOPOLOGY),
            channel.consume(REQUESTS, Inbox(), prefetch=1),
            channel.queue_length(REQUESTS),
            channel.purge(REQUESTS),
        ):
            with pytest.raises(ChannelClosed):
                await call
        assert venue.closings == []

    async def test_on_closed_is_called_once(self, venue: Venue) -> None:
        channel, other = await venue.open("failing"), await venue.open("other")
        with pytest.raises(ChannelClosed):
            await channel.queue_length("no.such.queue")
        with pytest.raises(ChannelClosed):
            channel.publish(request(), timeout=TIMEOUT)
        await closing_of(venue, "failing")
        await channel.close()
        await other.declare([Queue("works", QUORUM)])
        assert [name for name, _ in venue.closings] == ["failing"]

    async def test_what_was_unconfirmed_ends_with_the_channel(self, venue: Venue) -> None:
        channel = await venue.open()
        await channel.declare(TOPOLOGY)
        futures = [channel.publish(request(number), timeout=TIMEOUT) for number in range(10)]
        await channel.close()
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, ChannelClosed) for outcome in outcomes)

    async def test_it_says_where_and_what_it_is(self, venue: Venue) -> None:
        channel = await venue.open()
        assert venue.broker.address
        assert channel.server
        assert channel.blocked is None


class TestEmbedded(Contract):
    @pytest.fixture
    def venue(self, embedded: Venue) -> Venue:
        return embedded


class TestRabbitMQ(Contract):
    @pytest.fixture
    def venue(self, rabbitmq: Venue) -> Venue:
        return rabbitmq


class TestBehindFailpoints(Contract):
    """With none armed, what stands between a process and its broker in tests of crashes changes nothing."""

    @pytest.fixture
    def venue(self, embedded: Venue) -> Venue:
        embedded.broker = FailingBroker(embedded.broker, Failpoints({}))
        return embedded
