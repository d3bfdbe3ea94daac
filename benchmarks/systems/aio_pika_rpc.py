"""aio-pika's RPC pattern: the function runs in the process that consumes, without any supervision.

The queue is durable and quorum, calls are persistent, the prefetch is 256, and channels confirm publishes, which is
aio-pika's default: the worker acks when its reply is confirmed, the caller goes on when its call is. Plain asyncio,
as in its documentation; JSON, since a queue that others can write to is no place for pickles.
"""

from __future__ import annotations

import asyncio
import os
from typing import Self

import aio_pika
from aio_pika.patterns import JsonRPC

QUEUE = "benchmark-aio-pika"
PREFETCH = 256
ARGUMENTS = {"x-queue-type": "quorum"}


async def echo(text: str) -> str:
    return text


class Client:
    """Calls, and publishes to the same queue."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        self._connection = await aio_pika.connect_robust(self._url)
        channel = await self._connection.channel()
        self._exchange = channel.default_exchange
        self._rpc = await JsonRPC.create(channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def call(self, command: str, argument: str) -> None:
        await self._rpc.call(QUEUE, {"text": argument}, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)

    async def publish(self, argument: str) -> None:
        message = aio_pika.Message(argument.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self._exchange.publish(message, QUEUE)


async def _work(url: str) -> None:
    connection = await aio_pika.connect_robust(url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    rpc = await JsonRPC.create(channel)
    await rpc.register(QUEUE, echo, durable=True, arguments=ARGUMENTS)
    await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(_work(os.environ["QUAYBRIDGE_BENCHMARK_URL"]))
