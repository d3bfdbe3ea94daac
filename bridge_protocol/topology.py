"""The topology, version 1, as data: which exchanges, queues and bindings there are.

    quaybridge (topic) ──<service>──▶ quaybridge.<service> ──dead──▶ quaybridge.<service>.dead
        ▲                                                       (routing key <service>.dead)
        └── quaybridge.delay ◀── quaybridge.delay.0 ◀── … ◀── quaybridge.delay.16

A service with sessions has 32 queues more, `quaybridge.<service>.session.<k>`, in which the requests of a session
always meet: k is the CRC-32 of its id, modulo 32. One consumer at a time gets what is in them.

The numbers are constants: a queue's arguments cannot be changed once it is declared (406 PRECONDITION_FAILED).

Delays: exchange and queue n stand for 2^n seconds. A delayed message's routing key is its delay in 17 binary
digits, highest first, then the service. Where digit n is 1 exchange n routes into queue n, whose messages
expire after 2^n s into exchange n−1; where it is 0, straight to exchange n−1. After exchange 0 comes
`quaybridge.delay`, bound to each service's queue. (The scheme of NServiceBus. No message has a TTL of its own:
those expire only at the head of a queue.)
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

EXCHANGE = "quaybridge"
DELAY = "quaybridge.delay"
CONTROL = "quaybridge.control"
UNDELIVERABLE = "quaybridge.undeliverable"
REPLY_PREFIX = "quaybridge.reply."

DELAY_LEVELS = 17
MAX_DELAY = 2**DELAY_LEVELS - 1  # seconds: a little over 36 hours
DELIVERY_LIMIT = 20
# -1 means the same from RabbitMQ 4.0 on; 3.10 takes it, and deletes a message the first time it comes back.
UNLIMITED = 2**31 - 1
# RabbitMQ closes the channel of, or cancels, a consumer that holds a delivery longer than this.
CONSUMER_TIMEOUT = 24 * 3600  # seconds
MAX_RUN_TIMEOUT = 12 * 3600  # seconds
MAX_PRIORITY = 9
PARTITIONS = 32  # queues for the sessions of a service

RESERVED_NAMES = frozenset({"control", "delay", "reply", "undeliverable"})
_SERVICE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_REPLY_QUEUE = re.compile(r"[A-Za-z0-9_.-]{1,200}")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable topic exchange."""

    name: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, or (`exclusive`) one that lives as long as the connection that declares it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """From the exchange `source` to a queue or (`to_exchange`) an exchange."""

    source: str
    key: str
    destination: str
    to_exchange: bool = False


Resource = Exchange | Queue | Binding


@lru_cache(maxsize=1024)
def service_name_problem(name: str) -> str | None:
    """Why `name` cannot name a service, or None."""
    if name in RESERVED_NAMES:
        return f"{name!r} is reserved: choose another name"
    if not _SERVICE.fullmatch(name):
        return f"{name[:80]!r} is no service name: use [a-z][a-z0-9_-]*, at most 64 characters"
    return None


def request_queue(service: str) -> str:
    """The queue that holds the service's requests; its routing key is the service's name."""
    return f"{EXCHANGE}.{service}"


def partition_of(session: str) -> int:
    """The number of the queue in which the requests of a session meet, 0 … PARTITIONS − 1."""
    return zlib.crc32(session.encode()) % PARTITIONS


def session_key(service: str, partition: int) -> str:
    """The routing key of the requests of a partition's sessions."""
    return f"{service}.session.{partition}"


def session_queue(service: str, partition: int) -> str:
    """The queue that holds them."""
    return f"{EXCHANGE}.{session_key(service, partition)}"


def dead_letter_queue(service: str) -> str:
    """The queue that keeps the service's dead letters."""
    return f"{EXCHANGE}.{service}.dead"


def durable_reply_queue(name: str) -> Queue:
    """The durable queue that keeps the replies of the producer `name`, however often they are looked at.

    Raises ValueError for a name that cannot be one.
    """
    if not _REPLY_QUEUE.fullmatch(name):
        raise ValueError(f"{name[:80]!r} cannot name a reply queue: use 1 … 200 of A-Z a-z 0-9 . _ -")
    return _kept_queue(f"{REPLY_PREFIX}{name}")


def dead_letter_key(service: str) -> str:
    """The routing key of the service's dead letters."""
    return f"{service}.dead"


def delay_route(service: str, seconds: int) -> tuple[str, str]:
    """Exchange and routing key that bring a message to `service` after `seconds`, 1 … MAX_DELAY."""
    if not 1 <= seconds <= MAX_DELAY:
        raise ValueError(f"a delay must be 1 … {MAX_DELAY} seconds, not {seconds}")
    digits = ".".join(format(seconds, f"0{DELAY_LEVELS}b"))
    highest = seconds.bit_length() - 1
    return _level(highest), f"{digits}.{service}"


def shared_topology() -> tuple[Resource, ...]:
    """What all services share: the exchanges, the delay queues, the queue of undeliverable replies."""
    resources: list[Resource] = [Exchange(EXCHANGE), Exchange(CONTROL), Exchange(DELAY)]
    resources += [Exchange(_level(level)) for level in range(DELAY_LEVELS)]
    for level in range(DELAY_LEVELS):
        following = _level(level - 1) if level else DELAY
        skipped = "*." * (DELAY_LEVELS - 1 - level)
        resources += [
            Queue(_level(level), _quorum(expire_into=following, **{"x-message-ttl": 2**level * 1000})),
            Binding(_level(level), f"{skipped}1.#", _level(level)),
            Binding(_level(level), f"{skipped}0.#", following, to_exchange=True),
        ]
    return (*resources, _kept_queue(UNDELIVERABLE), Binding(EXCHANGE, "undeliverable", UNDELIVERABLE))


def dead_letter_topology(service: str) -> tuple[Resource, ...]:
    """Where the service's dead letters are kept."""
    dead = dead_letter_queue(service)
    return _kept_queue(dead), Binding(EXCHANGE, dead_letter_key(service), dead)


def service_topology(service: str) -> tuple[Resource, ...]:
    """What one service has beside that: its request queue and its dead letters."""
    queue = request_queue(service)
    return (
        *dead_letter_topology(service),
        Queue(queue, _request_arguments(service)),
        Binding(EXCHANGE, service, queue),
        Binding(DELAY, f"#.{service}", queue),
    )


def session_topology(service: str) -> tuple[Resource, ...]:
    """What a service with sessions has beside that: a queue for each partition."""
    arguments = {**_request_arguments(service), "x-single-active-consumer": True}
    resources: list[Resource] = []
    for partition in range(PARTITIONS):
        queue = session_queue(service, partition)
        resources += [Queue(queue, arguments), Binding(EXCHANGE, session_key(service, partition), queue)]
    return tuple(resources)


def _request_arguments(service: str) -> dict[str, Any]:
    return _quorum(
        expire_into=EXCHANGE,
        **{
            "x-dead-letter-routing-key": dead_letter_key(service),
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-consumer-timeout": CONSUMER_TIMEOUT * 1000,
        },
    )


def _level(level: int) -> str:
    return f"{DELAY}.{level}"


def _quorum(*, expire_into: str, **arguments: Any) -> dict[str, Any]:
    """Arguments of a quorum queue that loses nothing on the way to a dead-letter exchange.

    At-least-once dead-lettering works only with reject-publish: with another overflow RabbitMQ falls back to
    at-most-once without a word (rabbitmq.com/docs/quorum-queues, "at-least-once dead lettering").
    """
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": expire_into,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **arguments,
    }


def _kept_queue(name: str) -> Queue:
    """A queue to be looked into: with the default limit, the 21st look would delete a letter."""
    return Queue(name, {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED})
