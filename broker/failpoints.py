"""Failpoints, for tests only: a process that dies, stops, or loses what it works with, at a named point of a request.

    QUAYBRIDGE_FAILPOINT=p9.after:kill@3,p4:pause quaybridge worker …

`POINT:ACTION@N` acts at the N-th passage of that point in the process, once; without @N at the first. Where
nothing is armed there is nothing of this in a process: a FailingBroker stands between it and its broker, and its
bridges are `worker_node.failing_bridge.FailingBridge`s, only where its composition root found the variable set.

P2 and P12 happen in the broker; they stand here for the moment in which what causes them has left the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from bridge_protocol.envelope import DIRECT_REPLY_TO
from bridge_protocol.topology import DELAY, EXCHANGE, REPLY_PREFIX, UNDELIVERABLE, Resource
from broker.confirm import Confirm
from broker.contract import Broker, Channel, ChannelClosed, Consumer, Delivery, Message

_ARMED = re.compile(r"(?P<point>[a-z0-9.]+):(?P<action>[a-z]+)(?:@(?P<passage>[1-9][0-9]{0,8}))?")

logger = logging.getLogger("quaybridge.failpoints")


class Point(StrEnum):
    """The points of a request's life, in their order."""

    P1_BEFORE = "p1.before"  # the producer is about to publish it
    P1_AFTER = "p1.after"  # it is published; no byte has left
    P2 = "p2"  # its bytes have left
    P3_BEFORE = "p3.before"  # the broker has confirmed it, and nobody was told
    P3_AFTER = "p3.after"  # who published it was told
    P4 = "p4"  # it has come to a node, and nobody has looked at it
    P5 = "p5"  # it is admitted and has a bridge; its frame is about to be written
    P6 = "p6"  # its frame is written
    P7 = "p7"  # its bridge works
    P8 = "p8"  # its bridge's reply is complete, and nobody was told
    P9_BEFORE = "p9.before"  # its reply, retry or dead letter is about to be published
    P9_AFTER = "p9.after"  # that is published; no byte has left
    P10_BEFORE = "p10.before"  # the broker has confirmed that, and nobody was told
    P10_AFTER = "p10.after"  # the node was told
    P11_BEFORE = "p11.before"  # the request is about to be acked
    P11_AFTER = "p11.after"  # it is acked; no byte has left
    P12 = "p12"  # the ack's bytes have left
    P13_BEFORE = "p13.before"  # the reply has come to the producer, and nobody has looked at it
    P13_AFTER = "p13.after"  # who waited for it was told
    P14_BEFORE = "p14.before"  # the reply is about to be acked
    P14_AFTER = "p14.after"  # it is acked; no byte has left


class Action(StrEnum):
    """What a failpoint does."""

    KILL = "kill"  # SIGKILL to this process
    EXIT = "exit"  # it ends with status 1, without a clean-up
    PAUSE = "pause"  # SIGSTOP to this process: it stands still until somebody sends SIGCONT
    # Whatever was done there is said to have failed: the connection is lost, or (P5 to P8) the bridge killed.
    ERROR = "error"


@dataclass(slots=True)
class Armed:
    """What is done at a point, and after how many more passages (1: the next)."""

    action: Action
    passages: int


class Failpoints:
    """What is armed in this process."""

    def __init__(self, armed: Mapping[Point, Armed]) -> None:
        self._armed = dict(armed)

    def __repr__(self) -> str:
        return f"<Failpoints {', '.join(f'{point}:{armed.action}' for point, armed in self._armed.items())}>"

    @classmethod
    def parse(cls, text: str) -> Failpoints:
        """What `point:action[@passage]`, separated by commas, arms. Raises ValueError."""
        armed = {}
        for part in text.split(","):
            found = _ARMED.fullmatch(part.strip())
            if found is None or found["point"] not in set(Point) or found["action"] not in set(Action):
                raise ValueError(
                    f"{part!r} is no failpoint: write POINT:ACTION or POINT:ACTION@PASSAGE, "
                    f"with one of {', '.join(Point)} and one of {', '.join(Action)}"
                )
            armed[Point(found["point"])] = Armed(Action(found["action"]), int(found["passage"] or 1))
        return cls(armed)

    def reached(self, point: Point) -> bool:
        """Do what is armed for this passage of `point`; whether what was done there is to have failed."""
        armed = self._armed.get(point)
        if armed is None:
            return False
        armed.passages -= 1
        if armed.passages:
            return False
        del self._armed[point]
        logger.warning("failpoint %s: %s", point, armed.action)
        match armed.action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.EXIT:
                os._exit(1)
            case Action.PAUSE:
                os.kill(os.getpid(), signal.SIGSTOP)
        return armed.action is Action.ERROR


class FailingBroker:
    """A broker whose channels pass through failpoints; the rest is as the broker behind it does it."""

    def __init__(self, broker: Broker, failpoints: Failpoints) -> None:
        self._broker = broker
        self._failpoints = failpoints

    def __repr__(self) -> str:
        return f"<FailingBroker {self._broker!r} {self._failpoints!r}>"

    @property
    def address(self) -> str:
        """Where the broker behind it is."""
        return self._broker.address

    async def open(
        self,
        name: str,
        *,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None = None,
    ) -> Channel:
        """See `broker.contract.Broker.open`."""
        channel = FailingChannel(self._failpoints, on_closed)
        channel.attach(await self._broker.open(name, on_closed=channel.on_closed, on_blocked=on_blocked))
        return channel


@dataclass(frozen=True, slots=True)
class _Way:
    """The points a message passes when it is published, from the call to the end of its confirm."""

    before: Point
    after: Point
    left: Point | None
    heard: Point
    told: Point


_REQUEST = _Way(Point.P1_BEFORE, Point.P1_AFTER, Point.P2, Point.P3_BEFORE, Point.P3_AFTER)
_OUTCOME = _Way(Point.P9_BEFORE, Point.P9_AFTER, None, Point.P10_BEFORE, Point.P10_AFTER)


class FailingChannel:
    """A channel that passes through failpoints. Where one says error, the connection is lost at that moment."""

    def __init__(self, failpoints: Failpoints, on_closed: Callable[[ChannelClosed], None]) -> None:
        self._failpoints = failpoints
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._inner: Channel
        self._lost = False
        self._closing: asyncio.Task[None] | None = None
        self._requests: set[int] = set()  # the tags of what is not settled
        self._replies: set[int] = set()

    def __repr__(self) -> str:
        return f"<FailingChannel {self._inner!r}>"

    def attach(self, inner: Channel) -> None:
        """Give it the channel it stands for. Once, before anything else."""
        self._inner = inner

    def on_closed(self, reason: ChannelClosed) -> None:
        """The channel behind it is closed."""
        if not self._lost:
            self._on_closed(reason)

    def _reached(self, point: Point) -> bool:
        """Pass `point`; whether the connection is lost there, or was before."""
        if not self._lost and self._failpoints.reached(point):
            self._lost = True
            self._closing = self._loop.create_task(self._inner.close())
            self._loop.call_soon(self._on_closed, _lost())
        return self._lost

    @property
    def closed(self) -> bool:
        """Whether it is closed: for good."""
        return self._lost or self._inner.closed

    @property
    def blocked(self) -> str | None:
        """See the contract."""
        return self._inner.blocked

    @property
    def receiving(self) -> bool:
        """See the contract."""
        return self._inner.receiving

    @property
    def server(self) -> str:
        """See the contract."""
        return self._inner.server

    def publish(self, message: Message, *, timeout: float) -> Confirm:
        """See the contract. Passes P1 to P3 for a request, P9 and P10 for what becomes of one."""
        way = _way_of(message)
        confirm = Confirm()
        if way is None:
            return self._inner.publish(message, timeout=timeout)
        if self._reached(way.before):
            confirm.fail(_lost())
            return confirm
        sent = self._inner.publish(message, timeout=timeout)
        sent.add_done_callback(partial(self._published, way, confirm))
        self._reached(way.after)
        if way.left is not None:
            self._loop.call_soon(self._reached, way.left)  # after what writes this turn's output
        return confirm

    def _published(self, way: _Way, confirm: Confirm, sent: Confirm) -> None:
        error = sent.exception()
        if error is not None:
            confirm.fail(error)
        elif self._reached(way.heard):
            confirm.fail(_lost())
        else:
            confirm.succeed()
            self._loop.call_soon(self._reached, way.told)  # after those who wait for it

    async def declare(self, resources: Iterable[Resource]) -> None:
        """See the contract."""
        await self._inner.declare(resources)

    async def declare_reply_queue(self) -> str:
        """See the contract."""
        return await self._inner.declare_reply_queue()

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
        """See the contract. What is consumed passes P4 where it is a request, P13 where it is a reply."""
        return await self._inner.consume(
            queue,
            partial(self._deliver, queue, on_delivery, no_ack),
            on_cancelled=on_cancelled,
            prefetch=prefetch,
            priority=priority,
            no_ack=no_ack,
            exclusive=exclusive,
        )

    def _deliver(self, queue: str, on_delivery: Callable[[Delivery], None], no_ack: bool, delivery: Delivery) -> None:
        if self._lost:
            return
        delivery.channel = self
        if queue.startswith((DIRECT_REPLY_TO, REPLY_PREFIX)):
            if self._reached(Point.P13_BEFORE):
                return
            if not no_ack:
                self._replies.add(delivery.tag)
            on_delivery(delivery)
            self._loop.call_soon(self._reached, Point.P13_AFTER)
        elif queue.startswith(f"{EXCHANGE}.") and not queue.endswith(".dead") and queue != UNDELIVERABLE:
            if self._reached(Point.P4):
                return
            self._requests.add(delivery.tag)
            on_delivery(delivery)
        else:
            on_delivery(delivery)

    async def cancel(self, consumer: Consumer) -> None:
        """See the contract."""
        await self._inner.cancel(consumer)

    def ack(self, tag: int) -> None:
        """See the contract. Passes P11 and P12 where it is a request's, P14 where it is a reply's."""
        if tag in self._requests:
            self._requests.discard(tag)
            if not self._reached(Point.P11_BEFORE):
                self._inner.ack(tag)
                self._reached(Point.P11_AFTER)
                # The acks of a turn are put together at its end, and written at the end of the next.
                self._loop.call_soon(self._loop.call_soon, self._reached, Point.P12)
        elif tag in self._replies:
            self._replies.discard(tag)
            if not self._reached(Point.P14_BEFORE):
                self._inner.ack(tag)
                self._reached(Point.P14_AFTER)
        else:
            self._inner.ack(tag)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """See the contract."""
        self._requests.discard(tag)
        self._replies.discard(tag)
        if not self._lost:
            self._inner.reject(tag, requeue=requeue)

    async def queue_length(self, queue: str) -> int:
        """See the contract."""
        return await self._inner.queue_length(queue)

    async def purge(self, queue: str) -> int:
        """See the contract."""
        return await self._inner.purge(queue)

    async def close(self) -> None:
        """See the contract."""
        if self._closing is not None:
            await asyncio.shield(self._closing)  # whoever is cancelled here is not the last to wait for it
        await self._inner.close()


def _way_of(message: Message) -> _Way | None:
    key = message.routing_key
    if message.exchange == EXCHANGE:
        return _OUTCOME if key.endswith(".dead") or key == "undeliverable" else _REQUEST
    return _OUTCOME if message.exchange == "" or message.exchange.startswith(DELAY) else None


def _lost() -> ChannelClosed:
    return ChannelClosed("a failpoint lost the connection")
