"""A producer that survives anything: it publishes until that is confirmed, and takes replies from a durable queue.

It writes down what it does before it does it, so that a successor can go on where it was killed:

    python -m chaos.requester JOURNAL NAME SEED COUNT     # the broker's URL in QUAYBRIDGE_BROKER
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from bridge_protocol.envelope import ATTEMPT, NODE, REDELIVERED, request_properties
from bridge_protocol.errors import CodedError, OutcomeUnknown, PublishFailed, RequestFailed
from bridge_protocol.messages import Request, Result, decode_message, encode_request
from bridge_protocol.topology import EXCHANGE, REPLY_PREFIX, UNLIMITED, Queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker, BrokerError, Channel, Consumer, Delivery, Message
from broker.failpoints import FailingBroker
from broker.link import Link
from chaos.ledger import RESULT, Ledger, digest, line
from chaos.plan import Calls
from chaos.workload import SERVICE, Asked, made
from producer.async_producer import AsyncProducer
from quaybridge.failpoints import armed_failpoints

PREFETCH = 200
PUBLISH_TIMEOUT = 5.0  # seconds
PAUSE = 0.2  # seconds before what was not confirmed is published again
CONNECT_TIMEOUT = 60.0  # seconds
CALL_TIMEOUT = 90.0  # seconds: more than any fault takes, so that a call that ends by it is one that was lost

Note = Callable[..., None]  # what is written down: the name of a Ledger's method, and its arguments


class Requester:
    """Publishes requests and takes their replies, through connection after connection. `note` writes down."""

    def __init__(self, broker: Broker, name: str, note: Note) -> None:
        self.queue = REPLY_PREFIX + name
        self.republished = 0
        self.last_reply = 0.0  # on the monotonic clock
        self.last_by_node: dict[str, float] = {}
        self.failures: list[CodedError | BrokerError] = []  # how publishes ended that were not confirmed
        self._note = note
        self._link = Link(broker, name, set_up=self._set_up)

    async def start(self) -> None:
        """Connect, and take the replies that are there."""
        await self._link.start(CONNECT_TIMEOUT)

    async def close(self) -> None:
        """Disconnect."""
        await self._link.close()

    async def send(self, asked: Asked) -> None:
        """Publish it, again and again under the same id, until the broker has confirmed it."""
        first = True
        while True:
            self._note("attempted", asked.message_id, asked.kind, asked.expected)
            self.republished += not first
            first = False
            try:
                await self._link.publish(self._message(asked), timeout=PUBLISH_TIMEOUT)
            except (CodedError, BrokerError) as error:
                self._note("unconfirmed", asked.message_id)
                self.failures.append(error)
                await asyncio.sleep(PAUSE)
            else:
                self._note("confirmed", asked.message_id)
                return

    def _message(self, asked: Asked) -> Message:
        now = time.time()
        deadline = None if asked.timeout is None else int((now + asked.timeout) * 1000)
        request = Request(id=int(asked.message_id[:13], 16) + 1, command=asked.command, args=dict(asked.args))
        properties = request_properties(
            message_id=asked.message_id, command=asked.command, reply_to=self.queue, deadline=deadline
        )
        return Message(exchange=EXCHANGE, routing_key=SERVICE, body=encode_request(request), properties=properties)

    async def _set_up(self, channel: Channel) -> None:
        await channel.declare([Queue(self.queue, {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED})])
        await channel.consume(self.queue, self._on_reply, on_cancelled=self._on_cancelled, prefetch=PREFETCH)

    def _on_cancelled(self, consumer: Consumer) -> None:
        self._link.rebuild(f"the broker ended the subscription to {consumer.queue}")

    def _on_reply(self, delivery: Delivery) -> None:
        properties = delivery.properties
        said = decode_message(delivery.body)
        content = digest(said.result) if isinstance(said, Result) else getattr(said, "error", "")
        body = hashlib.sha256(delivery.body).hexdigest()
        outcome = properties.type or "?"
        self._note(
            "replied",
            properties.correlation_id or "?",
            outcome,
            content,
            f"{body} of {properties.headers.get(NODE)}, try {properties.headers.get(ATTEMPT)}",
            again=delivery.redelivered,
            redelivered=properties.headers.get(REDELIVERED) is True,
            retried=properties.headers.get(ATTEMPT, 1) > 1,
        )
        self.last_reply = self.last_by_node[str(properties.headers.get(NODE))] = time.monotonic()
        delivery.ack()


class Caller:
    """Calls through an AsyncProducer. `calls` says how replies come."""

    def __init__(self, broker: Broker, name: str, note: Note, *, calls: Calls) -> None:
        durable = calls is Calls.DURABLE
        self.queue = REPLY_PREFIX + name if durable else None
        self.last_reply = 0.0
        self.last_by_node: dict[str, float] = {}
        self.failures: list[CodedError | BrokerError] = []
        self._note = note
        self._idempotent = durable
        self._producer = AsyncProducer(
            broker, name=name, connect_timeout=CONNECT_TIMEOUT, reply_queue=name if durable else None
        )

    @property
    def republished(self) -> int:
        """How often something was published again."""
        return self._producer.republished

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def close(self) -> None:
        """Disconnect."""
        await self._producer.close()

    async def send(self, asked: Asked) -> None:
        """Call until it reached a queue; one that may have is not called again."""
        while True:
            self._note("attempted", asked.message_id, asked.kind, asked.expected)
            try:
                reply = await self._producer.call(
                    SERVICE, asked.command, asked.args, timeout=CALL_TIMEOUT, idempotent=self._idempotent
                )
            except OutcomeUnknown as error:
                self.failures.append(error)
                self._note("unconfirmed", asked.message_id)
                return
            except RequestFailed as error:
                self._note("confirmed", asked.message_id)
                self._note("replied", asked.message_id, error.code.value, error.message, "")
                return
            except PublishFailed as error:
                self.failures.append(error)
                await asyncio.sleep(PAUSE)
            else:
                self._note("confirmed", asked.message_id)
                self._note(
                    *("replied", asked.message_id, RESULT, digest(reply.result), ""),
                    redelivered=reply.redelivered,
                    retried=reply.attempt > 1,
                )
                self.last_reply = self.last_by_node[str(reply.node)] = time.monotonic()
                return


async def publish_all(requester: Requester, requests: Iterable[Asked], in_flight: int) -> None:
    """Publish them all, so many at once; returns when each is confirmed."""
    left = iter(requests)

    async def some() -> None:
        for asked in left:
            await requester.send(asked)

    await asyncio.gather(*(some() for _ in range(in_flight)))


async def _run(journal: Path, name: str, seed: int, count: int) -> None:
    """Go on where the journal ends, until every request is confirmed and has an outcome."""
    ledger = Ledger()
    with journal.open("a+") as file:
        file.seek(0)
        ledger.read(file)

        def note(what: str, *arguments: Any, **options: Any) -> None:
            os.write(file.fileno(), line(what, *arguments, **options).encode())
            getattr(ledger, what)(*arguments, **options)

        broker: Broker = AmqpBroker(parse_addresses(os.environ["QUAYBRIDGE_BROKER"]))
        if (failpoints := armed_failpoints(os.environ)) is not None:
            broker = FailingBroker(broker, failpoints)
        requester = Requester(broker, name, note)
        await requester.start()
        requests = islice(made(seed, seconds=(0.0, 0.005), mixed=False), count)
        left = [asked for asked in requests if not _is_confirmed(ledger, asked)]
        await publish_all(requester, left, 20)
        while ledger.unsettled:
            await asyncio.sleep(0.05)
        await requester.close()


def _is_confirmed(ledger: Ledger, asked: Asked) -> bool:
    entry = ledger.entries.get(asked.message_id)
    return entry is not None and entry.confirmed


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
