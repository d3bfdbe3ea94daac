"""Streams and progress over RabbitMQ: many chunks, retries, readers that leave or stall, and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE, run, running
from soak import SOAK
from vhost import Vhost

from bridge_protocol.control import WINDOW_CHUNKS
from bridge_protocol.errors import OutcomeUnknown, ReaderStalled, StreamRestarted
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from producer.async_producer import AsyncProducer
from worker_node import requesters
from worker_node.dispatcher import Dispatcher
from worker_node.node import Node
from worker_node.settings import NodeSettings

CHUNKS = 1_000_000 if SOAK else 30_000
STREAMS = Path(__file__).parents[1] / "bridges" / "streams.py"


@asynccontextmanager
async def served(url: str, **options: Any) -> AsyncIterator[tuple[AsyncProducer, Dispatcher]]:
    """A node that serves `work`, and a producer."""
    service = {
        "name": "work",
        "command": [sys.executable, str(STREAMS)],
        "bridges": 2,
        "stop_timeout": 1.0,
        "retry": {"first_delay": 1, "factor": 1},
        **options,
    }
    node = Node(NodeSettings.model_validate({"services": [service]}), AmqpBroker(parse_addresses(url)))
    await node.start()
    try:
        async with AsyncProducer(url) as producer:
            yield producer, node.services[0]
    finally:
        await node.stop()


async def idle(service: Dispatcher) -> None:
    async with asyncio.timeout(PATIENCE):
        await service.wait_idle()


async def test_streams(rabbitmq_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with served(rabbitmq_url) as (producer, service):
        said = producer.stream("work", "count", {"to": CHUNKS}, timeout=PATIENCE * (20 if SOAK else 1))
        assert [chunk async for chunk in said] == [str(number) for number in range(CHUNKS)]
        assert said.reply is not None
        assert said.reply.result == CHUNKS

        async for number in producer.stream("work", "endless", {"note": str(note)}, timeout=PATIENCE):
            if number == 100:
                break
        await idle(service)
        assert note.exists(), "whoever leaves early ends the work"

        chunks: list[Any] = []
        restarts: list[int] = []
        options = {"timeout": PATIENCE, "on_restart": restarts.append}
        async for chunk in producer.stream("work", "dies", {"to": 1000, "attempts": 2}, **options):
            chunks.append(chunk)
        tries = [(attempt, 1000 if attempt == 3 else 500) for attempt in (1, 2, 3)]
        assert chunks == [[attempt, number] for attempt, count in tries for number in range(count)]
        assert restarts == [2, 3]
        stream = producer.stream("work", "dies", {"to": 10, "attempts": 1}, timeout=PATIENCE)
        with pytest.raises(StreamRestarted):
            [chunk async for chunk in stream]
        await idle(service)


async def test_a_reader_that_never_reads_gets_what_there_is_credit_for(rabbitmq_vhost: Vhost) -> None:
    async with served(rabbitmq_vhost.url, stream={"reader_timeout": 1.0}) as (producer, service):
        stream = producer.stream("work", "count", {"to": 10**9, "size": 1000}, timeout=PATIENCE)
        chunks = aiter(stream)
        await anext(chunks)
        (outlet,) = service._outlets
        await idle(service)
        assert outlet.outflow.taken <= WINDOW_CHUNKS + 1, "neither the node nor the broker had more"
        rest: list[str] = []

        async def read() -> None:
            async for chunk in chunks:
                rest.append(chunk)

        with pytest.raises(ReaderStalled):
            await read()
        assert 1 + len(rest) == outlet.outflow.taken


async def test_a_reader_that_loses_its_connection_ends_the_work(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 4.3 takes chunks for an address that nobody is at any more; the bridge would wait for credit."""
    monkeypatch.setattr(requesters, "LOOK_EVERY", 0.2)
    note = tmp_path / "note"
    async with served(rabbitmq_url) as (producer, service):

        async def read() -> None:
            async for number in producer.stream("work", "endless", {"note": str(note)}, timeout=PATIENCE):
                if number == 5:
                    producer.sender.link.rebuild("for the test")

        with pytest.raises(OutcomeUnknown):
            await read()
        async with asyncio.timeout(service.settings.stream.reader_timeout / 2):
            await service.wait_idle()
        assert note.exists()


async def test_a_reader_that_is_killed_ends_the_work(rabbitmq_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with served(rabbitmq_url, stream={"reader_timeout": 1.0}) as (_, service):
        command = (sys.executable, "-m", "quaybridge", "call", "--broker", rabbitmq_url, "--timeout", "600", "--stream")
        process = await asyncio.create_subprocess_exec(
            *command, "work", "endless", f"note={note}", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"0\n"
        process.kill()
        await process.communicate()
        await idle(service)
        assert note.exists()


async def test_the_command_line_prints_chunks_and_shows_progress(rabbitmq_url: str) -> None:
    here = ("--broker", rabbitmq_url)
    bridge = f"{sys.executable} -m examples.stream_words"
    async with running("worker", *here, "--service", "words", "--bridge", bridge, "--bridges", "1") as worker:
        await worker.said("serving")
        called = await run("call", *here, "words", "say", "text=to be é", "--stream", "--json")
        assert (called.status, called.err) == (0, ""), "no bar where there is no terminal"
        *chunks, reply = called.out.splitlines()
        assert chunks == ['"to"', '"be"', '"é"']
        assert json.loads(reply)["result"] == 3
        failed = await run("call", *here, "words", "say", "--stream")
        assert (failed.status, failed.out) == (1, "")
        assert failed.err.startswith("application_error: ")
        status, out, shown = await on_a_terminal("call", *here, "words", "write", "pages:=4", "delay:=0.3")
        assert (status, out) == (0, "4\n")
        assert "page 4" in shown
        assert "75%" in shown
        worker.process.send_signal(signal.SIGINT)
        assert (await worker.ended()).status == 0


async def on_a_terminal(*arguments: str) -> tuple[int | None, str, str]:
    """Run a command whose stderr is a terminal; its status, what it wrote, and what that showed."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quaybridge", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)

    def read() -> bytes:
        found = b""
        try:
            while data := os.read(ours, 4096):
                found += data
        except OSError:  # EIO: nobody has it open any more
            pass
        os.close(ours)
        return found

    reading = asyncio.create_task(asyncio.to_thread(read))
    async with asyncio.timeout(PATIENCE):
        out, _ = await process.communicate()
        return process.returncode, out.decode(), (await reading).decode()
