"""From a producer through RabbitMQ, a node and real bridges, and back; and what happens when one of them goes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from command_line import running
from vhost import Vhost

from bridge_protocol.errors import ApplicationError, BrokerUnavailable, OutcomeUnknown, UnknownService
from bridge_protocol.topology import request_queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from producer.async_producer import AsyncProducer
from producer.producer import Producer
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

SERVICE = "echo"
PATIENCE = 60.0  # seconds for what takes one on an idle machine


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(url: str, *, bridges: int = 2) -> AsyncIterator[Node]:
    """A node, in this process, with real bridges."""
    command = (sys.executable, "-m", "examples.echo")
    settings = NodeSettings(services=(ServiceSettings(name=SERVICE, command=command, bridges=bridges),))
    node = Node(settings, AmqpBroker(parse_addresses(url)))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


def bodies(count: int) -> Iterator[dict[str, str]]:
    """Texts of many sizes, each with its own checksum."""
    source = random.Random(count)
    for _ in range(count):
        text = source.randbytes(source.randrange(0, 2000)).hex() + "é\n"
        yield {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def intact(result: dict[str, str]) -> bool:
    return hashlib.sha256(result["text"].encode()).hexdigest() == result["sha256"]


async def test_calls_and_a_map_of_two_thousand(rabbitmq_each: Vhost) -> None:
    async with serving(rabbitmq_each.url) as node, AsyncProducer(rabbitmq_each.url) as producer:
        reply = await producer.call(SERVICE, "echo", {"text": "é", "numbers": [1, -2.5, None, True]})
        assert reply.result == {"text": "é", "numbers": [1, -2.5, None, True]}
        assert (reply.node, reply.attempt, reply.redelivered) == (node.name, 1, False)
        with pytest.raises(ApplicationError, match="as asked") as raised:
            await producer.call(SERVICE, "fail")
        assert raised.value.details["type"] == "ApplicationError"
        others = [await producer.submit(SERVICE, "sleep", {"seconds": 0.5}) for _ in range(4)]
        with pytest.raises(UnknownService):
            await producer.call("nobody", "echo")
        assert not any(handle.done() for handle in others)
        await asyncio.gather(*others)
        sent = bodies(2000)
        async for reply in producer.map(SERVICE, "echo", bodies(2000), in_flight=200):
            assert reply.result == next(sent)
            assert intact(reply.result)
        assert next(sent, None) is None
        assert await producer.publish(SERVICE, "echo")
        await until(lambda: node.counts[SERVICE].succeeded == 2000 + 1 + 4 + 1)
        # Each ran once. (`redelivered` may still count some: what was on its way to a consumer when its prefetch was
        # changed comes again, unseen.)
        assert sum(slot.served for slot in node.services[0].pool.slots) == 2000 + 1 + 1 + 4 + 1
        assert producer.late_replies == 0


async def test_threads(rabbitmq_each: Vhost) -> None:
    def use() -> None:
        with Producer(rabbitmq_each.url) as producer:
            with pytest.raises(UnknownService):
                producer.call("nobody", "echo")

            def calls(thread: int) -> list[Any]:
                return [producer.call(SERVICE, "echo", {"id": f"{thread}/{n}"}).result["id"] for n in range(50)]

            with ThreadPoolExecutor(20) as pool:
                for thread, results in enumerate(pool.map(calls, range(20))):
                    assert results == [f"{thread}/{n}" for n in range(50)]
            replies = producer.map(SERVICE, "echo", bodies(500), in_flight=100)
            assert [reply.result for reply in replies] == list(bodies(500))
            outcome = producer.submit(SERVICE, "sleep", {"seconds": 600})
            unheard = producer.submit(SERVICE, "echo", {"n": 1})
            assert unheard.result(PATIENCE).result == {"n": 1}
        with pytest.raises(OutcomeUnknown, match="the producer was closed"):
            outcome.result(PATIENCE)

    async with serving(rabbitmq_each.url):
        before = threading.active_count()
        await asyncio.to_thread(use)
        assert "quaybridge producer" not in [thread.name for thread in threading.enumerate()]
        assert threading.active_count() <= before + 1  # to_thread keeps its own


async def test_an_operator_closes_every_connection(rabbitmq_each: Vhost) -> None:
    """Node and producer find back by themselves; what was under way is told, and comes again to the node."""
    outcomes: list[BaseException | None] = []
    stopping = asyncio.Event()

    async def keep_calling(producer: AsyncProducer, number: int) -> None:
        n = 0
        while not stopping.is_set():
            n += 1
            try:
                reply = await producer.call(SERVICE, "echo", {"n": [number, n]}, timeout=PATIENCE)
            except OutcomeUnknown as lost:
                outcomes.append(lost)
            else:
                assert reply.result == {"n": [number, n]}
                outcomes.append(None)

    async with serving(rabbitmq_each.url, bridges=3) as node, AsyncProducer(rabbitmq_each.url) as producer:
        running_then = await producer.submit(SERVICE, "sleep", {"seconds": 4}, timeout=PATIENCE)
        callers = [asyncio.ensure_future(keep_calling(producer, number)) for number in range(10)]
        await until(lambda: len(outcomes) > 100)
        await asyncio.to_thread(rabbitmq_each.control, "close_all_connections", "maintenance")
        with pytest.raises(OutcomeUnknown, match="maintenance"):
            await running_then
        before = len(outcomes)
        await until(lambda: len(outcomes) > before + 100)
        stopping.set()
        await asyncio.gather(*callers)
        lost = [outcome for outcome in outcomes if outcome is not None]
        # At most one for each caller, where `rabbitmqctl` closed a connection once.
        assert len(lost) <= 10
        assert all(re.search("connection", str(outcome)) for outcome in lost)
        await until(lambda: node.counts[SERVICE].redelivered >= 1)
        assert (await producer.call(SERVICE, "echo", {"n": 1})).result == {"n": 1}


BRIDGE = """
import pathlib, sys, time
from bridge_sdk import Bridge

bridge = Bridge()

@bridge.command
def work(number: int) -> int:
    with pathlib.Path(sys.argv[2]).open("a") as log:
        log.write(f"{sys.argv[1]} {number}\\n")
    if sys.argv[1] == "hangs":
        print("at work", file=sys.stderr)
        time.sleep(600)
    return number * 2

bridge.serve()
"""


def test_all_of_it_on_uvloop(rabbitmq_url: str) -> None:
    """The loop of many a web server. What it cannot do is only told to its handler of exceptions."""
    troubles: list[dict[str, Any]] = []

    async def use() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        async with serving(rabbitmq_url), AsyncProducer(rabbitmq_url) as producer:
            args = list(bodies(50))
            replies = [reply.result async for reply in producer.map(SERVICE, "echo", args, timeout=PATIENCE)]
            assert replies == args
            await producer.publish(SERVICE, "echo", {"text": "x" * 1_000_000})

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())
    assert troubles == []


async def test_a_node_is_killed_in_mid_request(rabbitmq_each: Vhost, tmp_path: Path) -> None:
    program, log = tmp_path / "bridge.py", tmp_path / "log"
    program.write_text(BRIDGE)

    def worker(name: str, behaviour: str) -> tuple[str, ...]:
        bridge = f"{sys.executable} {program} {behaviour} {log}"
        options = ("--service", SERVICE, "--bridge", bridge, "--bridges", "1", "--name", name)
        return ("worker", "--broker", rabbitmq_each.url, *options)

    async with running(*worker("alpha", "hangs")) as alpha, AsyncProducer(rabbitmq_each.url) as producer:
        await alpha.said("serving")
        handle = await producer.submit(SERVICE, "work", {"number": 21}, timeout=PATIENCE)
        await alpha.said(f"{handle.message_id}: at work")
        async with running(*worker("beta", "answers")) as beta:
            await beta.said("serving")
            assert not handle.done()
            alpha.process.kill()
            reply = await handle
            assert (reply.result, reply.node, reply.redelivered) == (42, "beta", True)
            again = await producer.call(SERVICE, "work", {"number": 1}, timeout=PATIENCE)
            assert (again.result, again.redelivered) == (2, False)
            assert producer.late_replies == 0
            beta.process.terminate()
            assert (await beta.ended()).status == 0
    assert log.read_text().splitlines() == ["hangs 21", "answers 21", "answers 1"]
    channel = await AmqpBroker(parse_addresses(rabbitmq_each.url)).open("test", on_closed=lambda _: None)
    assert await channel.queue_length(request_queue(SERVICE)) == 0
    await channel.close()


async def test_a_broker_that_cannot_be_used_is_told_in_one_line(rabbitmq_url: str) -> None:
    nobody = re.sub(r":\d+/", ":1/", rabbitmq_url)
    wrong_password = re.sub(r":[^:@]*@", ":hunter2@", rabbitmq_url)
    no_vhost = rabbitmq_url.rpartition("/")[0] + "/nowhere"
    for url, told in ((nobody, "cannot be reached"), (wrong_password, "ACCESS_REFUSED"), (no_vhost, "nowhere")):
        for start in (AsyncProducer(url, connect_timeout=1).start, lambda url=url: in_a_thread(url)):
            with pytest.raises(BrokerUnavailable, match=told) as raised:
                await start()
            line = str(raised.value)
            assert line.isprintable()
            assert line.startswith("cannot connect to amqp://")
            assert "hunter2" not in line
            assert parse_addresses(url)[0].password not in line


async def in_a_thread(url: str) -> None:
    await asyncio.to_thread(Producer(url, connect_timeout=1).start)


@pytest.mark.parametrize("make", [AsyncProducer, Producer])
def test_guest_is_for_this_machine_only(make: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="guest is for this machine only: create a user of your own") as raised:
        make("amqp://guest:guest@broker.example/")
    assert str(raised.value).isprintable()
