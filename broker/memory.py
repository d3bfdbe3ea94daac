"""The embedded broker: keeps `broker.contract` within one process and one event loop, without a server.

It is what quaybridge runs on where no RabbitMQ is there, and what users test their programs with. It behaves as
RabbitMQ 4 does with everything `bridge_protocol.topology` declares, and is as strict: what would close a channel
there closes it here. What it does not do: outlive the process, replicate, or enforce `x-consumer-timeout`.

    MemoryBroker   channels, the alarm, and the turn of the loop in which everything happens
    MemoryChannel  its consumers, and the deliveries they hold
    VirtualHost    exchanges, queues, messages (broker.memory_vhost, broker.memory_queue, broker.routing: pure)

What a call changes, it changes at once. What follows from it (confirms, deliveries, callbacks) happens in the
next turn of the event loop, all of it in one turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from bridge_protocol.envelope import DIRECT_REPLY_TO
from bridge_protocol.errors import Blocked, Refused
from bridge_protocol.topology import Resource
from broker.confirm import Confirm
from broker.contract import (
    MAX_PREFETCH,
    AccessRefused,
    BrokerError,
    ChannelClosed,
    Consumer,
    Delivery,
    Message,
    TopologyMismatch,
    Unroutable,
)
from broker.limits import check_message
from broker.memory_queue import Assignment, MemoryQueue, Subscription
from broker.memory_vhost import ACCESS_REFUSED, CONNECTION_FORCED, PRECONDITION_FAILED, VirtualHost

# Deliveries of one queue in one turn: more would keep the loop from its pipes and sockets.
_BATCH = 256


class Counts(NamedTuple):
    """How many messages of a queue wait, and how many are with consumers."""

    ready: int
    unacked: int


class MemoryBroker:
    """A broker in this process: it belongs to the event loop it is first used on, and ends with it.

    Beside the contract it offers what an operator could do to a RabbitMQ, to test programs with: `close_all`,
    `cancel_consumers`, `block`, `unblock`, `delete_queue`, all to be called on `loop`; and a look inside:
    `messages`, `counts`.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._vhost = VirtualHost()
        self._channels: dict[MemoryChannel, None] = {}
        self._blocked: str | None = None
        # What the next turn has to do, beside the queues that are awake.
        self._calls: deque[Callable[[], None]] = deque()
        self._confirms: list[tuple[MemoryChannel, Confirm, Exception | None]] = []
        self._turn_is_planned = False
        self._expiry_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        blocked = ", blocked" if self._blocked is not None else ""
        return f"<MemoryBroker {len(self._vhost.queues)} queues, {len(self._channels)} channels{blocked}>"

    @property
    def address(self) -> str:
        """`memory`."""
        return "memory"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it belongs to; None until it is used."""
        return self._loop

    async def open(
        self,
        name: str,
        *,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None = None,
    ) -> MemoryChannel:
        """Open a channel. Raises BrokerError on another event loop than the first one's."""
        channel = MemoryChannel(self, self._check_loop(), name, on_closed, on_blocked)
        self._channels[channel] = None
        if self._blocked is not None:
            self._tell_blocked(channel)
        return channel

    def close_all(self, reason: str) -> None:
        """Close every channel, as an operator would: unacked messages go back, each `on_closed` is called."""
        self._check_loop()
        for channel in list(self._channels):
            channel._fail(f"CONNECTION_FORCED - {reason}", CONNECTION_FORCED)

    def cancel_consumers(self, queue: str) -> None:
        """End every subscription to `queue`; each `on_cancelled` is called. Raises KeyError without such a queue."""
        self._check_loop()
        for subscription in self._vhost.queues[queue].subscriptions:
            subscription.cancelled(subscription)

    def delete_queue(self, name: str) -> None:
        """Delete a queue with all that is in it; its consumers are cancelled. Raises KeyError without such a queue."""
        queue = self._vhost.queues[name]
        self.cancel_consumers(name)
        self._vhost.delete_queue(queue)

    def block(self, reason: str) -> None:
        """Raise an alarm: what is published is held back until `unblock`, or until its timeout."""
        self._check_loop()
        self._blocked = reason
        for channel in self._channels:
            self._tell_blocked(channel)

    def unblock(self) -> None:
        """End the alarm: what was held back is published, in order."""
        self._check_loop()
        self._blocked = None
        for channel in list(self._channels):
            self._tell_blocked(channel)
            channel._release()

    def messages(self, queue: str) -> list[Message]:
        """The messages ready in `queue`, in order, left where they are. Raises KeyError without such a queue."""
        return [entry.message for entry in self._vhost.queues[queue]]

    def counts(self, queue: str) -> Counts:
        """How many messages of `queue` are ready and unacked. Raises KeyError without such a queue."""
        ready = len(self._vhost.queues[queue])
        return Counts(ready, sum(channel._unacked_of(queue) for channel in self._channels))

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        running = asyncio.get_running_loop()
        if running is not self._loop:
            if self._loop is not None:
                raise BrokerError("this embedded broker belongs to another event loop: share it only within one")
            self._loop = running
        return running

    def _tell_blocked(self, channel: MemoryChannel) -> None:
        if channel._on_blocked is not None:
            self._later(partial(channel._on_blocked, self._blocked))

    def _publish(self, channel: MemoryChannel, message: Message, confirm: Confirm) -> None:
        outcome: Exception | None = None
        try:
            self._vhost.publish(message, channel._loop.time())
        except ChannelClosed as error:
            channel._fail_with(error)
        except (Unroutable, Refused) as error:
            outcome = error
        self._confirm_later(channel, confirm, outcome)

    def _confirm_later(self, channel: MemoryChannel, confirm: Confirm, outcome: Exception | None = None) -> None:
        self._confirms.append((channel, confirm, outcome))
        if not self._turn_is_planned:
            self._plan_turn()

    def _later(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._plan_turn()

    def _plan_turn(self) -> None:
        if not self._turn_is_planned:
            self._turn_is_planned = True
            assert self._loop is not None
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Do what is due. What a callback raises goes to the loop's handler; the rest then waits for the next turn."""
        self._turn_is_planned = False
        vhost = self._vhost
        try:
            for _ in range(len(self._calls)):
                self._calls.popleft()()
            if self._confirms:
                self._confirm()
            for queue in list(vhost.awake):
                self._deliver(queue)
        finally:
            if self._calls or self._confirms or vhost.awake:
                self._plan_turn()
            self._plan_expiry()

    def _confirm(self) -> None:
        confirms, self._confirms = self._confirms, []
        for channel, confirm, outcome in confirms:
            if channel._ended is not None:
                confirm.fail(channel._closed_error())
            elif outcome is not None:
                confirm.fail(outcome)
            else:
                confirm.succeed()

    def _deliver(self, queue: MemoryQueue) -> None:
        for _ in range(_BATCH):
            assignment = queue.assign()
            if assignment is None:
                self._vhost.awake.pop(queue, None)
                return
            assignment[0].deliver(assignment)

    def _plan_expiry(self) -> None:
        """Have one timer, for the message that expires first."""
        moment, timer = self._vhost.next_expiry, self._expiry_timer
        if timer is not None and moment != timer.when():
            timer.cancel()
            timer = self._expiry_timer = None
        if timer is None and moment is not None:
            assert self._loop is not None
            self._expiry_timer = self._loop.call_at(moment, self._expire)

    def _expire(self) -> None:
        self._expiry_timer = None
        assert self._loop is not None
        self._vhost.expire(self._loop.time())
        self._plan_turn()


class MemoryChannel:
    """A channel of the embedded broker: `MemoryBroker.open` makes them.

    An exception that leaves `on_delivery` closes it, and goes on to the event loop's exception handler.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        loop: asyncio.AbstractEventLoop,
        name: str,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None,
    ) -> None:
        self.name = name
        self._broker = broker
        self._vhost = broker._vhost
        self._loop = loop
        self._on_closed = on_closed
        self._on_blocked = on_blocked
        self._ended: ChannelClosed | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._consumers_made = 0
        self._unacked: dict[int, Assignment] = {}
        self._last_tag = 0
        self._held: dict[Confirm, tuple[Message, asyncio.TimerHandle]] = {}

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._subscriptions)} consumers, {len(self._unacked)} unacked"
        return f"<MemoryChannel {self.name!r} {state}>"

    @property
    def closed(self) -> bool:
        """Whether it is closed: for good."""
        return self._ended is not None

    @property
    def blocked(self) -> str | None:
        """Why publishes are held back for now, or None."""
        return self._broker._blocked

    @property
    def receiving(self) -> bool:
        """Never: here messages come whole."""
        return False

    @property
    def server(self) -> str:
        """What stands in for RabbitMQ."""
        return "quaybridge embedded broker"

    def publish(self, message: Message, *, timeout: float) -> Confirm:
        """Publish; see the contract. `timeout` (seconds) matters only while blocked."""
        broker = self._broker
        broker._check_loop()
        self._check_open()
        check_message(message)
        confirm = Confirm()
        if message.properties.reply_to == DIRECT_REPLY_TO:
            # declare_reply_queue gives out addresses of their own, so nobody consumes this one.
            self._fail("PRECONDITION_FAILED - fast reply consumer does not exist", PRECONDITION_FAILED)
            broker._confirm_later(self, confirm)
        elif broker._blocked is not None:
            self._held[confirm] = (message, self._loop.call_later(timeout, self._give_up, confirm))
        else:
            broker._publish(self, message, confirm)
        return confirm

    async def declare(self, resources: Iterable[Resource]) -> None:
        """Declare all of them, in order; see the contract."""
        self._check_open()
        for resource in resources:
            try:
                self._vhost.declare(resource, self, self._loop.time())
            except (TopologyMismatch, AccessRefused, ChannelClosed) as error:
                self._fail_with(error)
                raise
        self._broker._plan_turn()

    async def declare_reply_queue(self) -> str:
        """An unguessable address of this channel's own; it ends with its consumer, or with the channel."""
        self._check_open()
        return self._vhost.declare_reply_queue(self)

    async def consume(
        self,
        queue: str,
        on_delivery: Callable[[Delivery], None],
        *,
        on_cancelled: Callable[[Consumer], None] | None = None,
        prefetch: int = 0,
        priority: int | None = None,
        no_ack: bool = False,
        exclusive: bool = False,
    ) -> Consumer:
        """Subscribe; see the contract."""
        if not no_ack and not 1 <= prefetch <= MAX_PREFETCH:
            raise ValueError(f"a consumer that acks needs a prefetch of 1 … {MAX_PREFETCH}, not {prefetch}")
        self._check_open()
        self._consumers_made += 1
        consumer = Consumer(tag=f"ctag{self._consumers_made}", queue=queue)
        try:
            subscription = Subscription(
                consumer,
                self._vhost.queue(queue, self),
                deliver=self._deliver,
                cancelled=self._cancelled,
                on_delivery=on_delivery,
                on_cancelled=on_cancelled,
                prefetch=0 if no_ack else prefetch,
                priority=priority or 0,
                no_ack=no_ack,
                exclusive=exclusive,
            )
            self._vhost.subscribe(subscription)
        except ChannelClosed as error:
            self._fail_with(error)
            raise
        self._subscriptions[consumer.tag] = subscription
        self._broker._plan_turn()
        return consumer

    async def cancel(self, consumer: Consumer) -> None:
        """End the subscription: no delivery comes after the call. What it holds may still be settled."""
        if subscription := self._subscriptions.get(consumer.tag):
            self._unsubscribe(subscription)

    def ack(self, tag: int) -> None:
        """Settle one delivery. Does nothing on a closed channel; an unknown tag closes it (406), as in RabbitMQ."""
        if assignment := self._take(tag):
            queue = assignment[0].queue
            if len(queue):
                self._vhost.awake[queue] = None
                self._broker._plan_turn()

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Hand one delivery back, or dead-letter it. Otherwise as `ack`."""
        if assignment := self._take(tag):
            subscription, entry = assignment
            act = self._vhost.give_back if requeue else self._vhost.reject
            act(subscription.queue, entry, self._loop.time())
            self._broker._plan_turn()

    async def queue_length(self, queue: str) -> int:
        """How many messages are ready in `queue`. Another's reply address never holds any, as in RabbitMQ."""
        self._check_open()
        if queue.startswith(f"{DIRECT_REPLY_TO}.") and queue in self._vhost.queues:
            return 0
        return len(self._queue(queue))

    async def purge(self, queue: str) -> int:
        """Remove all messages that are ready; how many they were."""
        return self._queue(queue).purge()

    async def close(self) -> None:
        """Close it; `on_closed` is not called. Nothing happens if it is closed."""
        if self._ended is None:
            self._end(ChannelClosed("the channel was closed here"))

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._closed_error()

    def _closed_error(self) -> ChannelClosed:
        """A new one each time: whoever raises an exception writes its traceback into it."""
        assert self._ended is not None
        return ChannelClosed(self._ended.reason, self._ended.code)

    def _queue(self, name: str) -> MemoryQueue:
        self._check_open()
        try:
            return self._vhost.queue(name, self)
        except ChannelClosed as error:
            self._fail_with(error)
            raise

    def _deliver(self, assignment: Assignment) -> None:
        subscription, entry = assignment
        self._last_tag = tag = self._last_tag + 1
        if not subscription.no_ack:
            self._unacked[tag] = assignment
        message = entry.message
        delivery = Delivery(
            body=message.body,
            properties=message.properties,
            exchange=message.exchange,
            routing_key=message.routing_key,
            redelivered=entry.returns > 0,
            delivery_count=entry.returns,
            tag=tag,
            channel=self,
        )
        try:
            subscription.on_delivery(delivery)
        except Exception as error:
            # Nobody would settle that delivery.
            self._fail(f"on_delivery raised {type(error).__name__}: {error}", 0)
            raise

    def _take(self, tag: int) -> Assignment | None:
        """End what the consumer holds by `tag`; None on a closed channel, or where that closes it."""
        if self._ended is not None:
            return None
        assignment = self._unacked.pop(tag, None)
        if assignment is None:
            self._fail(f"PRECONDITION_FAILED - unknown delivery tag {tag}", PRECONDITION_FAILED)
            return None
        assignment[0].unacked -= 1
        return assignment

    def _unacked_of(self, queue: str) -> int:
        return sum(subscription.queue.name == queue for subscription, _ in self._unacked.values())

    def _unsubscribe(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription.consumer.tag]
        self._vhost.unsubscribe(subscription)
        self._broker._plan_turn()

    def _cancelled(self, subscription: Subscription) -> None:
        """The broker ends a subscription."""
        self._unsubscribe(subscription)
        if subscription.on_cancelled is not None:
            self._broker._later(partial(subscription.on_cancelled, subscription.consumer))

    def _release(self) -> None:
        """The alarm is over: publish what was held back."""
        held, self._held = self._held, {}
        for confirm, (message, timer) in held.items():
            timer.cancel()
            if self._ended is None:
                self._broker._publish(self, message, confirm)
            else:
                text = f"publishing was blocked ({self.blocked}), and then the channel closed: {self._ended.reason}"
                confirm.fail(Blocked(text, message_id=message.properties.message_id))

    def _give_up(self, confirm: Confirm) -> None:
        message, _ = self._held.pop(confirm)
        reason = f"publishing is blocked: {self.blocked}"
        confirm.fail(Blocked(reason, message_id=message.properties.message_id))

    def _fail_with(self, error: BrokerError) -> None:
        if isinstance(error, ChannelClosed):
            self._fail(error.reason, error.code)
        else:
            self._fail(str(error), ACCESS_REFUSED if isinstance(error, AccessRefused) else PRECONDITION_FAILED)

    def _fail(self, reason: str, code: int) -> None:
        """The broker closes the channel."""
        if self._ended is None:
            self._end(ChannelClosed(reason, code))
            self._broker._later(partial(self._on_closed, self._closed_error()))

    def _end(self, why: ChannelClosed) -> None:
        """Everything it gave out ends with it: consumers, deliveries, unconfirmed publishes, exclusive queues."""
        self._ended = why
        del self._broker._channels[self]
        for subscription in list(self._subscriptions.values()):
            self._unsubscribe(subscription)
        unacked, self._unacked = self._unacked, {}
        now = self._loop.time()
        for subscription, entry in unacked.values():
            self._vhost.give_back(subscription.queue, entry, now)
        self._vhost.delete_queues_of(self)
        self._release()
        self._broker._plan_turn()
