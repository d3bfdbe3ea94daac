"""Retries, poison and redeliveries on RabbitMQ, whose own counting is what they rest on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from soak import SOAK
from vhost import Vhost

from bridge_protocol.envelope import request_properties
from bridge_protocol.messages import Request, Result, decode_message, encode_request
from bridge_protocol.topology import (
    DELIVERY_LIMIT,
    EXCHANGE,
    Queue,
    dead_letter_queue,
    request_queue,
    service_topology,
    shared_topology,
)
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Channel, Delivery, Message
from producer.async_producer import AsyncProducer
from worker_node.node import Node
from worker_node.settings import NodeSettings

REPLIES = "quaybridge.reply.test"
PATIENCE = 45.0  # seconds for what takes ten on an idle machine
SUPERVISOR = Path(__file__).parent / "supervisor.py"

BRIDGE = """
import json, os, signal, struct, sys, time
def tell(id, **said):
    told = json.dumps({"id": id, **said}).encode()
    os.write(1, struct.pack(">I", len(told)) + told)
while header := os.read(0, 4):
    size, = struct.unpack(">I", header)
    asked = json.loads(os.read(0, size))
    if asked["command"] == "ping":
        tell(asked["id"], success=True, result={"capabilities": {"concurrency": 4}})
        continue
    if len(sys.argv) > 1:
        os.write(int(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)), b"run\\n")
    if asked["command"] == "kill":
        time.sleep(0.15)  # for the node to be given more
        os.kill(os.getppid(), signal.SIGKILL)
    elif asked["command"] == "flaky" and "attempt" not in asked:
        tell(asked["id"], success=False, error="not yet", error_info={"retryable": True, "retry_after": 2})
    else:
        time.sleep(asked["args"].get("seconds", 0))
        tell(asked["id"], success=True, result=asked["args"].get("n"))
"""


def service(name: str, *arguments: str, **options: Any) -> dict[str, Any]:
    command = (sys.executable, "-ISc", BRIDGE, *arguments)
    return {"name": name, "command": command, "bridges": 1, "stop_timeout": 0.5, **options}


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


class Requester:
    """Publishes by its own channel, and takes replies from a durable queue: nothing is lost with a connection."""

    def __init__(self, url: str, *services: str) -> None:
        self.url = url
        self.services = services
        self.replies: list[Delivery] = []
        self._sent = 0

    async def open(self) -> None:
        self.channel: Channel = await AmqpBroker(parse_addresses(self.url)).open("test", on_closed=lambda _: None)
        resources = [*shared_topology(), Queue(REPLIES, {"x-queue-type": "quorum"})]
        for name in self.services:
            resources += service_topology(name)
        await self.channel.declare(resources)
        await self.channel.consume(REPLIES, self.replies.append, no_ack=True)

    async def send(self, service: str, message_id: str, command: str = "work", **args: Any) -> None:
        self._sent += 1
        request = Request(id=self._sent, command=command, args={"n": message_id, **args})
        properties = request_properties(message_id=message_id, command=command, reply_to=REPLIES)
        message = Message(exchange=EXCHANGE, routing_key=service, body=encode_request(request), properties=properties)
        await self.channel.publish(message, timeout=PATIENCE)

    @property
    def results(self) -> dict[str, Any]:
        said = [decode_message(reply.body) for reply in self.replies]
        return {str(message.result): message.result for message in said if isinstance(message, Result)}


@asynccontextmanager
async def requester(url: str, *services: str) -> AsyncIterator[Requester]:
    made = Requester(url, *services)
    await made.open()
    try:
        yield made
    finally:
        await made.channel.close()


@asynccontextmanager
async def supervised(settings: dict[str, Any], url: str) -> AsyncIterator[list[int]]:
    """A node that is started again each time it dies; the statuses it died with."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SUPERVISOR), json.dumps(settings), url),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    statuses: list[int] = []

    async def listen() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            statuses.append(int(line))

    listening = asyncio.create_task(listen())
    try:
        yield statuses
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await listening


async def test_a_request_that_kills_its_node_every_time_is_a_dead_letter_and_its_neighbours_complete(
    rabbitmq_vhost: Vhost,
) -> None:
    await kill_its_node_every_time(rabbitmq_vhost.url)


if SOAK:

    async def test_that_on_every_rabbitmq(rabbitmq_each: Vhost) -> None:
        await kill_its_node_every_time(rabbitmq_each.url)


async def kill_its_node_every_time(url: str) -> None:
    settings = {"name": "n1", "services": [service("work"), service("other")]}
    neighbours: list[str] = []

    async def send_neighbours(count: int) -> None:
        for _ in range(count):
            for name in ("work", "other"):
                neighbours.append(f"{name}-{len(neighbours)}")
                await asked.send(name, neighbours[-1], seconds=0.01)

    async with requester(url, "work", "other") as asked:
        await send_neighbours(3)
        await asked.send("work", "poison", "kill")
        await send_neighbours(10)
        async with supervised(settings, url) as deaths:
            seen = 0
            async with asyncio.timeout(PATIENCE):
                while await asked.channel.queue_length(dead_letter_queue("work")) == 0:
                    if len(deaths) > seen:
                        seen = len(deaths)
                        await send_neighbours(1)  # some are there each time it is given out again
                    await asyncio.sleep(0.02)
            await until(lambda: len(asked.results) == len(neighbours))
        assert deaths == [-signal.SIGKILL] * (DELIVERY_LIMIT + 1)
        assert set(asked.results) == set(neighbours)
        letters: list[Delivery] = []
        await asked.channel.consume(dead_letter_queue("work"), letters.append, no_ack=True)
        await until(lambda: letters)
        assert [letter.properties.message_id for letter in letters] == ["poison"]
        assert await asked.channel.queue_length(dead_letter_queue("other")) == 0


async def test_two_thousand_retries_at_once_all_come_back(rabbitmq_each: Vhost) -> None:
    settings = NodeSettings.model_validate({"services": [service("work", retry={"max_attempts": 2})]})
    node = Node(settings, AmqpBroker(parse_addresses(rabbitmq_each.url)))
    await node.start()
    try:
        async with AsyncProducer(rabbitmq_each.url) as producer:
            handles = [await producer.submit("work", "flaky", {"n": n}, timeout=PATIENCE) for n in range(2000)]
            replies = await asyncio.gather(*handles)
        assert [(reply.result, reply.attempt) for reply in replies] == [(n, 2) for n in range(2000)]
        assert (node.counts["work"].retried, node.counts["work"].failed) == (2000, 0)
    finally:
        await node.stop()


async def test_a_request_that_runs_when_the_connections_are_closed_runs_once_and_is_answered_once(
    rabbitmq_vhost: Vhost, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    settings = NodeSettings.model_validate({"services": [service("work", str(log))]})
    node = Node(settings, AmqpBroker(parse_addresses(rabbitmq_vhost.url)))
    await node.start()
    try:
        async with requester(rabbitmq_vhost.url, "work") as asked:
            await asked.send("work", "a", seconds=2.5)
        await until(log.exists)
        await asyncio.to_thread(rabbitmq_vhost.control, "close_all_connections", "maintenance")
        await until(lambda: node.counts["work"].joined + node.counts["work"].repeated)
        async with requester(rabbitmq_vhost.url, "work") as asked:
            await until(lambda: asked.replies)
            await until(lambda: not any(node.services[0].pool.tickets()))
            await node.services[0].settlement.wait_idle()
            assert [reply.properties.message_id for reply in asked.replies] == ["a"]
            assert asked.replies[0].properties.headers["redelivered"] is True
            assert await asked.channel.queue_length(request_queue("work")) == 0
        assert log.read_text() == "run\n"
        assert node.counts["work"].succeeded == 1
    finally:
        await node.stop()
