"""The limit: pika by hand, with what one turn of the loop writes joined into one write, and no subprocess.

It knows one message and does one thing with it: the worker sends the body back as it is, undecoded, and acks without
waiting for the reply's confirm; both run on uvloop. So it shows what RabbitMQ and pika allow, and is nothing to use.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from typing import Any, Self

import orjson
import pika
import uvloop
from pika.adapters.asyncio_connection import AsyncioConnection

QUEUE = "benchmark-limit"
PREFETCH = 256
LARGE = 256 * 1024  # bytes: from here on joining costs more than several writes
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

loop_factory = uvloop.new_event_loop


class Corked(AsyncioConnection):
    """A connection that writes once in a turn of the loop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._unwritten: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        super().__init__(*arguments, **options)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        self._unwritten.append(data)

    def _flush(self) -> None:
        pieces, self._unwritten = self._unwritten, []
        if self._transport is None:
            return
        if sum(map(len, pieces)) < LARGE:
            self._transport.write(b"".join(pieces))
            return
        for piece in pieces:
            self._transport.write(piece)


async def answered(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the broker answers to a synchronous method."""
    answer = asyncio.get_running_loop().create_future()
    method(*arguments, callback=answer.set_result, **options)
    return await answer


async def open_channel(url: str, on_confirm: Callable[[Any], None]) -> Any:
    """A connection, and a channel in confirm mode with the queue declared."""
    loop = asyncio.get_running_loop()
    opened = loop.create_future()
    connection = Corked(pika.URLParameters(url), on_open_callback=opened.set_result, custom_ioloop=loop)
    await opened
    opened = loop.create_future()
    connection.channel(on_open_callback=opened.set_result)
    channel = await opened
    await answered(channel.queue_declare, QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    await answered(channel.confirm_delivery, on_confirm)
    return channel


class Client:
    """Calls by direct reply-to, and publishes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        self._sequence = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._channel = await open_channel(self._url, self._on_confirm)
        self._channel.basic_consume(DIRECT_REPLY_TO, self._on_reply, auto_ack=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._channel.connection.close()

    async def call(self, command: str, argument: str) -> None:
        identity = secrets.token_hex(16)
        reply = self._waiting[identity] = self._loop.create_future()
        self._sequence += 1
        self._channel.basic_publish(
            "",
            QUEUE,
            _body(argument),
            pika.BasicProperties(delivery_mode=2, correlation_id=identity, reply_to=DIRECT_REPLY_TO),
        )
        await reply

    async def publish(self, argument: str) -> None:
        self._sequence += 1
        confirm = self._unconfirmed[self._sequence] = self._loop.create_future()
        self._channel.basic_publish("", QUEUE, _body(argument), pika.BasicProperties(delivery_mode=2))
        await confirm

    def _on_reply(self, channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._waiting.pop(properties.correlation_id).set_result(body)

    def _on_confirm(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        if not frame.method.multiple:
            if confirm := self._unconfirmed.pop(tag, None):
                confirm.set_result(None)
            return
        while self._unconfirmed and (first := next(iter(self._unconfirmed))) <= tag:
            self._unconfirmed.pop(first).set_result(None)


def _body(argument: str) -> bytes:
    return orjson.dumps({"id": 1, "command": "echo", "args": {"text": argument}})


async def _work(url: str) -> None:
    channel = await open_channel(url, lambda _: None)
    channel.basic_qos(prefetch_count=PREFETCH)

    def on_message(channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if properties.reply_to is not None:
            reply = pika.BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, body, reply)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(QUEUE, on_message)
    await asyncio.Future()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_work(os.environ["QUAYBRIDGE_BENCHMARK_URL"]))
