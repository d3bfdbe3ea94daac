"""RabbitMQ as a broker: `broker.contract` kept over AMQP 0-9-1.

Of one publish, from the call to the end of its future:

    publish() ─┬─ the broker is blocked: held here ──▶ Blocked, if it stays so past the deadline
               └─ sent, numbered ──┬─ ack ─────▶ None      (one ack may stand for many)
                                   ├─ nack ────▶ Refused
                                   ├─ return ──▶ Unroutable (its ack, which follows, is of no interest)
                                   ├─ deadline ▶ OutcomeUnknown
                                   └─ the channel closes ▶ ChannelClosed
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties
from bridge_protocol.errors import Blocked, OutcomeUnknown, Refused
from bridge_protocol.topology import Binding, Exchange, Queue, Resource
from broker import amqp_frames as frames
from broker.address import Address
from broker.amqp_connection import AmqpConnection, connect
from broker.contract import (
    AccessRefused,
    ChannelClosed,
    ConnectionRefused,
    Consumer,
    Delivery,
    Message,
    TopologyMismatch,
    Unroutable,
)
from broker.limits import check_message

SWEEP_INTERVAL = 0.1  # seconds: how late a publish may notice that its time is over

_ACCESS_REFUSED, _PRECONDITION_FAILED = 403, 406
_DELIVERY_COUNT = "x-delivery-count"
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']*)' for (?P<kind>\w+) '(?P<name>[^']*)' in vhost '(?P<vhost>.*?)': "
    r"received (?P<received>.*) but current is (?P<current>.*)"
)


class AmqpBroker:
    """RabbitMQ at one of several addresses, tried in turn, each for at most 10 s."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        if not addresses:
            raise ValueError("a broker needs at least one address")
        self._addresses = tuple(addresses)

    def __repr__(self) -> str:
        return f"<AmqpBroker {self.address}>"

    @property
    def address(self) -> str:
        """The addresses, with their passwords masked."""
        return ", ".join(str(address) for address in self._addresses)

    async def open(
        self,
        name: str,
        *,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None = None,
    ) -> AmqpChannel:
        """See `broker.contract.Broker.open`. AccessRefused if one of the addresses refused access, and none let in."""
        refusals: list[AccessRefused | ConnectionRefused] = []
        for address in self._addresses:
            channel = AmqpChannel(address, on_closed, on_blocked)
            try:
                channel.attach(await connect(address, name, channel))
            except (AccessRefused, ConnectionRefused) as refusal:
                refusals.append(refusal)
            else:
                return channel
        if len(refusals) == 1:
            raise refusals[0]
        sentences = "; ".join(str(refusal) for refusal in refusals)
        if any(isinstance(refusal, AccessRefused) for refusal in refusals):
            raise AccessRefused(sentences)
        raise ConnectionRefused(sentences)


class _Publish:
    """A publish that has not ended. `deadline` on the loop's clock."""

    __slots__ = ("deadline", "future", "message")

    def __init__(self, message: Message, future: asyncio.Future[None], deadline: float) -> None:
        self.message = message
        self.future = future
        self.deadline = deadline

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Subscription:
    """A consumer and whom to call. `cancelled` ends when the broker has confirmed its end."""

    __slots__ = ("cancelled", "consumer", "on_cancelled", "on_delivery")

    def __init__(
        self,
        consumer: Consumer,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[Consumer], None] | None,
    ) -> None:
        self.consumer = consumer
        self.on_delivery = on_delivery
        self.on_cancelled = on_cancelled
        self.cancelled: asyncio.Future[Any] | None = None


class AmqpChannel:
    """A `broker.contract.Channel`. Opened by AmqpBroker.

    An exception that leaves `on_delivery` closes the connection: nobody would settle that delivery.
    """

    def __init__(
        self,
        address: Address,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None,
    ) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._on_closed = on_closed
        self._on_blocked = on_blocked
        self._connection: AmqpConnection
        self._server = ""
        self._ended: ChannelClosed | None = None
        self._blocked: str | None = None
        self._sequence = 0
        self._unconfirmed: dict[int, _Publish] = {}  # by publish sequence number, in order
        self._held: deque[_Publish] = deque()  # not sent: the broker is blocked
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._subscriptions: dict[str, _Subscription] = {}
        self._unsettled: dict[int, None] = {}  # delivery tags, in order
        self._acked: set[int] = set()  # in this turn of the loop
        self._tags = (f"c{number}" for number in itertools.count(1))
        self._calls: set[asyncio.Future[Any]] = set()  # synchronous methods the broker has not answered

    def __repr__(self) -> str:
        state = f"closed: {self._ended}" if self._ended else f"blocked: {self._blocked}" if self._blocked else "open"
        return (
            f"<AmqpChannel {self._address} {state}, {len(self._unconfirmed)} unconfirmed, {len(self._held)} held, "
            f"{len(self._subscriptions)} consumers>"
        )

    def attach(self, connection: AmqpConnection) -> None:
        """Give it the connection it is the channel of. Once, before anything else."""
        self._connection = connection
        self._server = connection.server

    @property
    def closed(self) -> bool:
        return self._ended is not None

    @property
    def blocked(self) -> str | None:
        return self._blocked

    @property
    def server(self) -> str:
        return self._server

    # Publishing.

    def publish(self, message: Message, *, timeout: float) -> asyncio.Future[None]:
        if self._ended is not None:
            raise self._closed_error()
        check_message(message)
        future: asyncio.Future[None] = self._loop.create_future()
        publish = _Publish(message, future, self._loop.time() + timeout)
        if self._blocked is None:
            self._send(publish)
        else:
            self._held.append(publish)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL, self._sweep)
        return future

    def _send(self, publish: _Publish) -> None:
        self._sequence += 1
        self._unconfirmed[self._sequence] = publish
        for data in frames.publish_frames(publish.message, self._connection.largest_body):
            self._connection.send(data)

    def _sweep(self) -> None:
        now = self._loop.time()
        for sequence in [number for number, publish in self._unconfirmed.items() if publish.deadline <= now]:
            publish = self._unconfirmed.pop(sequence)
            publish.fail(
                OutcomeUnknown(
                    f"the broker at {self._address} did not confirm the message in time",
                    message_id=publish.message.properties.message_id,
                )
            )
        for _ in range(len(self._held)):
            publish = self._held.popleft()
            if publish.deadline > now:
                self._held.append(publish)
                continue
            publish.fail(
                Blocked(
                    f"the broker at {self._address} takes no messages: {self._blocked}",
                    message_id=publish.message.properties.message_id,
                )
            )
        waiting = self._unconfirmed or self._held
        self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL, self._sweep) if waiting else None

    def on_confirm(self, sequence: int, multiple: bool, taken: bool) -> None:
        if not multiple:
            if publish := self._unconfirmed.pop(sequence, None):
                self._confirm(publish, taken)
            return
        while self._unconfirmed and (first := next(iter(self._unconfirmed))) <= sequence:
            self._confirm(self._unconfirmed.pop(first), taken)

    def _confirm(self, publish: _Publish, taken: bool) -> None:
        if publish.future.done():  # cancelled by whom it belongs to
            return
        if taken:
            publish.future.set_result(None)
        else:
            message = publish.message
            publish.fail(
                Refused(
                    f"the broker refused a message for {message.routing_key!r}: its queue is full",
                    message_id=message.properties.message_id,
                )
            )

    def on_return(self, method: bytes, properties: Properties) -> None:
        _, exchange, routing_key = frames.read_return(method)
        # A return does not say which publish it is about; returns come in the order of their publishes.
        for sequence, publish in self._unconfirmed.items():
            message = publish.message
            if (
                message.properties.message_id == properties.message_id
                and message.properties.correlation_id == properties.correlation_id
                and message.routing_key == routing_key
                and message.exchange == exchange
            ):
                del self._unconfirmed[sequence]
                publish.fail(Unroutable(f"no queue is bound to {routing_key!r} of exchange {exchange!r}"))
                return

    def on_blocked(self, reason: str | None) -> None:
        self._blocked = reason
        while self._held and self._blocked is None:
            publish = self._held.popleft()
            if not publish.future.done():
                self._send(publish)
        if self._on_blocked is not None:
            self._on_blocked(reason)

    # Consuming.

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
        if not no_ack and not prefetch:
            raise ValueError("a consumer that acks needs a prefetch: without one the whole queue would come at once")
        methods = self._methods()
        consumer = Consumer(tag=next(self._tags), queue=queue)
        self._subscriptions[consumer.tag] = _Subscription(consumer, on_delivery, on_cancelled)
        if not no_ack:
            # Not global: in AMQP's words, for the consumers that follow on this channel, each (CONS, "prefetch").
            methods.basic_qos(prefetch_count=prefetch)
        await self._call(
            methods.basic_consume,
            queue,
            _never_called,
            auto_ack=no_ack,
            exclusive=exclusive,
            consumer_tag=consumer.tag,
            arguments={} if priority is None else {"x-priority": priority},
        )
        return consumer

    async def cancel(self, consumer: Consumer) -> None:
        subscription = self._subscriptions.get(consumer.tag)
        if subscription is None:
            return
        if subscription.cancelled is None:
            subscription.cancelled = self._call(self._methods().basic_cancel, consumer.tag)
        await asyncio.shield(subscription.cancelled)
        self._subscriptions.pop(consumer.tag, None)

    def on_deliver(self, method: bytes, properties: Properties, body: bytes) -> None:
        consumer_tag, tag, redelivered, exchange, routing_key = frames.read_deliver(method)
        subscription = self._subscriptions.get(consumer_tag)
        if subscription is None or self._ended is not None:
            return
        self._unsettled[tag] = None
        subscription.on_delivery(
            Delivery(
                body=body,
                properties=properties,
                exchange=exchange,
                routing_key=routing_key,
                redelivered=redelivered,
                delivery_count=_delivery_count(properties) if redelivered else 0,
                tag=tag,
                channel=self,
            )
        )

    def on_cancelled(self, tag: str) -> None:
        subscription = self._subscriptions.pop(tag, None)
        if subscription is not None and subscription.on_cancelled is not None:
            subscription.on_cancelled(subscription.consumer)

    def ack(self, tag: int) -> None:
        if self._ended is not None:
            return
        if not self._acked:
            self._loop.call_soon(self._send_acks)
        self._acked.add(tag)

    def _send_acks(self) -> None:
        """Send what was acked in this turn of the loop: the oldest, as far as they are in a row, with one ack."""
        acked, self._acked = self._acked, set()
        if self._ended is not None:
            return
        row = 0
        for tag in self._unsettled:
            if tag not in acked:
                break
            row = tag
        for tag in acked:
            del self._unsettled[tag]
            if tag > row:
                self._connection.send(frames.ack_frame(tag))
        if row:
            self._connection.send(frames.ack_frame(row, multiple=True))

    def reject(self, tag: int, *, requeue: bool) -> None:
        if self._ended is None:
            del self._unsettled[tag]
            self._connection.send(frames.reject_frame(tag, requeue=requeue))

    # Queues and exchanges.

    async def declare(self, resources: Iterable[Resource]) -> None:
        # Without a wait for each: the broker answers only the last, and closes the channel over the first it refuses.
        *silent, last = resources
        try:
            for resource in silent:
                self._declare(resource)
            await self._call(partial(self._declare, last))
        except ChannelClosed as error:
            if error.code == _ACCESS_REFUSED:
                raise AccessRefused(error.reason) from error
            if error.code == _PRECONDITION_FAILED:
                raise TopologyMismatch(_difference(error.reason)) from error
            raise

    def _declare(self, resource: Resource, callback: Callable[[Any], None] | None = None) -> None:
        methods = self._methods()
        match resource:
            case Exchange(name):
                methods.exchange_declare(name, exchange_type="topic", durable=True, callback=callback)
            case Queue(name, arguments, exclusive):
                methods.queue_declare(
                    name, durable=not exclusive, exclusive=exclusive, arguments=dict(arguments), callback=callback
                )
            case Binding(source, key, destination, True):
                methods.exchange_bind(destination, source, key, callback=callback)
            case Binding(source, key, destination):
                methods.queue_bind(destination, source, key, callback=callback)

    async def declare_reply_queue(self) -> str:
        return DIRECT_REPLY_TO

    async def queue_length(self, queue: str) -> int:
        answer = await self._call(self._methods().queue_declare, queue, passive=True)
        return int(answer.method.message_count)

    async def purge(self, queue: str) -> int:
        answer = await self._call(self._methods().queue_purge, queue)
        return int(answer.method.message_count)

    # The end.

    async def close(self) -> None:
        if self._ended is None:
            self._finish(ChannelClosed("the channel was closed by this side"))
        self._connection.begin_close()
        await asyncio.shield(self._connection.gone)

    def on_ended(self, reason: ChannelClosed) -> None:
        if self._ended is None:
            self._finish(reason)
            self._on_closed(reason)

    def _finish(self, reason: ChannelClosed) -> None:
        self._ended = reason
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        unfinished = (*self._unconfirmed.values(), *self._held)
        self._unconfirmed.clear()
        self._held.clear()
        self._subscriptions.clear()
        for publish in unfinished:
            publish.fail(self._closed_error())
        for call in tuple(self._calls):
            if not call.done():
                call.set_exception(self._closed_error())

    # Synchronous methods.

    def _methods(self) -> Any:
        if self._ended is not None:
            raise self._closed_error()
        return self._connection.methods

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> asyncio.Future[Any]:
        """Start `method`; the future ends with the broker's answer, or with ChannelClosed."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        method(*arguments, callback=partial(_answer, future), **options)
        return future

    def _closed_error(self) -> ChannelClosed:
        assert self._ended is not None
        return ChannelClosed(self._ended.reason, self._ended.code)


def _answer(call: asyncio.Future[Any], answer: Any) -> None:
    if not call.done():  # else its caller was cancelled, or the channel has closed
        call.set_result(answer)


def _delivery_count(properties: Properties) -> int:
    """How often a redelivered message came back: once at least, and otherwise what the broker counted.

    Believed only here, where `redelivered` says that the broker wrote the header: on a first delivery it may be
    the publisher's own (RabbitMQ passes it on).
    """
    count = properties.headers.get(_DELIVERY_COUNT)
    return max(count, 1) if isinstance(count, int) else 1


def _difference(reason: str) -> str:
    """RabbitMQ's 406 as a sentence that says what differs and what to do."""
    if (found := _INEQUIVALENT.search(reason)) is None:
        return reason
    kind, name = found["kind"], found["name"]
    return (
        f"{kind} {name!r} in vhost {found['vhost']!r} exists with another {found['argument']}: "
        f"there it is {found['current']}, wanted was {found['received']}. "
        f"Empty and delete the {kind} (rabbitmqctl delete_queue {name}), or use another vhost"
    )


def _never_called(*_: object) -> None:
    raise AssertionError("deliveries do not reach pika")
