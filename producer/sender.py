"""The sender: requests on their way over one connection, each until it is known what became of it.

    prepared ──▶ in the window ──▶ published ──▶ confirmed ──▶ ended by its reply, its timeout, or what stood in its way
                                     │ connection lost │
                                     └────────┬────────┘
                                              ├─ idempotent, and time is left: published again, after a pause
                                              └─ otherwise: OutcomeUnknown

AsyncProducer is its face, for whoever has requests; sessions, streams and handles reach it directly.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from bridge_protocol.claim_check import ClaimCheck
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
    RequestFailed,
    UnknownService,
)
from bridge_protocol.topology import CONTROL, request_queue
from broker.confirm import Confirm
from broker.contract import Broker, BrokerError, Channel, ChannelClosed, Consumer, Delivery, Message, Unroutable
from broker.link import Link
from producer.call import Call
from producer.claims import Claims
from producer.handle import Handle, Listener
from producer.mailbox import Mailbox
from producer.options import SubmitOptions
from producer.overdue import Overdue
from producer.progress import Progress, ProgressFeed
from producer.reply import Reply, claim_of, epoch_of, read_reply
from producer.request import PreparedRequest, check_timeout, prepare
from producer.window import Window

# Before an idempotent request is published again; doubles with each further time. The connection has its own pauses.
FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 5.0  # seconds
REMEMBERED_STREAMS = 1000  # that ended
CANCEL_AGAIN = 5.0  # seconds until nodes are told again: one may have come, or come back, since

_NOT_FOUND = 404
_EVENTS = frozenset({CHUNKS, PROGRESS})

logger = logging.getLogger("quaybridge.producer")


class Sender:
    """Sends requests to `broker`, and ends each once. For one event loop; started once.

    `mailbox`: replies come by its durable queue; None: by direct reply-to. The rest is said at AsyncProducer.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        *,
        window: Window,
        claims: Claims,
        mailbox: Mailbox | None,
        max_republishes: int,
        wall: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.broker = broker
        self.link = Link(broker, name, set_up=self._set_up, on_lost=self._on_lost, readdress=self._readdress)
        self.mailbox = mailbox
        self.late_replies = 0
        self.republished = 0
        self.waiting: dict[str, Call] = {}
        self._overdue = Overdue(self.waiting, self._late)
        self._window = window
        self._claims = claims
        self._max_republishes = max_republishes
        self._wall = wall
        self._jitter = jitter
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()  # of requests to be published again, and of replies in the store
        self._reply_to = DIRECT_REPLY_TO
        self._exchange_seen = False  # by this channel: a publish that finds none was taken by nobody
        self._served: set[str] = set()  # services whose queue was looked for, and found
        self._scheduled: dict[str, PreparedRequest] = {}  # that are due later, and not confirmed yet
        self._read: dict[str, str] = {}  # streams that ended: by message id, the service

    def __repr__(self) -> str:
        return f"<Sender {self.link!r}, {len(self.waiting)} awaiting replies, {self._window!r}>"

    async def start(self, timeout: float) -> None:
        """Connect: see AsyncProducer.start."""
        try:
            await self.link.start(timeout)
        except BrokerError as error:
            address = self.broker.address
            reason = str(error).removeprefix(f"{address} ").removeprefix(f"{address}: ")
            raise BrokerUnavailable(f"cannot connect to {address}: {reason}") from error

    async def close(self) -> None:
        """Disconnect, and end what is under way: see AsyncProducer.close."""
        self._closed = True
        self._overdue.close()
        for task in self._tasks:
            task.cancel()
        for call in self.waiting.values():
            if call.request.chunks:
                self.say(_cancel_message(call.request.service, call.request.message_id))
        try:
            await self.link.close()
        finally:
            if self.mailbox is not None:
                self.mailbox.close()
            for call in list(self.waiting.values()):
                if not call.sending:
                    text = "the producer was closed before its reply came"
                    self._end(call, OutcomeUnknown(text, message_id=call.request.message_id))
            await self._claims.close()

    def prepare(
        self,
        service: str,
        command: str,
        args: Mapping[str, Any] | None,
        *,
        timeout: float | None,
        session: str | None = None,
        chunks: bool = False,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> PreparedRequest:
        """A request, its deadline `timeout` seconds from when it is due (None: it has none). Safe in any thread.

        Raises BadRequest and TooLarge.
        """
        if timeout is not None:
            check_timeout(timeout)
        if self.mailbox is not None and options.get("cancel_on_disconnect"):
            raise BadRequest("cancel_on_disconnect needs direct replies: a reply queue outlives its producer")
        return prepare(
            service,
            command,
            args,
            now=self._wall(),
            timeout=timeout,
            session=session,
            claim_threshold=self._claims.threshold,
            chunks=chunks,
            progress=progress,
            **options,
        )

    def send_at_once(
        self, request: PreparedRequest, timeout: float, on_progress: Callable[[Progress], None] | None = None
    ) -> Handle | None:
        """Send a request if there is nothing to wait for, such as room to publish it; its handle, or None."""
        if not self._is_ready(request) or not self._window.try_enter(len(request.body)):
            return None
        return self._submit(request, timeout, on_progress)

    async def send(
        self, request: PreparedRequest, timeout: float, on_progress: Callable[[Progress], None] | None = None
    ) -> Handle:
        """Send a request when there is room to publish it; its handle. Raises as `submit` does."""
        request, left = await self._made_ready(request, timeout)
        return self._submit(request, await self._enter(request, left), on_progress)

    async def publish(self, request: PreparedRequest, timeout: float) -> None:
        """Send a request whose reply nobody awaits; returns once it is confirmed. Raises as AsyncProducer.publish."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        if not self._is_ready(request):
            request, _ = await self._made_ready(request, timeout)
        for republished in range(self._max_republishes + 1):
            try:
                left = end - loop.time()
                if not self._window.try_enter(len(request.body)):
                    left = await self._enter(request, left)
                sent = self._publish(request, left, awaited=False)
                sent.add_done_callback(lambda _: self._window.leave(len(request.body)))
                await sent
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

    async def begin(self, request: PreparedRequest, timeout: float, listener: Listener) -> asyncio.Future[Reply]:
        """Send a request when there is room to publish it; the future of its reply. Raises as `submit` does."""
        request, left = await self._made_ready(request, timeout)
        call = self._send(request, await self._enter(request, left))
        call.listener = listener
        return call.future

    def say(self, message: Message) -> None:
        """Publish what nobody answers, and what may be lost."""
        self.link.publish(message, timeout=CANCEL_AGAIN)

    def abandon(self, message_id: str) -> None:
        """Have a request cancelled whose reply nobody awaits any more: at once, and again until it has ended."""
        call = self.waiting.get(message_id)
        if call is None or call.future.done():
            return
        call.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.say(_cancel_message(call.request.service, message_id))
        self._begin(self._abandon(call))

    async def _abandon(self, call: Call) -> None:
        await asyncio.wait([call.future], timeout=CANCEL_AGAIN)
        await self.cancel_until(call.request.service, call.request.message_id, call.future, None)

    async def cancel(self, service: str, message_id: str, timeout: float) -> bool:
        """Tell every node of `service`, once: see AsyncProducer.cancel."""
        check_timeout(timeout)
        try:
            await self.link.publish(_cancel_message(service, message_id), timeout=timeout)
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
            self.link.publish(message, timeout=min(left, CANCEL_AGAIN))  # if it fails, there is a next time
            await asyncio.wait([ended], timeout=min(left, CANCEL_AGAIN))
        return ended.done() and not ended.cancelled() and isinstance(ended.exception(), Cancelled)

    # One request.

    def _is_ready(self, request: PreparedRequest) -> bool:
        return request.cargo is None and (request.due is None or request.service in self._served)

    async def _made_ready(self, request: PreparedRequest, timeout: float) -> tuple[PreparedRequest, float]:
        """The request, with its cargo in the store, its service there if it is to wait; what is left of `timeout`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        if request.due is not None and request.service not in self._served:
            await self._look_for(request, timeout)
        request = await self._claims.check_in(request, end - loop.time())
        return request, max(end - loop.time(), 0.001)

    async def _look_for(self, request: PreparedRequest, timeout: float) -> None:
        """Raise UnknownService if it has no queue. A delay queue would take the request, and keep it for ever then.

        On a channel of its own: RabbitMQ closes the one on which it is asked for a queue that it does not have.
        """
        message_id = request.message_id
        try:
            async with asyncio.timeout(timeout):
                channel = await self.broker.open(f"{self.link.name}: looks for a service", on_closed=lambda _: None)
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
            channel, address = self.link.channel, self.broker.address
            if channel is not None and channel.blocked is not None:
                error: CodedError = Blocked(f"not sent: {address} takes no messages: {channel.blocked}")
            else:
                text = f"not sent: {address} confirmed none of what was sent before within {timeout:g} s"
                error = BrokerUnavailable(text)
            error.message_id = request.message_id
            raise error from None
        return max(end - loop.time(), 0.001)

    def _publish(self, request: PreparedRequest, timeout: float, *, awaited: bool) -> Confirm:
        """Publish, having entered the window: leave it when that ends; if this raises, it was. `awaited`: its reply."""
        if self.mailbox is not None:
            reply_to: str | None = self.mailbox.queue.name
        else:
            reply_to = self._reply_to if awaited else None
        try:
            sent = self.link.publish(request.message(reply_to, self._wall()), timeout=timeout)
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

    def _send(self, request: PreparedRequest, timeout: float) -> Call:
        """Publish, having entered the window; the call ends with the reply or with what stood in its way."""
        loop = asyncio.get_running_loop()
        sent = self._publish(request, timeout, awaited=True)
        end = loop.time() + timeout
        if request.due is not None:
            end += request.wait(self._wall())
        call = self.waiting[request.message_id] = Call(request, loop.create_future(), end, self._forget)
        self._overdue.watch(end)
        sent.add_done_callback(partial(self._sent, call))
        return call

    def _forget(self, call: Call) -> None:
        if self.waiting.pop(call.request.message_id, None) is not None:
            if self.mailbox is not None:
                self.mailbox.remember(call.request.message_id)
            if call.request.chunks:
                self._read[call.request.message_id] = call.request.service
                if len(self._read) > REMEMBERED_STREAMS:
                    del self._read[next(iter(self._read))]

    def _sent(self, call: Call, sent: Confirm) -> None:
        request = call.request
        self._window.leave(len(request.body))
        call.sending = False
        error = sent.exception()
        if error is None:
            self._exchange_seen = True
            call.confirmed = True
            if not self.link.up and self.mailbox is None:
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

    def _interrupted(self, call: Call, why: str) -> None:
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

    def _send_again(self, call: Call) -> None:
        if call.future.done():
            return
        if self._window.try_enter(len(call.request.body)):
            self._publish_again(call)
            return
        self._begin(self._enter_again(call))

    async def _enter_again(self, call: Call) -> None:
        with suppress(TimeoutError):  # its timer is due then, too
            async with asyncio.timeout_at(call.end):
                await self._window.enter(len(call.request.body))
            self._publish_again(call)

    def _publish_again(self, call: Call) -> None:
        if call.future.done():
            self._window.leave(len(call.request.body))
            return
        left = max(call.end - asyncio.get_running_loop().time(), 0.001)
        call.sending = True
        self.republished += 1
        sent = self._publish(call.request, left, awaited=True)
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

    def _late(self, call: Call) -> None:
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

    def _end_with(self, call: Call, delivery: Delivery, outcome: Reply | RequestFailed) -> None:
        """Its reply came: who listens is told first how many chunks there were."""
        if call.listener is not None:
            call.listener.on_reply(delivery)
        self._end(call, outcome)

    def _end(self, call: Call, outcome: Reply | BaseException) -> None:
        given_up = call.future.done()
        call.finish(outcome)
        if call.request.claim is not None and isinstance(outcome, Reply) and not given_up and not call.republished:
            self._claims.let_go(call.request.claim)  # published once: it will not run again

    # The connection.

    async def _set_up(self, channel: Channel) -> None:
        self._exchange_seen = False
        if self.mailbox is not None:
            self.mailbox.forget()
            queue, prefetch = self.mailbox.queue, self.mailbox.prefetch
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
            direct = reply_to is not None and self.mailbox is None
            return scheduled.message(self._reply_to if direct else reply_to, self._wall())
        if self.mailbox is not None or message.properties.reply_to in (None, self._reply_to):
            return message
        return replace(message, properties=replace(message.properties, reply_to=self._reply_to))

    def _on_reply(self, delivery: Delivery) -> None:
        message_id = delivery.properties.correlation_id or ""
        mailbox = self.mailbox
        call = self.waiting.get(message_id)
        if delivery.properties.type in _EVENTS:
            if call is not None and call.listener is not None:
                call.listener.on_event(delivery)
            elif (service := self._read.pop(message_id, None)) is not None:
                # It runs again, for nobody, after it was answered or given up: it would wait for credit.
                self.say(_cancel_message(service, message_id))
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

    async def _fetch(self, call: Call, delivery: Delivery, claim: ClaimCheck) -> None:
        """Its result is in the store: end the call with it."""
        message_id = call.request.message_id
        end: Reply | RequestFailed
        try:
            end = read_reply(await self._claims.restore(delivery, claim), message_id)
        except BadRequest as error:
            error.message_id = message_id
            end = error
        except FrameError as error:
            logger.warning("not a reply, dropped: %s", error)
            return
        self._end_with(call, delivery, end)
        if self.mailbox is not None:
            delivery.ack()
        elif isinstance(end, Reply):
            self._claims.let_go(claim)  # it came by direct reply, and so to nobody else

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_cancelled(self, consumer: Consumer) -> None:
        self.link.rebuild(f"the broker ended the subscription to {consumer.queue}")

    def _on_lost(self, reason: str) -> None:
        """No direct reply will come by the channel that is gone. What waits to be sent at all keeps waiting."""
        if self.mailbox is not None:
            return  # the broker keeps them
        for call in list(self.waiting.values()):
            if call.confirmed:
                self._interrupted(call, f"the connection was lost before its reply came: {reason}")


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
