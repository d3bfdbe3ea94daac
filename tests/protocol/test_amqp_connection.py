"""Opening a connection to what is no broker, or is one that does not get to the end of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pika import frame, spec

from broker import amqp_connection
from broker.address import parse_addresses
from broker.amqp import AmqpBroker, AmqpChannel
from broker.amqp_connection import AmqpConnection
from broker.contract import AccessRefused, ChannelClosed, ConnectionRefused

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

GREETING = b"AMQP\x00\x00\x09\x01"
CAPABILITIES = {"authentication_failure_close": True, "publisher_confirms": True, "basic.nack": True}
PROPERTIES = {"product": "Fake", "version": "1", "capabilities": CAPABILITIES}


def method(channel: int, one: object) -> bytes:
    return frame.Method(channel, one).marshal()  # type: ignore[type-var]  # pika's generic names no bound for reading


@asynccontextmanager
async def server(conversation: Conversation, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a free port that holds `conversation` with each client, then hangs up."""
    tasks = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await conversation(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(
        lambda r, w: tasks.append(asyncio.create_task(accept(r, w))), "127.0.0.1", 0, ssl=tls
    )
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_frame(reader: asyncio.StreamReader) -> object:
    """The next frame from the client."""
    data = await reader.readexactly(7)
    data += await reader.readexactly(int.from_bytes(data[3:7]) + 1)
    return frame.decode_frame(data)[1]


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a broker, as far as the client's credentials."""
    assert await reader.readexactly(8) == GREETING
    writer.write(method(0, spec.Connection.Start(server_properties=PROPERTIES)))
    await read_frame(reader)


async def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a broker, as far as a channel in confirm mode."""
    await greet(reader, writer)
    writer.write(method(0, spec.Connection.Tune(0, 131_072, 60)))
    await read_frame(reader)
    await read_frame(reader)
    writer.write(method(0, spec.Connection.OpenOk()))
    await read_frame(reader)
    writer.write(method(1, spec.Channel.OpenOk()))
    await read_frame(reader)
    writer.write(method(1, spec.Confirm.SelectOk()))


def broker(port: int, *, scheme: str = "amqp", host: str = "127.0.0.1") -> AmqpBroker:
    return AmqpBroker(parse_addresses(f"{scheme}://user:s3cr3t@{host}:{port}/"))


def never(reason: object) -> None:
    raise AssertionError(f"a connection that was never open closed: {reason}")


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    await reader.read()


async def speak_another_version(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"AMQP\x00\x01\x00\x00")
    await reader.read()


async def announce_a_huge_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x01\x00\x00\xff\xff\xff\xff" + bytes(1000))
    await reader.read()


async def end_a_frame_wrongly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(method(0, spec.Connection.Start(server_properties=PROPERTIES))[:-1] + b"\x00")
    await reader.read()


async def hang_up_over_credentials(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await greet(reader, writer)


def close_with(code: int, text: str) -> Conversation:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.write(method(0, spec.Connection.Close(code, text, 0, 0)))
        await reader.read()

    return conversation


@pytest.mark.parametrize(
    ("conversation", "kind", "says"),
    [
        (hang_up, ConnectionRefused, "is it RabbitMQ, and has it started?"),
        (hang_up_over_credentials, ConnectionRefused, "hung up during the handshake"),
        (speak_http, ConnectionRefused, "does not speak AMQP 0-9-1"),
        (speak_another_version, ConnectionRefused, "does not speak AMQP 0-9-1"),
        (announce_a_huge_frame, ConnectionRefused, "does not speak AMQP 0-9-1"),
        (end_a_frame_wrongly, ConnectionRefused, "did not end where it should"),
        (close_with(403, "ACCESS_REFUSED - Login was refused"), AccessRefused, "refused Are user and password right"),
        (close_with(530, "NOT_ALLOWED - vhost v not found"), AccessRefused, "(rabbitmqctl add_vhost / makes it)"),
        (close_with(530, "NOT_ALLOWED - access to vhost 'v' refused"), AccessRefused, "rabbitmqctl set_permissions -p"),
        (close_with(530, "NOT_ALLOWED - connection limit (1) is reached"), ConnectionRefused, "is reached"),
        (close_with(541, "INTERNAL_ERROR - vhost 'v' is down"), ConnectionRefused, "is down"),
        (close_with(541, "INTERNAL_ERROR - {badmatch,\n    {error,timeout}}"), ConnectionRefused, "{badmatch, {error,"),
        (close_with(320, "CONNECTION_FORCED - broker forced connection closure"), ConnectionRefused, "forced"),
    ],
)
async def test_who_does_not_let_us_in_is_a_refusal_in_one_line(
    conversation: Conversation, kind: type[Exception], says: str
) -> None:
    async with server(conversation) as port:
        with pytest.raises(kind) as refusal:
            await broker(port).open("test", on_closed=never)
    assert says in str(refusal.value)
    assert f"amqp://user:***@127.0.0.1:{port}/" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("conversation", [silence, greet])
async def test_who_does_not_answer_is_given_up(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    async def then_silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await conversation(reader, writer)
        await reader.read()

    monkeypatch.setattr(amqp_connection, "OPEN_TIMEOUT", 0.2)
    async with server(then_silence) as port:
        with pytest.raises(ConnectionRefused, match="does not answer"):
            await broker(port).open("test", on_closed=never)


async def test_an_open_that_is_cancelled_leaves_no_connection() -> None:
    gone = asyncio.get_running_loop().create_future()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            gone.set_result(None)

    async with server(wait_for_the_end) as port:
        opening = asyncio.create_task(broker(port).open("test", on_closed=never))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(opening, 0.1)
        async with asyncio.timeout(10):
            await gone


async def test_nobody_listening_is_a_refusal(unused_tcp_port: int) -> None:
    with pytest.raises(ConnectionRefused, match="cannot be reached: Connection refused: is a broker"):
        await broker(unused_tcp_port).open("test", on_closed=never)


async def test_an_unknown_host_is_a_refusal() -> None:
    with pytest.raises(ConnectionRefused, match=r"no\.such\.host\.invalid.* cannot be reached: .*name right\?"):
        await broker(1, host="no.such.host.invalid").open("test", on_closed=never)


def test_a_name_server_that_does_not_answer_is_a_refusal_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def say_nothing(*_: object, **__: object) -> list[object]:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def open_it() -> None:
        with pytest.raises(ConnectionRefused, match="does not answer"):
            await broker(1, host="broker.example").open("test", on_closed=never)

    monkeypatch.setattr(socket, "getaddrinfo", say_nothing)
    monkeypatch.setattr(amqp_connection, "CONNECT_TIMEOUT", 0.1)
    began = time.monotonic()
    asyncio.run(open_it())  # at its end a loop waits for the threads it has started
    over.set()
    assert time.monotonic() - began < 10


async def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in(reader, writer)
        await reader.read()

    found = [(0, 0, 0, "", (host, 0)) for host in ("127.0.0.2", "127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    async with server(serve) as port:
        channel = await broker(port, host="broker.example").open("test", on_closed=never)
        await channel.close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:2])
        with pytest.raises(ConnectionRefused, match="cannot be reached"):
            await broker(port, host="broker.example").open("test", on_closed=never)


async def test_addresses_are_tried_in_turn(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in(reader, writer)
        await reader.read()

    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    async with server(serve) as port:
        both = f"amqp://u:p@127.0.0.1:{unused_tcp_port}, amqp://u:p@127.0.0.1:{port}"
        channel = await AmqpBroker(parse_addresses(both)).open("test", on_closed=never)
        assert channel.server == "Fake 1"
        assert str(port) in repr(channel)
        await channel.close()


async def test_if_all_refuse_each_is_named(unused_tcp_port: int) -> None:
    async with server(close_with(403, "ACCESS_REFUSED - no")) as port:
        both = f"amqp://u:p@127.0.0.1:{port}, amqp://u:p@127.0.0.1:{unused_tcp_port}"
        # One of them needs somebody to put it right, so trying again would not help.
        with pytest.raises(
            AccessRefused, match=rf"{port}.*ACCESS_REFUSED - no; .*{unused_tcp_port}.*cannot be reached"
        ):
            await AmqpBroker(parse_addresses(both)).open("test", on_closed=never)


async def test_a_close_that_is_not_answered_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in(reader, writer)
        await reader.read()

    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    async with server(serve) as port:
        channel = await broker(port).open("test", on_closed=never)
        async with asyncio.timeout(10):
            await channel.close()
    assert channel.closed


async def test_a_broker_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def call_soon_instead(self: AmqpConnection, delay: float, callback: Callable[[], None]) -> object:
        waits.append(delay)
        return asyncio.get_running_loop().call_later(delay / 50, callback)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in(reader, writer)
        await reader.read()

    monkeypatch.setattr(AmqpConnection, "_adapter_call_later", call_soon_instead)
    closed: asyncio.Future[ChannelClosed] = asyncio.get_running_loop().create_future()
    async with server(serve) as port:
        channel = await broker(port).open("test", on_closed=closed.set_result)
        async with asyncio.timeout(20):
            reason = await closed
    assert reason.code == 0
    assert "heartbeat" in reason.reason
    assert channel.closed
    # It takes two looks at most: the first may still have seen something come.
    assert 2 * max(waits) <= 30


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that no authority signed, with its key in the same file."""
    key, signed = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    try:
        subprocess.run([*command.split(), "-keyout", key, "-out", signed], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    signed.write_bytes(signed.read_bytes() + key.read_bytes())
    return signed


async def test_amqps_trusts_only_whom_it_can_verify(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in(reader, writer)
        await reader.read()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with server(serve, tls=tls) as port:
        with pytest.raises(AccessRefused, match=r"certificate cannot be verified.*SSL_CERT_FILE"):
            await broker(port, scheme="amqps", host="localhost").open("test", on_closed=never)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(AccessRefused, match="certificate cannot be verified"):
            await broker(port, scheme="amqps", host="127.0.0.1").open("test", on_closed=never)
        monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
        channel = await broker(port, scheme="amqps", host="localhost").open("test", on_closed=never)
        assert channel.server == "Fake 1"
        await channel.close()


async def test_amqps_to_a_port_without_tls_is_a_refusal() -> None:
    async with server(speak_http) as port:
        with pytest.raises(ConnectionRefused, match=r"no TLS connection can be made \(wrong version number\)"):
            await broker(port, scheme="amqps").open("test", on_closed=never)


async def test_amqp_to_a_port_with_tls_is_a_refusal_that_says_what_to_write() -> None:
    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"\x15\x03\x03\x00\x02\x02\x0a")  # as a TLS server answers what is no handshake

    async with server(alert) as port:
        with pytest.raises(ConnectionRefused, match="hung up during the handshake: it speaks TLS: write amqps://"):
            await broker(port).open("test", on_closed=never)


async def test_a_transport_is_one_by_its_methods_as_uvloops_is() -> None:
    class Foreign:
        written = b""

        def write(self, data: bytes) -> None:
            self.written += data

        def is_closing(self) -> bool:
            return False

        def abort(self) -> None: ...

    (address,) = parse_addresses("amqp://somebody:secret@127.0.0.1/")
    loop = asyncio.get_running_loop()
    channel = AmqpChannel(address, lambda _: None, None)
    connection = AmqpConnection(address, "test", channel, loop)
    transport = Foreign()
    connection.connection_made(transport)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert transport.written == GREETING
    connection.discard()
    connection.connection_lost(None)
