"""The producer for any thread.

    with Producer("amqp://user:secret@host/vhost") as producer:
        reply = producer.call("analyse", "summarise", {"path": "setup.py"}, timeout=30)
        handle = producer.submit("analyse", "summarise", {"path": "setup.py"})
        reply = handle.result()
        for reply in producer.map("analyse", "summarise", many_args, in_flight=200): ...

An AsyncProducer on an event loop of its own, in a background thread. Every method may be called from any
thread but the one that loop runs in.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from bridge_protocol.errors import BrokerUnavailable
from broker.contract import Broker
from producer.async_producer import CONNECT_TIMEOUT, DEFAULT_TIMEOUT, AsyncProducer, Handle
from producer.reply import Reply

T = TypeVar("T")


class Producer:
    """Sends requests and brings their replies back. `broker` and the bounds: see AsyncProducer.

    With a broker that lives on an event loop already (MemoryBroker), that loop is used: it must be running,
    in another thread.
    """

    def __init__(
        self,
        broker: Broker | str,
        *,
        name: str = "producer",
        connect_timeout: float = CONNECT_TIMEOUT,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._producer = AsyncProducer(broker, name=name, connect_timeout=connect_timeout)
        self._given = loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return repr(self._producer).replace("AsyncProducer", "Producer", 1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Connect. Raises BrokerUnavailable, with the reason, if that fails within `connect_timeout`."""
        if self._loop is not None:
            return
        self._loop = self._given
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="quaybridge producer", daemon=True)
            self._thread.start()
        try:
            self._run(self._producer.start())
        except BaseException:
            self._stop_loop()
            raise

    def close(self) -> None:
        """Disconnect. Calls still under way, in other threads, end in OutcomeUnknown."""
        if self._loop is None:
            return
        try:
            self._run(self._producer.close())
        finally:
            self._stop_loop()

    def call(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Reply:
        """Send a request and wait for its reply: see AsyncProducer.call."""
        return self._run(self._producer.call(service, command, args, timeout=timeout))

    def submit(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Future[Reply]:
        """Send a request; the future ends with its Reply, or with the exception that stands for its failure.

        Waits for room to publish it, and raises what stands in its way: see AsyncProducer.submit.
        """
        return self._run(self._submit(service, command, args, timeout))

    def publish(
        self, service: str, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> str:
        """Send a request whose reply nobody awaits; its message id, once confirmed: see AsyncProducer.publish."""
        return self._run(self._producer.publish(service, command, args, timeout=timeout))

    def map(
        self,
        service: str,
        command: str,
        args: Iterable[Mapping[str, Any]],
        *,
        in_flight: int = 100,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Iterator[Reply]:
        """One request for each of `args`, at most `in_flight` at once; replies in order: see AsyncProducer.map."""
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        futures: deque[Future[Reply]] = deque()
        try:
            for item in args:
                if len(futures) >= in_flight:
                    yield futures.popleft().result()
                futures.append(self.submit(service, command, item, timeout=timeout))
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()

    async def _submit(
        self, service: str, command: str, args: Mapping[str, Any] | None, timeout: float
    ) -> Future[Reply]:
        handle = await self._producer.submit(service, command, args, timeout=timeout)
        return _Outcome(handle)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            coroutine.close()
            raise BrokerUnavailable("the producer is not started: use it in a with block, or call start()")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            self._thread = None
            loop.close()


class _Outcome(Future[Reply]):
    """What a handle of the loop's ends with, for other threads."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self.message_id = handle.message_id
        self._source = handle.future
        self._source.add_done_callback(self._copy)

    def _copy(self, source: asyncio.Future[Reply]) -> None:
        if source.cancelled():
            self.cancel()
        elif self.set_running_or_notify_cancel():
            error = source.exception()
            if error is None:
                self.set_result(source.result())
            else:
                self.set_exception(error)
