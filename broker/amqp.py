"""RabbitMQ as a broker: `broker.contract` kept over AMQP 0-9-1.

AmqpBroker      addresses, tried in turn
AmqpChannel     consumers, acks, declarations; what the contract says
Publishes       (broker.amqp_publishes) from publish() to its end
AmqpConnection  (broker.amqp_connection) the socket, pika, and who is told what
amqp_frames     the bytes of publishes, deliveries and confirms
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties
from bridge_protocol.topology import Binding, Exchange, Queue, Resource
from broker import amqp_frames as frames
from broker.address import Address
from broker.amqp_connection import AmqpConnection, connect
from broker.amqp_publishes import Publishes
from broker.confirm import Confirm
from broker.contract import (
    MAX_PREFETCH,
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
from broker.reply_address import PREFIX, readable, reads_any_address

FIRST_PAUSE = 0.05  # seconds, before a delivery that comes after its subscription's end is handed back; then twice that
MOST_DOUBLINGS = 7

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


class _Subscription:
    """A consumer and whom to call. `cancelled` ends when the broker has confirmed its end."""

    __slots__ = ("cancelled", "consumer", "no_ack", "on_cancelled", "on_delivery")

    def __init__(
        self,
        consumer: Consumer,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[Consumer], None] | None,
        no_ack: bool,
    ) -> None:
        self.consumer = consumer
        self.on_delivery = on_delivery
        self.on_cancelled = on_cancelled
        self.no_ack = no_ack
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
        self._reads_any_address = True
        self._ended: ChannelClosed | None = None
        self._publishes = Publishes(self._loop, self._send)
        self._subscriptions: dict[str, _Subscription] = {}
        self._withdrawn: set[str] = set()  # consumer tags of the subscriptions that the broker ended
        self._unsettled: dict[int, None] = {}  # delivery tags, in order
        self._acked: set[int] = set()  # in this turn of the loop
        self._tags = (f"c{number}" for number in itertools.count(1))
        self._calls: set[asyncio.Future[Any]] = set()  # synchronous methods the broker has not answered

    def __repr__(self) -> str:
        state = f"closed: {self._ended}" if self._ended else f"blocked: {self.blocked}" if self.blocked else "open"
        return f"<AmqpChannel {self._address} {state}, {len(self._subscriptions)} consumers, {self._publishes!r}>"

    def attach(self, connection: AmqpConnection) -> None:
        """Give it the connection it is the channel of. Once, before anything else."""
        self._connection = connection
        self._server = connection.server
        self._reads_any_address = reads_any_address(self._server)

    @property
    def closed(self) -> bool:
        """Whether it is closed: for good."""
        return self._ended is not None

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no publishes for now, or None. It says so after the first one it does not take."""
        return self._publishes.blocked

    @property
    def receiving(self) -> bool:
        """Whether a message has begun to come whose body is not here yet."""
        return self._ended is None and self._connection.receiving

    @property
    def server(self) -> str:
        """Product and version, as the broker told them."""
        return self._server

    # Publishing.

    def publish(self, message: Message, *, timeout: float) -> Confirm:
        """Publish as mandatory (a direct reply is not: see `amqp_frames.publish_frames`); see the contract."""
        if self._ended is not None:
            raise self._closed_error()
        check_message(message)
        if not self._reads_any_address and message.routing_key.startswith(PREFIX) and not readable(message.routing_key):
            returned = Confirm()
            returned.fail(Unroutable(f"{message.routing_key!r} is nobody's address"))
            return returned
        return self._publishes.add(message, timeout)

    def _send(self, message: Message) -> None:
        self._connection.send(frames.publish_frames(message, self._connection.largest_body))

    def on_confirm(self, sequence: int, multiple: bool, taken: bool) -> None:
        """See `Events`."""
        self._publishes.on_confirm(sequence, multiple, taken)

    def on_return(self, method: bytes, properties: Properties) -> None:
        """See `Events`."""
        self._publishes.on_return(*frames.read_return(method), properties)

    def on_blocked(self, reason: str | None) -> None:
        """See `Events`."""
        self._publishes.on_blocked(reason)
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
        """Subscribe; returns when the broker has confirmed it. Raises ValueError for a prefetch that is none."""
        if not no_ack and not 1 <= prefetch <= MAX_PREFETCH:
            raise ValueError(f"a consumer that acks needs a prefetch of 1 … {MAX_PREFETCH}, not {prefetch}")
        methods = self._methods()
        consumer = Consumer(tag=next(self._tags), queue=queue)
        self._subscriptions[consumer.tag] = _Subscription(consumer, on_delivery, on_cancelled, no_ack)
        if not no_ack:
            # Not global: for each consumer that follows on this channel (rabbitmq.com/docs/consumer-prefetch).
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
        """End the subscription; what is on its way until the broker confirms that is still delivered."""
        subscription = self._subscriptions.get(consumer.tag)
        if subscription is None:
            return
        if subscription.cancelled is None:
            subscription.cancelled = self._call(self._methods().basic_cancel, consumer.tag)
        await asyncio.shield(subscription.cancelled)
        self._subscriptions.pop(consumer.tag, None)

    def on_deliver(self, method: bytes, properties: Properties, body: bytes | bytearray) -> None:
        """See `Events`."""
        consumer_tag, tag, redelivered, exchange, routing_key = frames.read_deliver(method)
        subscription = self._subscriptions.get(consumer_tag)
        if self._ended is not None:
            return
        if consumer_tag in self._withdrawn:
            # From 4.3 on a consumer that was cancelled for an ack timeout is given messages again once the late ack
            # has come. Handed back they would return at once, until the queue's delivery limit ends them.
            self.on_ended(ChannelClosed("the broker delivers for a subscription that it had ended"))
            return
        if subscription is None:
            # RabbitMQ may send what was on its way from a quorum queue after it confirmed the cancel: unsettled, it
            # would stay with this channel, and hold up a queue with a single active consumer. Just after its start 4.3
            # goes on with that for a while, and what is rejected at once comes again at once: with no other consumer
            # there yet it is at the queue's delivery limit in a fifth of a second. So each time it waits for longer.
            pause = FIRST_PAUSE * 2 ** min(_delivery_count(properties) if redelivered else 0, MOST_DOUBLINGS)
            self._unsettled[tag] = None  # until then: no ack of all up to a later one may settle it
            self._loop.call_later(pause, partial(self.reject, tag, requeue=True))
            return
        if not subscription.no_ack:
            self._unsettled[tag] = None
        delivery = Delivery(
            body=body,
            properties=properties,
            exchange=exchange,
            routing_key=routing_key,
            redelivered=redelivered,
            delivery_count=_delivery_count(properties) if redelivered else 0,
            tag=tag,
            channel=self,
        )
        try:
            subscription.on_delivery(delivery)
        except Exception as error:
            # Nobody would settle that delivery. The loop's exception handler gets it, and the socket is closed.
            self.on_ended(ChannelClosed(f"on_delivery raised {type(error).__name__}: {error}"))
            raise

    def on_cancelled(self, tag: str) -> None:
        """See `Events`."""
        subscription = self._subscriptions.pop(tag, None)
        if subscription is None:
            return
        self._withdrawn.add(tag)
        if subscription.on_cancelled is not None:
            subscription.on_cancelled(subscription.consumer)

    def ack(self, tag: int) -> None:
        """Settle one delivery. Does nothing on a closed channel; an unknown tag closes it (406)."""
        if self._ended is not None:
            return
        if tag not in self._unsettled or tag in self._acked:
            self._connection.send(frames.ack_frame(tag))  # a mistake, which the broker answers with 406
            return
        if not self._acked:
            self._loop.call_soon(self._send_acks)
        self._acked.add(tag)

    def _send_acks(self) -> None:
        """Send what was acked in this turn of the loop: the oldest, as far as they are in a row, with one ack."""
        acked, self._acked = self._acked, set()
        row = 0
        for tag in self._unsettled:
            if tag not in acked:
                break
            row = tag
        for tag in acked:
            self._unsettled.pop(tag, None)
            if tag > row:
                self._connection.send(frames.ack_frame(tag))
        if row:
            self._connection.send(frames.ack_frame(row, multiple=True))

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Hand one delivery back, or dead-letter it. Otherwise as `ack`."""
        if self._ended is None:
            self._unsettled.pop(tag, None)
            self._connection.send(frames.reject_frame(tag, requeue=requeue))

    # Queues and exchanges.

    async def declare(self, resources: Iterable[Resource]) -> None:
        """Declare all of them, in order and in one go.

        The broker answers only the last one: the channel closes over the first it refuses.
        """
        if not (ordered := list(resources)):
            return
        *silent, last = ordered
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
        """The pseudo queue of direct reply-to: the broker puts this channel's address in its place."""
        self._methods()
        return DIRECT_REPLY_TO

    async def queue_length(self, queue: str) -> int:
        """How many messages are ready in `queue`."""
        answer = await self._call(self._methods().queue_declare, queue, passive=True)
        return int(answer.method.message_count)

    async def purge(self, queue: str) -> int:
        """Remove all messages that are ready; how many they were."""
        answer = await self._call(self._methods().queue_purge, queue)
        return int(answer.method.message_count)

    # The end.

    async def close(self) -> None:
        """Close channel and connection, after what was acked is sent; takes at most CLOSE_TIMEOUT (3 s)."""
        if self._ended is None:
            self._send_acks()
            self._finish(ChannelClosed("the channel was closed by this side"))
        self._connection.begin_close()
        await asyncio.shield(self._connection.gone)

    def on_ended(self, reason: ChannelClosed) -> None:
        """See `Events`."""
        if self._ended is None:
            self._finish(reason)
            self._on_closed(reason)

    def _finish(self, reason: ChannelClosed) -> None:
        self._ended = reason
        self._subscriptions.clear()
        self._unsettled.clear()
        self._acked.clear()
        self._publishes.end(reason)
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
    kind, name, vhost = found["kind"], found["name"], found["vhost"]
    command = f"rabbitmqctl --vhost {vhost} delete_queue {name}, " if kind == "queue" else ""
    return (
        f"{kind} {name!r} in vhost {vhost!r} exists with another {found['argument']}: "
        f"there it is {found['current']}, wanted was {found['received']}. "
        f"Empty and delete it ({command}or in the management page), or use another vhost"
    )


def _never_called(*_: object) -> None:
    raise AssertionError("deliveries do not reach pika")
