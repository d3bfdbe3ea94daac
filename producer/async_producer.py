"""The producer for asyncio.

    async with AsyncProducer("amqp://user:secret@host/vhost") as producer:
        reply = await producer.call("analyse", "summarise", {"path": "setup.py"}, timeout=30)
        handle = await producer.submit("analyse", "summarise", {"path": "setup.py"})
        reply = await handle
        async for reply in producer.map("analyse", "summarise", many_args, in_flight=200): ...
        async for word in producer.stream("writer", "write", {"about": "rivers"}): ...

Replies come by direct reply-to: at most once. A call whose connection is lost ends in OutcomeUnknown, unless it is
`idempotent`: then it is published again, with the same message id, for as long as its timeout allows. With a
`reply_queue` replies are kept by the broker: they outlive connection and producer, until a call of this producer
has its own, or `collect` gave them out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from bridge_protocol.claim_check import DEFAULT_THRESHOLD, ClaimCheck
from bridge_protocol.control import CANCEL, Cancel, cancel_key, encode_cancel
from bridge_protocol.envelope import CHUNKS, DIRECT_REPLY_TO, PROGRESS, Properties
from bridge_protocol.errors import (
    BadRequest,
    Blocked,
    BrokerUnavailable,
    Cancelled,
    CodedError,
    DeadlineExceeded,
    FrameError,
    OutcomeUnknown,
    QuaybridgeError,
    Refused,
    RequestFailed,
    UnknownService,
)
from bridge_protocol.topology import CONTROL, durable_reply_queue, request_queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker, BrokerError, Channel, ChannelClosed, Consumer, Delivery, Message, Unroutable
from broker.link import Link
from broker.store import Store, check_in
from producer.flight import MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES, Flight, MapOptions, OnError, at_position
from producer.handle import Handle, Listener
from producer.mailbox import Mailbox
from producer.progress import Progress, ProgressFeed
from producer.reply import Reply, claim_of, claim_restored, epoch_of, read_reply
from producer.request import PreparedRequest, check_timeout, prepare
from producer.session import MOST_JOURNALED, MOST_JOURNALED_BYTES, MOST_WAITING, AsyncSession, Mode
from producer.stream import AsyncStream
from producer.window import Window

CONNECT_TIMEOUT = 10.0  # seconds
DEFAULT_TIMEOUT = 30.0  # seconds
MOST_UNCONFIRMED = 1024
MOST_UNCONFIRMED_BYTES = 64 * 1024 * 1024
MOST_REPUBLISHES = 10  # of one idempotent request
REPLY_PREFETCH = 256
# Before an idempotent request is published again; doubles with each further time. The connection has its own pauses.
FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 5.0  # seconds
DELETE_TIMEOUT = 3.0  # seconds, at the end: what is left is swept
CANCEL_AGAIN = 5.0  # seconds until nodes are told again: one may have come, or come back, since

_NOT_FOUND = 404
_EVENTS = frozenset({CHUNKS, PROGRESS})

logger = logging.getLogger("quaybridge.producer")


class AsyncProducer:
    """Publishes requests and brings their replies back. One event loop, one connection; started once.

    `broker`: a URL (or several, separated by commas, tried in turn), or a Broker such as MemoryBroker. Raises
    ValueError for a URL that cannot be one. Publishes that the broker has not confirmed yet are bounded by
    count and bytes; past that `submit`, `call` and `publish` wait, within their own timeout.

    `reply_queue`: replies come by the durable queue `quaybridge.reply.<reply_queue>`, which is declared here, and
    stays. It is one producer's at a time: of two, each would get the other's replies. A reply goes to the call that
    awaits it. The others, to what was published and to what an earlier process sent, are for `collect`; of these at
    most `reply_prefetch` are held here, and if nobody collects them calls get no replies any more.
    `max_republishes` bounds how often one idempotent request is published again.

    `store`: arguments of more than `claim_threshold` bytes wait there, and what is published is a claim check; nodes
    must have the same store, and may answer in the same way. What a call put there, and what its reply did, is deleted
    once the call has its reply.
    """

    def __init__(
        self,
        broker: Broker | str,
        *,
        name: str = "producer",
        connect_timeout: float = CONNECT_TIMEOUT,
        max_unconfirmed: int = MOST_UNCONFIRMED,
        max_unconfirmed_bytes: int = MOST_UNCONFIRMED_BYTES,
        max_republishes: int = MOST_REPUBLISHES,
        reply_queue: str | None = None,
        reply_prefetch: int = REPLY_PREFETCH,
        store: Store | None = None,
        claim_threshold: int = DEFAULT_THRESHOLD,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.broker: Broker = AmqpBroker(parse_addresses(broker)) if isinstance(broker, str) else broker
        self.late_replies = 0  # replies that came after their caller had given up, or twice, or unasked
        self.republished = 0  # publishes of idempotent requests beyond their first
        self._mailbox = None if reply_queue is None else Mailbox(durable_reply_queue(reply_queue), reply_prefetch)
        self._max_republishes = max_republishes
        self._store = store
        self._claim_threshold = claim_threshold if store is not None else None
        self._jitter = jitter
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()  # of requests to be published again, and of replies in the store
        self._deleting: set[asyncio.Task[None]] = set()  # of what is of no use in the store any more
        self._connect_timeout = connect_timeout
        self._window = Window(max_unconfirmed, max_unconfirmed_bytes)
        self._wall = wall
        self._link = Link(self.broker, name, set_up=self._set_up, on_lost=self._on_lost, readdress=self._readdress)
        self._reply_to = DIRECT_REPLY_TO
        self._exchange_seen = False  # by this channel: a publish that finds none was taken by nobody
        self._served: set[str] = set()  # services whose queue was looked for, and found
        self._scheduled: dict[str, PreparedRequest] = {}  # that are due later, and not confirmed yet
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
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for call in self._waiting.values():
            if call.request.chunks:
                self.say(_cancel_message(call.request.service, call.request.message_id))
        try:
            await self._link.close()
        finally:
            if self._mailbox is not None:
                self._mailbox.close()
            for call in list(self._waiting.values()):
                if not call.sending:
                    text = "the producer was closed before its reply came"
                    self._end(call, OutcomeUnknown(text, message_id=call.request.message_id))
            if self._deleting:
                await asyncio.wait(self._deleting, timeout=DELETE_TIMEOUT)

    async def call(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        idempotent: bool = False,
        cancel_on_disconnect: bool = False,
        priority: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Reply:
        """Send a request and await its reply, for at most `timeout` seconds in all.

        The timeout travels as the request's deadline: work that has not started by then is not started, and
        work that runs then is stopped. Raises the exception of the failure's code: see bridge_protocol.errors.

        `idempotent`: it may run twice without harm. If the connection is lost before it is confirmed, or before
        its reply came, it is published again, as it is and with the same message id, within its timeout.
        `cancel_on_disconnect`: it is cancelled, within seconds, when this producer's connection is gone, so that
        nobody works for it. Not with a `reply_queue`, which outlives the producer.
        `priority`: 0 … 9. From RabbitMQ 4.0 on what waits with 5 or more passes most of what has less, or none; from
        4.3 on each passes all that has less, and none counts as 4.
        `progress`: called, on the event loop, with what the bridge says of its progress, at most ten times a second.
        """
        request = self.prepare(
            service,
            command,
            args,
            timeout=timeout,
            idempotent=idempotent,
            cancel_on_disconnect=cancel_on_disconnect,
            priority=priority,
            progress=progress is not None,
        )
        handle = self.send_at_once(request, timeout, progress) or await self.send(request, timeout, progress)
        return await handle.future

    async def submit(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        idempotent: bool = False,
        cancel_on_disconnect: bool = False,
        priority: int | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        progress: bool | Callable[[Progress], None] = False,
    ) -> Handle:
        """Send a request; returns a handle, awaitable for its reply, as soon as there is room to publish it.

        `delay` (seconds) or `at` (a datetime with a time zone, or seconds since 1970): the broker holds it until then,
        to within a second, for at most 36 h; `timeout` counts from there. Its reply comes to this producer, if it is
        still connected by then, or to its `reply_queue`.

        Raises BadRequest and TooLarge, and Blocked or BrokerUnavailable if there is no room within `timeout`.
        Whatever happens after that is raised by the handle. For the options see `call`; with `progress` (true, or who
        is to be called) the handle's own `progress` can be iterated, too.
        """
        request = self.prepare(
            service,
            command,
            args,
            timeout=timeout,
            idempotent=idempotent,
            cancel_on_disconnect=cancel_on_disconnect,
            priority=priority,
            delay=delay,
            at=at,
            progress=progress is not False,
        )
        on_progress = progress if callable(progress) else None
        return self.send_at_once(request, timeout, on_progress) or await self.send(request, timeout, on_progress)

    def stream(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        on_restart: Callable[[int], None] | None = None,
        cancel_on_disconnect: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncStream:
        """The chunks of a request, as they come: see AsyncStream. It is sent when the iteration begins.

        `timeout` bounds the whole of it; for the other options see `call`. Raises BadRequest and TooLarge; what happens
        later is raised in the iteration.
        """
        request = self.prepare(
            service,
            command,
            args,
            timeout=timeout,
            cancel_on_disconnect=cancel_on_disconnect,
            chunks=True,
            progress=progress is not None,
        )
        return AsyncStream(self, request, timeout, on_restart=on_restart, on_progress=progress)

    def session(
        self,
        id: str,
        *,
        service: str,
        mode: Mode = "strict",
        journal: Collection[str] = (),
        max_waiting: int = MOST_WAITING,
        max_journal: int = MOST_JOURNALED,
        max_journal_bytes: int = MOST_JOURNALED_BYTES,
    ) -> AsyncSession:
        """The session of that id, whose requests meet the same live bridge: see AsyncSession."""
        return AsyncSession(
            self,
            id,
            service=service,
            mode=mode,
            journal=journal,
            max_waiting=max_waiting,
            max_journal=max_journal,
            max_journal_bytes=max_journal_bytes,
        )

    async def publish(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        idempotent: bool = False,
        priority: int | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
    ) -> str:
        """Send a request whose reply nobody awaits; returns its message id once the broker has confirmed it.

        `timeout` bounds the publishing alone: the request itself has no deadline. Its reply is for `collect` where
        there is a `reply_queue`; otherwise it has none, and if it fails it is kept as a dead letter. `idempotent`:
        if the connection is lost before it is confirmed it is published again, within the timeout. `priority`, `delay`
        and `at` as for `call` and `submit`.

        Raises UnknownService, Refused, Blocked, BrokerUnavailable (nothing was sent) or OutcomeUnknown (it may have
        been), BadRequest and TooLarge.
        """
        check_timeout(timeout)
        request = prepare(
            service,
            command,
            args,
            now=self._wall(),
            timeout=None,
            idempotent=idempotent,
            claim_threshold=self._claim_threshold,
            priority=priority,
            delay=delay,
            at=at,
        )
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        request = await self._made_ready(request, timeout)
        for republished in range(self._max_republishes + 1):
            try:
                left = await self._enter(request, end - loop.time())
                sent = self._publish(request, self._address(awaited=False), left)
                sent.add_done_callback(lambda _: self._window.leave(len(request.body)))
                await asyncio.shield(sent)
            except (BrokerError, CodedError) as error:
                failure = self._not_published(error, request)
                if republished:
                    failure = _doubtful(failure)
                pause = self._pause(request, republished, end) if isinstance(error, ChannelClosed) else None
                if pause is None or isinstance(failure, UnknownService):
                    raise failure from (error if failure is not error else None)
                await asyncio.sleep(pause)
                self.republished += 1
            else:
                break
        self._exchange_seen = True
        return request.message_id

    @overload
    def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[MapOptions],
    ) -> AsyncGenerator[Reply, None]: ...

    @overload
    def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        on_error: Literal["return"],
        **options: Unpack[MapOptions],
    ) -> AsyncGenerator[Reply | CodedError, None]: ...

    async def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        on_error: OnError = "raise",
        in_flight: int = MOST_IN_FLIGHT,
        in_flight_bytes: int = MOST_IN_FLIGHT_BYTES,
        timeout: float = DEFAULT_TIMEOUT,
        idempotent: bool = False,
        priority: int | None = None,
        ordered: bool = True,
    ) -> AsyncGenerator[Reply | CodedError, None]:
        """One request for each of `args`; their replies in the order of `args`, or (`ordered=False`) as they come.

        At most `in_flight` requests, of `in_flight_bytes` together, are under way at once or wait to be given out. As
        they come, each says by its `position` which of `args` it answers. `timeout`, `idempotent` and
        `priority` are each request's own: see `call`.

        `on_error`: by default the first failure is raised in its turn; what is in flight then, or when the iteration is
        closed, ends by itself, unheard. With "return" failures are given, not raised, in the place of replies, and the
        rest goes on. `args` is asked for an item when there is room for one, not before.
        """
        flight: Flight[asyncio.Future[Reply]] = Flight(in_flight, in_flight_bytes, on_error)
        ended: asyncio.Queue[asyncio.Future[Reply]] = asyncio.Queue()
        items = enumerate(args)
        held: PreparedRequest | None = None  # taken from `args`, and without room yet
        place = 0
        try:
            while True:
                while not flight.full:
                    try:
                        if held is None:
                            if (item := next(items, None)) is None:
                                break
                            place = item[0]
                            held = self.prepare(
                                service, command, item[1], timeout=timeout, idempotent=idempotent, priority=priority
                            )
                        size = held.size
                        if not flight.fits(size):
                            break
                        future = (self.send_at_once(held, timeout) or await self.send(held, timeout)).future
                    except CodedError as error:
                        future, size = _failed(error), 0
                        if on_error == "raise":
                            items = enumerate(())
                    held = None
                    flight.join(future, place, size)
                    if not ordered:
                        future.add_done_callback(ended.put_nowait)
                if not flight:
                    return
                future = flight.first() if ordered else await ended.get()
                try:
                    end: Reply | CodedError = await future
                except CodedError as error:
                    if on_error == "raise":
                        raise
                    end = error
                position = flight.leave(future)
                yield end if ordered else at_position(end, position)
        finally:
            for future in flight:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # looked at, or asyncio complains that nobody did

    async def collect(self, *, idle_timeout: float | None = None) -> AsyncGenerator[Reply | RequestFailed, None]:
        """The replies in the `reply_queue` that no call of this producer awaits, as they come.

        Each is a Reply, or the exception that stands for its failure (given, not raised); its `message_id` says
        what it answers, also for what an earlier process sent. It is acknowledged when the next one is asked for:
        whoever stops there, or dies, gets the last one again. So one may come twice. Ends when none has come for
        `idle_timeout` seconds (None: never). Raises RuntimeError without a reply queue, and BrokerUnavailable once
        the producer is closed; a lost connection is waited out.
        """
        if self._mailbox is None:
            raise RuntimeError("there is nothing to collect: give the producer a reply_queue")
        async with aclosing(self._mailbox.collect(idle_timeout, self._store)) as replies:
            async for reply in replies:
                yield reply

    async def cancel(self, service: str, message_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """Tell every node of `service` that this request shall not run, or not run on; whether there was one to tell.

        For requests of other producers too; what became of it is told where its reply goes. Raises ValueError for
        what cannot be a service or a message id, and Blocked, BrokerUnavailable or OutcomeUnknown if it cannot be
        sent within `timeout`. See also Handle.cancel.
        """
        check_timeout(timeout)
        try:
            await self._link.publish(_cancel_message(service, message_id), timeout=timeout)
        except Unroutable:
            return False
        except ChannelClosed as error:
            raise OutcomeUnknown(f"the connection was lost before nodes were told: {error.reason}") from error
        return True

    async def cancel_until(
        self, service: str, message_id: str, ended: asyncio.Future[Reply], timeout: float | None
    ) -> bool:
        """Tell the nodes, and again now and then, until the request has `ended` or for `timeout` seconds.

        Whether it ended in Cancelled. For handles and outcomes.
        """
        loop = asyncio.get_running_loop()
        end = math.inf if timeout is None else loop.time() + timeout
        message = _cancel_message(service, message_id)
        while not ended.done() and not self._closed and (left := end - loop.time()) > 0:
            told = self._link.publish(message, timeout=min(left, CANCEL_AGAIN))
            told.add_done_callback(lambda told: told.cancelled() or told.exception())  # there is a next time
            await asyncio.wait([ended], timeout=min(left, CANCEL_AGAIN))
        return ended.done() and not ended.cancelled() and isinstance(ended.exception(), Cancelled)

    # For Producer, which prepares in one thread and sends in another.

    def prepare(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None,
        *,
        timeout: float,
        idempotent: bool = False,
        cancel_on_disconnect: bool = False,
        session: str | None = None,
        priority: int | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        chunks: bool = False,
        progress: bool = False,
    ) -> PreparedRequest:
        """A request that awaits a reply, its deadline `timeout` seconds from when it is due. Safe in any thread.

        Raises BadRequest and TooLarge.
        """
        check_timeout(timeout)
        if cancel_on_disconnect and self._mailbox is not None:
            raise BadRequest("cancel_on_disconnect needs direct replies: a reply queue outlives its producer")
        return prepare(
            service,
            command,
            args,
            now=self._wall(),
            timeout=timeout,
            idempotent=idempotent,
            cancel_on_disconnect=cancel_on_disconnect,
            session=session,
            claim_threshold=self._claim_threshold,
            priority=priority,
            delay=delay,
            at=at,
            chunks=chunks,
            progress=progress,
        )

    def send_at_once(
        self, request: PreparedRequest, timeout: float, on_progress: Callable[[Progress], None] | None = None
    ) -> Handle | None:
        """Send a request if there is nothing to wait for, such as room to publish it; its handle, or None."""
        if request.cargo is not None or (request.due is not None and request.service not in self._served):
            return None
        return self._submit(request, timeout, on_progress) if self._window.try_enter(len(request.body)) else None

    async def send(
        self, request: PreparedRequest, timeout: float, on_progress: Callable[[Progress], None] | None = None
    ) -> Handle:
        """Send a request when there is room to publish it; its handle. Raises as `submit` does."""
        request = await self._made_ready(request, timeout)
        return self._submit(request, await self._enter(request, timeout), on_progress)

    # For streams.

    async def begin(self, request: PreparedRequest, timeout: float, listener: Listener) -> asyncio.Future[Reply]:
        """Send a request when there is room to publish it; the future of its reply. Raises as `submit` does."""
        request = await self._made_ready(request, timeout)
        call = self._send(request, await self._enter(request, timeout))
        call.listener = listener
        return call.future

    def say(self, message: Message) -> None:
        """Publish what nobody answers, and what may be lost."""
        said = self._link.publish(message, timeout=CANCEL_AGAIN)
        said.add_done_callback(lambda said: said.cancelled() or said.exception())

    def abandon(self, message_id: str) -> None:
        """Have a request cancelled whose reply nobody awaits any more: at once, and again until it has ended."""
        call = self._waiting.get(message_id)
        if call is None or call.future.done():
            return
        call.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.say(_cancel_message(call.request.service, message_id))
        self._begin(self._abandon(call))

    async def _abandon(self, call: _Call) -> None:
        await asyncio.wait([call.future], timeout=CANCEL_AGAIN)
        await self.cancel_until(call.request.service, call.request.message_id, call.future, None)

    # One request.

    async def _made_ready(self, request: PreparedRequest, timeout: float) -> PreparedRequest:
        """The request, with its cargo in the store; its service is there if it is to wait for its time."""
        if request.due is not None and request.service not in self._served:
            await self._look_for(request, timeout)
        if request.cargo is None:
            return request
        assert self._store is not None
        try:
            claim = await asyncio.to_thread(check_in, self._store, request.cargo)
        except OSError as error:
            text = f"not sent: {self._store!r} takes nothing: {error.strerror or error}"
            raise Refused(text, message_id=request.message_id) from error
        return request.checked_in(claim)

    async def _look_for(self, request: PreparedRequest, timeout: float) -> None:
        """Raise UnknownService if it has no queue. A delay queue would take the request, and keep it for ever then.

        On a channel of its own: RabbitMQ closes the one on which it is asked for a queue that it does not have.
        """
        message_id = request.message_id
        try:
            async with asyncio.timeout(timeout):
                channel = await self.broker.open(f"{self._link.name}: looks for a service", on_closed=lambda _: None)
                try:
                    await channel.queue_length(request_queue(request.service))
                finally:
                    await channel.close()
        except (BrokerError, TimeoutError) as error:
            if isinstance(error, ChannelClosed) and error.code == _NOT_FOUND:
                text = f"no queue for service {request.service!r}: start a worker that serves it first"
                raise UnknownService(text, message_id=message_id) from None
            text = f"not sent: {self.broker.address} does not say whether there is such a service: {error}"
            raise BrokerUnavailable(text, message_id=message_id) from error
        self._served.add(request.service)

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
            sent = self._link.publish(request.message(reply_to, self._wall()), timeout=timeout)
        except QuaybridgeError:
            self._window.leave(len(request.body))
            raise
        if request.due is not None:
            self._scheduled[request.message_id] = request
            sent.add_done_callback(lambda _: self._scheduled.pop(request.message_id, None))
        return sent

    def _submit(
        self, request: PreparedRequest, timeout: float, on_progress: Callable[[Progress], None] | None
    ) -> Handle:
        call = self._send(request, timeout)
        if not request.progress:
            return Handle(self, request.service, request.message_id, call.future)
        feed = call.listener = ProgressFeed(call.future, on_progress)
        return Handle(self, request.service, request.message_id, call.future, feed)

    def _send(self, request: PreparedRequest, timeout: float) -> _Call:
        """Publish, having entered the window; the call ends with the reply or with what stood in its way."""
        loop = asyncio.get_running_loop()
        message_id = request.message_id
        sent = self._publish(request, self._address(awaited=True), timeout)
        call = _Call(request, loop.create_future(), loop.time() + request.wait(self._wall()) + timeout)
        call.timer = loop.call_at(call.end, self._late, call)
        self._waiting[message_id] = call
        call.future.add_done_callback(lambda _: self._forget(call))
        sent.add_done_callback(partial(self._sent, call))
        return call

    def _address(self, *, awaited: bool) -> str | None:
        """Where the reply to what is published now shall go."""
        if self._mailbox is not None:
            return self._mailbox.queue.name
        return self._reply_to if awaited else None

    def _forget(self, call: _Call) -> None:
        if self._waiting.pop(call.request.message_id, None) is not None:
            if call.timer is not None:
                call.timer.cancel()
            if self._mailbox is not None:
                self._mailbox.remember(call.request.message_id)

    def _sent(self, call: _Call, sent: asyncio.Future[None]) -> None:
        request = call.request
        self._window.leave(len(request.body))
        call.sending = False
        error = sent.exception()
        if error is None:
            self._exchange_seen = True
            call.confirmed = True
            if not self._link.up and self._mailbox is None:
                # Confirmed, and lost before that was heard here: `_on_lost` has been, or `close`.
                self._interrupted(call, "the connection was lost before its reply came")
            elif call.late:
                self._late(call)
        elif not isinstance(error, BrokerError | CodedError):
            self._end(call, error)
        else:
            failure = self._not_published(error, request)
            if isinstance(error, ChannelClosed) and isinstance(failure, OutcomeUnknown):
                self._interrupted(call, failure.message)
            else:
                self._end(call, _doubtful(failure) if call.republished else failure)

    def _interrupted(self, call: _Call, why: str) -> None:
        """The connection was lost while it was sent, or while its reply was awaited: once more, or it ends."""
        call.confirmed = False
        pause = None if call.late else self._pause(call.request, call.republished, call.end)
        if pause is None or call.future.done():
            self._end(call, OutcomeUnknown(why, message_id=call.request.message_id))
            return
        call.republished += 1
        asyncio.get_running_loop().call_later(pause, self._send_again, call)

    def _pause(self, request: PreparedRequest, republished: int, end: float) -> float | None:
        """Seconds until it may be published again; None: it may not."""
        if not request.idempotent or self._closed or republished >= self._max_republishes:
            return None
        pause = min(FIRST_PAUSE * 2.0**republished, LONGEST_PAUSE) * (0.5 + self._jitter() / 2)
        return pause if asyncio.get_running_loop().time() + pause < end else None

    def _send_again(self, call: _Call) -> None:
        if call.future.done():
            return
        if self._window.try_enter(len(call.request.body)):
            self._publish_again(call)
            return
        self._begin(self._enter_again(call))

    async def _enter_again(self, call: _Call) -> None:
        with suppress(TimeoutError):  # its timer is due then, too
            async with asyncio.timeout_at(call.end):
                await self._window.enter(len(call.request.body))
            self._publish_again(call)

    def _publish_again(self, call: _Call) -> None:
        if call.future.done():
            self._window.leave(len(call.request.body))
            return
        left = max(call.end - asyncio.get_running_loop().time(), 0.001)
        call.sending = True
        self.republished += 1
        sent = self._publish(call.request, self._address(awaited=True), left)
        sent.add_done_callback(partial(self._sent, call))

    def _not_published(self, error: BrokerError | CodedError, request: PreparedRequest) -> CodedError:
        """What a publish's failure means to whoever sent the request."""
        message_id, name = request.message_id, request.service
        if isinstance(error, CodedError):
            error.message_id = message_id
            return error
        if isinstance(error, Unroutable):
            self._exchange_seen = True
            text = f"no queue for service {name!r}: start a worker that serves it (a typing error in the name?)"
            if request.session is not None:
                text = f"no queue for sessions of service {name!r}: start a worker that has sessions.enabled for it"
            return UnknownService(text, message_id=message_id)
        assert isinstance(error, ChannelClosed)
        if error.code == _NOT_FOUND and not self._exchange_seen:
            text = f"no queue for service {name!r}: no worker was ever started on {self.broker.address}"
            return UnknownService(text, message_id=message_id)
        text = f"the connection was lost before the broker confirmed the request: {error.reason}"
        return OutcomeUnknown(text, message_id=message_id)

    def _late(self, call: _Call) -> None:
        message_id = call.request.message_id
        if call.sending:
            # Its publish is at its own timeout too, and will say what became of it.
            call.late = True
        elif call.confirmed:
            text = "no reply in time; work that has not started by now will not be started"
            self._end(call, DeadlineExceeded(text, message_id=message_id))
        else:
            text = "the connection was lost, and there was no time left to publish it again"
            self._end(call, OutcomeUnknown(text, message_id=message_id))

    def _end_with(self, call: _Call, delivery: Delivery, outcome: Reply | RequestFailed) -> None:
        """Its reply came: who listens is told first how many chunks there were."""
        if call.listener is not None:
            call.listener.on_reply(delivery)
        self._end(call, outcome)

    def _end(self, call: _Call, outcome: Reply | BaseException) -> None:
        self._forget(call)
        if call.future.done():
            return
        if isinstance(outcome, Reply):
            call.future.set_result(outcome)
            if call.request.claim is not None and not call.republished:
                self._let_go(call.request.claim)  # published once: it will not run again
        else:
            call.future.set_exception(outcome)

    # The connection.

    async def _set_up(self, channel: Channel) -> None:
        self._exchange_seen = False
        if self._mailbox is not None:
            self._mailbox.forget()
            queue, prefetch = self._mailbox.queue, self._mailbox.prefetch
            await channel.declare([queue])
            await channel.consume(queue.name, self._on_reply, on_cancelled=self._on_cancelled, prefetch=prefetch)
            return
        self._reply_to = await channel.declare_reply_queue()
        await channel.consume(self._reply_to, self._on_reply, on_cancelled=self._on_cancelled, no_ack=True)

    def _readdress(self, message: Message) -> Message:
        """`message` with the present address for replies, and what is left of its delay: it was made some time ago."""
        scheduled = self._scheduled.get(message.properties.message_id or "")
        if scheduled is not None:
            reply_to = message.properties.reply_to
            direct = reply_to is not None and self._mailbox is None
            return scheduled.message(self._reply_to if direct else reply_to, self._wall())
        if self._mailbox is not None or message.properties.reply_to in (None, self._reply_to):
            return message
        return replace(message, properties=replace(message.properties, reply_to=self._reply_to))

    def _on_reply(self, delivery: Delivery) -> None:
        message_id = delivery.properties.correlation_id or ""
        mailbox = self._mailbox
        call = self._waiting.get(message_id)
        if delivery.properties.type in _EVENTS:
            if call is not None and call.listener is not None:
                call.listener.on_event(delivery)
        elif call is not None and call.request.session is not None and epoch_of(delivery) in call.request.outdated:
            self.late_replies += 1  # of a bridge that the session has lost: its own reply is yet to come
        elif call is not None:
            try:
                if (claim := claim_of(delivery)) is not None:
                    self._begin(self._fetch(call, delivery, claim))
                    return
                self._end_with(call, delivery, read_reply(delivery, message_id))
            except FrameError as error:
                logger.warning("not a reply, dropped: %s", error)
        elif mailbox is not None and not mailbox.remembers(message_id):
            mailbox.keep(delivery)
            return
        else:
            self.late_replies += 1
        if mailbox is not None:
            delivery.ack()

    async def _fetch(self, call: _Call, delivery: Delivery, claim: ClaimCheck) -> None:
        """Its result is in the store: end the call with it."""
        message_id = call.request.message_id
        end: Reply | RequestFailed
        try:
            end = read_reply(await claim_restored(self._store, delivery, claim), message_id)
        except BadRequest as error:
            error.message_id = message_id
            end = error
        except FrameError as error:
            logger.warning("not a reply, dropped: %s", error)
            return
        self._end_with(call, delivery, end)
        if self._mailbox is not None:
            delivery.ack()
        elif isinstance(end, Reply):
            self._let_go(claim)  # it came by direct reply, and so to nobody else

    def _let_go(self, claim: ClaimCheck) -> None:
        """What it stands for is of no use any more."""
        if self._store is not None:
            task = asyncio.get_running_loop().create_task(self._delete(self._store, claim))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    async def _delete(self, store: Store, claim: ClaimCheck) -> None:
        try:
            await asyncio.to_thread(store.delete, claim.reference)
        except OSError as error:
            logger.info("claim %s is left to be swept: %s", claim.reference, error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_cancelled(self, consumer: Consumer) -> None:
        self._link.rebuild(f"the broker ended the subscription to {consumer.queue}")

    def _on_lost(self, reason: str) -> None:
        """No direct reply will come by the channel that is gone. What waits to be sent at all keeps waiting."""
        if self._mailbox is not None:
            return  # the broker keeps them
        for call in list(self._waiting.values()):
            if call.confirmed:
                self._interrupted(call, f"the connection was lost before its reply came: {reason}")


class _Call:
    """A request that waits for its reply, until `end` on the loop's clock.

    `sending`: a publish of it is under way. `confirmed`: the last one was, and its reply can still come. `late`: its
    time was over while it was being sent. `republished`: how often it was published beyond the first time. `listener`:
    who is told what it says before its reply.
    """

    __slots__ = ("confirmed", "end", "future", "late", "listener", "republished", "request", "sending", "timer")

    def __init__(self, request: PreparedRequest, future: asyncio.Future[Reply], end: float) -> None:
        self.request = request
        self.future = future
        self.end = end
        self.timer: asyncio.TimerHandle | None = None
        self.sending = True
        self.confirmed = False
        self.late = False
        self.listener: Listener | None = None
        self.republished = 0


def _doubtful(failure: CodedError) -> CodedError:
    """What `failure` means for a request that was published before: it may have run."""
    if isinstance(failure, OutcomeUnknown):
        return failure
    text = f"the connection was lost after it was published; published again: {failure.message}"
    return OutcomeUnknown(text, message_id=failure.message_id)


def _cancel_message(service: str, message_id: str) -> Message:
    return Message(
        exchange=CONTROL,
        routing_key=cancel_key(service),
        body=encode_cancel(Cancel(service=service, message_id=message_id)),
        properties=Properties(type=CANCEL, delivery_mode=1),
    )


def _failed(error: CodedError) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
