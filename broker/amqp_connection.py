"""One AMQP connection with one channel on it: pika's protocol on asyncio's own transport.

pika does the handshake, heartbeats, synchronous methods and closing. The socket is asyncio's: it connects,
speaks TLS and writes at once what the socket takes; pika's `AsyncioConnection` polls for each write and reads
4 KiB at a time. What comes by the thousand (broker.amqp_frames) never reaches pika. It is read into one buffer: asyncio
would ask for 256 KiB anew for each read, which glibc has the kernel map, clear and unmap (malloc(3), M_MMAP_THRESHOLD).

What is written during one turn of the loop leaves in one piece. A large message does not: it leaves frame by frame, as
the socket takes them, and what comes of one is put where it belongs at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import pika
import pika.channel
import pika.connection
from pika import exceptions, frame, spec

from bridge_protocol.envelope import Properties
from broker import amqp_frames as frames
from broker.address import Address
from broker.contract import AccessRefused, ChannelClosed, ConnectionRefused
from broker.resolver import resolve

CONNECT_TIMEOUT = 5.0  # seconds for TCP and TLS
OPEN_TIMEOUT = 10.0  # seconds for one address, from connecting to a channel in confirm mode
CLOSE_TIMEOUT = 3.0  # seconds for the broker to answer a close
READ_SIZE = 256 * 1024  # bytes
LARGE = 64 * 1024  # bytes: from here on joining, or copying, costs more than another write, or a view
PART = 16 * 1024  # bytes of a body frame: from here on it is taken as it comes, and not when it is whole

_ACCESS_REFUSED, _NOT_ALLOWED = 403, 530
_HUNG_UP = "the broker hung up"
_BAD_END = "a frame did not end where it should"
_TLS_ALERT = b"\x15\x03"  # RFC 8446, 5.1: the content type alert, and the first byte of every version
_FRAME_KINDS = frozenset((frames.METHOD, frames.HEADER, frames.BODY, frames.HEARTBEAT))


class Events(Protocol):
    """Who is told what happens on a connection. None of these is called from inside a call to the connection."""

    def on_deliver(self, method: bytes, properties: Properties, body: bytes | bytearray) -> None:
        """A message for a consumer; `method` is the payload of its method frame."""

    def on_return(self, method: bytes, properties: Properties) -> None:
        """A publish that no queue is bound for; its ack follows."""

    def on_confirm(self, sequence: int, multiple: bool, taken: bool) -> None:
        """The broker took publish number `sequence`, or refused it; `multiple`: and all before it."""

    def on_cancelled(self, tag: str) -> None:
        """The broker ended a consumer."""

    def on_blocked(self, reason: str | None) -> None:
        """An alarm blocks publishing (why), or no longer does (None)."""

    def on_ended(self, reason: ChannelClosed) -> None:
        """Channel or connection is closed, for good. Called once."""


async def connect(address: Address, name: str, events: Events) -> AmqpConnection:
    """Connect, authenticate, open a channel and put it in confirm mode, within OPEN_TIMEOUT.

    Raises ConnectionRefused or AccessRefused: one sentence, with the address.
    """
    loop = asyncio.get_running_loop()
    connection = AmqpConnection(address, name, events, loop)
    opened = False
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await _reach(address, connection, loop)
            await connection.ready
            opened = True
    except TimeoutError:
        raise ConnectionRefused(f"{address} does not answer: is a broker running there?") from None
    except ssl.SSLCertVerificationError as error:
        raise AccessRefused(
            f"{address}: its certificate cannot be verified ({error.verify_message}): "
            "SSL_CERT_FILE may name the authorities to trust"
        ) from error
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise ConnectionRefused(
            f"{address}: no TLS connection can be made ({reason}): amqps:// needs a port that speaks TLS"
        ) from error
    except OSError as error:
        raise ConnectionRefused(f"{address} cannot be reached: {_unreachable(error)}") from error
    finally:
        if not opened:
            connection.discard()
    return connection


async def _reach(address: Address, connection: AmqpConnection, loop: asyncio.AbstractEventLoop) -> None:
    """Connect by TCP, and TLS where wanted, to one of the host's addresses. Raises OSError."""
    tls = address.tls_context()
    hosts = await resolve(address.host)
    for host in hosts:
        try:
            await loop.create_connection(
                lambda: connection, host, address.port, ssl=tls, server_hostname=address.host if tls else None
            )
        except ssl.SSLError:
            raise
        except OSError:
            if host is hosts[-1]:
                raise
        else:
            return


class AmqpConnection(pika.connection.Connection, asyncio.BufferedProtocol):
    """Made by `connect`. `ready` ends when its channel is open, `gone` when its socket is closed."""

    def __init__(self, address: Address, name: str, events: Events, loop: asyncio.AbstractEventLoop) -> None:
        self._address = address
        self._events = events
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._unread = b""
        self._unwritten: deque[bytes | Iterator[bytes]] = deque()
        self._full = False  # the socket takes nothing for now
        self._content_method = b""  # of the message that is being received, as are its properties and body
        self._content_properties = Properties()
        self._content_missing = 0  # bytes
        self._content_body: bytearray | None = None  # of the whole size, once a part of it has come
        self._part_missing = 0  # bytes of a body frame that has begun, its end included
        self._closed_by_broker: tuple[int, str] | None = None
        self._loss = ""  # why the socket closed
        self._ended = False
        self._abort_timer: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        super().__init__(
            pika.ConnectionParameters(
                host=address.host,
                port=address.port,
                virtual_host=address.vhost,
                credentials=pika.PlainCredentials(address.user, address.password),
                heartbeat=address.heartbeat,
                client_properties={"connection_name": name, "product": "quaybridge"},
            ),
            on_open_callback=self._on_opened,
            on_open_error_callback=self._on_not_opened,
            on_close_callback=self._on_lost,
            internal_connection_workflow=False,
        )

    @property
    def methods(self) -> pika.channel.Channel:
        """The channel, for the synchronous methods."""
        return self._channels[frames.CHANNEL]

    @property
    def server(self) -> str:
        """Product and version of the broker."""
        properties = self.server_properties or {}
        return f"{properties.get('product', 'AMQP broker')} {properties.get('version', '')}".strip()

    @property
    def receiving(self) -> bool:
        """Whether a message has begun to come whose body is not here yet."""
        return self._content_missing > 0 or self._part_missing > 0

    @property
    def largest_body(self) -> int:
        """Bytes of a message's body that fit one frame."""
        return self._body_max_length

    def send(self, data: bytes | Iterator[bytes]) -> None:
        """Write `data` at the end of this turn of the loop; of several pieces each when the socket takes it."""
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        self._unwritten.append(data)

    def begin_close(self) -> None:
        """Say goodbye to the broker; `gone` ends at most CLOSE_TIMEOUT later, whether it answers or not."""
        if self._transport is None or self._abort_timer is not None:
            return
        if self.is_open:
            self.close()
            self._abort_timer = self._loop.call_later(CLOSE_TIMEOUT, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        """Drop the connection without another word to the broker."""
        if self._transport is not None:
            self._transport.abort()

    def discard(self) -> None:
        """Drop the connection and tell nobody."""
        self._ended = True
        if not self.ready.cancel() and not self.ready.cancelled():
            self.ready.exception()  # asyncio would log what nobody asked for
        self.abort()

    # What asyncio tells its protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # by its methods: uvloop's is none by its class
        self._on_stream_connected()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._unwritten.clear()
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        cause = error or self._error
        if cause is None:
            cause = error = exceptions.StreamLostError(_HUNG_UP)
        self._loss = str(cause.args[0]) if isinstance(cause, exceptions.AMQPError) and cause.args else str(cause)
        if self._unread.startswith(_TLS_ALERT):
            self._loss = "it speaks TLS: write amqps://"
        try:
            self._on_stream_terminated(error)
        finally:  # whatever a callback raises
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_received += nbytes  # pika's heartbeat checker watches it
        data: bytes | memoryview = self._buffer[:nbytes]
        if nbytes < LARGE:
            data = bytes(data)
        position = 0
        if self._unread:
            data = self._unread + data
        elif self._part_missing:
            position = self._take_part(data, 0)
        size = len(data)
        while size - position > frames.FRAME_HEAD_SIZE:
            kind, channel, length = frames.FRAME_HEAD.unpack_from(data, position)
            if kind not in _FRAME_KINDS or length > self.params.frame_max:
                self._refuse("what answers there does not speak AMQP 0-9-1")
                return
            start = position + frames.FRAME_HEAD_SIZE
            end = start + length
            is_body = kind == frames.BODY and channel == frames.CHANNEL
            if is_body and not 0 < length <= self._content_missing:
                self._refuse("a body frame came that belongs to no message")
                return
            if end >= size:
                if is_body and length >= PART:
                    self._part_missing = length + 1
                    self._take_part(data, start)
                    position = size
                break
            if data[end] != frames.FRAME_END:
                self._refuse(_BAD_END)
                return
            if is_body:
                self._take_body(data, start, end)
            elif channel != frames.CHANNEL or not self._take(kind, bytes(data[start:end])):
                self._pass_on(bytes(data[position : end + 1]))
            position = end + 1
        self._unread = bytes(data[position:]) if position < size else b""

    def _refuse(self, reason: str) -> None:
        self._unread = b""
        self._terminate_stream(exceptions.StreamLostError(reason))

    def _pass_on(self, data: bytes) -> None:
        _, whole = frame.decode_frame(data)
        assert whole is not None
        self._process_frame(whole)

    def _take(self, kind: int, payload: bytes) -> bool:
        """Deal with a frame of the channel, or leave it to pika (False)."""
        if kind == frames.METHOD:
            method = frames.read_method(payload)
            if method in (frames.DELIVER, frames.RETURN):
                self._content_method = payload
                return True
            if method in (frames.ACK, frames.NACK):
                self._events.on_confirm(*frames.read_confirm(payload), method == frames.ACK)
                return True
            return False
        if kind == frames.HEADER:
            self._content_missing, self._content_properties = frames.read_content_header(payload)
            if not self._content_missing:
                self._on_content(b"")
        return True

    def _take_body(self, data: bytes | memoryview, start: int, end: int) -> None:
        """Deal with a body frame, whose payload that is."""
        if self._content_missing == end - start and self._content_body is None:
            self._content_missing = 0
            self._on_content(bytes(data[start:end]))
        else:
            self._keep_body(data, start, end)
            self._end_body_frame()

    def _take_part(self, data: bytes | memoryview, start: int) -> int:
        """Deal with what `data` has, from `start` on, of a body frame that is not whole yet; where that ends."""
        end = min(start + self._part_missing - 1, len(data))
        self._keep_body(data, start, end)
        self._part_missing -= end - start
        if end == len(data):
            return end
        self._part_missing = 0
        if data[end] != frames.FRAME_END:
            self._refuse(_BAD_END)
            return len(data)
        self._end_body_frame()
        return end + 1

    def _keep_body(self, data: bytes | memoryview, start: int, end: int) -> None:
        body = self._content_body
        if body is None:
            body = self._content_body = bytearray(self._content_missing)
        filled = len(body) - self._content_missing
        self._content_missing -= end - start
        # Through a memoryview: assigning to a slice of a bytearray copies what it is given first.
        memoryview(body)[filled : filled + end - start] = memoryview(data)[start:end]

    def _end_body_frame(self) -> None:
        body = self._content_body
        if body is not None and not self._content_missing:
            self._content_body = None
            self._on_content(body)

    def _on_content(self, body: bytes | bytearray) -> None:
        method = self._content_method
        if frames.read_method(method) == frames.DELIVER:
            self._events.on_deliver(method, self._content_properties, body)
        else:
            self._events.on_return(method, self._content_properties)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            self._unwritten.clear()
            return
        small: list[bytes] = []
        while self._unwritten and not self._full:
            data = self._unwritten[0]
            piece = data if isinstance(data, bytes) else next(data, b"")
            if piece is data or not piece:
                self._unwritten.popleft()
            if len(piece) < LARGE:  # also the nothing that ends several pieces
                small.append(piece)
                continue
            if small:
                transport.write(b"".join(small))
                small.clear()
            transport.write(piece)
        if small:
            transport.write(b"".join(small))

    # What pika asks of the transport it runs on.

    def _adapter_connect_stream(self) -> None:
        raise NotImplementedError("asyncio connects")

    def _adapter_disconnect_stream(self) -> None:
        self.abort()

    def _adapter_emit_data(self, data: bytes) -> None:
        self.send(data)

    def _adapter_call_later(self, delay: float, callback: Callable[[], Any]) -> object:
        return self._loop.call_later(delay, callback)

    def _adapter_remove_timeout(self, timeout_id: object) -> None:
        cast("asyncio.TimerHandle", timeout_id).cancel()  # by its methods, as the transport

    def _adapter_add_callback_threadsafe(self, callback: Callable[..., Any]) -> None:
        self._loop.call_soon_threadsafe(callback)

    # What pika tells of the connection and its channel.

    def _on_opened(self, _: pika.connection.Connection) -> None:
        self.channel(frames.CHANNEL, on_open_callback=self._on_channel_opened)

    def _on_channel_opened(self, channel: pika.channel.Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(lambda method: self._events.on_cancelled(method.method.consumer_tag))
        self.add_on_connection_blocked_callback(lambda _, method: self._events.on_blocked(method.method.reason))
        self.add_on_connection_unblocked_callback(lambda _, method: self._events.on_blocked(None))
        channel.confirm_delivery(_never_called, callback=self._on_ready)

    def _on_ready(self, _: object) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_connection_close_from_broker(self, method_frame: frame.Method[spec.Connection.Close]) -> None:
        # pika guesses what a close during the handshake means, and keeps its text only as part of a repr.
        self._closed_by_broker = method_frame.method.reply_code, _one_line(method_frame.method.reply_text)
        super()._on_connection_close_from_broker(method_frame)

    def _on_not_opened(self, _: pika.connection.Connection, error: BaseException | None) -> None:
        if self.ready.done():
            return
        if self._closed_by_broker is None:
            says_little = self._loss == _HUNG_UP or self._loss.startswith("[Errno")
            advice = ": is it RabbitMQ, and has it started?" if says_little else ""
            refusal: Exception = ConnectionRefused(
                f"{self._address} hung up during the handshake: {self._loss}{advice}"
            )
        else:
            code, text = self._closed_by_broker
            # A user or vhost with all its connections in use is NOT_ALLOWED too, until one is closed.
            final = code == _ACCESS_REFUSED or (code == _NOT_ALLOWED and "limit" not in text)
            kind = AccessRefused if final else ConnectionRefused
            refusal = kind(f"{self._address} refused the connection: {text}{_advice(text, self._address)}")
        self.ready.set_exception(refusal)

    def _on_channel_closed(self, _: pika.channel.Channel, error: Exception) -> None:
        if isinstance(error, exceptions.ChannelClosedByBroker):
            self._end(ChannelClosed(f"the broker closed the channel: {_one_line(error.reply_text)}", error.reply_code))
            self.begin_close()

    def _on_lost(self, _: pika.connection.Connection, error: Exception) -> None:
        if self._closed_by_broker is not None:
            code, text = self._closed_by_broker
            self._end(ChannelClosed(f"the broker closed the connection: {text}", code))
        else:
            self._end(ChannelClosed(f"the connection to {self._address} was lost: {self._loss}"))

    def _end(self, reason: ChannelClosed) -> None:
        if self._ended:
            return
        self._ended = True
        if self.ready.done():
            self._events.on_ended(reason)
        else:
            self.ready.set_exception(ConnectionRefused(reason.reason))


def _unreachable(error: OSError) -> str:
    """Why, in the system's words rather than asyncio's, and what to look at."""
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}: is the host's name right?"
    if error.errno == errno.ECONNREFUSED:
        return f"{os.strerror(error.errno)}: is a broker running there?"
    return error.strerror or str(error)


def _advice(text: str, address: Address) -> str:
    """What to do about a refusal, after what RabbitMQ says of it; nothing where that says it all."""
    if "Login was refused" in text:
        return " Are user and password right? (rabbitmqctl authenticate_user NAME PASSWORD)"
    if text.endswith("not found"):
        return f": is the vhost's name right? (rabbitmqctl add_vhost {shlex.quote(address.vhost)} makes it)"
    if "access to vhost" in text:
        names = f"-p {shlex.quote(address.vhost)} {shlex.quote(address.user)}"
        return f": rabbitmqctl set_permissions {names} '.*' '.*' '.*' permits it"
    return ""


def _one_line(text: str) -> str:
    """What a broker says, for a log: RabbitMQ may put an Erlang term into it, over several lines."""
    return " ".join(text.split())


def _never_called(_: object) -> None:
    raise AssertionError("confirms and deliveries do not reach pika")
