"""The producer for any thread.

    with Producer("amqp://user:secret@host/vhost") as producer:
        reply = producer.call("analyse", "summarise", {"path": "setup.py"}, timeout=30)
        outcome = producer.submit("analyse", "summarise", {"path": "setup.py"})
        reply = outcome.result()
        for reply in producer.map("analyse", "summarise", many_args, in_flight=200): ...
        for word in producer.stream("writer", "write", {"about": "rivers"}): ...

An AsyncProducer on an event loop of its own, in a background thread. Every method may be called from any
thread but the one that loop runs in.

After a fork the child has a connection of its own: at its first use there the producer lets go of the parent's, whose
threads the child does not have, and opens another. What the parent sent is the parent's to await.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar, Unpack, overload

from bridge_protocol.claim_check import DEFAULT_THRESHOLD
from bridge_protocol.errors import BrokerUnavailable, CodedError, QuaybridgeError, RequestFailed
from broker.contract import Broker
from broker.store import Store
from producer.async_producer import CONNECT_TIMEOUT, AsyncProducer
from producer.flight import MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES, Flight, OnError, at_position
from producer.loop_thread import FORKED, LoopThread, of_another_thread
from producer.options import (
    DEFAULT_TIMEOUT,
    CallOptions,
    MapOptions,
    PublishOptions,
    SessionOptions,
    StreamOptions,
    SubmitOptions,
    stream_options,
)
from producer.outcome import Outcome
from producer.progress import Progress
from producer.reply import Reply
from producer.request import PreparedRequest
from producer.sender import Sender
from producer.thread_session import Session
from producer.thread_stream import Stream

# What may be on its way to the loop, or wait there for room, before whoever submits more is made to wait.
MOST_HANDED_OVER = 64
MOST_HANDED_OVER_BYTES = 4 * 1024 * 1024
CLOSE_TIMEOUT = 15.0  # seconds for `close`; the broker is given three of them

NOT_STARTED = "not started: use it in a with block, or call start()"
CLOSED = "closed"

A = TypeVar("A")
T = TypeVar("T")


class _Order(NamedTuple):
    """A request that a thread hands over to the loop. `taken`: where the thread waits until there was room for it."""

    request: PreparedRequest
    timeout: float
    outcome: Outcome
    taken: threading.Event | None
    progress: Callable[[Progress], None] | None


class Producer:
    """Sends requests and brings their replies back: AsyncProducer for threads. Started once.

    `loop`: the running event loop, in another thread, that `broker` lives on (an embedded broker has one); by
    default the producer has its own. `reply_queue`, `store` and `claim_threshold` as for AsyncProducer.

    Used in a process that was forked from the one that started it, it connects anew there, and may raise what `start`
    does; with a `loop`, or a Broker that belongs to one, it cannot, and says so. Whoever holds a `reply_queue` shares
    it with its parent then, and each gets some of the replies.
    """

    def __init__(
        self,
        broker: Broker | str,
        *,
        name: str = "producer",
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_queue: str | None = None,
        store: Store | None = None,
        claim_threshold: int = DEFAULT_THRESHOLD,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._make = partial(
            AsyncProducer,
            broker,
            name=name,
            connect_timeout=connect_timeout,
            reply_queue=reply_queue,
            store=store,
            claim_threshold=claim_threshold,
        )
        self._given = loop
        self._forking = threading.Lock()
        self._renew(NOT_STARTED)
        self._process = os.getpid()  # the one that all of this belongs to

    def _renew(self, out_of_use: str | None) -> None:
        self._own = self._make()
        self._thread: LoopThread | None = None
        # What follows is guarded by the lock.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out_of_use: str | None = out_of_use
        self._inbox: list[_Order] = []
        self._handed_over = 0
        self._handed_over_bytes = 0
        # For the loop's thread only.
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def _producer(self) -> AsyncProducer:
        """The one of this process."""
        if self._process != os.getpid():
            self._reopen()
        return self._own

    @property
    def _sender(self) -> Sender:
        return self._producer.sender

    def __repr__(self) -> str:
        return repr(self._own).replace("AsyncProducer", "Producer", 1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Connect. Raises BrokerUnavailable, with the reason, if that fails within `connect_timeout` seconds.

        Raises RuntimeError if it was started or closed before.
        """
        if self._process != os.getpid():
            self._reopen()
        with self._lock:
            if self._out_of_use != NOT_STARTED:
                raise RuntimeError(f"{self!r} was started or closed before: make another")
            self._begin_life()
        self._connect()

    def _begin_life(self) -> None:
        """Have a loop to run on. With the lock held."""
        if self._given is None:
            self._thread = LoopThread("quaybridge producer")
            self._loop = self._thread.loop
        elif not self._given.is_running():
            raise RuntimeError("the event loop given to a Producer must be running, in another thread")
        else:
            self._loop = of_another_thread(self._given)
        self._out_of_use = None

    def _connect(self) -> None:
        try:
            self.run(self._own.start())
        except BaseException:
            self._end()
            raise

    def _reopen(self) -> None:
        """This is another process than the one that connected: have a connection of its own.

        Raises as `start` does, if it was started there; the next use tries again then.
        """
        with self._forking:
            if self._process == os.getpid():
                return  # another thread was faster
            if self._thread is not None:
                self._thread.let_go()
            if self._out_of_use is None:
                if self._given is not None:
                    raise RuntimeError(
                        f"the event loop given to this Producer runs in process {self._process}, and not in this one, "
                        "which was forked from it: make another Producer here"
                    )
                self._renew(None)
                self._begin_life()
                try:
                    self._connect()
                except BaseException:
                    self._out_of_use = None
                    raise
            else:
                self._renew(self._out_of_use)
            self._process = os.getpid()

    def close(self) -> None:
        """Disconnect; takes at most CLOSE_TIMEOUT (15 s). Does nothing the second time.

        Calls under way end: in OutcomeUnknown, for nobody will hear their replies, or in BrokerUnavailable if they were
        not sent. Their outcomes have ended when this returns, but where a callback of theirs holds up the loop's
        thread: then TimeoutError is raised, and the thread is left to itself.
        """
        if self._process != os.getpid():
            with self._forking:
                if self._thread is not None:
                    self._thread.let_go()  # what the parent opened is the parent's to close
                self._renew(CLOSED)
                self._process = os.getpid()
        self._end()

    def _end(self) -> None:
        with self._lock:
            if self._out_of_use is not None:
                self._out_of_use = CLOSED
                return
            self._usable_loop()
            closing = self._begin(self._close())
            self._out_of_use = CLOSED
        try:
            closing.result(CLOSE_TIMEOUT)
        finally:
            if self._thread is not None:
                self._thread.stop(wait=closing.done())
                if closing.done():
                    self._thread = None

    def call(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Reply:
        """Send a request and wait for its reply: see AsyncProducer.call."""
        outcome = self.submit(service, command, args, **options)
        try:
            return outcome.result()
        except KeyboardInterrupt:
            outcome.cancel()
            raise

    def submit(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Outcome:
        """Send a request; its outcome is a future, for its Reply or for the exception that stands for its failure.

        Waits while too much waits for room to be published. Raises BadRequest and TooLarge, and BrokerUnavailable
        if the producer is not started or closed; whatever happens after that is raised by the outcome. For the
        options see AsyncProducer.submit; `progress` is called in the event loop's thread, and must not block.
        """
        wanted = progress is not None
        request = self._sender.prepare(service, command, args, timeout=timeout, progress=wanted, **options)
        return self._hand_over(request, timeout, progress)

    def _hand_over(
        self, request: PreparedRequest, timeout: float, progress: Callable[[Progress], None] | None = None
    ) -> Outcome:
        size = request.size
        with self._lock:
            loop = self._usable_loop()
            self._handed_over += 1
            self._handed_over_bytes += size
            full = self._handed_over > MOST_HANDED_OVER or self._handed_over_bytes > MOST_HANDED_OVER_BYTES
            outcome = Outcome(request.service, request.message_id, loop, self._cancel_until)
            order = _Order(request, timeout, outcome, threading.Event() if full else None, progress)
            self._inbox.append(order)
            if len(self._inbox) == 1:
                loop.call_soon_threadsafe(self._take)
        if order.taken is not None:
            order.taken.wait(timeout)
        return outcome

    def stream(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[StreamOptions]
    ) -> Stream:
        """The chunks of a request, as they come: see AsyncProducer.stream."""
        return Stream(self.run, self._producer.stream(service, command, args, **options))

    def session(self, id: str, *, service: str, **options: Unpack[SessionOptions]) -> Session:
        """The session of that id, whose requests meet the same live bridge: see AsyncSession."""
        return Session(self.run, self._producer.session(id, service=service, **options))

    def bind(self, service: str, api: Callable[..., A], **options: Unpack[CallOptions]) -> A:
        """An object with the methods of `api`, which are plain `def`, or give an Iterator: see AsyncProducer.bind."""
        from producer.bound import bind  # pydantic costs 100 ms

        of_stream = stream_options(options)
        return bind(
            api,
            service,
            lambda command, args: self.call(service, command, args, **options),
            lambda command, args: self.stream(service, command, args, **of_stream),
        )

    def publish(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> str:
        """Send a request whose reply nobody awaits; its message id, once confirmed: see AsyncProducer.publish."""
        return self.run(self._producer.publish(service, command, args, timeout=timeout, **options))

    def collect(self, *, idle_timeout: float | None = None) -> Generator[Reply | RequestFailed, None, None]:
        """The replies in the `reply_queue` that no call of this producer awaits: see AsyncProducer.collect."""
        replies = (own := self._producer).collect(idle_timeout=idle_timeout)
        try:
            while (reply := self.run(_next(replies))) is not None:
                yield reply
                if self._producer is not own:
                    raise RuntimeError(FORKED)
        finally:
            if self._own is own:
                with suppress(BrokerUnavailable):  # it is closed: the broker has what was not acknowledged
                    self.run(replies.aclose())

    def cancel(self, service: str, message_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """Tell every node of `service` that this request shall not run, or not run on: see AsyncProducer.cancel."""
        return self.run(self._producer.cancel(service, message_id, timeout=timeout))

    @overload
    def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[Reply, None, None]: ...

    @overload
    def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        on_error: Literal["return"],
        **options: Unpack[MapOptions],
    ) -> Generator[Reply | CodedError, None, None]: ...

    def map(
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
    ) -> Generator[Reply | CodedError, None, None]:
        """One request for each of `args`, a bounded number at once, and their replies: see AsyncProducer.map."""

        def prepared(item: Mapping[str, Any]) -> PreparedRequest:
            return self._sender.prepare(
                service, command, item, timeout=timeout, idempotent=idempotent, priority=priority
            )

        def send(request: PreparedRequest) -> Outcome:
            return self._hand_over(request, timeout)

        flight: Flight[Future[Reply]] = Flight(in_flight, in_flight_bytes, on_error)
        return self._map(enumerate(args), flight, prepared, send, ordered=ordered, give=on_error == "return")

    def _map(
        self,
        items: Iterator[tuple[int, Mapping[str, Any]]],
        flight: Flight[Future[Reply]],
        prepared: Callable[[Mapping[str, Any]], PreparedRequest],
        send: Callable[[PreparedRequest], Outcome],
        *,
        ordered: bool,
        give: bool,
    ) -> Generator[Reply | CodedError, None, None]:
        ended: SimpleQueue[Future[Reply]] = SimpleQueue()
        held: PreparedRequest | None = None
        place = 0
        try:
            while True:
                while not flight.full:
                    try:
                        if held is None:
                            if (item := next(items, None)) is None:
                                break
                            place = item[0]
                            held = prepared(item[1])
                        size = held.size
                        if not flight.fits(size):
                            break
                        future: Future[Reply] = send(held)
                    except CodedError as error:
                        future, size = _failed(error), 0
                        if not give:
                            items = enumerate(())
                    held = None
                    flight.join(future, place, size)
                    if not ordered:
                        future.add_done_callback(ended.put)
                if not flight:
                    return
                future = flight.first() if ordered else ended.get()
                try:
                    end: Reply | CodedError = future.result()
                except CodedError as error:
                    if not give:
                        raise
                    end = error
                position = flight.leave(future)
                yield end if ordered else at_position(end, position)
        finally:
            for future in flight:
                future.cancel()

    def _cancel_until(self, outcome: Outcome, timeout: float | None) -> bool:
        async def cancel() -> bool:
            ended = asyncio.wrap_future(outcome)
            # Looked at, or asyncio complains that nobody did.
            ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            return await self._own.sender.cancel_until(outcome.service, outcome.message_id, ended, timeout)

        return self.run(cancel())

    # From a thread to the loop.

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Have its event loop run `coroutine`, and wait for what that gives or raises. For its sessions and streams.

        Raises BrokerUnavailable if it is not started or closed.
        """
        try:
            with self._lock:
                future = self._begin(coroutine)
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the loop run `coroutine`. With the lock held, so that nothing comes after what `close` begins."""
        loop = self._usable_loop()
        return asyncio.run_coroutine_threadsafe(self._counted(coroutine), loop)

    def _usable_loop(self) -> asyncio.AbstractEventLoop:
        if self._out_of_use is not None or self._loop is None:
            raise BrokerUnavailable(f"not sent: the producer is {self._out_of_use}")
        return of_another_thread(self._loop)

    # In the loop's thread.

    def _take(self) -> None:
        """Send what was handed over."""
        with self._lock:
            orders, self._inbox = self._inbox, []
        sent: list[_Order] = []
        for order in orders:
            if not self._send_at_once(order):
                break  # what finds no room is not overtaken by what comes after it
            sent.append(order)
        for order in orders[len(sent) :]:
            task = asyncio.ensure_future(self._send(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._release(sent)

    def _send_at_once(self, order: _Order) -> bool:
        """Send it if there is room; whether there is nothing left to do."""
        if order.outcome.cancelled():
            return True
        try:
            handle = self._own.sender.send_at_once(order.request, order.timeout, order.progress)
        except QuaybridgeError as error:
            order.outcome.fail(error)
            return True
        if handle is not None:
            order.outcome.follow(handle)
        return handle is not None

    async def _send(self, order: _Order) -> None:
        """Send it when there is room."""
        try:
            order.outcome.follow(await self._own.sender.send(order.request, order.timeout, order.progress))
        except QuaybridgeError as error:
            order.outcome.fail(error)
        finally:
            self._release([order])

    def _release(self, orders: list[_Order]) -> None:
        with self._lock:
            self._handed_over -= len(orders)
            self._handed_over_bytes -= sum(order.request.size for order in orders)
        for order in orders:
            if order.taken is not None:
                order.taken.set()

    async def _counted(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await `coroutine` as one of those that `close` waits for."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await coroutine
        finally:
            self._tasks.discard(task)

    async def _close(self) -> None:
        await self._own.close()
        # Now they end by themselves, and whoever waits for them should hear how.
        task = asyncio.current_task()
        if others := [other for other in self._tasks if other is not task]:
            await asyncio.wait(others)


async def _next(replies: AsyncGenerator[T, None]) -> T | None:
    return await anext(replies, None)


def _failed(error: CodedError) -> Future[Reply]:
    future: Future[Reply] = Future()
    future.set_exception(error)
    return future
