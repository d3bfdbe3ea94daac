"""FastStream over RabbitMQ: one worker process, on uvloop, which its command line takes where it is.

A durable quorum queue; its channels confirm; acks after the handler; a prefetch of 256; no line in the log for each
message. Replies go to a queue of the client's, with a subscriber and correlation ids: `broker.request()` holds a lock
until its reply is there, one request at a time, and reaches a tenth of that.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import Self

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitMessage, RabbitQueue

QUEUE = RabbitQueue("benchmark-faststream", queue_type=QueueType.QUORUM, durable=True)

broker = RabbitBroker(os.environ["QUAYBRIDGE_BENCHMARK_URL"], logger=None, default_channel=Channel(prefetch_count=256))
app = FastStream(broker, logger=None)


@broker.subscriber(QUEUE, ack_policy=AckPolicy.NACK_ON_ERROR)
async def echo(text: str) -> str:
    return text


class Client:
    """Calls through a reply queue of its own, and publishes."""

    def __init__(self, url: str) -> None:
        self._broker = RabbitBroker(url, logger=None)
        self._replies = f"benchmark-replies-{secrets.token_hex(8)}"
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._broker.subscriber(
            RabbitQueue(self._replies, exclusive=True, auto_delete=True), ack_policy=AckPolicy.ACK_FIRST
        )(self._on_reply)

    async def __aenter__(self) -> Self:
        await self._broker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._broker.stop()

    async def _on_reply(self, text: str, message: RabbitMessage) -> None:
        self._waiting.pop(message.correlation_id).set_result(None)

    async def call(self, command: str, argument: str) -> None:
        identity = secrets.token_hex(16)
        reply = self._waiting[identity] = asyncio.get_running_loop().create_future()
        await self._broker.publish(
            argument, QUEUE, reply_to=self._replies, correlation_id=identity, persist=True, timeout=60
        )
        await reply

    async def publish(self, argument: str) -> None:
        await self._broker.publish(argument, QUEUE, persist=True, timeout=60)
