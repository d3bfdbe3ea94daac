"""What a service takes from the queues of its sessions: which of them this node owns, and when it lets one go.

Each node consumes each of these queues, and the broker gives one queue's messages to one of them: from RabbitMQ 4.0
on to the one whose consumer has the highest priority. So a queue goes where `weight` is highest among the nodes that
are there, and when a node comes or goes only its own queues move: rendezvous hashing, done by the broker. Before 4.0
a queue stays where it is until its node goes.

    not owned ──first delivery: announce──▶ owned ──another node announces, or outranks──▶ not owned
        │                                     │
        └── a delivery of another's epoch, just after (re)connecting ──▶ handing back ──▶ not owned, consumed later

The broker tells a consumer nothing when it prefers another: the node that gets a queue's first delivery says so to all.
Before that, a node that has begun to consume queues says which: who owns one and is outranked there cancels its
consumer, and stands by with a new one. For RabbitMQ 4.3 keeps the consumer of a node that dies while it is outranked
and holds deliveries: it puts it among those that stand by, and once no better one is there it gives it messages, for
good. (4.3.6 does and 4.0.5 does not: in rabbit_fifo.erl `update_or_remove_con` moves one that is quiescing to the
waiting ones when its last message is returned, also by its end. One that was cancelled it removes.)

After a broker's restart the first node back would get every queue, and end the sessions of all others. So a node that
has just connected hands back what names another node's epoch, and leaves that queue alone for a while.

RabbitMQ counts what is handed back, and makes a dead letter of what came back DELIVERY_LIMIT times. With many nodes, of
which the one that is meant connects last, that could be soon: so what came back often is kept for a while first, each
time for longer. So it comes back about a dozen times at most, while all connect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field

from bridge_protocol.envelope import SESSION_EPOCH, epoch_node
from bridge_protocol.topology import DELIVERY_LIMIT, PARTITIONS, session_queue
from broker.contract import BrokerError, Channel, Consumer, Delivery

PREFETCH = 4  # of each queue
# A broker that was killed drops its queues' consumers of before just after its start. Tried with 4.3.6: of 32 queues 2
# to 4 kept a dead one, as is told above, when better ones came at once, and none when they came 0.3 s later.
QUEUES_RECOVER = 1.0  # seconds after connecting again
HAND_BACK = 15.0  # seconds after connecting
HAND_BACK_AGAIN = 30.0  # after connecting again: so long the others may take to do so too
HANDED_BACK_AT_ONCE = DELIVERY_LIMIT // 3  # times; after that a second later, then two, four, …
MOST_DOUBLINGS = 4  # all these pauses together are longer than the time to hand back
TOLD_TOGETHER = 0.02  # seconds: queues that are begun to be consumed within that are told to the others at once
REBALANCES_FROM = 4  # RabbitMQ's major version

logger = logging.getLogger("quaybridge.node")


def weight(node: str, partition: int) -> int:
    """The priority of a node's consumer of a partition: who has the highest is to own it."""
    return int.from_bytes(hashlib.blake2b(f"{node}/{partition}".encode()).digest()[:3])


@dataclass(slots=True, eq=False)
class _Partition:
    """`owned`: this node had its latest delivery, as far as is known. `held`: deliveries to be handed back.

    `outranked`: the broker prefers another node's consumer to this one. `adjusting`: until it is consumed as is wanted.
    """

    number: int
    consumer: Consumer | None = None
    owned: bool = False
    outranked: bool = False
    adjusting: asyncio.Task[None] | None = None
    leaving: asyncio.Task[None] | None = None
    held: list[Delivery] = field(default_factory=list)


class Partitions:
    """The consumers of a service's session queues: each for itself, as one whose majority is gone answers nobody.

    (AMQP answers what is asked on one channel in turn, so there those that were asked before it are none the worse.)

    `on_owned` is told when this node owns one that it did not own, `on_consuming` which it has begun to consume.
    """

    def __init__(
        self,
        service: str,
        node: str,
        *,
        on_delivery: Callable[[Delivery, int], None],
        on_owned: Callable[[int], None],
        on_consuming: Callable[[Sequence[int]], None],
        on_cancelled: Callable[[Consumer], None],
    ) -> None:
        self.service = service
        self.handed_back = 0
        self._node = node
        self._on_delivery = on_delivery
        self._on_owned = on_owned
        self._on_consuming = on_consuming
        self._on_cancelled = on_cancelled
        self._channel: Channel | None = None
        self._hand_back_until: float | None = None
        self._wanted = False
        self._told = False
        self._partitions = [_Partition(number) for number in range(PARTITIONS)]
        self._recovering: asyncio.TimerHandle | None = None  # until the queues are consumed, after connecting again
        self._begun: list[int] = []  # to be told
        self._telling: asyncio.TimerHandle | None = None
        self._hurried = asyncio.Event()  # nobody waits any more until a queue that was left is consumed again

    def __repr__(self) -> str:
        return f"<Partitions of {self.service}: {len(self.owned)} owned of {PARTITIONS}>"

    @property
    def owned(self) -> list[int]:
        """The numbers of those that this node serves, as far as it knows."""
        return [partition.number for partition in self._partitions if partition.owned]

    @property
    def stopped(self) -> bool:
        """Whether there is no consumer."""
        return all(partition.consumer is None for partition in self._partitions)

    def attach(self, channel: Channel) -> None:
        """Consume on this new channel: from now on, or QUEUES_RECOVER seconds later if there was another before."""
        self.detach()
        loop = asyncio.get_running_loop()
        again = self._hand_back_until is not None
        pause = QUEUES_RECOVER if again else 0.0
        self._channel = channel
        self._hand_back_until = loop.time() + pause + (HAND_BACK_AGAIN if again else HAND_BACK)
        if not self._told and not _rebalances(channel.server):
            logger.warning(
                "%s: %s gives a session queue to the first node that takes it, for as long as that node is there: "
                "with RabbitMQ 4.0 or later sessions spread over all nodes",
                *(self.service, channel.server),
            )
        self._told = True
        if again:
            self._recovering = loop.call_later(pause, self._recovered)
        else:
            self._adjust_all()

    def detach(self) -> None:
        """The channel is gone, and its consumers with it."""
        self._channel = None
        for timer in (self._recovering, self._telling):
            if timer is not None:
                timer.cancel()
        self._recovering = self._telling = None
        self._begun.clear()
        for partition in self._partitions:
            for task in (partition.adjusting, partition.leaving):
                if task is not None:
                    task.cancel()
            partition.adjusting = partition.leaving = None
            partition.consumer = None
            partition.owned = False
            partition.outranked = False
            partition.held.clear()

    def want(self, wanted: bool) -> None:
        """From now on consume them, or none."""
        if self._wanted is not wanted:
            self._wanted = wanted
            self._hurried.clear()
            self._adjust_all()

    async def settled(self) -> None:
        """Wait until what is wanted is so, but for queues that are left for a while, or the channel is gone.

        If none is wanted, what is held to be handed back is handed back by then.
        """
        under_way = [partition.adjusting for partition in self._partitions if partition.adjusting is not None]
        if not self._wanted:
            self._hurried.set()
            under_way += [partition.leaving for partition in self._partitions if partition.leaving is not None]
        if under_way:
            await asyncio.wait(under_way)

    def lose(self, number: int) -> None:
        """Another node has announced that one."""
        self._partitions[number].owned = False

    def yield_to(self, node: str, numbers: Collection[int]) -> None:
        """Another node has begun to consume those."""
        for number in numbers:
            partition = self._partitions[number]
            if partition.owned and weight(node, number) > weight(self._node, number):
                partition.outranked = True
                self._begin_adjusting(partition)

    # Consuming.

    def _recovered(self) -> None:
        self._recovering = None
        self._adjust_all()

    def _adjust_all(self) -> None:
        for partition in self._partitions:
            self._begin_adjusting(partition)

    def _begin_adjusting(self, partition: _Partition) -> None:
        """Only `_adjust` subscribes, once at a time: a queue that was consumed twice could not be left."""
        if self._channel is None or self._recovering is not None or not self._differs(partition):
            return
        if partition.adjusting is None or partition.adjusting.done():
            work = self._follow(self._adjust(self._channel, partition))
            partition.adjusting = asyncio.get_running_loop().create_task(work)

    def _differs(self, partition: _Partition) -> bool:
        """Whether it is not consumed as is wanted."""
        consumed = partition.consumer is not None
        return (consumed is not self._wanted or partition.outranked) and partition.leaving is None

    async def _follow(self, work: Coroutine[None, None, None]) -> None:
        channel = self._channel
        try:
            await work
        except BrokerError:
            # The channel closed under it: its link opens another, and attaches that.
            if channel is not None and not channel.closed:
                raise

    async def _adjust(self, channel: Channel, partition: _Partition) -> None:
        while self._channel is channel and self._differs(partition):
            partition.outranked = False
            consumer, partition.consumer = partition.consumer, None
            if consumer is not None:
                partition.owned = False
                await channel.cancel(consumer)
            if not self._wanted:
                continue
            consumer = await channel.consume(
                session_queue(self.service, partition.number),
                lambda delivery: self._take(partition, delivery),
                on_cancelled=self._on_cancelled,
                prefetch=PREFETCH,
                priority=weight(self._node, partition.number),
            )
            if self._channel is channel:
                partition.consumer = consumer
                self._begun.append(partition.number)
                if self._telling is None:
                    self._telling = asyncio.get_running_loop().call_later(TOLD_TOGETHER, self._tell)

    def _tell(self) -> None:
        self._telling = None
        begun, self._begun = self._begun, []
        self._on_consuming(begun)

    def _take(self, partition: _Partition, delivery: Delivery) -> None:
        if partition.leaving is not None:
            partition.held.append(delivery)
            return
        if self._is_anothers(delivery) and self._hand_back_left > 0:
            partition.owned = False
            partition.held.append(delivery)
            partition.leaving = asyncio.get_running_loop().create_task(self._follow(self._leave(partition)))
            return
        if not partition.owned:
            partition.owned = True
            self._on_owned(partition.number)
        self._on_delivery(delivery, partition.number)

    def _is_anothers(self, delivery: Delivery) -> bool:
        """Whether it names the epoch of another node."""
        epoch = delivery.properties.headers.get(SESSION_EPOCH)
        return isinstance(epoch, str) and epoch_node(epoch) not in ("", self._node)

    async def _leave(self, partition: _Partition) -> None:
        """Leave the queue to whoever else is there, until their time to come back is over."""
        channel = self._channel
        assert channel is not None
        logger.debug("%s: partition %d is handed back: its sessions are another's", self.service, partition.number)
        try:
            if partition.consumer is None and partition.adjusting is not None:
                await asyncio.wait([partition.adjusting])  # a first delivery may come before `consume` returns
            consumer, partition.consumer = partition.consumer, None
            if consumer is not None:
                await channel.cancel(consumer)
            # Rejected before, they would come here again.
            await self._sleep(max((_pause(delivery.delivery_count) for delivery in partition.held), default=0.0))
            for delivery in partition.held:
                self.handed_back += 1
                delivery.reject(requeue=True)
            partition.held.clear()
            await self._sleep(self._hand_back_left)
        finally:
            partition.leaving = None
        if self._channel is channel:
            self._begin_adjusting(partition)

    async def _sleep(self, seconds: float) -> None:
        """For so long, or until nobody waits for it any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()

    @property
    def _hand_back_left(self) -> float:
        """Seconds; negative when its time to hand back is over."""
        assert self._hand_back_until is not None
        return self._hand_back_until - asyncio.get_running_loop().time()


def _pause(returns: int) -> float:
    """Seconds until that which came back so often is handed back."""
    beyond = returns - HANDED_BACK_AT_ONCE
    return 0.0 if beyond < 0 else 2.0 ** min(beyond, MOST_DOUBLINGS)


def _rebalances(server: str) -> bool:
    """Whether that broker acts on the priorities of single active consumers."""
    product, _, version = server.partition(" ")
    major = version.partition(".")[0]
    return product != "RabbitMQ" or not major.isdigit() or int(major) >= REBALANCES_FROM
