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
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from bridge_protocol.envelope import DIRECT_REPLY_TO, request_properties
from bridge_protocol.errors import (
    BadRequest,
    BrokerUnavailable,
    CodedError,
    DeadlineExceeded,
    FrameError,
    OutcomeUnknown,
    TooLarge,
    UnknownService,
)
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import MAX_ID, Request, encode_request, format_timestamp
from bridge_protocol.topology import EXCHANGE, service_name_problem
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker, BrokerError, Channel, ChannelClosed, Delivery, Message, Unroutable
from broker.link import Link
from producer.reply import Reply, read_reply
from producer.window import Window

CONNECT_TIMEOUT = 10.0  # seconds
DEFAULT_TIMEOUT = 30.0  # seconds
MOST_UNCONFIRMED = 1024
MOST_UNCONFIRMED_BYTES = 64 * 1024 * 1024

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
    """Publishes requests and brings their replies back. One event loop, one connection.

    `broker`: a URL (or several, separated by commas, tried in turn), or a Broker such as MemoryBroker.
    Publishes that the broker has not confirmed yet are bounded by count and bytes; past that `submit`,
    `call` and `publish` wait, within their own timeout.
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
        self.late_replies = 0  # replies that came after their caller had given up, or twice
        self._connect_timeout = connect_timeout
        self._window = Window(max_unconfirmed, max_unconfirmed_bytes)
        self._wall = wall
        self._link = Link(self.broker, name, set_up=self._set_up, on_lost=self._on_lost)
        self._reply_to = DIRECT_REPLY_TO
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
        """Connect. Raises BrokerUnavailable, with the reason, if that fails within `connect_timeout`."""
        try:
            await self._link.start(self._connect_timeout)
        except BrokerError as error:
            raise BrokerUnavailable(f"cannot connect to {self.broker.address}: {error}") from error

    async def close(self) -> None:
        """Disconnect. Calls still under way end in OutcomeUnknown: nobody will hear their replies."""
        await self._link.close()
        self._on_lost("the producer was closed")

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
        message, message_id = self._request(service, command, args, timeout=timeout, replies=True)
        before = asyncio.get_running_loop().time()
        await self._enter(message, timeout)
        return self._send(message, message_id, service, timeout - (asyncio.get_running_loop().time() - before))

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
        message, message_id = self._request(service, command, args, timeout=None, replies=False)
        before = asyncio.get_running_loop().time()
        await self._enter(message, timeout)
        size = len(message.body)
        try:
            left = timeout - (asyncio.get_running_loop().time() - before)
            sent = self._link.publish(message, timeout=max(left, 0.001))
        except CodedError:
            self._window.leave(size)
            raise
        sent.add_done_callback(lambda _: self._window.leave(size))
        try:
            await asyncio.shield(sent)
        except BrokerError as error:
            raise _published_badly(error, service, message_id) from error
        except CodedError as error:
            error.message_id = message_id
            raise
        return message_id

    async def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        in_flight: int = 100,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AsyncIterator[Reply]:
        """One request for each of `args`, at most `in_flight` at once; their replies in the order of `args`.

        `timeout` is each request's own. The first failure is raised in its turn; what is in flight then ends
        by itself, unheard.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        handles: deque[Handle] = deque()
        try:
            for item in args:
                if len(handles) >= in_flight:
                    yield await handles.popleft()
                handles.append(await self.submit(service, command, item, timeout=timeout))
            while handles:
                yield await handles.popleft()
        finally:
            for handle in handles:
                handle.future.cancel()

    # One request.

    def _request(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None,
        *,
        timeout: float | None,
        replies: bool,
    ) -> tuple[Message, str]:
        """The message of a request, and its id. `timeout` in seconds becomes its deadline."""
        if problem := service_name_problem(service):
            raise BadRequest(problem)
        if timeout is not None and not timeout > 0:
            raise BadRequest(f"a timeout must be more than 0 seconds, not {timeout}")
        now = self._wall()
        deadline = None if timeout is None else int((now + timeout) * 1000)
        # The id only has to differ from the others on one bridge; the message id is what nobody may guess.
        request = Request(
            id=random.randint(1, MAX_ID),  # noqa: S311
            command=command,
            args={} if args is None else args,
            timestamp=format_timestamp(now),
            deadline=deadline,
        )
        message_id = secrets.token_hex(16)
        try:
            body = encode_request(request)
        except ValueError as error:
            raise BadRequest(str(error), message_id=message_id) from error
        if len(body) > DEFAULT_LIMIT:
            raise TooLarge(f"a request of {len(body):,} bytes, the limit is {DEFAULT_LIMIT:,}", message_id=message_id)
        properties = request_properties(
            message_id=message_id,
            command=command,
            reply_to=self._reply_to if replies else None,
            deadline=deadline,
        )
        return Message(exchange=EXCHANGE, routing_key=service, body=body, properties=properties), message_id

    async def _enter(self, message: Message, timeout: float) -> None:
        size = len(message.body)
        if self._window.try_enter(size):
            return
        try:
            async with asyncio.timeout(timeout):
                await self._window.enter(size)
        except TimeoutError:
            raise BrokerUnavailable(
                f"not sent: {self.broker.address} confirmed none of what was sent before within {timeout:g} s"
            ) from None

    def _send(self, message: Message, message_id: str, service: str, timeout: float) -> Handle:
        """Publish, having entered the window; the handle ends with the reply or with what stood in its way."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        size = len(message.body)
        try:
            sent = self._link.publish(message, timeout=max(timeout, 0.001))
        except CodedError:
            self._window.leave(size)
            raise
        call = _Call(future, loop.call_later(max(timeout, 0.001), self._late, message_id))
        self._waiting[message_id] = call
        future.add_done_callback(lambda _: self._forget(message_id))
        sent.add_done_callback(partial(self._sent, message_id, service, size))
        return Handle(message_id, future)

    def _forget(self, message_id: str) -> None:
        call = self._waiting.pop(message_id, None)
        if call is not None:
            call.timer.cancel()

    def _sent(self, message_id: str, service: str, size: int, sent: asyncio.Future[None]) -> None:
        self._window.leave(size)
        error = sent.exception()
        if error is None:
            call = self._waiting.get(message_id)
            if call is not None:
                call.confirmed = True
                if call.late:
                    self._late(message_id)
        elif isinstance(error, BrokerError):
            self._end(message_id, _published_badly(error, service, message_id))
        else:
            if isinstance(error, CodedError):
                error.message_id = message_id
            self._end(message_id, error)

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

    # The connection.

    async def _set_up(self, channel: Channel) -> None:
        self._reply_to = await channel.declare_reply_queue()
        await channel.consume(self._reply_to, self._on_reply, no_ack=True)

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

    def _on_lost(self, reason: str) -> None:
        """No reply will come by the channel that is gone. What waits to be sent at all keeps waiting."""
        for message_id, call in list(self._waiting.items()):
            if call.confirmed:
                text = f"the connection was lost before its reply came: {reason}"
                self._end(message_id, OutcomeUnknown(text, message_id=message_id))


class _Call:
    """A request that waits for its reply."""

    __slots__ = ("confirmed", "future", "late", "timer")

    def __init__(self, future: asyncio.Future[Reply], timer: asyncio.TimerHandle) -> None:
        self.future = future
        self.timer = timer
        self.confirmed = False
        self.late = False


def _published_badly(error: BrokerError, service: str, message_id: str) -> CodedError:
    if isinstance(error, Unroutable):
        text = f"no queue for service {service!r}: start a worker that serves it (a typing error in the name?)"
        return UnknownService(text, message_id=message_id)
    assert isinstance(error, ChannelClosed)
    return OutcomeUnknown(
        f"the connection was lost before the broker confirmed the request: {error.reason}", message_id=message_id
    )
