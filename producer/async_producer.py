"""The producer for asyncio.

    async with AsyncProducer("amqp://user:secret@host/vhost") as producer:
        reply = await producer.call("analyse", "summarise", {"path": "setup.py"}, timeout=30)
        handle = await producer.submit("analyse", "summarise", {"path": "setup.py"})
        reply = await handle
        async for reply in producer.map("analyse", "summarise", many_args, in_flight=200): ...

Replies come by direct reply-to: at most once. A call whose connection is lost ends in OutcomeUnknown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self

from bridge_protocol.envelope import DIRECT_REPLY_TO
from bridge_protocol.errors import (
    Blocked,
    BrokerUnavailable,
    CodedError,
    DeadlineExceeded,
    FrameError,
    OutcomeUnknown,
    QuaybridgeError,
    UnknownService,
)
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker, BrokerError, Channel, ChannelClosed, Consumer, Delivery, Message, Unroutable
from broker.link import Link
from producer.reply import Reply, read_reply
from producer.request import PreparedRequest, check_timeout, prepare
from producer.window import Window

CONNECT_TIMEOUT = 10.0  # seconds
DEFAULT_TIMEOUT = 30.0  # seconds
MOST_UNCONFIRMED = 1024
MOST_UNCONFIRMED_BYTES = 64 * 1024 * 1024

_NOT_FOUND = 404

logger = logging.getLogger("quaybridge.producer")


class Handle:
    """A request on its way. Await it for the Reply, or for the exception that stands for its failure."""

    __slots__ = ("future", "message_id")

    def __init__(self, message_id: str, future: asyncio.Future[Reply]) -> None:
        self.message_id = message_id
        self.future = future

    def __repr__(self) -> str:
        return f"<Handle {self.message_id} {'done' if self.future.done() else 'waiting'}>"

    def __await__(self) -> Generator[Any, None, Reply]:
        return self.future.__await__()

    async def result(self) -> Reply:
        """The Reply. Raises the exception that stands for the request's failure."""
        return await self.future

    def done(self) -> bool:
        """Whether it has come to its end, either way."""
        return self.future.done()


class AsyncProducer:
    """Publishes requests and brings their replies back. One event loop, one connection; started once.

    `broker`: a URL (or several, separated by commas, tried in turn), or a Broker such as MemoryBroker. Raises
    ValueError for a URL that cannot be one. Publishes that the broker has not confirmed yet are bounded by
    count and bytes; past that `submit`, `call` and `publish` wait, within their own timeout.
    """

    def __init__(
        self,
        broker: Broker | str,
        *,
        name: str = "producer",
        connect_timeout: float = CONNECT_TIMEOUT,
        max_unconfirmed: int = MOST_UNCONFIRMED,
        max_unconfirmed_bytes: int = MOST_UNCONFIRMED_BYTES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.broker: Broker = AmqpBroker(parse_addresses(broker)) if isinstance(broker, str) else broker
        self.late_replies = 0  # replies that came after their caller had given up, or twice, or unasked
        self._connect_timeout = connect_timeout
        self._window = Window(max_unconfirmed, max_unconfirmed_bytes)
        self._wall = wall
        self._link = Link(self.broker, name, set_up=self._set_up, on_lost=self._on_lost, readdress=self._readdress)
        self._reply_to = DIRECT_REPLY_TO
        self._exchange_seen = False  # by this channel: a publish that finds none was taken by nobody
        self._waiting: dict[str, _Call] = {}

    def __repr__(self) -> str:
        return f"<AsyncProducer {self._link!r}, {len(self._waiting)} awaiting replies>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Raises BrokerUnavailable, with the reason, if that fails within `connect_timeout` seconds.

        Raises RuntimeError if it was started or closed before.
        """
        try:
            await self._link.start(self._connect_timeout)
        except BrokerError as error:
            raise BrokerUnavailable(f"cannot connect to {self.broker.address}: {error}") from error

    async def close(self) -> None:
        """Disconnect. Calls under way end in OutcomeUnknown: nobody will hear their replies.

        Those that were not sent yet end in BrokerUnavailable, as does whatever is asked for from then on.
        """
        try:
            await self._link.close()
        finally:
            self._end_confirmed("the producer was closed before its reply came")

    async def call(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Reply:
        """Send a request and await its reply, for at most `timeout` seconds in all.

        The timeout travels as the request's deadline: work that has not started by then is not started, and
        work that runs then is stopped. Raises the exception of the failure's code: see bridge_protocol.errors.
        """
        return await (await self.submit(service, command, args, timeout=timeout)).future

    async def submit(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Handle:
        """Send a request; returns a handle, awaitable for its reply, as soon as there is room to publish it.

        Raises BadRequest and TooLarge, and Blocked or BrokerUnavailable if there is no room within `timeout`.
        Whatever happens after that is raised by the handle.
        """
        request = self.prepare(service, command, args, timeout=timeout)
        return self.send_at_once(request, timeout) or await self.send(request, timeout)

    async def publish(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> str:
        """Send a request whose reply nobody awaits; returns its message id once the broker has confirmed it.

        `timeout` bounds the publishing alone: the request itself has no deadline. If it fails it is kept as a
        dead letter. Raises UnknownService, Refused, Blocked, BrokerUnavailable (nothing was sent) or
        OutcomeUnknown (it may have been), BadRequest and TooLarge.
        """
        check_timeout(timeout)
        request = prepare(service, command, args, now=self._wall(), timeout=None)
        left = await self._enter(request, timeout)
        sent = self._publish(request, None, left)
        sent.add_done_callback(lambda _: self._window.leave(len(request.body)))
        try:
            await asyncio.shield(sent)
        except (BrokerError, CodedError) as error:
            failure = self._not_published(error, request)
            raise failure from (error if failure is not error else None)
        self._exchange_seen = True
        return request.message_id

    async def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        in_flight: int = 100,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AsyncGenerator[Reply, None]:
        """One request for each of `args`, at most `in_flight` at once; their replies in the order of `args`.

        `timeout` is each request's own. The first failure is raised in its turn; what is in flight then, or
        when the iteration is closed, ends by itself, unheard. `args` is asked for an item when there is room
        for it, not before.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        items = iter(args)
        replies: deque[asyncio.Future[Reply]] = deque()
        try:
            while True:
                for item in islice(items, in_flight - len(replies)):
                    try:
                        handle = await self.submit(service, command, item, timeout=timeout)
                    except CodedError as error:
                        replies.append(_failed(error))
                        items = iter(())
                        break
                    replies.append(handle.future)
                if not replies:
                    return
                reply = await replies[0]
                replies.popleft()
                yield reply
        finally:
            for future in replies:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # looked at, or asyncio complains that nobody did

    # For Producer, which prepares in one thread and sends in another.

    def prepare(self, service: str, command: str, args: Mapping[str, Any] | None, *, timeout: float) -> PreparedRequest:
        """A request that awaits a reply, its deadline `timeout` seconds from now. Safe in any thread.

        Raises BadRequest and TooLarge.
        """
        check_timeout(timeout)
        return prepare(service, command, args, now=self._wall(), timeout=timeout)

    def send_at_once(self, request: PreparedRequest, timeout: float) -> Handle | None:
        """Send a request if there is room to publish it now; its handle, or None."""
        return self._send(request, timeout) if self._window.try_enter(len(request.body)) else None

    async def send(self, request: PreparedRequest, timeout: float) -> Handle:
        """Send a request when there is room to publish it; its handle. Raises as `submit` does."""
        return self._send(request, await self._enter(request, timeout))

    # One request.

    async def _enter(self, request: PreparedRequest, timeout: float) -> float:
        """Enter the window; how much of `timeout` is left then."""
        size = len(request.body)
        if self._window.try_enter(size):
            return timeout
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        try:
            async with asyncio.timeout_at(end):
                await self._window.enter(size)
        except TimeoutError:
            channel, address = self._link.channel, self.broker.address
            if channel is not None and channel.blocked is not None:
                error: CodedError = Blocked(f"not sent: {address} takes no messages: {channel.blocked}")
            else:
                text = f"not sent: {address} confirmed none of what was sent before within {timeout:g} s"
                error = BrokerUnavailable(text)
            error.message_id = request.message_id
            raise error from None
        return max(end - loop.time(), 0.001)

    def _publish(self, request: PreparedRequest, reply_to: str | None, timeout: float) -> asyncio.Future[None]:
        """Publish, having entered the window. Leave it when the future ends; it has been left if this raises."""
        try:
            return self._link.publish(request.message(reply_to), timeout=timeout)
        except QuaybridgeError:
            self._window.leave(len(request.body))
            raise

    def _send(self, request: PreparedRequest, timeout: float) -> Handle:
        """Publish, having entered the window; the handle ends with the reply or with what stood in its way."""
        loop = asyncio.get_running_loop()
        message_id = request.message_id
        sent = self._publish(request, self._reply_to, timeout)
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting[message_id] = _Call(future, loop.call_later(timeout, self._late, message_id))
        future.add_done_callback(lambda _: self._forget(message_id))
        sent.add_done_callback(partial(self._sent, request))
        return Handle(message_id, future)

    def _forget(self, message_id: str) -> None:
        call = self._waiting.pop(message_id, None)
        if call is not None:
            call.timer.cancel()

    def _sent(self, request: PreparedRequest, sent: asyncio.Future[None]) -> None:
        self._window.leave(len(request.body))
        error = sent.exception()
        if isinstance(error, BrokerError | CodedError):
            self._end(request.message_id, self._not_published(error, request))
        elif error is not None:
            self._end(request.message_id, error)
        else:
            self._exchange_seen = True
            if (call := self._waiting.get(request.message_id)) is not None:
                call.confirmed = True
                if not self._link.up:
                    # Confirmed, and lost before that was heard here: `_on_lost` has been, or `close`.
                    self._end_confirmed("the connection was lost before its reply came")
                elif call.late:
                    self._late(request.message_id)

    def _not_published(self, error: BrokerError | CodedError, request: PreparedRequest) -> CodedError:
        """What a publish's failure means to whoever sent the request."""
        message_id, name = request.message_id, request.service
        if isinstance(error, CodedError):
            error.message_id = message_id
            return error
        if isinstance(error, Unroutable):
            self._exchange_seen = True
            text = f"no queue for service {name!r}: start a worker that serves it (a typing error in the name?)"
            return UnknownService(text, message_id=message_id)
        assert isinstance(error, ChannelClosed)
        if error.code == _NOT_FOUND and not self._exchange_seen:
            text = f"no queue for service {name!r}: no worker was ever started on {self.broker.address}"
            return UnknownService(text, message_id=message_id)
        text = f"the connection was lost before the broker confirmed the request: {error.reason}"
        return OutcomeUnknown(text, message_id=message_id)

    def _late(self, message_id: str) -> None:
        call = self._waiting.get(message_id)
        if call is None:
            return
        if not call.confirmed:
            # Its publish is at its own timeout too, and will say what became of it.
            call.late = True
            return
        text = "no reply in time; work that has not started by now will not be started"
        self._end(message_id, DeadlineExceeded(text, message_id=message_id))

    def _end(self, message_id: str, outcome: Reply | BaseException) -> None:
        call = self._waiting.pop(message_id, None)
        if call is None:
            return
        call.timer.cancel()
        if call.future.done():
            return
        if isinstance(outcome, Reply):
            call.future.set_result(outcome)
        else:
            call.future.set_exception(outcome)

    def _end_confirmed(self, why: str) -> None:
        for message_id, call in list(self._waiting.items()):
            if call.confirmed:
                self._end(message_id, OutcomeUnknown(why, message_id=message_id))

    # The connection.

    async def _set_up(self, channel: Channel) -> None:
        self._exchange_seen = False
        self._reply_to = await channel.declare_reply_queue()
        await channel.consume(self._reply_to, self._on_reply, on_cancelled=self._on_cancelled, no_ack=True)

    def _readdress(self, message: Message) -> Message:
        """`message` with the present address for replies: it was made when there was another, or none."""
        if message.properties.reply_to in (None, self._reply_to):
            return message
        return replace(message, properties=replace(message.properties, reply_to=self._reply_to))

    def _on_reply(self, delivery: Delivery) -> None:
        message_id = delivery.properties.correlation_id or ""
        if message_id not in self._waiting:
            self.late_replies += 1
            return
        try:
            outcome = read_reply(delivery, message_id)
        except FrameError as error:
            logger.warning("not a reply, dropped: %s", error)
            return
        self._end(message_id, outcome)

    def _on_cancelled(self, consumer: Consumer) -> None:
        self._link.rebuild(f"the broker ended the subscription to {consumer.queue}")

    def _on_lost(self, reason: str) -> None:
        """No reply will come by the channel that is gone. What waits to be sent at all keeps waiting."""
        self._end_confirmed(f"the connection was lost before its reply came: {reason}")


class _Call:
    """A request that waits for its reply."""

    __slots__ = ("confirmed", "future", "late", "timer")

    def __init__(self, future: asyncio.Future[Reply], timer: asyncio.TimerHandle) -> None:
        self.future = future
        self.timer = timer
        self.confirmed = False
        self.late = False


def _failed(error: CodedError) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
