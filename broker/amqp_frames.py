"""The frames that come by the thousand: publishes and acks out, deliveries, returns and confirms in. Pure.

    frame    type (1 byte), channel (2), size of the payload (4), payload, 0xCE
    publish  a method frame, a header frame (size of the body, properties), body frames of up to `largest` bytes of it
    delivery the same three

Everything else AMQP says is rare and left to pika. These are done here for two reasons: pika takes twice as long over
them, and its decoder raises, which ends the connection, on values any publisher can send and RabbitMQ passes on
(a date past the year 9999, tables nested a thousand deep): the message would come back, and end the next
connection too. Here what cannot be read becomes None, and text that is no UTF-8 gets replacement characters, so
that whoever checks it finds it wrong, not absent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from decimal import DecimalException
from functools import lru_cache
from typing import Any

from pika import spec
from pika.data import decode_value
from pika.exceptions import InvalidFieldTypeException

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties
from broker.contract import Message

METHOD, HEADER, BODY, HEARTBEAT = spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT
FRAME_HEAD = struct.Struct(">BHI")
FRAME_HEAD_SIZE = FRAME_HEAD.size
FRAME_END = 0xCE
CHANNEL = 1

DELIVER = spec.Basic.Deliver.INDEX
RETURN = spec.Basic.Return.INDEX
ACK = spec.Basic.Ack.INDEX
NACK = spec.Basic.Nack.INDEX

_END = bytes((FRAME_END,))
_BYTES = tuple(bytes((number,)) for number in range(256))
_PUBLISH = struct.Struct(">IH")  # method, then a field that is no longer used
_CONTENT = struct.Struct(">HHQH")  # class, weight (0), size of the body, which properties follow
_SETTLE = struct.Struct(">BHIIQBB")
_SETTLE_SIZE = 13
_LARGEST_KNOWN = 256  # bytes of a table of headers that is remembered
_LENGTH = _METHOD = struct.Struct(">I")
_INTEGER = struct.Struct(">q")
_SMALL_INTEGER = struct.Struct(">i")
_TAG = struct.Struct(">Q")
_DIRECT_REPLY = f"{DIRECT_REPLY_TO}."

# Which properties are present, in the order they are written (AMQP 0-9-1, 4.2.6.1).
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY, _CORRELATION_ID, _REPLY_TO = (
    1 << bit for bit in range(15, 8, -1)
)
_EXPIRATION, _MESSAGE_ID, _TIMESTAMP, _TYPE = (1 << bit for bit in range(8, 4, -1))

# How many bytes a header's value has after its type, where that is fixed. The others begin with their length.
_FIXED_SIZES = {
    ord(kind): size
    for size, kinds in {0: "V", 1: "tbB", 2: "sUu", 4: "Iif", 5: "D", 8: "lLdT"}.items()
    for kind in kinds
}
_SIZED = frozenset(b"SxAF")
_UNREADABLE = (
    struct.error,
    InvalidFieldTypeException,
    RecursionError,
    ArithmeticError,
    DecimalException,
    ValueError,
    OSError,
)


def publish_frames(message: Message, largest: int) -> bytes | Iterator[bytes]:
    """The frames that publish `message` as mandatory: one piece, or several if its body needs several frames.

    Each of several is made when it is asked for, so that a large body is not in memory twice.
    A direct reply is not mandatory: RabbitMQ 4.0 delivers it and returns it all the same, as no queue is bound.
    The message must have passed `broker.limits.check_message`.
    """
    body = message.body
    size = len(body)
    method = _publish_method(message.exchange, message.routing_key)
    header = _content_header(message.properties, size)
    head = FRAME_HEAD.pack(HEADER, CHANNEL, len(header))
    if size == 0:
        return b"".join((method, head, header, _END))
    if size <= largest:
        return b"".join((method, head, header, _END, FRAME_HEAD.pack(BODY, CHANNEL, size), body, _END))
    return _several(b"".join((method, head, header, _END)), memoryview(body), largest)


def _several(first: bytes, body: memoryview, largest: int) -> Iterator[bytes]:
    for start in range(0, len(body), largest):
        part = body[start : start + largest]
        yield b"".join((first, FRAME_HEAD.pack(BODY, CHANNEL, len(part)), part, _END))
        first = b""


@lru_cache(maxsize=1024)
def _publish_method(exchange: str, routing_key: str) -> bytes:
    """The method frame of a publish: the same for each on one route."""
    payload = b"".join(
        (
            _PUBLISH.pack(spec.Basic.Publish.INDEX, 0),
            _short(exchange),
            _short(routing_key),
            b"\x00" if routing_key.startswith(_DIRECT_REPLY) and not exchange else b"\x01",
        )
    )
    return FRAME_HEAD.pack(METHOD, CHANNEL, len(payload)) + payload + _END


def ack_frame(tag: int, *, multiple: bool = False) -> bytes:
    """The frame that acks one delivery or (`multiple`) all up to it."""
    return _SETTLE.pack(METHOD, CHANNEL, _SETTLE_SIZE, spec.Basic.Ack.INDEX, tag, multiple, FRAME_END)


def reject_frame(tag: int, *, requeue: bool) -> bytes:
    """The frame that hands one delivery back, or dead-letters it.

    A reject, not a nack: RabbitMQ 4.3 does not count a nack towards the delivery limit
    (rabbitmq.com/docs/quorum-queues, "Poison Message Handling").
    """
    return _SETTLE.pack(METHOD, CHANNEL, _SETTLE_SIZE, spec.Basic.Reject.INDEX, tag, requeue, FRAME_END)


def read_method(payload: bytes) -> int:
    """Which method a method frame holds."""
    return int(_METHOD.unpack_from(payload)[0])


def read_confirm(payload: bytes) -> tuple[int, bool]:
    """Publish sequence number, and whether all up to it are meant, of an ack or nack."""
    return _TAG.unpack_from(payload, 4)[0], bool(payload[12] & 1)


def read_deliver(payload: bytes) -> tuple[str, int, bool, str, str]:
    """Consumer tag, delivery tag, redelivered, exchange and routing key of a Basic.Deliver."""
    consumer, offset = _read_short(payload, 4)
    tag = _TAG.unpack_from(payload, offset)[0]
    redelivered = bool(payload[offset + 8] & 1)
    return consumer, tag, redelivered, *_route(payload[offset + 9 :])


@lru_cache(maxsize=1024)
def _route(payload: bytes) -> tuple[str, str]:
    """Exchange and routing key: a consumer's are mostly the same."""
    exchange, offset = _read_short(payload, 0)
    return exchange, _read_short(payload, offset)[0]


def read_return(payload: bytes) -> tuple[str, str]:
    """Exchange and routing key of a Basic.Return."""
    _, offset = _read_short(payload, 6)  # code and text: always 312, NO_ROUTE
    exchange, offset = _read_short(payload, offset)
    return exchange, _read_short(payload, offset)[0]


def read_content_header(payload: bytes) -> tuple[int, Properties]:
    """Size of the body, and the properties. Properties quaybridge does not know are skipped."""
    _, _, size, flags = _CONTENT.unpack_from(payload)
    offset = _CONTENT.size
    properties = Properties(content_type=None, delivery_mode=None)
    if flags & _CONTENT_TYPE:
        properties.content_type, offset = _read_short(payload, offset)
    if flags & _CONTENT_ENCODING:
        properties.content_encoding, offset = _read_short(payload, offset)
    if flags & _HEADERS:
        start = offset + 4
        offset = start + int(_LENGTH.unpack_from(payload, offset)[0])
        table = payload[start:offset]
        properties.headers = _known_headers(table) if len(table) <= _LARGEST_KNOWN else _read_headers(table)
    if flags & _DELIVERY_MODE:
        properties.delivery_mode = payload[offset]
        offset += 1
    if flags & _PRIORITY:
        properties.priority = payload[offset]
        offset += 1
    if flags & _CORRELATION_ID:
        properties.correlation_id, offset = _read_short(payload, offset)
    if flags & _REPLY_TO:
        properties.reply_to, offset = _read_short(payload, offset)
    if flags & _EXPIRATION:
        properties.expiration, offset = _read_short(payload, offset)
    if flags & _MESSAGE_ID:
        properties.message_id, offset = _read_short(payload, offset)
    if flags & _TIMESTAMP:
        offset += 8
    if flags & _TYPE:
        properties.type, offset = _read_short(payload, offset)
    return size, properties


def _content_header(properties: Properties, size: int) -> bytes:
    flags = 0
    pieces: list[bytes] = []
    if (content_type := properties.content_type) is not None:
        flags |= _CONTENT_TYPE
        pieces.append(_known_short(content_type))
    if (content_encoding := properties.content_encoding) is not None:
        flags |= _CONTENT_ENCODING
        pieces += _short_pieces(content_encoding)
    if properties.headers:
        flags |= _HEADERS
        table = _table(properties.headers)
        pieces += (_LENGTH.pack(len(table)), table)
    if (delivery_mode := properties.delivery_mode) is not None:
        flags |= _DELIVERY_MODE
        pieces.append(_BYTES[delivery_mode])
    if (priority := properties.priority) is not None:
        flags |= _PRIORITY
        pieces.append(_BYTES[priority])
    if (correlation_id := properties.correlation_id) is not None:
        flags |= _CORRELATION_ID
        pieces += _short_pieces(correlation_id)
    if (reply_to := properties.reply_to) is not None:
        flags |= _REPLY_TO
        pieces += _short_pieces(reply_to)
    if (message_id := properties.message_id) is not None:
        flags |= _MESSAGE_ID
        pieces += _short_pieces(message_id)
    if (type_ := properties.type) is not None:
        flags |= _TYPE
        pieces.append(_known_short(type_))
    return _CONTENT.pack(spec.Basic.INDEX, 0, size, flags) + b"".join(pieces)


def _table(headers: Mapping[str, Any]) -> bytes:
    pieces: list[bytes] = []
    for name, value in headers.items():
        if type(value) is int:
            pieces += (_field(name, b"l"), _INTEGER.pack(value))
        elif isinstance(value, str):
            text = value.encode()
            pieces += (_field(name, b"S"), _LENGTH.pack(len(text)), text)
        elif isinstance(value, bool):
            pieces += (_field(name, b"t"), b"\x01" if value else b"\x00")
        else:
            pieces += (_field(name, b"l"), _INTEGER.pack(value))
    return b"".join(pieces)


@lru_cache(maxsize=256)
def _field(name: str, kind: bytes) -> bytes:
    """The start of a header: its name and type. There are few of them."""
    return _short(name) + kind


@lru_cache(maxsize=1024)
def _known_short(text: str) -> bytes:
    """A text of which there are few."""
    return _short(text)


def _short(text: str) -> bytes:
    return b"".join(_short_pieces(text))


def _short_pieces(text: str) -> tuple[bytes, bytes]:
    encoded = text.encode()
    return _BYTES[len(encoded)], encoded


def _read_short(payload: bytes, offset: int) -> tuple[str, int]:
    start = offset + 1
    end = start + payload[offset]
    return payload[start:end].decode("utf-8", "replace"), end


@lru_cache(maxsize=256)
def _known_headers(table: bytes) -> Mapping[str, Any]:
    """The headers of a short table: one node's replies have the same, and so have requests of one millisecond."""
    return _read_headers(table)


def _read_headers(table: bytes) -> Mapping[str, Any]:
    headers: dict[str, Any] = {}
    offset, end = 0, len(table)
    while offset < end:
        name, offset = _read_short(table, offset)
        kind = table[offset]
        value: Any
        if kind == 0x53:  # S: text
            size = _LENGTH.unpack_from(table, offset + 1)[0]
            value = table[offset + 5 : offset + 5 + size].decode("utf-8", "replace")
            offset += 5 + size
        elif kind in (0x6C, 0x4C):  # l, L: 64 bits
            value = _INTEGER.unpack_from(table, offset + 1)[0]
            offset += 9
        elif kind == 0x49:  # I: 32 bits
            value = _SMALL_INTEGER.unpack_from(table, offset + 1)[0]
            offset += 5
        elif kind == 0x74:  # t: a boolean
            value = table[offset + 1] != 0
            offset += 2
        else:
            if kind in _FIXED_SIZES:
                following = offset + 1 + _FIXED_SIZES[kind]
            elif kind in _SIZED:
                following = offset + 5 + _LENGTH.unpack_from(table, offset + 1)[0]
            else:
                break  # of unknown size: what comes after it cannot be found
            try:
                value = decode_value(table, offset)[0]
            except _UNREADABLE:
                value = None
            offset = following
        headers[name] = value
    return headers
