"""What the embedded broker holds: exchanges, queues and the messages in them, a virtual host in RabbitMQ's words.

Pure: nothing here calls a consumer or knows a clock. What a change gives occasion to is left in `awake` and
`next_expiry`, and `broker.memory` acts on it in the loop's next turn. Times are seconds of the loop's clock.
"""

from __future__ import annotations

import secrets

from bridge_protocol.envelope import DIRECT_REPLY_TO
from bridge_protocol.errors import Refused
from bridge_protocol.topology import Binding, Exchange, Queue, Resource
from broker.contract import AccessRefused, Channel, ChannelClosed, Message, TopologyMismatch, Unroutable
from broker.memory_queue import (
    DELIVERY_LIMIT,
    EXPIRED,
    REJECTED,
    DeadLetter,
    Entry,
    MemoryQueue,
    Subscription,
    argument_problem,
)
from broker.routing import RoutingTable

# AMQP 0-9-1's reply codes, as RabbitMQ uses them.
CONNECTION_FORCED = 320
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406


class VirtualHost:
    """Exchanges, queues, messages. `awake`: queues that may have something for a consumer.

    `next_expiry`: no message expires before this moment; None: none will.
    """

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self.awake: dict[MemoryQueue, None] = {}
        self.next_expiry: float | None = None
        self._routing = RoutingTable()
        # Dead letters that no queue takes yet, of queues whose strategy is at-least-once.
        self._waiting: list[DeadLetter] = []

    def __repr__(self) -> str:
        return f"<VirtualHost {len(self.queues)} queues, {self._routing!r}, {len(self._waiting)} dead letters waiting>"

    def declare(self, resource: Resource, channel: Channel, now: float) -> None:
        """Have it. Raises TopologyMismatch, AccessRefused or ChannelClosed."""
        match resource:
            case Exchange(name):
                _check_name("exchange", name)
                self._routing.declare(name)
            case Queue():
                self._declare_queue(resource, channel)
            case Binding(source, _, destination, to_exchange):
                if source not in self._routing:
                    raise _not_found("exchange", source)
                if not to_exchange:
                    self.queue(destination, channel)
                elif destination not in self._routing:
                    raise _not_found("exchange", destination)
                self._routing.bind(resource)
        if self._waiting:
            self._waiting = [letter for letter in self._waiting if not self._put_dead_letter(letter, now)]

    def declare_reply_queue(self, channel: Channel) -> str:
        """A new queue of `channel`'s own, with an unguessable name, that ends with its consumer."""
        name = f"{DIRECT_REPLY_TO}.{secrets.token_urlsafe(16)}"
        self.queues[name] = MemoryQueue(Queue(name, exclusive=True), channel, auto_delete=True)
        return name

    def queue(self, name: str, channel: Channel) -> MemoryQueue:
        """The queue `name`, if `channel` may use it. Raises ChannelClosed."""
        queue = self.queues.get(name)
        if queue is None:
            raise _not_found("queue", name)
        if queue.owner not in (None, channel):
            raise ChannelClosed(f"RESOURCE_LOCKED - the queue {name!r} is another's alone", RESOURCE_LOCKED)
        return queue

    def publish(self, message: Message, now: float) -> None:
        """Bring it to its queues. Raises Unroutable, Refused, or ChannelClosed if there is no such exchange.

        Refused: a queue was full; others may have taken it, as in RabbitMQ.
        """
        try:
            queues = self._route(message)
        except KeyError:
            raise _not_found("exchange", message.exchange) from None
        if not queues:
            raise Unroutable(f"no queue takes {message.routing_key!r} from the exchange {message.exchange!r}")
        full = [queue.name for queue in queues if queue.full]
        for queue in queues:
            if queue.name not in full:
                self._put(queue, message, now)
        if full:
            raise Refused(f"the queue {full[0]} is full", message_id=message.properties.message_id)

    def give_back(self, queue: MemoryQueue, entry: Entry, now: float) -> None:
        """`entry` was not settled: it is ready again, or a dead letter if that was once too often or its time is up."""
        if self.queues.get(queue.name) is not queue:
            return  # deleted meanwhile, and its messages with it
        if not queue.give_back(entry):
            self._bury(queue, entry, DELIVERY_LIMIT, now)
        elif entry.expires is not None:
            self._expect_expiry(entry.expires)
            if entry.expires <= now:
                self.expire(now)
        self.awake[queue] = None

    def reject(self, queue: MemoryQueue, entry: Entry, now: float) -> None:
        """`entry` was rejected: it becomes a dead letter, if its queue has somewhere to send it."""
        self._bury(queue, entry, REJECTED, now)
        self.awake[queue] = None

    def expire(self, now: float) -> None:
        """Dead-letter what has outlived its queue's TTL, and find `next_expiry` anew."""
        mortal = [queue for queue in self.queues.values() if queue.ttl is not None]
        self.next_expiry = None
        for queue in mortal:
            for entry in queue.expire(now):
                self._bury(queue, entry, EXPIRED, now)
        for queue in mortal:
            if (moment := queue.next_expiry) is not None:
                self._expect_expiry(moment)

    def subscribe(self, subscription: Subscription) -> None:
        """Take a consumer on. Raises ChannelClosed if it, or the one that is there, wants to be alone.

        Quorum queues know no exclusive consumers: RabbitMQ takes the wish there, and does not heed it.
        """
        queue = subscription.queue
        others = queue.subscriptions
        if others and not queue.quorum and (subscription.exclusive or others[0].exclusive):
            raise ChannelClosed(f"ACCESS_REFUSED - the queue {queue.name!r} is in exclusive use", ACCESS_REFUSED)
        queue.add(subscription)
        self.awake[queue] = None

    def unsubscribe(self, subscription: Subscription) -> None:
        """Let a consumer go. What it holds stays with its channel."""
        queue = subscription.queue
        queue.remove(subscription)
        self.awake[queue] = None
        if queue.auto_delete and not queue.subscriptions:
            self.delete_queue(queue)

    def delete_queue(self, queue: MemoryQueue) -> None:
        """Forget a queue, which has no consumers any more, with all that is in it."""
        if self.queues.pop(queue.name, None) is not None:
            self.awake.pop(queue, None)
            self._routing.forget_queue(queue.name)

    def delete_queues_of(self, channel: Channel) -> None:
        """Forget the queues that were exclusive to `channel`, which ended."""
        for queue in [queue for queue in self.queues.values() if queue.owner is channel]:
            self.delete_queue(queue)

    def _declare_queue(self, declared: Queue, channel: Channel) -> None:
        _check_name("queue", declared.name)
        if problem := argument_problem(declared.arguments):
            raise TopologyMismatch(f"PRECONDITION_FAILED - {problem}")
        if declared.name not in self.queues:
            self.queues[declared.name] = MemoryQueue(declared, channel if declared.exclusive else None)
        elif difference := _difference(self.queue(declared.name, channel).declared, declared):
            raise TopologyMismatch(f"PRECONDITION_FAILED - {difference}")

    def _route(self, message: Message) -> list[MemoryQueue]:
        """The queues it goes to. Raises KeyError if there is no such exchange."""
        if not message.exchange:
            queue = self.queues.get(message.routing_key)
            return [] if queue is None else [queue]
        return [self.queues[name] for name in self._routing.route(message.exchange, message.routing_key)]

    def _put(self, queue: MemoryQueue, message: Message, now: float, letter: DeadLetter | None = None) -> None:
        if letter is None:
            queue.put(message, now)
        else:
            queue.put(message, now, letter.trail, letter.returns)
        if queue.ttl is not None:
            self._expect_expiry(now + queue.ttl)
        self.awake[queue] = None

    def _expect_expiry(self, moment: float) -> None:
        if self.next_expiry is None or moment < self.next_expiry:
            self.next_expiry = moment

    def _bury(self, queue: MemoryQueue, entry: Entry, reason: str, now: float) -> None:
        letter = queue.dead_letter(entry, reason)
        if letter is not None and not self._put_dead_letter(letter, now) and letter.kept:
            self._waiting.append(letter)

    def _put_dead_letter(self, letter: DeadLetter, now: float) -> bool:
        """Bring it to its queues, full or not; whether there are any.

        A message that would go round in a circle in which nobody rejects it is dropped, as RabbitMQ does it
        (rabbitmq.com/docs/dlx, "automatic dead letter cycles").
        """
        message = letter.message
        if message.exchange and message.exchange not in self._routing:
            return False
        queues = self._route(message)
        for queue in queues:
            if queue.name not in letter.trail:
                self._put(queue, message, now, letter)
        return bool(queues)


def _check_name(kind: str, name: str) -> None:
    if name.startswith("amq.") or not name:
        raise AccessRefused(f"ACCESS_REFUSED - the {kind} name {name!r} is reserved")


def _not_found(kind: str, name: str) -> ChannelClosed:
    return ChannelClosed(f"NOT_FOUND - no {kind} {name!r}", NOT_FOUND)


def _difference(current: Queue, wanted: Queue) -> str | None:
    present, asked = ({**queue.arguments, "exclusive": queue.exclusive} for queue in (current, wanted))
    for name in sorted({*present, *asked}):
        here, there = present.get(name), asked.get(name)
        if here != there:
            return f"inequivalent arg {name!r} for queue {wanted.name!r}: received {there!r} but current is {here!r}"
    return None
