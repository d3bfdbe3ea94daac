"""What the embedded broker does beyond the contract (tests/contract), and what only a clock of one's own can show."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties, reply_to_problem, request_properties
from bridge_protocol.errors import BadRequest, Blocked
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import (
    EXCHANGE,
    MAX_DELAY,
    Binding,
    Exchange,
    Queue,
    delay_route,
    request_queue,
    service_topology,
    shared_topology,
)
from broker.contract import (
    AccessRefused,
    Broker,
    BrokerError,
    ChannelClosed,
    Consumer,
    Delivery,
    Message,
    TopologyMismatch,
    Unroutable,
)
from broker.limits import MAX_HEADERS, check_message
from broker.memory import Counts, MemoryBroker, MemoryChannel
from broker.memory_queue import Assignment, Entry, MemoryQueue, Subscription
from broker.memory_vhost import VirtualHost

QUORUM = {"x-queue-type": "quorum"}


def message(queue: str = "work", number: int = 1, **properties: Any) -> Message:
    """A request straight to `queue`."""
    body = encode_request(Request(id=number, command="echo", args={}))
    envelope = replace(request_properties(message_id=f"{number}", command="echo"), **properties)
    return Message(exchange="", routing_key=queue, body=body, properties=envelope)


def numbers(messages: list[Message] | list[Delivery]) -> list[int]:
    """The numbers they were made with."""
    return [int(m.properties.message_id or "") for m in messages]


async def turn() -> None:
    """Let the event loop take one turn."""
    await asyncio.sleep(0)


class Owner:
    """Opens channels and remembers what they are told."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.closings: list[ChannelClosed] = []
        self.alarms: list[str | None] = []

    async def open(self, name: str = "test") -> MemoryChannel:
        return await self.broker.open(name, on_closed=self.closings.append, on_blocked=self.alarms.append)


@pytest.fixture
async def owner() -> Owner:
    return Owner(MemoryBroker())


@pytest.fixture
async def channel(owner: Owner) -> MemoryChannel:
    """A channel, and a quorum queue named work."""
    channel = await owner.open()
    await channel.declare([Queue("work", QUORUM)])
    return channel


def test_it_is_a_broker() -> None:
    broker: Broker = MemoryBroker()
    assert broker.address == "memory"


# One loop.


def test_it_belongs_to_the_loop_it_is_first_used_on() -> None:
    broker = MemoryBroker()
    assert broker.loop is None
    opened: list[MemoryChannel] = []

    async def use() -> None:
        opened.append(await broker.open("first", on_closed=lambda _: None))
        await opened[0].declare([Queue("work")])
        assert broker.loop is asyncio.get_running_loop()

    async def use_elsewhere() -> None:
        with pytest.raises(BrokerError, match="another event loop"):
            await broker.open("second", on_closed=lambda _: None)
        with pytest.raises(BrokerError, match="another event loop"):
            opened[0].publish(message(), timeout=1)
        for act in (broker.unblock, lambda: broker.close_all("x"), lambda: broker.cancel_consumers("work")):
            with pytest.raises(BrokerError, match="another event loop"):
                act()

    asyncio.run(use())
    asyncio.run(use_elsewhere())
    assert broker.messages("work") == []


async def test_confirms_and_deliveries_come_in_the_next_turn_all_together(channel: MemoryChannel) -> None:
    got: list[Delivery] = []
    await channel.consume("work", got.append, prefetch=100)
    await turn()
    futures = [channel.publish(message(number=number), timeout=1) for number in range(100)]
    assert not got
    assert not any(future.done() for future in futures)
    await turn()
    assert numbers(got) == list(range(100))
    assert all(future.done() for future in futures)


async def test_a_flood_leaves_turns_to_others(channel: MemoryChannel) -> None:
    for number in range(1000):
        channel.publish(message(number=number), timeout=1)
    got: list[Delivery] = []
    await channel.consume("work", got.append, no_ack=True)
    await turn()
    assert len(got) == 256
    while len(got) < 1000:
        await turn()
    assert numbers(got) == list(range(1000))


async def test_an_exception_of_a_callback_closes_its_channel_only(owner: Owner, channel: MemoryChannel) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fail(delivery: Delivery) -> None:
        raise LookupError("on purpose")

    failing = await owner.open("failing")
    await failing.consume("work", fail, prefetch=1, priority=1)
    got: list[Delivery] = []
    await channel.consume("work", got.append, prefetch=10)
    await asyncio.gather(*[channel.publish(message(number=number), timeout=1) for number in range(3)])
    await turn()
    assert sorted(numbers(got)) == [0, 1, 2]
    assert [str(context["exception"]) for context in reported] == ["on purpose"]
    assert failing.closed
    assert not channel.closed
    assert len(owner.closings) == 1
    assert "on purpose" in owner.closings[0].reason


# What an operator can do.


async def test_close_all_closes_every_channel_and_gives_back_what_they_hold(
    owner: Owner, channel: MemoryChannel
) -> None:
    other = await owner.open("other")
    got: list[Delivery] = []
    await other.consume("work", got.append, prefetch=2)
    await asyncio.gather(*[channel.publish(message(number=number), timeout=1) for number in range(3)])
    assert owner.broker.counts("work") == Counts(ready=1, unacked=2)
    unconfirmed = channel.publish(message(number=3), timeout=1)
    owner.broker.close_all("maintenance")
    assert owner.closings == []
    with pytest.raises(ChannelClosed, match="maintenance"):
        await unconfirmed
    assert [reason.code for reason in owner.closings] == [320, 320]
    assert all("maintenance" in reason.reason for reason in owner.closings)
    assert channel.closed
    assert other.closed
    assert owner.broker.counts("work") == Counts(ready=4, unacked=0)
    assert numbers(owner.broker.messages("work")) == [0, 1, 2, 3]
    got[0].ack()
    await (await owner.open("later")).declare([Queue("work", QUORUM)])


async def test_cancelled_consumers_are_told_and_may_settle_what_they_hold(owner: Owner, channel: MemoryChannel) -> None:
    got: list[Delivery] = []
    cancelled: list[Consumer] = []
    consumer = await channel.consume("work", got.append, prefetch=1, on_cancelled=cancelled.append)
    await channel.consume("work", got.append, prefetch=1)
    await asyncio.gather(*[channel.publish(message(number=number), timeout=1) for number in range(3)])
    owner.broker.cancel_consumers("work")
    assert cancelled == []
    await turn()
    assert cancelled == [consumer]
    for delivery in got:
        delivery.ack()
    await turn()
    assert len(got) == 2
    assert owner.broker.counts("work") == Counts(ready=1, unacked=0)
    assert not channel.closed


async def test_what_a_deleted_queue_gave_out_may_still_be_settled(owner: Owner, channel: MemoryChannel) -> None:
    got: list[Delivery] = []
    await channel.consume("work", got.append, prefetch=3)
    await asyncio.gather(*[channel.publish(message(number=number), timeout=1) for number in range(3)])
    owner.broker.delete_queue("work")
    await channel.declare([Queue("work", QUORUM)])
    got[0].ack()
    got[1].reject(requeue=True)
    await channel.close()
    assert owner.broker.counts("work") == Counts(ready=0, unacked=0)


def test_what_does_not_exist_is_a_key_error() -> None:
    broker = MemoryBroker()
    for look in (broker.messages, broker.counts, broker.delete_queue):
        with pytest.raises(KeyError):
            look("no.such.queue")


async def test_messages_are_looked_at_and_left(owner: Owner, channel: MemoryChannel) -> None:
    sent = [message(number=number) for number in range(3)]
    await asyncio.gather(*[channel.publish(each, timeout=1) for each in sent])
    assert owner.broker.messages("work") == sent
    assert owner.broker.messages("work") == sent
    assert await channel.queue_length("work") == 3


# Alarms.


async def test_while_blocked_publishes_wait_and_then_go_in_order(owner: Owner, channel: MemoryChannel) -> None:
    owner.broker.block("disk full")
    assert channel.blocked == "disk full"
    assert owner.alarms == []
    futures = [channel.publish(message(number=number), timeout=60) for number in range(3)]
    await turn()
    assert owner.alarms == ["disk full"]
    assert not any(future.done() for future in futures)
    assert owner.broker.messages("work") == []
    owner.broker.unblock()
    await asyncio.gather(*futures)
    assert channel.blocked is None
    assert owner.alarms == ["disk full", None]
    assert numbers(owner.broker.messages("work")) == [0, 1, 2]


async def test_a_publish_that_stays_blocked_ends_and_is_not_sent(owner: Owner, channel: MemoryChannel) -> None:
    owner.broker.block("disk full")
    with pytest.raises(Blocked, match="disk full") as blocked:
        await channel.publish(message(number=7), timeout=0.001)
    assert blocked.value.message_id == "7"
    owner.broker.unblock()
    await turn()
    assert owner.broker.messages("work") == []


async def test_a_channel_opened_while_blocked_is_told(owner: Owner) -> None:
    owner.broker.block("no memory")
    later = await owner.open("later")
    await turn()
    assert later.blocked == "no memory"
    assert owner.alarms == ["no memory"]


async def test_deliveries_and_acks_go_on_while_blocked(owner: Owner, channel: MemoryChannel) -> None:
    await asyncio.gather(*[channel.publish(message(number=number), timeout=1) for number in range(3)])
    owner.broker.block("disk full")
    got: list[Delivery] = []

    def ack(delivery: Delivery) -> None:
        got.append(delivery)
        delivery.ack()

    await channel.consume("work", ack, prefetch=1)
    await turn()
    assert numbers(got) == [0, 1, 2]
    assert owner.broker.counts("work") == Counts(ready=0, unacked=0)


async def test_what_is_held_back_ends_with_its_channel(owner: Owner, channel: MemoryChannel) -> None:
    owner.broker.block("disk full")
    held = channel.publish(message(), timeout=60)
    await channel.close()
    with pytest.raises(Blocked, match="disk full"):  # not ChannelClosed: it was not sent
        await held
    owner.broker.unblock()
    assert owner.broker.messages("work") == []


# Replies.


async def test_reply_addresses_are_unguessable_and_end_with_their_consumer(
    owner: Owner, channel: MemoryChannel
) -> None:
    first, second = await channel.declare_reply_queue(), await channel.declare_reply_queue()
    assert first != second
    for address in (first, second):
        assert reply_to_problem(address) is None
        assert len(address) >= len(DIRECT_REPLY_TO) + 22
    got: list[Delivery] = []
    consumer = await channel.consume(first, got.append, no_ack=True)
    await channel.publish(message(first), timeout=1)
    assert len(got) == 1
    with pytest.raises(ChannelClosed):
        await (await owner.open("other")).consume(second, got.append, no_ack=True)
    await channel.cancel(consumer)
    with pytest.raises(Unroutable):
        await channel.publish(message(first), timeout=1)
    await channel.close()
    with pytest.raises(Unroutable):
        await (await owner.open("late")).publish(message(second), timeout=1)


# Declaring.


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-expires": 1000},
        {"x-queue-type": "stream"},
        {"x-overflow": "drop-head"},
        {"x-max-length": 5},
        {"x-message-ttl": -1},
        {"x-message-ttl": "1000"},
        {"x-message-ttl": True},
        {"x-dead-letter-routing-key": "k"},
    ],
    ids=str,
)
async def test_queue_arguments_it_does_not_know_are_refused_not_ignored(
    channel: MemoryChannel, arguments: dict[str, Any]
) -> None:
    with pytest.raises(TopologyMismatch, match=next(iter(arguments))):
        await channel.declare([Queue("odd", arguments)])
    assert channel.closed


@pytest.mark.parametrize("resource", [Queue("amq.mine"), Exchange("amq.topic"), Queue(""), Exchange("")], ids=str)
async def test_reserved_names_are_refused(owner: Owner, resource: Queue | Exchange) -> None:
    channel = await owner.open()
    with pytest.raises(AccessRefused):
        await channel.declare([resource])
    await turn()
    assert [reason.code for reason in owner.closings] == [403]


async def test_exclusive_and_shared_queues_differ(channel: MemoryChannel) -> None:
    with pytest.raises(TopologyMismatch, match=r"'exclusive'.*'one'.*received False but current is True"):
        await channel.declare([Queue("one", exclusive=True), Queue("one")])


def test_the_topology_is_understood() -> None:
    vhost, channel = new_vhost()
    for resource in (*shared_topology(), *service_topology("echo")):
        vhost.declare(resource, channel, now=0.0)


# Live state, in words.


async def test_reprs_show_live_state(owner: Owner, channel: MemoryChannel) -> None:
    await channel.consume("work", lambda _: None, prefetch=2)
    await asyncio.gather(*[channel.publish(message(number=number), timeout=1) for number in range(5)])
    assert repr(owner.broker) == "<MemoryBroker 1 queues, 1 channels>"
    assert repr(channel) == "<MemoryChannel 'test' 1 consumers, 2 unacked>"
    queue = owner.broker._vhost.queues["work"]
    assert repr(queue) == "<MemoryQueue work 3 ready, 1 consumers>"
    assert repr(queue.subscriptions) == "[<Subscription ctag1 to work 2/2 unacked>]"
    assert repr(next(iter(queue))) == "<Entry 3 'work' 0 returns>"
    owner.broker.block("alarm")
    await channel.close()
    assert repr(owner.broker) == "<MemoryBroker 1 queues, 0 channels, blocked>"
    assert repr(channel) == "<MemoryChannel 'test' closed>"
    assert "1 queues" in repr(owner.broker._vhost)


# The pure part, with a clock of its own.


def new_vhost(*queues: Queue) -> tuple[VirtualHost, Any]:
    """A virtual host with `queues`, and something that stands for a channel: it is only ever compared."""
    vhost, channel = VirtualHost(), object()
    for queue in queues:
        vhost.declare(queue, channel, now=0.0)  # type: ignore[arg-type]  # see above
    return vhost, channel


def subscribe(
    vhost: VirtualHost, queue: str, *, prefetch: int = 0, priority: int = 0, no_ack: bool = False
) -> Subscription:
    """A consumer to whom nothing is delivered: tests take assignments themselves."""

    def unused(*_: object) -> None:
        raise AssertionError("the pure part calls nobody")

    subscription = Subscription(
        Consumer(tag="t", queue=queue),
        vhost.queues[queue],
        deliver=unused,
        cancelled=unused,
        on_delivery=unused,
        on_cancelled=None,
        prefetch=prefetch,
        priority=priority,
        no_ack=no_ack,
        exclusive=False,
    )
    vhost.subscribe(subscription)
    return subscription


DELAYS = st.one_of(st.integers(1, MAX_DELAY), st.integers(1, 64), st.sampled_from([2**n for n in range(17)]))


@given(st.lists(DELAYS, min_size=1, max_size=5))
def test_every_delay_ends_on_the_second_in_the_services_queue(delays: list[int]) -> None:
    vhost, channel = new_vhost()
    for resource in (*shared_topology(), *service_topology("echo"), *service_topology("other")):
        vhost.declare(resource, channel, now=0.0)
    for seconds in delays:
        exchange, key = delay_route("echo", seconds)
        vhost.publish(replace(message(number=seconds), exchange=exchange, routing_key=key), now=0.0)
    queue = vhost.queues[request_queue("echo")]
    arrived: list[float] = []
    while (now := vhost.next_expiry) is not None:
        vhost.expire(now)
        arrived += [now] * (len(queue) - len(arrived))
    assert arrived == sorted(delays)
    assert numbers([entry.message for entry in queue]) == sorted(delays)
    assert not len(vhost.queues[request_queue("other")])
    assert {entry.returns for entry in queue} == {0}


def test_a_returned_message_keeps_its_expiry() -> None:
    vhost, _ = new_vhost(Queue("short", {"x-message-ttl": 1000, **QUORUM}))
    subscription = subscribe(vhost, "short", prefetch=2)
    queue = vhost.queues["short"]
    vhost.publish(message("short", 1), now=0.0)
    vhost.publish(message("short", 2), now=0.5)
    (_, first), (_, second) = taken(queue), taken(queue)
    vhost.expire(0.7)
    assert vhost.next_expiry is None
    vhost.unsubscribe(subscription)
    vhost.give_back(queue, first, now=0.8)
    vhost.give_back(queue, second, now=0.8)
    assert vhost.next_expiry == 1.0
    vhost.expire(1.0)
    assert list(queue) == [second]
    assert vhost.next_expiry == 1.5


def taken(queue: MemoryQueue) -> Assignment:
    assignment = queue.assign()
    assert assignment is not None
    return assignment


def dying(name: str, **arguments: Any) -> Queue:
    return Queue(name, {**QUORUM, "x-dead-letter-exchange": "graves", **arguments})


@pytest.mark.parametrize(("strategy", "kept"), [("at-least-once", True), ("at-most-once", False)])
def test_a_dead_letter_without_a_queue_waits_for_one_or_is_dropped(strategy: str, kept: bool) -> None:
    vhost, channel = new_vhost(
        dying("work", **{"x-dead-letter-strategy": strategy, "x-overflow": "reject-publish"}), Queue("dead", QUORUM)
    )
    subscribe(vhost, "work", prefetch=1)
    vhost.publish(message(), now=0.0)
    _, entry = taken(vhost.queues["work"])
    vhost.reject(vhost.queues["work"], entry, now=0.0)
    for resource in (Exchange("graves"), Binding("graves", "#", "dead")):
        assert not len(vhost.queues["dead"])
        vhost.declare(resource, channel, now=0.0)
    assert len(vhost.queues["dead"]) == kept
    assert vhost.queues["dead"] in vhost.awake or not kept


def test_a_message_that_would_return_to_its_own_queue_by_expiry_is_dropped() -> None:
    vhost, _ = new_vhost(Queue("short", {"x-message-ttl": 1000, "x-dead-letter-exchange": ""}))
    vhost.publish(message("short"), now=0.0)
    vhost.expire(1.0)
    assert not len(vhost.queues["short"])


def test_a_circle_without_a_rejection_ends() -> None:
    circle = {"x-dead-letter-exchange": "", "x-message-ttl": 0}
    vhost, _ = new_vhost(
        Queue("one", {**circle, "x-dead-letter-routing-key": "two"}),
        Queue("two", {**circle, "x-dead-letter-routing-key": "one"}),
    )
    vhost.publish(message("one"), now=0.0)
    vhost.expire(0.0)
    vhost.expire(0.0)
    assert not len(vhost.queues["one"])
    assert not len(vhost.queues["two"])
    assert vhost.next_expiry is None


def test_a_circle_with_a_rejection_goes_on() -> None:
    vhost, _ = new_vhost(
        Queue("work", {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "later"}),
        Queue("later", {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work", "x-message-ttl": 1000}),
    )
    subscribe(vhost, "work", prefetch=1)
    queue = vhost.queues["work"]
    vhost.publish(message(), now=0.0)
    for second in range(5):
        subscription, entry = taken(queue)
        subscription.unacked -= 1
        vhost.reject(queue, entry, now=float(second))
        vhost.expire(second + 1.0)
        assert len(queue) == 1
    headers = next(iter(queue)).message.properties.headers
    assert (headers["x-first-death-queue"], headers["x-first-death-reason"]) == ("work", "rejected")
    assert (headers["x-last-death-queue"], headers["x-last-death-reason"]) == ("later", "expired")


def test_a_full_queue_takes_dead_letters() -> None:
    vhost, _ = new_vhost(
        Queue("work", {**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}),
        Queue("dead", {**QUORUM, "x-max-length": 1, "x-overflow": "reject-publish"}),
    )
    subscribe(vhost, "work", prefetch=2)
    for number in range(2):
        vhost.publish(message(number=number), now=0.0)
        vhost.reject(vhost.queues["work"], taken(vhost.queues["work"])[1], now=0.0)
    assert len(vhost.queues["dead"]) == 2
    # Its first delivery there counts as one more, as in RabbitMQ 4.3.
    assert [entry.returns for entry in vhost.queues["dead"]] == [1, 1]


def test_a_quorum_queue_has_a_limit_of_20_returns_and_a_classic_one_has_none() -> None:
    vhost, _ = new_vhost(Queue("quorum", QUORUM), Queue("classic"))
    deliveries = {}
    for name in ("quorum", "classic"):
        subscription = subscribe(vhost, name, prefetch=1)
        vhost.publish(message(name), now=0.0)
        deliveries[name] = 0
        while deliveries[name] < 100 and (assignment := vhost.queues[name].assign()) is not None:
            deliveries[name] += 1
            subscription.unacked -= 1
            vhost.give_back(vhost.queues[name], assignment[1], now=0.0)
    assert deliveries == {"quorum": 21, "classic": 100}


def test_high_priority_goes_first_and_what_returns_goes_before_all() -> None:
    vhost, _ = new_vhost(Queue("work", QUORUM))
    queue = vhost.queues["work"]
    subscribe(vhost, "work", prefetch=10)
    for number, priority in enumerate([None, 0, 4, 5, 9, None]):
        vhost.publish(message(number=number, priority=priority), now=0.0)
    order = [taken(queue)[1] for _ in range(6)]
    assert numbers([entry.message for entry in order]) == [3, 4, 0, 1, 2, 5]
    vhost.publish(message(number=9, priority=9), now=0.0)
    vhost.give_back(queue, order[2], now=0.0)
    assert numbers([entry.message for entry in queue]) == [0, 9]


def test_a_demoted_consumer_stays_when_the_higher_one_leaves_again() -> None:
    vhost, _ = new_vhost(Queue("single", {**QUORUM, "x-single-active-consumer": True}))
    queue = vhost.queues["single"]
    low = subscribe(vhost, "single", prefetch=5, priority=1)
    vhost.publish(message("single", 1), now=0.0)
    assert taken(queue)[0] is low
    high = subscribe(vhost, "single", prefetch=5, priority=2)
    vhost.publish(message("single", 2), now=0.0)
    assert queue.assign() is None
    vhost.unsubscribe(high)
    assert taken(queue)[0] is low


def test_an_equal_priority_does_not_take_over() -> None:
    vhost, _ = new_vhost(Queue("single", {**QUORUM, "x-single-active-consumer": True}))
    first = subscribe(vhost, "single", prefetch=5, priority=1)
    subscribe(vhost, "single", prefetch=5, priority=1)
    for number in range(3):
        vhost.publish(message("single", number), now=0.0)
        subscription, _ = taken(vhost.queues["single"])
        subscription.unacked -= 1
        assert subscription is first


class NothingIsLost(RuleBasedStateMachine):
    """Whatever is done to a queue, every message is in one place, in order, and no consumer holds too much."""

    LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self.vhost, _ = new_vhost(
            Queue(
                "work",
                {
                    **QUORUM,
                    "x-delivery-limit": self.LIMIT,
                    "x-message-ttl": 10_000,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": "dead",
                },
            ),
            Queue("dead", {**QUORUM, "x-delivery-limit": -1}),
        )
        self.queue = self.vhost.queues["work"]
        self.now = 0.0
        self.published = 0
        self.acked = 0
        self.purged = 0
        self.held: list[Assignment] = []
        self.consumers: list[Subscription] = []

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.published += 1
            self.vhost.publish(message(number=self.published), now=self.now)

    @rule(prefetch=st.integers(1, 4), priority=st.integers(0, 2))
    def join(self, prefetch: int, priority: int) -> None:
        self.consumers.append(subscribe(self.vhost, "work", prefetch=prefetch, priority=priority))

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        consumer = self.consumers.pop(data.draw(st.integers(0, len(self.consumers) - 1)))
        self.vhost.unsubscribe(consumer)

    @rule()
    def deliver(self) -> None:
        foremost = next(iter(self.queue), None)
        assignment = self.queue.assign()
        if assignment is None:
            assert foremost is None or all(not consumer.has_room for consumer in self.consumers)
        else:
            subscription, entry = assignment
            assert entry is foremost
            assert subscription in self.consumers
            assert all(not c.has_room for c in self.consumers if c.priority > subscription.priority)
            self.held.append(assignment)

    def settle(self, data: st.DataObject) -> Entry:
        subscription, entry = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        subscription.unacked -= 1
        return entry

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        self.settle(data)
        self.acked += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.vhost.give_back(self.queue, self.settle(data), self.now)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        self.vhost.reject(self.queue, self.settle(data), self.now)

    @rule()
    def purge(self) -> None:
        self.purged += self.queue.purge()

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.vhost.expire(self.now)

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        dead = len(self.vhost.queues["dead"])
        assert self.published == len(self.queue) + len(self.held) + dead + self.acked + self.purged

    @invariant()
    def the_queue_is_in_order(self) -> None:
        positions = [entry.position for entry in self.queue]
        assert positions == sorted(set(positions))

    @invariant()
    def nobody_holds_too_much_or_too_often(self) -> None:
        assert all(consumer.unacked <= consumer.prefetch for consumer in self.consumers)
        assert all(entry.returns <= self.LIMIT for entry in self.queue)

    @invariant()
    def nothing_overstays(self) -> None:
        assert all(entry.expires is not None and entry.expires > self.now for entry in self.queue)
        assert self.vhost.next_expiry is None or self.vhost.next_expiry > self.now
        assert not len(self.queue) or self.vhost.next_expiry is not None


TestNothingIsLost = NothingIsLost.TestCase


# Limits.


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (replace(message(), routing_key="k" * 256), "routing_key"),
        (message(reply_to="ö" * 128), "reply_to"),
        (message(message_id="\udfff"), "message_id"),
        (message(type=7), "type"),
        (message(headers={"cc-like": None}), "cc-like"),
        (message(headers={"CC": "x"}), "CC"),
        (message(headers={7: "x"}), "header"),
        (message(headers={"text": "\ud800"}), "text"),
        (message(expiration="5"), "expiration"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_message_is_named(wrong: Message, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        check_message(wrong)


def test_limits_are_in_bytes_and_reached_exactly() -> None:
    check_message(message(reply_to="ö" * 127 + "x", headers={"ö" * 127: "v"}))
    filling = MAX_HEADERS - len("h") - 10
    check_message(message(headers={"h": "v" * filling}))
    check_message(message(headers={"h": "ö" * (filling // 2)}))
    for beyond in ("v" * (filling + 1), "ö" * (filling // 2 + 1)):
        with pytest.raises(BadRequest, match="headers"):
            check_message(message(headers={"h": beyond}))


def test_no_properties_at_all_are_fine() -> None:
    check_message(Message(exchange=EXCHANGE, routing_key="", body=b"", properties=Properties(content_type=None)))
