"""A publisher that is none of ours: plain pika, and property bytes that pika would refuse to encode."""

from __future__ import annotations

import struct
import time
from typing import Any

import pika
from pika import spec

PATIENCE = 60.0  # seconds for what takes milliseconds on an idle machine


class ForgedHeaders(spec.BasicProperties):  # type: ignore[misc]  # pika's spec has no annotations
    """Properties whose table of headers is these bytes. None that is encoded before them may be given."""

    def __init__(self, headers: bytes, **properties: Any) -> None:
        assert not {"content_type", "content_encoding", "headers"} & properties.keys()
        super().__init__(**properties)
        self._table = struct.pack(">I", len(headers)) + headers

    def encode(self) -> list[bytes]:
        flags, *rest = super().encode()
        return [struct.pack(">H", struct.unpack(">H", flags)[0] | self.FLAG_HEADERS), self._table, *rest]


class RawPublisher:
    """A connection, a queue of its own for replies, and what comes there. To be used in a thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connect()

    def _connect(self) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(self._url))
        self._channel = self._open()
        self.reply_queue: str = self._channel.queue_declare("", exclusive=True).method.queue

    def _open(self) -> Any:
        channel = self._connection.channel()
        channel.confirm_delivery()
        return channel

    def publish(self, exchange: str, key: str, body: bytes, properties: spec.BasicProperties) -> str | None:
        """Publish, as mandatory; None when the broker has it, else why it closed the channel or the connection.

        With the connection ends the queue for replies: there is another then.
        """
        try:
            self._channel.basic_publish(exchange, key, body, properties, mandatory=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            self._channel = self._open()
            return f"{error.reply_code} {error.reply_text}"
        except pika.exceptions.ConnectionClosedByBroker as error:
            self._connect()
            return f"{error.reply_code} {error.reply_text}"
        return None

    def reply(self) -> tuple[spec.BasicProperties, bytes]:
        """The next reply; waits for it."""
        end = time.monotonic() + PATIENCE
        while True:
            method, properties, body = self._channel.basic_get(self.reply_queue, auto_ack=True)
            if method is not None:
                return properties, body
            assert time.monotonic() < end, "no reply came"
            time.sleep(0.005)

    def replies_waiting(self) -> int:
        """How many replies there are that nobody took."""
        return self.length(self.reply_queue)

    def length(self, queue: str) -> int:
        """How many messages are ready there."""
        return int(self._channel.queue_declare(queue, passive=True).method.message_count)

    def bind(self, exchange: str, key: str) -> str:
        """A queue of its own, bound; its name."""
        name: str = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(name, exchange, key)
        return name

    def close(self) -> None:
        self._connection.close()
