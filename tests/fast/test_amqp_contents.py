"""Messages on a connection, without a socket: cut in every way as they come, and written as the socket takes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from pika import frame, spec

from bridge_protocol.envelope import Properties
from broker import amqp_connection
from broker.address import parse_addresses
from broker.amqp_connection import AmqpConnection
from broker.amqp_frames import publish_frames
from broker.contract import ChannelClosed, Message

LARGEST = 131_072 - 8
MIB = 2**20


class Noted:
    """Events: what came, and the transport that it came by, which holds `room` bytes until they are taken."""

    def __init__(self, room: int = 0) -> None:
        self.bodies: list[bytes | bytearray] = []
        self.returned = 0
        self.confirmed: list[int] = []
        self.aborted = False
        self.written = bytearray()
        self.room = room
        (address,) = parse_addresses("amqp://somebody:secret@127.0.0.1/")
        self.connection = AmqpConnection(address, "test", self, asyncio.get_running_loop())
        self.connection.connection_made(self)  # type: ignore[arg-type]  # by its methods

    # Events.

    def on_deliver(self, method: bytes, properties: Properties, body: bytes | bytearray) -> None:
        self.bodies.append(body)

    def on_return(self, method: bytes, properties: Properties) -> None:
        self.returned += 1

    def on_confirm(self, sequence: int, multiple: bool, taken: bool) -> None:
        self.confirmed.append(sequence)

    def on_cancelled(self, tag: str) -> None: ...

    def on_blocked(self, reason: str | None) -> None: ...

    def on_ended(self, reason: ChannelClosed) -> None: ...

    # The transport.

    def feed(self, data: bytes) -> None:
        """Give the connection `data`, in pieces of what its buffer takes; it may not keep anything of that."""
        for begin in range(0, len(data), amqp_connection.READ_SIZE):
            piece = data[begin : begin + amqp_connection.READ_SIZE]
            buffer = self.connection.get_buffer(-1)
            buffer[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))
            buffer[: len(piece)] = bytes(len(piece))

    def write(self, data: bytes) -> None:
        self.written += data
        if self.room and len(self.written) >= self.room:
            self.connection.pause_writing()

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    async def take(self) -> bytes:
        """What was written by now; the transport is empty then, and says so."""
        await asyncio.sleep(0)
        taken = bytes(self.written)
        self.written.clear()
        self.connection.resume_writing()
        return taken

    def end(self) -> None:
        self.connection.discard()
        self.connection.connection_lost(None)


@pytest.fixture
async def noted() -> Any:
    made = Noted()
    yield made
    made.end()


def content(body: bytes, largest: int, *, returned: bool = False) -> bytes:
    """The frames of a message as a broker sends it."""
    method: Any = (
        spec.Basic.Return(312, "NO_ROUTE", "x", "y") if returned else spec.Basic.Deliver("c1", 7, False, "x", "y")
    )
    pieces = [frame.Method(1, method).marshal(), frame.Header(1, len(body), spec.BasicProperties()).marshal()]
    pieces += [frame.Body(1, body[at : at + largest]).marshal() for at in range(0, len(body), largest)]
    return b"".join(pieces)


def confirm(number: int) -> bytes:
    return frame.Method(1, spec.Basic.Ack(number)).marshal()


BODIES = [b"a", b"bc" * 7, b"", bytes(range(256)), b"\xce" * 40, b"e"]


def stream(largest: int) -> bytes:
    return b"".join(
        content(body, largest) + confirm(number) + content(body, largest, returned=True)
        for number, body in enumerate(BODIES)
    )


@pytest.mark.parametrize("largest", [3, 16, 1000])
@pytest.mark.parametrize("part", [1, 10, amqp_connection.PART])
async def test_messages_are_the_same_however_the_stream_is_cut(
    noted: Noted, monkeypatch: pytest.MonkeyPatch, largest: int, part: int
) -> None:
    monkeypatch.setattr(amqp_connection, "PART", part)
    data = stream(largest)
    chance = random.Random(largest)
    cuts: Iterator[list[int]] = iter(
        [
            list(range(1, len(data))),
            *([place] for place in range(1, len(data), 1 + len(data) // 300)),
            *(sorted(chance.choices(range(len(data)), k=chance.randrange(1, 9))) for _ in range(50)),
        ]
    )
    for places in cuts:
        for begin, end in zip([0, *places], [*places, len(data)], strict=True):
            if begin < end:
                noted.feed(data[begin:end])
        assert not noted.connection.receiving
        assert noted.bodies == BODIES, places
        assert (noted.confirmed, noted.returned) == (list(range(len(BODIES))), len(BODIES))
        noted.bodies.clear()
        noted.confirmed.clear()
        noted.returned = 0


@pytest.mark.parametrize("largest", [1000, amqp_connection.PART, 128 * 1024])
async def test_messages_are_the_same_by_large_reads(noted: Noted, largest: int) -> None:
    chance = random.Random(largest)
    bodies = [chance.randbytes(size) for size in (1000, 64 * 1024, 1024 * 1024, 0, 7, 300_000, 99)]
    for number, body in enumerate(bodies):
        noted.feed(content(body, largest) + confirm(number))
    noted.feed(b"".join(content(body, largest) for body in bodies))
    assert noted.bodies == bodies * 2
    assert noted.confirmed == list(range(len(bodies)))


async def test_a_message_is_received_from_its_header_to_its_last_byte(noted: Noted) -> None:
    data = content(b"x" * 3 * amqp_connection.PART, 2 * amqp_connection.PART)
    header = len(content(b"", 1))
    for end in range(0, len(data) + 1, 1000):
        noted.feed(data[max(0, end - 1000) : end])
        assert noted.connection.receiving is (header <= end < len(data))
    noted.feed(data[end:])
    assert not noted.connection.receiving
    assert noted.bodies == [b"x" * 3 * amqp_connection.PART]


@pytest.mark.parametrize("size", [10, amqp_connection.PART * 2])
@pytest.mark.parametrize("piecewise", [False, True])
async def test_a_body_frame_that_does_not_end_where_it_should_ends_the_connection(size: int, piecewise: bool) -> None:
    noted = Noted()
    data = content(b"x" * size, size)[:-1] + b"\x00"
    pieces = [data[:-1], data[-1:]] if piecewise else [data]
    for piece in pieces:
        noted.feed(piece)
    assert (noted.bodies, noted.aborted) == ([], True)
    noted.end()


@pytest.mark.parametrize(
    "body", [b"", b"x" * 11, b"x" * (amqp_connection.PART + 1)], ids=["none", "one byte more", "many bytes more"]
)
async def test_a_body_frame_that_belongs_to_no_message_ends_the_connection(body: bytes) -> None:
    for announced in (0, 10):
        noted = Noted()
        method = frame.Method(1, spec.Basic.Deliver("c1", 7, False, "x", "y")).marshal()
        header = frame.Header(1, announced, spec.BasicProperties()).marshal()
        noted.feed(method + header + frame.Body(1, body).marshal())
        assert noted.aborted
        assert noted.bodies == [b""] * (announced == 0)
        noted.end()


# Out.


def message(size: int) -> Message:
    return Message(exchange="", routing_key="q", body=random.Random(size).randbytes(size), properties=Properties())


async def test_a_large_message_leaves_as_the_socket_takes_it_and_what_follows_after_it() -> None:
    noted = Noted(room=256 * 1024)
    await noted.take()  # the greeting
    large, small = message(5 * MIB + 17), message(100)
    sent = [publish_frames(each, LARGEST) for each in (large, small, large)]
    for each in sent:
        noted.connection.send(each)
    arrived = [await noted.take()]
    while arrived[-1]:
        assert len(arrived[-1]) <= 256 * 1024 + LARGEST + 1024  # not more than was asked for, and one piece
        arrived.append(await noted.take())
    expected = b""
    for each in (large, small, large):
        made = publish_frames(each, LARGEST)
        expected += made if isinstance(made, bytes) else b"".join(made)
    assert b"".join(arrived) == expected
    noted.end()


async def test_what_waits_for_a_socket_that_is_gone_is_let_go() -> None:
    noted = Noted(room=1)
    noted.connection.send(publish_frames(message(MIB), LARGEST))
    await asyncio.sleep(0)
    noted.connection.send(b"more")
    noted.end()
    noted.connection.send(publish_frames(message(MIB), LARGEST))
    await asyncio.sleep(0)
    assert len(noted.written) < LARGEST + 1000  # the first piece, and the greeting
    assert not noted.connection._unwritten
