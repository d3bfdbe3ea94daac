"""A broker that does what a test tells it to, where the embedded one is too well behaved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bridge_protocol.topology import Resource
from broker.confirm import Confirm
from broker.contract import BrokerError, Channel, ChannelClosed, Consumer, Delivery, Message
from broker.limits import check_message


class ScriptedChannel:
    """Keeps what is published; the test confirms it, or does not."""

    def __init__(self, on_closed: Callable[[ChannelClosed], None]) -> None:
        self.closed = False
        self.blocked: str | None = None
        self.server = "scripted"
        self.published: list[tuple[Message, Confirm]] = []
        self.on_delivery: Callable[[Delivery], None] | None = None
        self._on_closed = on_closed

    def fail(self, reason: str) -> None:
        """The connection is lost."""
        self._end(reason)
        asyncio.get_running_loop().call_soon(self._on_closed, ChannelClosed(reason))

    def bodies(self) -> list[bytes]:
        return [bytes(message.body) for message, _ in self.published]

    def publish(self, message: Message, *, timeout: float) -> Confirm:
        if self.closed:
            raise ChannelClosed("closed")
        check_message(message)
        confirm = Confirm()
        self.published.append((message, confirm))
        return confirm

    async def declare(self, resources: Iterable[Resource]) -> None:
        raise NotImplementedError

    async def declare_reply_queue(self) -> str:
        return f"amq.rabbitmq.reply-to.{id(self)}"

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
        self.on_delivery = on_delivery
        return Consumer(tag="1", queue=queue)

    async def cancel(self, consumer: Consumer) -> None:
        raise NotImplementedError

    def ack(self, tag: int) -> None:
        raise NotImplementedError

    def reject(self, tag: int, *, requeue: bool) -> None:
        raise NotImplementedError

    async def queue_length(self, queue: str) -> int:
        raise NotImplementedError

    async def purge(self, queue: str) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        self._end("closed here")

    def _end(self, reason: str) -> None:
        self.closed = True
        for _, confirm in self.published:
            confirm.fail(ChannelClosed(reason))


@dataclass
class ScriptedBroker:
    """Raises `answers` one after the other, then lets in. A float among them: it hangs so long, then lets in."""

    answers: list[BrokerError | float] = field(default_factory=list)
    channels: list[ScriptedChannel] = field(default_factory=list)
    tried_at: list[float] = field(default_factory=list)
    address: str = "scripted"

    async def open(
        self,
        name: str,
        *,
        on_closed: Callable[[ChannelClosed], None],
        on_blocked: Callable[[str | None], None] | None = None,
    ) -> Channel:
        self.tried_at.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if self.answers else 0.0
        if isinstance(answer, BrokerError):
            raise answer
        await asyncio.sleep(answer)
        self.channels.append(ScriptedChannel(on_closed))
        return self.channels[-1]

    @property
    def channel(self) -> ScriptedChannel:
        """The latest."""
        return self.channels[-1]
