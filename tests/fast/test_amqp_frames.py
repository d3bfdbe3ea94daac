"""The frames of broker.amqp_frames, against pika's: what one writes the other must read."""

from __future__ import annotations

import datetime
import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.data import encode_table

from bridge_protocol.envelope import DIRECT_REPLY_TO, Properties
from broker import amqp_frames as frames
from broker.contract import Message

LARGEST = 131_072 - 8


def decoded(data: bytes) -> list[Any]:
    """What pika finds in `data`."""
    found = []
    while data:
        size, one = frame.decode_frame(data)
        assert size, "an incomplete frame"
        found.append(one)
        data = data[size:]
    return found


def pieces(message: Message, largest: int) -> list[bytes]:
    """What publishes `message`, as it is handed to the socket."""
    sent = frames.publish_frames(message, largest)
    return [sent] if isinstance(sent, bytes) else list(sent)


def written(message: Message, largest: int = LARGEST) -> tuple[spec.Basic.Publish, spec.BasicProperties, bytes]:
    """Method, properties and body that pika reads from what publishes `message`."""
    method, header, *bodies = decoded(b"".join(pieces(message, largest)))
    assert {one.channel_number for one in (method, header, *bodies)} == {frames.CHANNEL}
    assert all(0 < len(body.fragment) <= largest for body in bodies)
    body = b"".join(one.fragment for one in bodies)
    assert header.body_size == len(body)
    return method.method, header.properties, body


def read(properties: spec.BasicProperties, size: int = 0) -> tuple[int, Properties]:
    """What we read from the header frame pika writes."""
    return frames.read_content_header(payload_of(frame.Header(1, size, properties)))


def read_table(table: bytes) -> dict[str, Any]:
    """What we read from a header table of these bytes, with a `message_id` after it."""
    flags = spec.BasicProperties.FLAG_HEADERS | spec.BasicProperties.FLAG_MESSAGE_ID
    data = struct.pack(">HHQHI", 60, 0, 0, flags, len(table)) + table + b"\x05after"
    _, properties = frames.read_content_header(data)
    assert properties.message_id == "after", "what follows the headers must still be found"
    return dict(properties.headers)


def payload_of(one: frame.Frame) -> bytes:
    return one.marshal()[frames.FRAME_HEAD_SIZE : -1]


def entry(kind: bytes, value: bytes) -> bytes:
    """A header named `h`, and one named `next` that is 1."""
    return b"\x01h" + kind + value + b"\x04nexti\x00\x00\x00\x01"


short_text = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)
scalars = st.one_of(st.text(max_size=300), st.booleans(), st.integers(-(2**63), 2**63 - 1))
all_properties = st.builds(
    Properties,
    message_id=st.none() | short_text,
    correlation_id=st.none() | short_text,
    reply_to=st.none() | short_text,
    type=st.none() | short_text,
    content_type=st.none() | short_text,
    content_encoding=st.none() | short_text,
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    headers=st.dictionaries(short_text, scalars, max_size=5),
)


# No surrogates: check_message refuses them.
@given(properties=all_properties, exchange=short_text, routing_key=short_text, body=st.binary(max_size=100))
def test_pika_reads_what_is_published(properties: Properties, exchange: str, routing_key: str, body: bytes) -> None:
    message = Message(exchange=exchange, routing_key=routing_key, body=body, properties=properties)
    method, found, arrived = written(message, largest=30)
    assert (method.exchange, method.routing_key, method.mandatory) == (exchange, routing_key, True)
    assert arrived == body
    for name in Properties.__dataclass_fields__:
        if name != "headers":
            assert getattr(found, name) == getattr(properties, name)
    assert (found.headers or {}) == properties.headers


@given(properties=all_properties, size=st.integers(0, 2**40))
def test_what_pika_publishes_is_read(properties: Properties, size: int) -> None:
    values = {name: getattr(properties, name) for name in Properties.__dataclass_fields__}
    foreign = {"timestamp": 2**63, "user_id": "u", "app_id": "a", "cluster_id": "c"}
    assert read(spec.BasicProperties(**{**values, **foreign}), size) == (size, properties)


@pytest.mark.parametrize(
    ("size", "bodies"), [(0, 0), (1, 1), (LARGEST - 1, 1), (LARGEST, 1), (LARGEST + 1, 2), (3 * LARGEST, 3)]
)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_body_takes_as_many_frames_as_it_needs(size: int, bodies: int, kind: type[bytes] | type[bytearray]) -> None:
    message = Message(exchange="", routing_key="q", body=kind(range(256)) * (size // 256 + 1), properties=Properties())
    message = Message(exchange="", routing_key="q", body=message.body[:size], properties=Properties())
    sent = pieces(message, LARGEST)
    assert all(type(data) is bytes for data in sent)
    assert len(sent) == max(bodies, 1)
    assert len(decoded(b"".join(sent))) == 2 + bodies
    assert written(message)[2] == message.body


@pytest.mark.parametrize(
    ("exchange", "routing_key", "mandatory"),
    [
        ("", f"{DIRECT_REPLY_TO}.g1h2", False),
        ("quaybridge", f"{DIRECT_REPLY_TO}.g1h2", True),
        ("", "quaybridge.reply.mine", True),
    ],
)
def test_only_a_direct_reply_is_not_mandatory(exchange: str, routing_key: str, mandatory: bool) -> None:
    message = Message(exchange=exchange, routing_key=routing_key, body=b"{}", properties=Properties())
    assert written(message)[0].mandatory is mandatory


@pytest.mark.parametrize("tag", [1, 2**64 - 1])
def test_pika_reads_what_settles(tag: int) -> None:
    (one,) = decoded(frames.ack_frame(tag))
    assert isinstance(one.method, spec.Basic.Ack)
    assert (one.method.delivery_tag, one.method.multiple) == (tag, False)
    (one,) = decoded(frames.ack_frame(tag, multiple=True))
    assert (one.method.delivery_tag, one.method.multiple) == (tag, True)
    for requeue in (True, False):
        (one,) = decoded(frames.reject_frame(tag, requeue=requeue))
        assert isinstance(one.method, spec.Basic.Reject)
        assert (one.method.delivery_tag, one.method.requeue) == (tag, requeue)


@pytest.mark.parametrize("multiple", [True, False])
def test_what_confirms_is_read(multiple: bool) -> None:
    for method, index in ((spec.Basic.Ack, frames.ACK), (spec.Basic.Nack, frames.NACK)):
        payload = payload_of(frame.Method(1, method(2**40, multiple)))
        assert frames.read_method(payload) == index
        assert frames.read_confirm(payload) == (2**40, multiple)


@pytest.mark.parametrize("redelivered", [True, False])
def test_what_delivers_and_returns_is_read(redelivered: bool) -> None:
    payload = payload_of(frame.Method(1, spec.Basic.Deliver("c1", 7, redelivered, "größer", "key")))
    assert frames.read_method(payload) == frames.DELIVER
    assert frames.read_deliver(payload) == ("c1", 7, redelivered, "größer", "key")
    payload = payload_of(frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "exchange", "key")))
    assert frames.read_method(payload) == frames.RETURN
    assert frames.read_return(payload) == ("exchange", "key")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (b"t", b"\x02", True),
        (b"b", b"\xff", -1),
        (b"B", b"\xff", 255),
        (b"s", b"\xff\xff", -1),
        (b"u", b"\xff\xff", 65535),
        (b"I", b"\xff\xff\xff\xff", -1),
        (b"i", b"\xff\xff\xff\xff", 2**32 - 1),
        (b"l", b"\xff" * 8, -1),
        (b"L", b"\xff" * 8, -1),
        (b"V", b"", None),
        (b"S", b"\x00\x00\x00\x01x", "x"),
        (b"S", b"\x00\x00\x00\x02\xff\xfe", "\ufffd\ufffd"),
        (b"x", b"\x00\x00\x00\x02\xff\xfe", b"\xff\xfe"),
        (b"D", b"\x01\x00\x00\x00\x0f", Decimal("1.5")),
        (b"D", b"\xff\x7f\xff\xff\xff", Decimal(2**31 - 1).scaleb(-255)),
        (b"T", b"\x00" * 7 + b"\x01", datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)),
        (b"T", b"\x7f" + b"\xff" * 7, None),
        (b"d", struct.pack(">d", 2.0), 2),
        (b"d", struct.pack(">d", float("nan")), None),
        (b"d", struct.pack(">d", float("inf")), None),
        (b"f", struct.pack(">f", float("-inf")), None),
        (b"A", b"\x00\x00\x00\x05I\x00\x00\x00\x07", [7]),
        (b"A", b"\x00\x00\x00\x02?\x00", None),
        (b"F", b"\x00\x00\x00\x03\x01kV", {"k": None}),
    ],
)
def test_each_kind_of_header_is_read_or_becomes_none(kind: bytes, value: bytes, expected: object) -> None:
    assert read_table(entry(kind, value)) == {"h": expected, "next": 1}


@pytest.mark.parametrize("depth", [10, 5_000])
def test_tables_may_nest_deeper_than_python_recurses(depth: int) -> None:
    table = b""
    for _ in range(depth):
        table = b"\x00F" + struct.pack(">I", len(table)) + table
    headers = read_table(table + b"\x04nexti\x00\x00\x00\x01")
    assert headers["next"] == 1
    assert (headers[""] is None) == (depth > 1000)


def test_after_a_kind_of_unknown_size_nothing_is_read() -> None:
    before = b"\x06beforei\x00\x00\x00\x01"
    assert read_table(before + entry(b"?", b"\x00\x00")) == {"before": 1}


def test_properties_that_are_no_utf8_are_replaced_not_absent() -> None:
    _, properties = read(spec.BasicProperties(message_id=b"\xff\xfe", reply_to=b"ok\xff", headers={"k": "v"}))
    assert properties.message_id == "\ufffd\ufffd"
    assert properties.reply_to == "ok\ufffd"


def test_a_death_is_read() -> None:
    deaths = [{"count": 1, "queue": "q", "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)}]
    pieces: list[bytes] = []
    encode_table(pieces, {"x-death": deaths})
    assert read_table(b"".join(pieces)[4:]) == {"x-death": deaths}
