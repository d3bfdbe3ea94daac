"""A session, as a producer sees it: its requests meet the same live bridge, one after the other.

    session = producer.session("user-7", service="notebook")
    await session.call("run", {"code": "x = 1"})
    reply = await session.call("run", {"code": "x + 1"})      # 2: by the same process, wherever that is
    await session.close()

Each reply names the *epoch* of that bridge, and each request the epoch of the reply before. If that is gone, so is
what the bridge had in memory, and `mode` says what then:

    strict     SessionLost is raised, once, with the reason; the call after that begins anew
    prefer     the request runs in a new epoch, and its reply says `fresh`
    rebuild    the requests of the `journal` are sent again, in order, to a new bridge, and then the request itself
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from bridge_protocol.envelope import SessionClaim
from bridge_protocol.errors import (
    BadRequest,
    BridgeCrashed,
    Cancelled,
    DeadlineExceeded,
    QuaybridgeError,
    RequestFailed,
    SessionLost,
)
from bridge_protocol.messages import CLEANUP_SESSION, with_deadline
from broker.contract import Message
from producer.handle import Canceller, Handle, Listener
from producer.options import DEFAULT_TIMEOUT, Mode, SessionCallOptions, session_stream_options
from producer.progress import Progress, ProgressFeed
from producer.reply import Reply
from producer.request import PreparedRequest, session_problem
from producer.sender import Sender
from producer.stream import AsyncStream

MOST_WAITING = 1000
MOST_JOURNALED = 100
MOST_JOURNALED_BYTES = 4 * 1024 * 1024
REMEMBERED_EPOCHS = 8  # that are gone

A = TypeVar("A")


class SessionHandle(Handle):
    """A request of a session: waiting for those before it, or on its way."""

    __slots__ = ("sent",)

    def __init__(
        self,
        producer: Canceller,
        service: str,
        message_id: str,
        future: asyncio.Future[Reply],
        feed: ProgressFeed | None = None,
    ) -> None:
        super().__init__(producer, service, message_id, future, feed)
        self.sent = False

    async def cancel(self, *, timeout: float | None = None) -> bool:
        """As Handle.cancel; one that waits for those before it is not sent, and ends at once."""
        if not self.sent and not self.future.done():
            self.future.set_exception(Cancelled("it was cancelled before it was sent", message_id=self.message_id))
            return True
        return await super().cancel(timeout=timeout)


@dataclass(slots=True, eq=False)
class _Order:
    """A request in line, until `end` on the loop's clock.

    `listener`: who is told what it says before its reply. `left`: nobody wants its reply any more.
    """

    request: PreparedRequest
    end: float
    handle: SessionHandle
    listener: Listener | None = None
    left: bool = False


class AsyncSession:
    """Made by AsyncProducer.session. On the event loop of its producer.

    Only one object should use a session's id at a time: the order of what two send is not theirs to say. At most
    `max_waiting` requests wait here; then `submit` waits. Of the commands in `journal` (for `rebuild`) the requests
    that succeeded are kept, at most `max_journal` of them and `max_journal_bytes` in all: with more, a loss cannot be
    made good, and is raised. Raises BadRequest for an id that cannot be one.
    """

    def __init__(
        self,
        sender: Sender,
        id: str,
        *,
        service: str,
        mode: Mode = "strict",
        journal: Collection[str] = (),
        max_waiting: int = MOST_WAITING,
        max_journal: int = MOST_JOURNALED,
        max_journal_bytes: int = MOST_JOURNALED_BYTES,
    ) -> None:
        if problem := session_problem(id):
            raise BadRequest(problem)
        if mode not in ("strict", "prefer", "rebuild"):
            raise ValueError(f"mode must be 'strict', 'prefer' or 'rebuild', not {mode!r}")
        if journal and mode != "rebuild":
            raise ValueError("a journal is for the mode 'rebuild'")
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, not {max_waiting}")
        self.id = id
        self.service = service
        self.mode: Mode = mode
        self.epoch: str | None = None
        self.lost = 0  # how often its bridge was found to be gone
        self.rebuilt = 0  # how often that was made good from the journal
        self._sender = sender
        self._commands = frozenset(journal)
        self._journal: list[PreparedRequest] = []
        self._journal_bytes = 0
        self._max_journal = max_journal
        self._max_journal_bytes = max_journal_bytes
        self._outdated: deque[str | None] = deque(maxlen=REMEMBERED_EPOCHS)
        self._line: deque[_Order] = deque()
        self._max_waiting = max_waiting
        self._room = asyncio.Event()
        self._driving: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._line)} waiting"
        return f"<AsyncSession {self.id!r} of {self.service}, {self.mode}, {state}, epoch {self.epoch}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(
        self, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[SessionCallOptions]
    ) -> Reply:
        """Send a request, after those before it have ended, and await its reply. The options are SessionCallOptions.

        Raises what AsyncProducer.call does, and SessionLost as `mode` says.
        """
        handle = await self.submit(command, args, **options)
        return await handle.future

    def bind(self, api: Callable[..., A], **options: Unpack[SessionCallOptions]) -> A:
        """An object with the methods of `api`, called in this session: see AsyncProducer.bind."""
        from producer.bound import bind_async  # pydantic costs 100 ms

        of_stream = session_stream_options(options)
        return bind_async(
            api,
            f"session {self.id} of {self.service}",
            lambda command, args: self.call(command, args, **options),
            lambda command, args: self.stream(command, args, **of_stream),
        )

    async def submit(
        self,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        idempotent: bool = False,
        progress: bool | Callable[[Progress], None] | None = None,
    ) -> Handle:
        """Put a request in line; its handle. Waits while the line is full. Raises BadRequest and TooLarge.

        Raises DeadlineExceeded if the line stays full for `timeout` seconds; that time counts for the request too.
        For `progress` see AsyncProducer.submit.
        """
        wanted = progress is not None and progress is not False
        request = self._prepare(command, args, timeout=timeout, idempotent=idempotent, progress=wanted)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        feed = ProgressFeed(future, progress if callable(progress) else None) if wanted else None
        handle = SessionHandle(self._sender, self.service, request.message_id, future, feed)
        await self._line_up(request, timeout, handle, feed)
        return handle

    def stream(
        self,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        on_restart: Callable[[int], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncStream:
        """The chunks of a request, as they come: see AsyncStream, and SessionStreamOptions.

        It is put in line when the iteration begins, and those after it are sent when it has ended, or was left and has
        ended where it ran. Raises BadRequest and TooLarge; what happens later is raised in the iteration.
        """
        request = self._prepare(command, args, timeout=timeout, chunks=True, progress=progress is not None)
        return AsyncStream(_InTurn(self), request, timeout, on_restart=on_restart, on_progress=progress)

    def _prepare(
        self,
        command: str,
        args: Mapping[str, Any] | None,
        *,
        timeout: float,
        idempotent: bool = False,
        chunks: bool = False,
        progress: bool,
    ) -> PreparedRequest:
        if self._closed:
            raise BadRequest(f"the session {self.id!r} was closed here: make another object for it")
        return self._sender.prepare(
            self.service,
            command,
            args,
            timeout=timeout,
            idempotent=idempotent,
            session=self.id,
            chunks=chunks,
            progress=progress,
        )

    async def _line_up(
        self, request: PreparedRequest, timeout: float, handle: SessionHandle, listener: Listener | None
    ) -> _Order:
        """Put it in line, when there is room."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        if len(self._line) >= self._max_waiting:
            try:
                async with asyncio.timeout_at(end):
                    while len(self._line) >= self._max_waiting:
                        self._room.clear()
                        await self._room.wait()
            except TimeoutError:
                raise _too_late(request) from None
        order = _Order(request, end, handle, listener)
        self._line.append(order)
        if self._driving is None:
            self._driving = loop.create_task(self._drive(), name=f"session {self.id[:64]}")
        return order

    async def close(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """End the session, after what is in line: its bridge forgets it. Does nothing if there is none, or twice.

        A bridge that cannot be told ends it by itself, when it has been idle for long.
        """
        if self._closed:
            return
        if self._line or self._driving is not None or self.epoch is not None:
            with suppress(QuaybridgeError):
                handle = await self.submit(CLEANUP_SESSION, timeout=timeout)
                self._closed = True
                await handle.future
        self._closed = True

    # One request after the other.

    async def _drive(self) -> None:
        try:
            while self._line:
                order = self._line.popleft()
                self._room.set()
                future = order.handle.future
                if future.done():
                    continue  # given up while it waited
                try:
                    reply = await self._carry_out(order)
                except QuaybridgeError as error:
                    if not future.done():
                        future.set_exception(error)
                else:
                    if not future.done():
                        future.set_result(reply)
        finally:
            self._driving = None

    async def _carry_out(self, order: _Order) -> Reply:
        asked = order.request
        if asked.command == CLEANUP_SESSION and self.epoch is None:
            return Reply(result=None, message_id=asked.message_id)  # there is nothing to clean up
        try:
            reply = await self._send(asked, order)
        except (SessionLost, BridgeCrashed) as error:
            if self.mode != "rebuild" or asked.command == CLEANUP_SESSION:
                raise
            reply = await self._rebuild(order, error)
        if asked.command in self._commands:
            self._note(asked)
        elif asked.command == CLEANUP_SESSION:
            self._lose(self.epoch)
            self._journal.clear()
            self._journal_bytes = 0
        return reply

    async def _rebuild(self, order: _Order, loss: RequestFailed) -> Reply:
        """Send the journal again, to a new bridge, and then the request that found that the old one is gone."""
        self._lose(self.epoch)
        if len(self._journal) > self._max_journal or self._journal_bytes > self._max_journal_bytes:
            raise SessionLost(
                f"{loss.message}; and its journal is over its limit, so it was not rebuilt", details=loss.details
            ) from loss
        for kept in self._journal:
            try:
                await self._send(_again(kept, order.request.deadline), order, replayed=True)
            except RequestFailed as error:
                raise SessionLost(
                    f"{loss.message}; it could not be rebuilt: {kept.command}: {error.message}", details=loss.details
                ) from error
        self.rebuilt += 1
        order.request = _again(order.request, order.request.deadline)
        return await self._send(order.request, order)

    def _note(self, request: PreparedRequest) -> None:
        """Keep it for a rebuild. Past the limits the rest need not be kept: there will be none."""
        if len(self._journal) <= self._max_journal and self._journal_bytes <= self._max_journal_bytes:
            self._journal.append(request._replace(chunks=False, progress=False))
            self._journal_bytes += len(request.body)

    async def _send(self, request: PreparedRequest, order: _Order, *, replayed: bool = False) -> Reply:
        """Send one request, and learn from what comes back. `replayed`: it is not the one that was asked for."""
        left = order.end - asyncio.get_running_loop().time()
        if left <= 0:
            raise _too_late(request)
        if order.left and not replayed:
            raise Cancelled("its stream was left before it was sent", message_id=request.message_id)
        claim = SessionClaim(id=self.id, epoch=self.epoch, lenient=self.mode == "prefer")
        request = request._replace(session=claim, outdated=self._outdated)
        if order.listener is None or replayed:
            sent = (self._sender.send_at_once(request, left) or await self._sender.send(request, left)).future
        else:
            sent = await self._sender.begin(request, left, order.listener)
            if order.left:  # while there was no room to send it
                self._sender.abandon(request.message_id)
        order.handle.message_id = request.message_id
        order.handle.sent = True
        order.handle.future.add_done_callback(lambda _: sent.cancel())  # nobody listens any more
        try:
            reply = await sent
        except asyncio.CancelledError:
            if order.handle.future.done():
                raise Cancelled("nobody listens", message_id=request.message_id) from None
            raise
        except RequestFailed as error:
            if isinstance(error, SessionLost):
                self.lost += 1
                self._lose(self.epoch)
            elif error.session_epoch is not None:
                self._renew(error.session_epoch)
            raise
        if reply.session_epoch is not None:
            self._renew(reply.session_epoch)
        return reply

    def _renew(self, epoch: str) -> None:
        if epoch != self.epoch:
            self._lose(self.epoch)
            self.epoch = epoch

    def _lose(self, epoch: str | None) -> None:
        """That epoch is over: what is still said of it is not listened to."""
        if epoch is not None:
            self._outdated.append(epoch)
        self.epoch = None


class _InTurn:
    """Sends the request of a stream when it is its turn in the session's line: see StreamSender."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._order: _Order | None = None

    async def begin(self, request: PreparedRequest, timeout: float, listener: Listener) -> asyncio.Future[Reply]:
        """See Sender.begin."""
        session = self._session
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        handle = SessionHandle(session._sender, session.service, request.message_id, future)
        self._order = await session._line_up(request, timeout, handle, listener)
        return future

    def say(self, message: Message) -> None:
        """See Sender.say."""
        self._session._sender.say(message)

    def abandon(self, message_id: str) -> None:
        """As Sender.abandon; one that waits for those before it is not sent."""
        assert self._order is not None
        self._order.left = True
        self._order.handle.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._session._sender.abandon(self._order.request.message_id)


def _again(request: PreparedRequest, deadline: int | None) -> PreparedRequest:
    """The same request, as a new one."""
    body = with_deadline(request.body, deadline)
    return request._replace(message_id=secrets.token_hex(16), body=body, deadline=deadline)


def _too_late(request: PreparedRequest) -> DeadlineExceeded:
    text = "the deadline passed while it waited for those of its session before it; it was not sent"
    return DeadlineExceeded(text, message_id=request.message_id)
