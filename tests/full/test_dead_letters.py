"""Dead letters on RabbitMQ: what real failures leave, what the commands do with it, and that looking costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE, Ended, run
from soak import SOAK
from vhost import Vhost

from bridge_protocol.dead_letter import DeadLetter
from bridge_protocol.envelope import Properties, request_properties
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import DELIVERY_LIMIT, EXCHANGE, service_topology, shared_topology
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Channel, Delivery, Message
from producer.async_producer import AsyncProducer
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

SERVICE, QUEUE, DEAD = "work", "quaybridge.work", "quaybridge.work.dead"
MISBEHAVE = Path(__file__).parent.parent / "bridges" / "misbehave.py"
LOOKERS = Path(__file__).parent.parent / "lookers.py"
BODY = encode_request(Request(id=7, command="echo", args={"text": "é"}))


@asynccontextmanager
async def channel_to(url: str) -> AsyncIterator[Channel]:
    channel = await AmqpBroker(parse_addresses(url)).open("test", on_closed=lambda _: None)
    await channel.declare((*shared_topology(), *service_topology(SERVICE)))
    try:
        yield channel
    finally:
        await channel.close()


@asynccontextmanager
async def serving(url: str, *command: str, **settings: Any) -> AsyncIterator[Node]:
    service = {"name": SERVICE, "command": command, "bridges": 1, "retry": {"first_delay": 1}, **settings}
    node = Node(NodeSettings(name="n1", services=(ServiceSettings.model_validate(service),)), broker(url))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


def broker(url: str) -> AmqpBroker:
    return AmqpBroker(parse_addresses(url))


async def dead(url: str, *arguments: str, stdin: bytes = b"") -> Ended:
    return await run("dead", *arguments, "--broker", url, stdin=stdin)


def records(ended: Ended) -> list[dict[str, Any]]:
    assert (ended.status, "Traceback" in ended.err) == (0, False), ended
    return [json.loads(line) for line in ended.out.splitlines()]


async def until_length(channel: Channel, queue: str, length: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await channel.queue_length(queue) != length:
            await asyncio.sleep(0.02)


async def bury(channel: Channel, letters: list[DeadLetter]) -> None:
    messages = [Message(exchange="", routing_key=DEAD, body=one.body, properties=one.properties()) for one in letters]
    await asyncio.gather(*(channel.publish(message, timeout=PATIENCE) for message in messages))


def letter(number: int, **changes: Any) -> DeadLetter:
    least = DeadLetter(
        body=b'{"id":%d,"command":"echo","args":{"text":"%s"}}' % (number + 1, b"x" * (number % 50)),
        service=SERVICE,
        code="bridge_crashed",
        error="signal SIGKILL",
        message_id=f"m{number}",
        command="echo",
        time=time.time() - number,
    )
    return replace(least, **changes)


async def test_what_a_crash_leaves_and_how_it_is_listed_shown_saved_replayed_and_removed(
    rabbitmq_url: str, tmp_path: Path
) -> None:
    began = time.time()
    python = (sys.executable, "-S", "-E", str(MISBEHAVE))
    async with serving(rabbitmq_url, *python, "exit1_mid_request", retry={"max_attempts": 2, "first_delay": 1}):
        async with AsyncProducer(rabbitmq_url) as producer:
            crashed = await producer.publish(SERVICE, "misbehave", {"text": "é"})
        async with channel_to(rabbitmq_url) as channel:
            await until_length(channel, DEAD, 1)
    (listed,) = records(await dead(rabbitmq_url, "list", SERVICE))
    assert (listed["id"], listed["command"], listed["code"]) == (crashed, "misbehave", "bridge_crashed")
    assert (listed["attempt"], listed["node"], listed["slot"], listed["exit_code"]) == (2, "n1", 0, 1)
    assert listed["first_time"] < listed["time"]
    assert listed["by_broker"] is False

    (shown,) = records(await dead(rabbitmq_url, "show", SERVICE, crashed, "--json"))
    assert json.loads(shown["body"])["args"] == {"text": "é"}
    assert shown["details"]["stderr"] == ["last words"]
    for stdout in ((), ("-",)):
        (exported,) = records(await dead(rabbitmq_url, "export", SERVICE, *stdout))
        assert exported == shown
    saved = tmp_path / "letters.jsonl"
    said = await dead(rabbitmq_url, "export", SERVICE, str(saved))
    assert (said.status, said.out, said.err) == (0, "", f"1 letters written to {saved}\n")
    assert json.loads(saved.read_text()) == shown
    assert list(tmp_path.iterdir()) == [saved]

    replayed = await dead(rabbitmq_url, "replay", SERVICE, crashed)
    assert (replayed.status, replayed.out) == (0, f"{crashed} replayed, time 1\n")
    async with channel_to(rabbitmq_url) as channel:
        assert (await channel.queue_length(DEAD), await channel.queue_length(QUEUE)) == (0, 1)
    once = {"max_attempts": 1}
    async with serving(rabbitmq_url, *python, "kill_self", retry=once), channel_to(rabbitmq_url) as channel:
        await until_length(channel, DEAD, 1)
    (again,) = records(await dead(rabbitmq_url, "export", SERVICE))
    assert (again["id"], again["attempt"], again["replays"], again["signal"]) == (crashed, 1, 1, "SIGKILL")
    assert (again["body"], again["first_time"]) == (shown["body"], shown["first_time"])
    assert again["time"] > shown["time"]

    await dead(rabbitmq_url, "replay", SERVICE, crashed, "--timeout", "600")
    async with serving(rabbitmq_url, sys.executable, "-m", "examples.echo") as node:
        async with asyncio.timeout(PATIENCE):
            while not node.counts[SERVICE].failed:  # echo knows no misbehave
                await asyncio.sleep(0.02)
            await node.services[0].settlement.wait_idle()
    (third,) = records(await dead(rabbitmq_url, "list", SERVICE, "--code", "application_error"))
    assert (third["replays"], third["slot"]) == (2, 0)
    assert third["first_time"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began - 1))

    refused = await dead(rabbitmq_url, "purge", SERVICE, stdin=b"n\n")
    assert (refused.status, refused.out) == (1, "")
    assert "Remove 1 of 1 letters from quaybridge.work.dead for good?" in refused.err
    assert len(records(await dead(rabbitmq_url, "list", SERVICE))) == 1
    removed = await dead(rabbitmq_url, "purge", SERVICE, stdin=b"y\n")
    assert (removed.status, removed.out) == (0, "1 letters removed\n")
    nothing = await dead(rabbitmq_url, "list", SERVICE)
    assert (nothing.status, nothing.out) == (0, "")
    assert "no dead letters to be seen in quaybridge.work.dead" in nothing.err


async def test_filters_choose_what_is_listed_replayed_and_removed(rabbitmq_url: str) -> None:
    async with channel_to(rabbitmq_url) as channel:
        await bury(
            channel,
            [
                letter(0, code="bad_request", body=b"\xff\x00", message_id=None, command=None),
                letter(1, time=time.time() - 7200),
                letter(2, command="other"),
                letter(3, deadline=int(time.time() * 1000) - 1),
            ],
        )

        async def listed(*filters: str) -> list[str]:
            return [one["id"] for one in records(await dead(rabbitmq_url, "list", SERVICE, *filters))]

        everything = await listed()
        assert [one for one in everything if not one.startswith("sha256:")] == ["m1", "m2", "m3"]
        assert await listed("--limit", "2") == everything[:2]
        assert await listed("--code", "bridge_crashed", "--newer-than", "1h", "--command", "echo") == ["m3"]
        assert await listed("--older-than", "1h") == ["m1"]
        (raw,) = records(await dead(rabbitmq_url, "show", SERVICE, everything[0]))
        assert raw["body_base64"] == "/wA="

        replayed = await dead(rabbitmq_url, "replay", SERVICE, "--all", "--command", "echo", "--newer-than", "1h")
        assert replayed.out == "m3 replayed, time 1, without its deadline, which has passed\n"
        assert await channel.queue_length(QUEUE) == 1
        some = await dead(rabbitmq_url, "replay", SERVICE, "m2", "nobody")
        assert (some.status, some.out) == (1, "m2 replayed, time 1\n")
        assert some.err.startswith("no letter nobody among the 3 in quaybridge.work.dead")
        purged = await dead(rabbitmq_url, "purge", SERVICE, "--code", "bad_request", "--yes")
        assert (purged.status, purged.out) == (0, "1 letters removed\n")
        assert await listed() == ["m1"]
        none = await dead(rabbitmq_url, "replay", SERVICE, "--all", "--code", "too_large")
        assert (none.status, none.err) == (
            1,
            "none of the 1 letters in quaybridge.work.dead is meant: try other filters\n",
        )


async def test_a_person_gets_a_table_and_a_page_about_one(rabbitmq_url: str) -> None:
    async with channel_to(rabbitmq_url) as channel:
        await bury(channel, [letter(0, details={"signal": "SIGKILL", "stderr": ["last words"]}, slot=3)])
    listed = await asyncio.to_thread(on_a_terminal, "dead", "list", SERVICE, "--broker", rabbitmq_url)
    assert "bridge_crashed" in listed
    assert "time (UTC)" in listed
    shown = await asyncio.to_thread(on_a_terminal, "dead", "show", SERVICE, "m0", "--broker", rabbitmq_url)
    for words in ("dead letter m0", "  slot: 3", "  signal: SIGKILL", "    last words", '"command": "echo"'):
        assert words in shown


def on_a_terminal(*arguments: str) -> str:
    """What `quaybridge` writes to a terminal of 120 columns."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    process = subprocess.Popen([sys.executable, "-m", "quaybridge", *arguments], stdout=theirs)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(ours, 4096):
            written += piece
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    return written.decode()


async def test_what_cannot_be_done_is_said_in_a_line(rabbitmq_url: str, tmp_path: Path) -> None:
    async with channel_to(rabbitmq_url) as channel:
        await bury(channel, [letter(0)])
    for arguments, status, told in (
        (["list", "ehco"], 1, "unknown_service: there is no queue quaybridge.ehco.dead at amqp://"),
        (["show", SERVICE, "m9"], 1, "no letter m9 among the 1 in quaybridge.work.dead: `dead list` shows"),
        (["export", SERVICE, str(tmp_path)], 2, "it is there and no file: name another file"),
        (["export", SERVICE, str(tmp_path / "no" / "file")], 2, "No such file or directory: name another file"),
    ):
        ended = await dead(rabbitmq_url, *arguments)
        assert (ended.status, ended.out, ended.err.count("\n")) == (status, "", 1), ended
        assert told in ended.err
    assert [one["id"] for one in records(await dead(rabbitmq_url, "list", SERVICE))] == ["m0"]


async def test_looking_and_being_killed_at_it_removes_nothing(rabbitmq_each: Vhost) -> None:
    """Looks, and others that are killed in the middle: with the broker's own limit 21 of them would remove them all."""
    letters = [letter(number) for number in range(400)]
    async with channel_to(rabbitmq_each.url) as channel:
        await bury(channel, letters)
        rounds = str(50 if SOAK or not channel.server.startswith("RabbitMQ 4.0") else 12)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(LOOKERS), rabbitmq_each.url, SERVICE, str(len(letters)), rounds, rounds),
            cwd=Path(__file__).parent.parent.parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        await until_length(channel, DEAD, len(letters))
    saved = records(await dead(rabbitmq_each.url, "export", SERVICE))
    # Not in order: while one look holds the first letters, another sees and gives back the others.
    assert len(saved) == len(letters)
    assert {one["id"]: one["sha256"] for one in saved} == {
        one.id: hashlib.sha256(one.body).hexdigest() for one in letters
    }
    assert all(hashlib.sha256(one["body"].encode()).hexdigest() == one["sha256"] for one in saved)


async def test_order_is_kept_over_as_many_pages_as_there_can_be(rabbitmq_each: Vhost) -> None:
    """RabbitMQ 4.0 gives back in order what at most 32 consumers of a channel hold; 3.10 loses none of it."""
    letters = [letter(number, body=b"%d" % number) for number in range(32 * 256 + 1)]
    async with channel_to(rabbitmq_each.url) as channel:
        await bury(channel, letters)
        ordered = not channel.server.startswith("RabbitMQ 3.")
    for _ in range(2):
        found = [one["id"] for one in records(await dead(rabbitmq_each.url, "list", SERVICE))]
        expected = [one.id for one in letters]
        assert found == expected if ordered else sorted(found) == sorted(expected)


async def test_a_request_that_ends_its_node_each_time_becomes_a_letter_of_the_broker(rabbitmq_each: Vhost) -> None:
    properties = request_properties(message_id="poison", command="echo", reply_to="quaybridge.reply.x")
    properties = replace(properties, headers={**properties.headers, "code": "forged", "x-death": "forged"})
    async with channel_to(rabbitmq_each.url) as channel:
        deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.consume(QUEUE, deliveries.put_nowait, prefetch=1)
        await publish(channel, properties)
        for _ in range(DELIVERY_LIMIT + 1):
            (await asyncio.wait_for(deliveries.get(), PATIENCE)).reject(requeue=True)
        await until_length(channel, DEAD, 1)
        (shown,) = records(await dead(rabbitmq_each.url, "show", SERVICE, "poison"))
        assert (shown["code"], shown["by_broker"], shown["node"]) == ("delivery_limit", True, None)
        assert "came back unsettled too often" in shown["error"]
        assert abs(time.time() - time.mktime(time.strptime(shown["time"][:19], "%Y-%m-%dT%H:%M:%S"))) < 86_400
        assert (shown["reply_to"], shown["body"].encode()) == ("quaybridge.reply.x", BODY)
        assert (await dead(rabbitmq_each.url, "replay", SERVICE, "poison")).status == 0
        again = await asyncio.wait_for(deliveries.get(), PATIENCE)
        assert (again.body, again.redelivered, again.properties.message_id) == (BODY, False, "poison")
        headers = {name: value for name, value in again.properties.headers.items() if name != "first-failed"}
        assert headers == {"protocol": 1, "replays": 1}
        again.ack()


async def publish(channel: Channel, properties: Properties) -> None:
    await channel.publish(
        Message(exchange=EXCHANGE, routing_key=SERVICE, body=BODY, properties=properties), timeout=PATIENCE
    )


async def test_a_replay_that_cannot_be_published_keeps_the_letter(rabbitmq_vhost: Vhost) -> None:
    async with channel_to(rabbitmq_vhost.url) as channel:
        await bury(channel, [letter(0), letter(1)])
    await asyncio.to_thread(rabbitmq_vhost.delete_queue, QUEUE)
    refused = await dead(rabbitmq_vhost.url, "replay", SERVICE, "--all")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == "unknown_service: no queue takes requests for 'work': start a worker that serves it first\n"
    assert [one["id"] for one in records(await dead(rabbitmq_vhost.url, "list", SERVICE))] == ["m0", "m1"]


@pytest.mark.parametrize("size", [1024, 1024 * 1024])
async def test_bodies_of_any_size_are_replayed_byte_for_byte(rabbitmq_url: str, size: int) -> None:
    letters = [letter(number, body=bytes([number]) * size) for number in range(20)]
    async with channel_to(rabbitmq_url) as channel:
        await bury(channel, letters)
        replayed = await dead(rabbitmq_url, "replay", SERVICE, "--all")
        assert replayed.out.count("\n") == len(letters)
        taken: asyncio.Queue[Delivery] = asyncio.Queue()
        await channel.consume(QUEUE, taken.put_nowait, prefetch=len(letters))
        bodies = [(await asyncio.wait_for(taken.get(), PATIENCE)).body for _ in letters]
        assert bodies == [one.body for one in letters]
