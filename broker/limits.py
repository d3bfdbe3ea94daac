"""What a message must keep to, so that no broker closes the channel over it. Checked before anything is sent.

RabbitMQ answers a message beyond these rules by closing the channel or the connection, and every delivery on
it comes back, charged with one more attempt. So one bad message must not get that far.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from bridge_protocol.errors import BadRequest, TooLarge
from broker.contract import Message

# RabbitMQ's max_message_size from 4.0 on (rabbitmq.com/docs/limits); 3.10 would take more.
MAX_BODY = 16 * 1024 * 1024  # bytes
# Method names and properties travel as short strings: one byte of length, then UTF-8 (AMQP 0-9-1, 4.2.5.3).
MAX_SHORT_STRING = 255  # bytes
# A header frame cannot be split, and one over frame_max (128 KiB) ends the connection with 501.
MAX_HEADERS = 32 * 1024  # bytes

# What a header takes beside its name and text: a length byte, a type byte, and up to eight of value or length.
_LARGEST_SCALAR = 10  # bytes
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1
# RabbitMQ routes a message to the queues named in these headers too (rabbitmq.com/docs/sender-selected).
_ROUTING_HEADERS = frozenset({"CC", "BCC"})


def check_message(message: Message) -> None:
    """Raise TooLarge for a body over 16 MiB, and BadRequest for anything else no broker would take.

    Texts outside the body must be UTF-8 of at most 255 bytes; headers hold text, booleans and integers of
    64 bits, together at most 32 KiB, and neither `CC` nor `BCC`, which would route; `expiration` is refused,
    since it acts only at the head of a queue: what shall be late takes a delay.
    """
    properties = message.properties
    if len(message.body) > MAX_BODY:
        raise TooLarge(
            f"the body has {len(message.body):,} bytes, the broker takes at most {MAX_BODY:,}",
            message_id=properties.message_id,
        )
    if problem := _problem(message):
        raise BadRequest(problem, message_id=properties.message_id)


def _problem(message: Message) -> str | None:
    properties = message.properties
    for value in (
        message.exchange,
        message.routing_key,
        properties.message_id,
        properties.correlation_id,
        properties.reply_to,
        properties.type,
        properties.content_type,
        properties.content_encoding,
    ):
        # isascii() is a look at a flag: the names below are found only for the text that is at fault.
        if value is None or (type(value) is str and len(value) <= MAX_SHORT_STRING and value.isascii()):
            continue
        if problem := _text_problem(value):
            return f"{_name_of(value, message)} {problem}"
    if properties.delivery_mode not in (None, 1, 2):
        return f"delivery_mode must be 1 or 2, not {properties.delivery_mode!r:.40}"
    if properties.priority is not None and not _is_integer(properties.priority, 0, 255):
        return f"priority must be an integer 0 … 255, not {properties.priority!r:.40}"
    if properties.expiration is not None:
        return "expiration is not supported, it acts only at the head of a queue: use a delay"
    return _headers_problem(message) if properties.headers else None


def _headers_problem(message: Message) -> str | None:
    size = 0
    for key, value in message.properties.headers.items():
        if problem := _header_name_problem(key):
            return problem
        size += _LARGEST_SCALAR + (len(key) if key.isascii() else len(key.encode()))
        if type(value) is str:
            try:
                size += len(value) if value.isascii() else len(value.encode())
            except UnicodeEncodeError:
                return f"the header {key!r:.40} is not UTF-8"
        elif type(value) is not bool and not _is_integer(value, _MIN_INTEGER, _MAX_INTEGER):
            return f"the header {key!r:.40} must be text, a boolean or an integer of 64 bits"
        if size > MAX_HEADERS:
            return f"the headers have more than {MAX_HEADERS:,} bytes"
    return None


@lru_cache(maxsize=256)
def _header_name_problem(name: Any) -> str | None:
    if problem := _text_problem(name):
        return f"the name of a header {problem}"
    if name in _ROUTING_HEADERS:
        return f"the header {name} is not allowed: it would route the message to other queues"
    return None


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    return f"has {size:,} bytes, a short string at most {MAX_SHORT_STRING}" if size > MAX_SHORT_STRING else None


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _name_of(value: Any, message: Message) -> str:
    for owner in (message, message.properties):
        for name in owner.__dataclass_fields__:
            if getattr(owner, name) is value:
                return name
    raise LookupError(value)
