"""The contract every broker keeps: what a producer and a node may ask of RabbitMQ, or of the embedded one.

    Broker ──open()──▶ Channel ──publish()──▶ a Confirm, which ends with the broker's
                          │    ──consume()──▶ Consumer ──▶ on_delivery(Delivery) ──▶ ack() / reject()
                          └─── on_closed(reason), once; on_blocked(reason | None)

A Channel is one connection with one channel on it. It never reconnects: when it is closed it stays closed,
and everything it gave out (deliveries, consumers, unconfirmed publishes) ends with it. `broker.link` opens the
next one.

Two implementations pass one test suite (tests/contract): `broker.amqp` and `broker.memory`. All callbacks run
on the event loop that opened the channel, and must not block; none runs inside the call that caused it, but those of
publishes that a `close` ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from bridge_protocol.envelope import Properties
from bridge_protocol.errors import QuaybridgeError
from bridge_protocol.topology import Resource
from broker.confirm import Confirm

MAX_PREFETCH = 65_535  # AMQP has two bytes for it


class BrokerError(QuaybridgeError):
    """Root of what a broker raises beside the coded errors of bridge_protocol.errors."""


class Unroutable(BrokerError):
    """Raised when the broker returned a mandatory message: no queue is bound to its routing key."""


class ConnectionRefused(BrokerError):
    """Raised when a broker could not be reached. Worth trying again."""


class AccessRefused(BrokerError):
    """Raised when the broker refused the credentials, the vhost or an operation. Trying again helps nobody."""


class TopologyMismatch(BrokerError):
    """Raised when a queue or exchange exists with other arguments; the message shows the difference."""


class ChannelClosed(BrokerError):
    """Raised by what was under way on a channel when it closed, and given to `on_closed`.

    `reason` is one sentence for a person, `code` AMQP's reply code (0: the connection was simply lost).
    """

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


@dataclass(slots=True, kw_only=True)  # not frozen, which would double what making one takes
class Message:
    """What is published: `body` travels byte for byte. The default exchange is the empty name.

    Once it was published nobody writes to its body any more: it may be sent later.
    """

    exchange: str
    routing_key: str
    body: bytes | bytearray
    properties: Properties


@dataclass(slots=True, eq=False, kw_only=True)
class Delivery:
    """A message given to a consumer. It carries how it is settled: exactly one `ack` or `reject`, once.

    `delivery_count` counts earlier deliveries that came back (0 the first time). Settling after the channel
    closed does nothing: the broker delivers the message again.
    """

    body: bytes | bytearray
    properties: Properties
    exchange: str
    routing_key: str
    redelivered: bool
    delivery_count: int
    tag: int
    channel: Channel

    @property
    def stale(self) -> bool:
        """Whether the channel it came by is gone: the broker will deliver it again, here or elsewhere."""
        return self.channel.closed

    def ack(self) -> None:
        """Settle it: the broker forgets the message."""
        self.channel.ack(self.tag)

    def reject(self, *, requeue: bool) -> None:
        """Hand it back to its queue, counted as a delivery; or dead-letter it."""
        self.channel.reject(self.tag, requeue=requeue)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A subscription on a channel; `tag` names it there."""

    tag: str
    queue: str


class Channel(Protocol):
    """One connection to a broker with one channel, in confirm mode. See the module's docstring."""

    @property
    def closed(self) -> bool:
        """Whether it is closed: for good."""

    @property
    def blocked(self) -> str | None:
        """Why the broker refuses to take publishes for now (an alarm), or None."""

    @property
    def receiving(self) -> bool:
        """Whether a message is on its way: begun, and not whole yet."""

    @property
    def server(self) -> str:
        """The broker's product and version, such as `RabbitMQ 4.0.5`."""

    def publish(self, message: Message, *, timeout: float) -> Confirm:
        """Publish as mandatory and persistent; the confirm ends within about `timeout` seconds.

        With None: the broker confirmed that a queue has it. With an exception: Unroutable (returned), Refused
        (nacked), Blocked (an alarm held it back until its time was over or the channel closed; it was not sent),
        OutcomeUnknown (sent, not confirmed in time), or ChannelClosed (`code` and `reason` of the close; it was
        sent, and may or may not have been taken).
        Raises ChannelClosed at once if the channel is closed, and BadRequest or TooLarge, before anything is
        sent, for a message that would make the broker close the channel.
        """

    async def declare(self, resources: Iterable[Resource]) -> None:
        """Declare all of them, in order. Raises TopologyMismatch, AccessRefused or ChannelClosed.

        After TopologyMismatch and AccessRefused the channel is closed, as the broker does it.
        """

    async def declare_reply_queue(self) -> str:
        """Make and name the address at which this channel's direct replies arrive.

        Consume it (no_ack) on this channel before publishing with it as `reply_to`.
        """

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
        """Subscribe. `prefetch` bounds this consumer's unacked deliveries: 1 … MAX_PREFETCH, and 0 with no_ack alone.

        `on_cancelled` is called when the broker ends the subscription (its queue was deleted, a node of the
        cluster was lost, a delivery was held too long). The channel must then be closed and a new one opened:
        from RabbitMQ 4.3 a consumer cancelled for an ack timeout otherwise holds its queue for ever
        (rabbitmq-server #17317).
        Raises ChannelClosed if the queue does not exist, and ValueError for a prefetch that is none.
        """

    async def cancel(self, consumer: Consumer) -> None:
        """End the subscription. Deliveries under way still come until this returns; none after."""

    def ack(self, tag: int) -> None:
        """Settle one delivery. Does nothing on a closed channel."""

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Hand one delivery back, or dead-letter it. Does nothing on a closed channel."""

    async def queue_length(self, queue: str) -> int:
        """How many messages are ready in `queue`. Raises ChannelClosed (404) if there is none.

        The address of another channel's direct replies may be asked after, too: 0 as long as that channel lives.
        """

    async def purge(self, queue: str) -> int:
        """Remove all messages that are ready; how many they were."""

    async def close(self) -> None:
        """Close channel and connection; returns when that is done, at most a few seconds. `on_closed` is not called."""


class Broker(Protocol):
    """Where to connect: a factory of channels, without a state of its own that a caller must close."""

    @property
    def address(self) -> str:
        """Where it is, for people: a URL without its password, or `memory`."""

    async def open(
        self,
        name: str,
        *,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None = None,
    ) -> Channel:
        """Connect and open a channel; `name` is shown to the broker's operator.

        `on_closed` is called once if the channel ends in any other way than by `close()`; `on_blocked` with
        the reason when an alarm blocks publishing and with None when it is over.
        Raises ConnectionRefused or AccessRefused.
        """
