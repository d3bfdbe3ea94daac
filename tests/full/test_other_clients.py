"""Clients that are not ours, on RabbitMQ, by docs/wire.md alone: its examples as they stand there, and more."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aio_pika
import pytest
from command_line import PATIENCE, run, running
from documents import block

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings


@pytest.fixture
async def served(rabbitmq_url: str) -> AsyncIterator[str]:
    """The URL of a RabbitMQ where a node serves `echo`."""
    service = ServiceSettings(name="echo", command=(sys.executable, "-m", "examples.echo"), bridges=1)
    node = Node(NodeSettings(services=(service,)), AmqpBroker(parse_addresses(rabbitmq_url)))
    await node.start()
    yield rabbitmq_url
    await node.stop()


async def execute(*command: str, url: str) -> str:
    """What a program wrote to stdout, which had the URL in AMQP_URL."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "AMQP_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode == 0, (out, err)
    return out.decode()


async def test_the_example_with_aio_pika(served: str) -> None:
    said = await execute(sys.executable, "-c", block("wire.md", "python"), url=served)
    assert said == "result {'text': 'déjà vu'}\n"


async def test_the_example_with_amqp_tools(served: str, program: Callable[[str], str]) -> None:
    assert program("amqp-publish")
    said = await execute("sh", "-ec", block("wire.md", "sh"), url=served)
    queue, _, reply = said.partition("\n")
    assert queue == "quaybridge.reply.shell"
    assert reply.startswith('{"id":7,"success":true,"result":{"text":"déjà vu"},')


class Client:
    """A connection of aio-pika's, and direct replies: on the channel they are consumed on."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self.channel = channel
        self.replies: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()

    async def ask(
        self, body: object, *, exchange: str = "quaybridge", key: str = "echo", **properties: Any
    ) -> tuple[aio_pika.abc.AbstractIncomingMessage, Any]:
        """Publish a request; its reply, and what that says."""
        target = await self.channel.get_exchange(exchange, ensure=False)
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = aio_pika.Message(encoded, **{"reply_to": "amq.rabbitmq.reply-to", **properties})
        await target.publish(message, routing_key=key, mandatory=True)
        async with asyncio.timeout(PATIENCE):
            reply = await self.replies.get()
        return reply, json.loads(reply.body)


@pytest.fixture
async def client(served: str) -> AsyncIterator[Client]:
    async with await aio_pika.connect(served) as connection:
        channel = await connection.channel(on_return_raises=True)
        made = Client(channel)
        direct = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await direct.consume(made.replies.put, no_ack=True)
        yield made


async def test_what_the_page_promises_a_client_that_is_not_ours(client: Client) -> None:
    body = {"id": 7, "command": "echo", "args": {"a": [1, None]}}
    reply, said = await client.ask(body, correlation_id="c1", message_id="m1", type="echo")
    assert (reply.type, reply.correlation_id, reply.message_id) == ("result", "c1", "c1")
    assert (reply.content_type, reply.headers["protocol"], reply.headers["attempt"]) == ("application/json", 1, 1)
    assert reply.headers["node"]
    assert (said["id"], said["success"], said["result"]) == (7, True, {"a": [1, None]})

    reply, said = await client.ask({"id": 8, "command": "echo"})  # as little as can be
    assert (reply.type, said["result"]) == ("result", {})

    spaced = b' { "id" : 9 , "command" : "echo" }'
    reply, said = await client.ask(spaced)
    assert (reply.type, said["id"]) == ("bad_request", None)
    reply, said = await client.ask(spaced[1:] + b"\n")
    assert (reply.type, said["id"], said["result"]) == ("result", 9, {})

    reply, said = await client.ask({"id": 10, "command": "fail", "args": {"message": "no"}}, message_id="m2")
    assert (reply.type, reply.correlation_id) == ("application_error", "m2")
    assert (said["success"], said["error"]) == (False, "ApplicationError: no")

    reply, said = await client.ask({"id": 11, "command": "shutdown"})
    assert (reply.type, said["id"], said["error_info"]["type"]) == ("bad_request", 11, "bad_request")
    reply, said = await client.ask({"id": 11, "command": "echo"}, type="sleep")
    assert reply.type == "bad_request"

    late = {"id": 12, "command": "sleep", "args": {"seconds": 600}}
    reply, said = await client.ask(late, headers={"deadline": int((time.time() + 1) * 1000)})
    assert (reply.type, said["id"]) == ("deadline_exceeded", 12)

    digits = ".".join(f"{1:017b}")
    started = time.monotonic()
    reply, said = await client.ask(body, exchange="quaybridge.delay.0", key=f"{digits}.echo")
    assert (reply.type, said["result"]) == ("result", {"a": [1, None]})
    assert time.monotonic() - started > 0.9

    with pytest.raises(aio_pika.exceptions.DeliveryError):
        await client.ask(body, key="nobody")


async def test_a_cancel_from_a_client_that_is_not_ours(client: Client) -> None:
    control = await client.channel.get_exchange("quaybridge.control", ensure=False)

    async def cancel() -> None:
        said = {"protocol": 1, "control": "cancel", "service": "echo", "message_id": "m7"}
        message = aio_pika.Message(json.dumps(said).encode())
        while client.replies.empty():  # until the request is there to be cancelled, or was
            await control.publish(message, routing_key="cancel.echo")
            await asyncio.sleep(0.1)

    cancelling = asyncio.ensure_future(cancel())
    reply, _ = await client.ask({"id": 7, "command": "sleep", "args": {"seconds": 600}}, message_id="m7")
    assert reply.type == "cancelled"
    cancelling.cancel()


async def test_a_foreign_bridge_under_the_worker_command(rabbitmq_url: str) -> None:
    """Nobody on the way knows of us but the worker: a foreign program for a bridge, a foreign client's words."""
    bridge = f"{sys.executable} tests/bridges/foreign.py"
    options = ("--service", "echo", "--bridge", bridge, "--bridges", "1", "--broker", rabbitmq_url)
    async with running("worker", *options) as worker:
        # Not "serving" alone: the bridge says that too, of its handshake, when the service may have no queue yet.
        await worker.said("serving <")
        called = await run("call", "--broker", rabbitmq_url, "echo", "echo", "text=é")
        assert called.status == 0, called.err
        assert json.loads(called.out) == {"status": "ok", "echoed": {"text": "é"}}
        failed = await run("call", "--broker", rabbitmq_url, "echo", "fail")
        assert (failed.status, failed.err) == (1, "application_error: no such program: p1\n")
        await worker.said("serving fail")
        worker.process.terminate()
        ended = await worker.ended()
    assert ended.status == 0
    assert "foreign bridge ended" in ended.err
