"""A stream, as a caller sees it: the chunks of one request, while it runs.

    stream = producer.stream("writer", "write", {"about": "rivers"}, timeout=120)
    async for word in stream:
        print(word, end=" ")
    print(stream.reply.result)

Ends with the request. If that fails, the chunks that came are given first, and then its failure is raised. If chunks
are missing StreamGap is raised. If the request is tried again, its bridge having crashed, the stream begins anew: as
long as none was given out nobody notices; after that StreamRestarted is raised, or, where there is an `on_restart`,
that is called with the number of the attempt, to throw away what there was, and the chunks come from the first on.

Whoever leaves before the end (`break`, an exception, `aclose`) has the request cancelled where it runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Any, Protocol, Self

from bridge_protocol.control import CREDIT, Credit, encode_credit
from bridge_protocol.envelope import CHUNKS, RESULT, Properties
from bridge_protocol.errors import StreamGap, StreamRestarted
from broker.contract import Delivery, Message
from producer.chunks import Chunks, Grant, Piece
from producer.handle import Listener
from producer.progress import Progress, ProgressFeed
from producer.reply import Reply
from producer.request import PreparedRequest

MOST_AT_ONCE = 64  # chunks

logger = logging.getLogger("quaybridge.producer")


class StreamSender(Protocol):
    """Who sends a stream's request: a Sender at once, a session when it is its turn."""

    async def begin(self, request: PreparedRequest, timeout: float, listener: Listener) -> asyncio.Future[Reply]:
        """Send the request when there is room; the future of its reply."""

    def say(self, message: Message) -> None:
        """Publish what nobody answers, as far as there is a connection."""

    def abandon(self, message_id: str) -> None:
        """Have a request cancelled that nobody awaits any more."""


class AsyncStream:
    """Made by AsyncProducer.stream and AsyncSession.stream; iterated once.

    `reply`: the Reply, once the last chunk has been taken. `message_id`: its request's; a session that was rebuilt has
    sent it again, as another.

    A chunk counts as taken when the next one is asked for. If none is taken for `stream.reader_timeout` seconds (30 by
    default, the service's setting), and as many as may be (256, or 1 MiB) are waiting, the request is cancelled and
    ReaderStalled is raised after those that came.
    """

    def __init__(
        self,
        sender: StreamSender,
        request: PreparedRequest,
        timeout: float,
        *,
        on_restart: Callable[[int], None] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.message_id = request.message_id
        self.reply: Reply | None = None
        self._sender = sender
        self._request = request
        self._timeout = timeout
        self._on_restart = on_restart
        self._on_progress = on_progress
        self._feed: ProgressFeed | None = None
        self._chunks = Chunks()
        self._changed = asyncio.Event()
        self._begun = False
        self._closed = False
        self._future: asyncio.Future[Reply] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._begun else "not begun"
        return f"<AsyncStream {self.message_id} {state}, {self._chunks!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Any]:
        self.enter()
        return self._items()

    async def aclose(self) -> None:
        """Leave: if the request has not ended, have it cancelled. Returns at once."""
        self._closed = True
        self._changed.set()
        if self._future is not None and not self._future.done():
            self._sender.abandon(self.message_id)

    # For Producer, whose threads take several at a time.

    async def take(self) -> list[Piece]:
        """The next chunks; none: it has ended well, and there is a `reply`. Raises why it cannot go on."""
        if self._future is None:
            self._future = await self._sender.begin(self._request, self._timeout, self)
            if self._on_progress is not None:
                self._feed = ProgressFeed(self._future, self._on_progress)
            self._future.add_done_callback(lambda _: self._changed.set())
            if self._closed:
                await self.aclose()
        while not self._closed:
            self._check()
            if self._chunks:
                return self._chunks.take(MOST_AT_ONCE)
            if self._future.done():
                self.reply = self._future.result()
                return []
            self._changed.clear()
            await self._changed.wait()
        return []

    def enter(self) -> None:
        """Begin to iterate. Raises RuntimeError the second time."""
        if self._begun:
            raise RuntimeError("a stream is iterated once")
        self._begun = True

    def done_with(self, run: str, count: int, size: int) -> None:
        """So many of them, of `size` bytes, are used and gone."""
        self._give(self._chunks.done_with(run, count, size, asyncio.get_running_loop().time()))

    async def _items(self) -> AsyncGenerator[Any, None]:
        try:
            while pieces := await self.take():
                for piece in pieces:
                    yield piece.data
                    self.done_with(piece.run, 1, piece.size)
        finally:
            await self.aclose()

    def _check(self) -> None:
        """Raise if there is nothing more to be given, though something came."""
        chunks = self._chunks
        if chunks.restarted:
            if self._on_restart is None:
                text = f"attempt {chunks.attempt} began after chunks of the one before were given out"
                raise StreamRestarted(text, message_id=self.message_id)
            chunks.restart()
            self._on_restart(chunks.attempt)
        if chunks.gap is not None and not chunks:
            future = self._future
            if future is not None and future.done() and future.exception() is not None:
                return  # that it failed says more
            raise StreamGap(chunks.gap, message_id=self.message_id)

    def _give(self, grant: Grant | None) -> None:
        if grant is not None:
            credit = Credit(service=self._request.service, run=grant.run, chunks=grant.chunks)
            properties = Properties(type=CREDIT, delivery_mode=1)
            body = encode_credit(credit)
            self._sender.say(Message(exchange="", routing_key=grant.queue, body=body, properties=properties))

    # For the producer: what comes.

    def on_event(self, delivery: Delivery) -> None:
        """See Listener."""
        if self._closed:
            return
        self._look_whose(delivery)
        properties = delivery.properties
        if properties.type != CHUNKS:
            if self._feed is not None:
                self._feed.on_event(delivery)
            return
        self._give(self._chunks.receive(properties.headers, delivery.body, asyncio.get_running_loop().time()))
        self._changed.set()

    def on_reply(self, delivery: Delivery) -> None:
        """See Listener."""
        if not self._closed and delivery.properties.type == RESULT:
            self._look_whose(delivery)
            self._chunks.end(delivery.properties.headers)

    def _look_whose(self, delivery: Delivery) -> None:
        message_id = delivery.properties.correlation_id
        if message_id is not None and message_id != self.message_id:
            self.message_id = message_id
            self._chunks.anew()
