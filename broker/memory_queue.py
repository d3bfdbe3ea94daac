"""One queue of the embedded broker: which message goes to which consumer, and what becomes of it. Pure.

    put ──▶ ready ──assign──▶ with a consumer ──▶ acked: gone
            ▲   │               │         │
            │ expire        give_back  rejected
            │   │               │ │       │
            │   ▼               │ ▼       ▼
            │  dead_letter      │ dead_letter
            └── where it was ◀──┘

Nothing here calls anybody: `assign` says who gets what, and `broker.memory` delivers it. Times are seconds of
the event loop's clock, given as arguments.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge_protocol.topology import Queue
from broker.contract import Channel, Consumer, Delivery, Message

EXPIRED = "expired"
REJECTED = "rejected"
DELIVERY_LIMIT = "delivery_limit"

# Of a quorum queue that names none, from RabbitMQ 4.0 on (rabbitmq.com/docs/quorum-queues, "poison messages").
_DEFAULT_DELIVERY_LIMIT = 20
# RabbitMQ 4.0 has two priorities on quorum queues, normal and high from here on; 4.3 has them in strict order.
_HIGH_PRIORITY = 5

_UNDERSTOOD = {
    "x-queue-type": ("classic", "quorum"),
    "x-dead-letter-exchange": str,
    "x-dead-letter-routing-key": str,
    "x-dead-letter-strategy": ("at-most-once", "at-least-once"),
    "x-overflow": ("reject-publish",),
    "x-max-length": int,
    "x-message-ttl": int,
    "x-delivery-limit": int,
    "x-consumer-timeout": int,
    "x-single-active-consumer": bool,
}


class Entry:
    """A message in a queue, from `put` until it is settled. `returns` counts how often it was handed back.

    `expires` is None where it never does, `trail` the queues it was dead-lettered from since it was last rejected.
    """

    __slots__ = ("expires", "message", "position", "returns", "trail")

    def __init__(
        self, message: Message, position: int, expires: float | None, trail: tuple[str, ...], returns: int
    ) -> None:
        self.message = message
        self.position = position
        self.expires = expires
        self.trail = trail
        self.returns = returns

    def __lt__(self, other: Entry) -> bool:
        return self.position < other.position

    def __repr__(self) -> str:
        return f"<Entry {self.position} {self.message.routing_key!r} {self.returns} returns>"


class Subscription:
    """A consumer at its queue. `unacked` is how many deliveries it holds: `assign` counts up, its channel down.

    `deliver` and `cancelled` are its channel's.
    """

    __slots__ = (
        "cancelled",
        "consumer",
        "deliver",
        "exclusive",
        "no_ack",
        "on_cancelled",
        "on_delivery",
        "prefetch",
        "priority",
        "queue",
        "unacked",
    )

    def __init__(
        self,
        consumer: Consumer,
        queue: MemoryQueue,
        *,
        deliver: Callable[[Assignment], None],
        cancelled: Callable[[Subscription], None],
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[Consumer], None] | None,
        prefetch: int,
        priority: int,
        no_ack: bool,
        exclusive: bool,
    ) -> None:
        self.consumer = consumer
        self.queue = queue
        self.deliver = deliver
        self.cancelled = cancelled
        self.on_delivery = on_delivery
        self.on_cancelled = on_cancelled
        self.prefetch = prefetch
        self.priority = priority
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.unacked = 0

    @property
    def has_room(self) -> bool:
        """Whether its prefetch leaves room for one more."""
        return not self.prefetch or self.unacked < self.prefetch

    def __repr__(self) -> str:
        bound = self.prefetch or "∞"
        return f"<Subscription {self.consumer.tag} to {self.queue.name} {self.unacked}/{bound} unacked>"


Assignment = tuple[Subscription, Entry]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message to be published once more, to the queue's dead-letter exchange, but to no queue on its `trail`.

    `returns` go with it: where it ends, its first delivery counts as one more, as in RabbitMQ 4.3.
    `kept`: the queue's strategy is at-least-once, so it waits where no queue takes it yet.
    """

    message: Message
    trail: tuple[str, ...]
    returns: int
    kept: bool


class MemoryQueue:
    """A queue and its consumers. `owner` is the channel an exclusive queue lives and dies with."""

    def __init__(self, declared: Queue, owner: Channel | None = None, *, auto_delete: bool = False) -> None:
        arguments = declared.arguments
        self.declared = declared
        self.name = declared.name
        self.owner = owner
        self.auto_delete = auto_delete
        ttl = arguments.get("x-message-ttl")
        self.ttl = None if ttl is None else ttl / 1000  # seconds
        self.quorum = arguments.get("x-queue-type") == "quorum"
        limit = arguments.get("x-delivery-limit", _DEFAULT_DELIVERY_LIMIT if self.quorum else -1)
        self._delivery_limit: int | None = limit if limit >= 0 else None
        self._max_length: int | None = arguments.get("x-max-length")
        self._single_active: bool = arguments.get("x-single-active-consumer", False)
        self._positions = 0
        # Returned entries were taken from the front, so they precede whatever is ready.
        self._returned: list[Entry] = []  # a heap
        self._high: deque[Entry] = deque()
        self._normal: deque[Entry] = deque()
        self._by_priority: dict[int, deque[Subscription]] = {}  # highest first; the next to be served in front
        self._active: Subscription | None = None

    def __len__(self) -> int:
        """How many messages are ready."""
        return len(self._returned) + len(self._high) + len(self._normal)

    def __iter__(self) -> Iterator[Entry]:
        """The ready messages, in the order they would be delivered."""
        yield from sorted(self._returned)
        yield from self._high
        yield from self._normal

    def __repr__(self) -> str:
        return f"<MemoryQueue {self.name} {len(self)} ready, {len(self.subscriptions)} consumers>"

    @property
    def subscriptions(self) -> list[Subscription]:
        """Its consumers, the highest priority first."""
        return [subscription for group in self._by_priority.values() for subscription in group]

    @property
    def full(self) -> bool:
        """Whether a publish must be refused."""
        return self._max_length is not None and len(self) >= self._max_length

    def put(self, message: Message, now: float, trail: tuple[str, ...] = (), returns: int = 0) -> None:
        """Append `message`. Whoever publishes asks `full` first; dead letters are taken in any case."""
        self._positions += 1
        expires = None if self.ttl is None else now + self.ttl
        entry = Entry(message, self._positions, expires, trail, returns)
        priority = message.properties.priority
        lane = self._normal if priority is None or priority < _HIGH_PRIORITY else self._high
        lane.append(entry)

    def assign(self) -> Assignment | None:
        """Take the next message for the consumer whose turn it is; None if nothing is ready or nobody has room.

        Unless the consumer is `no_ack`, it then holds one more unacked.
        """
        if not (self._normal or self._returned or self._high):
            return None
        consumer = self._active_consumer() if self._single_active else self._next_consumer()
        if consumer is None:
            return None
        entry = heapq.heappop(self._returned) if self._returned else (self._high or self._normal).popleft()
        if not consumer.no_ack:
            consumer.unacked += 1
        return consumer, entry

    def _next_consumer(self) -> Subscription | None:
        """The highest priority that has room; among equals the one served longest ago."""
        for group in self._by_priority.values():
            for _ in range(len(group)):
                consumer = group[0]
                group.rotate(-1)
                if consumer.has_room:
                    return consumer
        return None

    def _active_consumer(self) -> Subscription | None:
        """The single active consumer, if it has room: as RabbitMQ does it from 4.0 on.

        A consumer of higher priority takes over once the active one has settled what it holds; until then
        nobody gets anything.
        """
        highest = next((group[0] for group in self._by_priority.values()), None)
        if self._active is None:
            self._active = highest
        elif highest is not None and highest.priority > self._active.priority:
            if self._active.unacked:
                return None
            self._active = highest
        return self._active if self._active is not None and self._active.has_room else None

    def give_back(self, entry: Entry) -> bool:
        """`entry` is ready again, where it was: or, if that was once too often, gone, and False is returned.

        With a limit of 5 a message is delivered 6 times, as in RabbitMQ.
        """
        entry.returns += 1
        if self._delivery_limit is not None and entry.returns > self._delivery_limit:
            return False
        heapq.heappush(self._returned, entry)
        return True

    def expire(self, now: float) -> list[Entry]:
        """Take out what is ready and has outlived its time."""
        late: list[Entry] = []
        while self._returned and _is_late(self._returned[0], now):
            late.append(heapq.heappop(self._returned))
        for lane in (self._high, self._normal):
            while lane and _is_late(lane[0], now):
                late.append(lane.popleft())
        return late

    @property
    def next_expiry(self) -> float | None:
        """When the next ready message expires, if one does."""
        heads = [lane[0].expires for lane in (self._returned, self._high, self._normal) if lane]
        return min((expires for expires in heads if expires is not None), default=None)

    def dead_letter(self, entry: Entry, reason: str) -> DeadLetter | None:
        """What to publish in place of `entry`; None if the queue has no dead-letter exchange."""
        arguments = self.declared.arguments
        exchange = arguments.get("x-dead-letter-exchange")
        if exchange is None:
            return None
        message = entry.message
        last = {"queue": self.name, "reason": reason, "exchange": message.exchange}
        headers = {f"x-first-death-{key}": value for key, value in last.items()}
        headers |= message.properties.headers
        headers |= {f"x-last-death-{key}": value for key, value in last.items()}
        return DeadLetter(
            Message(
                exchange=exchange,
                routing_key=arguments.get("x-dead-letter-routing-key", message.routing_key),
                body=message.body,
                properties=replace(message.properties, headers=headers),
            ),
            () if reason == REJECTED else (*entry.trail, self.name),
            entry.returns + (reason == REJECTED),
            arguments.get("x-dead-letter-strategy") == "at-least-once",
        )

    def add(self, subscription: Subscription) -> None:
        """Take a consumer on, behind its equals."""
        self._by_priority.setdefault(subscription.priority, deque()).append(subscription)
        self._by_priority = dict(sorted(self._by_priority.items(), reverse=True))

    def remove(self, subscription: Subscription) -> None:
        """Let a consumer go. What it holds stays unacked."""
        group = self._by_priority[subscription.priority]
        group.remove(subscription)
        if not group:
            del self._by_priority[subscription.priority]
        if self._active is subscription:
            self._active = None

    def purge(self) -> int:
        """Remove what is ready; how many that was."""
        removed = len(self)
        for lane in (self._returned, self._high, self._normal):
            lane.clear()
        return removed


def argument_problem(arguments: Mapping[str, Any]) -> str | None:
    """Why a queue with these arguments cannot be had, or None. What is not understood is refused, not ignored."""
    for name, value in arguments.items():
        allowed = _UNDERSTOOD.get(name)
        if allowed is None:
            return f"the embedded broker does not know the queue argument {name!r}"
        known = value in allowed if isinstance(allowed, tuple) else type(value) is allowed
        if not known:
            return f"invalid value {value!r:.40} of the queue argument {name!r}"
    for name in ("x-message-ttl", "x-max-length", "x-consumer-timeout"):
        if arguments.get(name, 0) < 0:
            return f"the queue argument {name!r} cannot be negative"
    if "x-max-length" in arguments and "x-overflow" not in arguments:
        return "the embedded broker knows 'x-max-length' only with 'x-overflow' = 'reject-publish'"
    if "x-dead-letter-routing-key" in arguments and "x-dead-letter-exchange" not in arguments:
        return "'x-dead-letter-routing-key' needs 'x-dead-letter-exchange'"
    return None


def _is_late(entry: Entry, now: float) -> bool:
    return entry.expires is not None and entry.expires <= now
