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
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from bridge_protocol.claim_check import DEFAULT_THRESHOLD
from bridge_protocol.errors import CodedError, RequestFailed
from bridge_protocol.topology import durable_reply_queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker
from broker.store import Store
from producer.claims import Claims
from producer.flight import MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES, Flight, OnError, at_position
from producer.handle import Handle
from producer.mailbox import Mailbox
from producer.options import (
    DEFAULT_TIMEOUT,
    CallOptions,
    MapOptions,
    PublishOptions,
    SessionOptions,
    SubmitOptions,
    stream_options,
)
from producer.progress import Progress
from producer.reply import Reply
from producer.request import PreparedRequest, check_timeout
from producer.sender import Sender
from producer.session import AsyncSession
from producer.stream import AsyncStream
from producer.window import Window

CONNECT_TIMEOUT = 10.0  # seconds
MOST_UNCONFIRMED = 1024
MOST_UNCONFIRMED_BYTES = 64 * 1024 * 1024
MOST_REPUBLISHES = 10  # of one idempotent request
REPLY_PREFETCH = 256

A = TypeVar("A")


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
        self._connect_timeout = connect_timeout
        self._mailbox = None if reply_queue is None else Mailbox(durable_reply_queue(reply_queue), reply_prefetch)
        self._claims = Claims(store, claim_threshold)
        # For sessions and streams too, and for Producer, which prepares in one thread and sends in another.
        self.sender = Sender(
            self.broker,
            name,
            window=Window(max_unconfirmed, max_unconfirmed_bytes),
            claims=self._claims,
            mailbox=self._mailbox,
            max_republishes=max_republishes,
            wall=wall,
            jitter=jitter,
        )

    def __repr__(self) -> str:
        return f"<AsyncProducer {self.sender.link!r}, {len(self.sender.waiting)} awaiting replies>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def late_replies(self) -> int:
        """How many replies came after their caller had given up, or twice, or unasked."""
        return self.sender.late_replies

    @property
    def republished(self) -> int:
        """How many publishes of idempotent requests there were beyond their first."""
        return self.sender.republished

    async def start(self) -> None:
        """Connect. Raises BrokerUnavailable, with the reason, if that fails within `connect_timeout` seconds.

        Raises RuntimeError if it was started or closed before.
        """
        await self.sender.start(self._connect_timeout)

    async def close(self) -> None:
        """Disconnect. Calls under way end in OutcomeUnknown: nobody will hear their replies.

        Those that were not sent yet end in BrokerUnavailable, as does whatever is asked for from then on.
        """
        await self.sender.close()

    async def call(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Reply:
        """Send a request and await its reply, for at most `timeout` seconds (30) in all.

        The timeout travels as the request's deadline: work that has not started by then is not started, and
        work that runs then is stopped. Raises the exception of the failure's code: see bridge_protocol.errors. The
        options are CallOptions.
        """
        handle = await self.submit(service, command, args, **options)
        return await handle.future

    async def submit(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        progress: bool | Callable[[Progress], None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Handle:
        """Send a request; returns a handle, awaitable for its reply, as soon as there is room to publish it.

        With `delay` or `at` the broker holds it until then, and `timeout` counts from there. Its reply comes to this
        producer, if it is still connected by then, or to its `reply_queue`. With `progress` (true, or who is to be
        called) the handle's own `progress` can be iterated, too. Options: SubmitOptions, and CallOptions' `timeout`.

        Raises BadRequest and TooLarge, and Blocked or BrokerUnavailable if there is no room within `timeout`.
        Whatever happens after that is raised by the handle.
        """
        sender = self.sender
        wanted = progress is not None and progress is not False
        request = sender.prepare(service, command, args, timeout=timeout, progress=wanted, **options)
        listener = progress if callable(progress) else None
        return sender.send_at_once(request, timeout, listener) or await sender.send(request, timeout, listener)

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
        """The chunks of a request, as they come: see AsyncStream, and StreamOptions.

        It is sent when the iteration begins. Raises BadRequest and TooLarge; what happens later is raised there.
        """
        request = self.sender.prepare(
            service,
            command,
            args,
            timeout=timeout,
            cancel_on_disconnect=cancel_on_disconnect,
            chunks=True,
            progress=progress is not None,
        )
        return AsyncStream(self.sender, request, timeout, on_restart=on_restart, on_progress=progress)

    def session(self, id: str, *, service: str, **options: Unpack[SessionOptions]) -> AsyncSession:
        """The session of that id, whose requests meet the same live bridge: see AsyncSession, and SessionOptions."""
        return AsyncSession(self.sender, id, service=service, **options)

    def bind(self, service: str, api: Callable[..., A], **options: Unpack[CallOptions]) -> A:
        """An object with the methods of `api`, a class whose methods are the service's commands: see docs/producer.md.

        They are `async def`, or give an AsyncIterator, for chunks. What they are called with is checked, and converted,
        before it is sent, and what comes is too: they raise what `call` does, BadRequest that names the argument, and
        BadResult. The options are those of every call. Raises TypeError for a class that cannot be one.
        """
        from producer.bound import bind_async  # pydantic costs 100 ms

        of_stream = stream_options(options)
        return bind_async(
            api,
            service,
            lambda command, args: self.call(service, command, args, **options),
            lambda command, args: self.stream(service, command, args, **of_stream),
        )

    async def publish(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> str:
        """Send a request whose reply nobody awaits; returns its message id once the broker has confirmed it.

        `timeout` bounds the publishing alone: the request itself has no deadline. Its reply is for `collect` where
        there is a `reply_queue`; otherwise it has none, and if it fails it is kept as a dead letter. `idempotent`:
        if the connection is lost before it is confirmed it is published again, within the timeout. The options are
        PublishOptions.

        Raises UnknownService, Refused, Blocked, BrokerUnavailable (nothing was sent) or OutcomeUnknown (it may have
        been), BadRequest and TooLarge.
        """
        check_timeout(timeout)
        request = self.sender.prepare(service, command, args, timeout=None, **options)
        await self.sender.publish(request, timeout)
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
        sender = self.sender
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
                            held = sender.prepare(
                                service, command, item[1], timeout=timeout, idempotent=idempotent, priority=priority
                            )
                        size = held.size
                        if not flight.fits(size):
                            break
                        future = (sender.send_at_once(held, timeout) or await sender.send(held, timeout)).future
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
        async with aclosing(self._mailbox.collect(idle_timeout, self._claims.store)) as replies:
            async for reply in replies:
                yield reply

    async def cancel(self, service: str, message_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """Tell every node of `service` that this request shall not run, or not run on; whether there was one to tell.

        For requests of other producers too; what became of it is told where its reply goes. Raises ValueError for
        what cannot be a service or a message id, and Blocked, BrokerUnavailable or OutcomeUnknown if it cannot be
        sent within `timeout`. See also Handle.cancel.
        """
        check_timeout(timeout)
        return await self.sender.cancel(service, message_id, timeout)


def _failed(error: CodedError) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
