"""Large payloads by claim check: a node with a real bridge on the embedded broker, and a store in a directory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import PATIENCE, until, with_sdk

from bridge_protocol import codec
from bridge_protocol.claim_check import claim_check, with_claim
from bridge_protocol.dead_letter import read_dead_letter
from bridge_protocol.errors import BadRequest, BridgeCrashed, Refused
from bridge_protocol.topology import request_queue
from broker.contract import Delivery
from broker.memory import MemoryBroker
from broker.store import DirectoryStore, check_in, check_out
from producer.async_producer import AsyncProducer
from producer.reply import Reply
from quaybridge.replay import request_of
from worker_node.node import Node
from worker_node.settings import NodeSettings

THRESHOLD = 10_000
TEXT = "é" * 20_000
SHA256 = hashlib.sha256(TEXT.encode()).hexdigest()


class Place:
    """The embedded broker, a store, and nodes that have it, or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broker = MemoryBroker()
        self.store = DirectoryStore(directory)
        self.nodes: list[Node] = []

    async def serve(self, *, store: bool = True, **settings: Any) -> Node:
        service = {
            "name": "work",
            "command": with_sdk("large"),
            "bridges": 1,
            "retry": {"max_attempts": 2, "first_delay": 1},
            **settings,
        }
        of_node = {"name": f"n{len(self.nodes)}", "claim_threshold": THRESHOLD, "services": [service]}
        node = Node(NodeSettings.model_validate(of_node), self.broker, store=self.store if store else None)
        self.nodes.append(node)
        await node.start()
        return node

    def producer(self, *, store: bool = True, **options: Any) -> AsyncProducer:
        chosen = self.store if store else None
        return AsyncProducer(self.broker, store=chosen, claim_threshold=THRESHOLD, **options)

    def kept(self) -> list[Path]:
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    async def letter(self) -> Delivery:
        """The dead letter there is, taken."""
        found: asyncio.Queue[Delivery] = asyncio.Queue()
        channel = await self.broker.open("test", on_closed=lambda _: None)
        await channel.consume("quaybridge.work.dead", found.put_nowait, prefetch=1)
        async with asyncio.timeout(PATIENCE):
            letter = await found.get()
        letter.ack()
        await channel.close()
        return letter


@pytest.fixture
async def place(nothing_left: None, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    for node in made.nodes:
        await node.stop()


async def seen_on_the_queue(place: Place, producer: AsyncProducer, text: str) -> bytes:
    """What a call publishes, taken from the queue before a node can."""
    found: asyncio.Queue[Delivery] = asyncio.Queue()
    channel = await place.broker.open("test", on_closed=lambda _: None)
    await channel.consume(request_queue("work"), found.put_nowait, prefetch=1, priority=10)
    await producer.publish("work", "measure", {"text": text})
    async with asyncio.timeout(PATIENCE):
        delivery = await found.get()
    delivery.ack()
    await channel.close()
    return delivery.body


async def test_both_ways(place: Place) -> None:
    await place.serve()
    async with place.producer() as producer:
        reply = await producer.call("work", "measure", {"text": TEXT})
        assert reply.result == {"length": 20_000, "sha256": SHA256, "attempt": 1}
        assert (await producer.call("work", "give", {"size": 20_000})).result == TEXT
        await until(lambda: not place.kept())  # the producer holds both successes
        assert (await producer.call("work", "measure", {"text": "short"})).result["length"] == 5
        assert len(await seen_on_the_queue(place, producer, TEXT)) < 500
        assert len(await seen_on_the_queue(place, producer, "x" * (THRESHOLD - 100))) > THRESHOLD - 200  # in line
        await until(lambda: len(place.kept()) == 1)
        (file,) = place.kept()
        assert codec.decode(file.read_bytes()) == {"text": TEXT}


async def test_who_has_no_store_gets_results_in_line(place: Place) -> None:
    await place.serve()
    async with place.producer(store=False) as producer:
        assert (await producer.call("work", "give", {"size": 20_000})).result == TEXT
    assert place.kept() == []


async def test_a_claim_at_a_node_without_a_store_is_kept_and_replayed(place: Place) -> None:
    node = await place.serve(store=False)
    async with place.producer() as producer:
        with pytest.raises(BadRequest, match=r"claim [0-9a-f]{32} cannot be fetched: no store is set here"):
            await producer.call("work", "measure", {"text": TEXT})
        assert len(place.kept()) == 1  # a dead letter keeps its own
        letter = await place.letter()
        await node.stop()
        await place.serve()
        kept = read_dead_letter(letter.properties, letter.body, service="work")
        message, _ = request_of(kept, now=time.time(), timeout=60)
        replies: asyncio.Queue[Delivery] = asyncio.Queue()
        channel = await place.broker.open("test", on_closed=lambda _: None)
        address = await channel.declare_reply_queue()
        await channel.consume(address, replies.put_nowait, no_ack=True)
        asked = replace(message, properties=replace(message.properties, reply_to=address))
        await channel.publish(asked, timeout=5)
        async with asyncio.timeout(PATIENCE):
            reply = await replies.get()
        assert codec.decode(reply.body)["result"] == {"length": 20_000, "sha256": SHA256, "attempt": 1}
        await channel.close()


async def test_a_retry_and_a_dead_letter_find_theirs(place: Place) -> None:
    await place.serve()
    async with place.producer() as producer:
        reply = await producer.call("work", "measure", {"text": TEXT, "attempts": 1})
        assert reply.result == {"length": 20_000, "sha256": SHA256, "attempt": 2}
        await until(lambda: not place.kept())
        with pytest.raises(BridgeCrashed):
            await producer.call("work", "measure", {"text": TEXT, "attempts": 9})
        assert len(place.kept()) == 1
        letter = await place.letter()
        claim = codec.decode(letter.body)["claim"]
        assert place.kept()[0].name == claim["reference"]


@pytest.mark.parametrize("harm", ["missing", "truncated", "altered"])
async def test_what_is_not_as_it_was_runs_nowhere(place: Place, harm: str) -> None:
    node = await place.serve(start="lazy", grow_after=0.01)
    async with place.producer() as producer:
        claim = check_in(place.store, codec.encode({"text": TEXT}))
        (file,) = place.kept()
        match harm:
            case "missing":
                file.unlink()
            case "truncated":
                os.truncate(file, claim.size - 1)
            case "altered":
                file.write_bytes(file.read_bytes().replace("é".encode(), "è".encode(), 1))
        request = producer.sender.prepare("work", "measure", {}, timeout=30)
        request = request._replace(body=with_claim(request.body, "args", claim))
        handle = await producer.sender.send(request, 30)
        with pytest.raises(BadRequest, match=f"claim {claim.reference} "):
            await handle
        assert not any(True for _ in node.services[0].bridges())
        await place.letter()


async def test_a_result_that_is_gone_is_told_by_its_claim(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.serve()
    async with place.producer() as producer:
        monkeypatch.setattr(DirectoryStore, "get", lambda self, reference, size: None)
        with pytest.raises(BadRequest, match=r"claim [0-9a-f]{32} is missing"):
            await producer.call("work", "give", {"size": 20_000})


async def test_replies_that_are_collected_keep_theirs(place: Place) -> None:
    """They may come again."""
    await place.serve()
    async with place.producer(reply_queue="kept") as producer:
        await producer.publish("work", "give", {"size": 20_000})
        async for reply in producer.collect(idle_timeout=PATIENCE):
            assert isinstance(reply, Reply)
            assert reply.result == TEXT
            break
        async for reply in producer.collect(idle_timeout=PATIENCE):
            assert isinstance(reply, Reply)
            assert reply.result == TEXT
            break


async def test_a_store_that_takes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DirectoryStore, reference: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    await place.serve()
    async with place.producer() as producer:
        monkeypatch.setattr(DirectoryStore, "put", full)
        with pytest.raises(Refused, match=r"not sent: <DirectoryStore .*> takes nothing: No space left on device"):
            await producer.call("work", "measure", {"text": TEXT})
        assert (await producer.call("work", "give", {"size": 20_000})).result == TEXT  # in line, then


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("not what a store should raise")])
async def test_a_store_that_cannot_be_read_for_a_moment(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Another try may find it well."""
    read = DirectoryStore.get
    errors = [error]

    def get(self: DirectoryStore, reference: str, size: int) -> bytes | None:
        if errors:
            raise errors.pop()
        return read(self, reference, size)

    await place.serve()
    async with place.producer() as producer:
        monkeypatch.setattr(DirectoryStore, "get", get)
        reply = await producer.call("work", "measure", {"text": TEXT}, timeout=PATIENCE)
        assert (reply.result["length"], reply.attempt) == (20_000, 2)


async def test_a_store_that_cannot_be_read_at_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: DirectoryStore, reference: str, size: int) -> bytes | None:
        raise TypeError("no store")

    node = await place.serve()
    async with place.producer() as producer:
        monkeypatch.setattr(DirectoryStore, "get", get)
        with pytest.raises(BadRequest, match=r"claim [0-9a-f]{32} cannot be fetched: TypeError: no store") as raised:
            await producer.call("work", "measure", {"text": TEXT}, timeout=PATIENCE)
        assert raised.value.attempt == 2
        await place.letter()
    assert node.services[0].held == 0


async def test_a_cancel_reaches_what_is_on_its_way_from_the_store(place: Place) -> None:
    node = await place.serve()
    async with place.producer() as producer:
        handle = await producer.submit("work", "measure", {"text": TEXT, "attempts": 0})
        await handle.cancel(timeout=PATIENCE)
        assert handle.done()
    assert node.services[0].held == 0


async def test_a_session_has_large_payloads_too(place: Place) -> None:
    await place.serve(sessions={"enabled": True})
    async with place.producer() as producer, producer.session("s1", service="work") as session:
        assert (await session.call("keep", {"text": TEXT})).result == 20_000
        assert (await session.call("kept")).result == TEXT
        await until(lambda: not place.kept())


async def test_a_stop_hands_back_what_is_on_its_way_from_the_store(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    get = DirectoryStore.get

    def slow(self: DirectoryStore, reference: str, size: int) -> bytes | None:
        reading.set()
        go_on.wait(PATIENCE)
        return get(self, reference, size)

    monkeypatch.setattr(DirectoryStore, "get", slow)
    node = await place.serve()
    async with place.producer() as producer:
        handle = await producer.submit("work", "measure", {"text": TEXT})
        await until(reading.is_set)
        assert node.services[0].held == 1
        await node.stop()
        go_on.set()
        await place.serve()
        assert (await handle).result["length"] == 20_000


async def test_a_stop_does_not_wait_for_what_is_on_its_way_to_the_store(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    put = DirectoryStore.put

    def slow(self: DirectoryStore, reference: str, content: bytes) -> None:
        writing.set()
        go_on.wait(PATIENCE)
        put(self, reference, content)

    monkeypatch.setattr(DirectoryStore, "put", slow)
    node = await place.serve()
    async with place.producer() as producer:
        handle = await producer.submit("work", "give", {"size": 20_000})
        await until(writing.is_set)
        before = asyncio.all_tasks()
        await node.stop()
        assert asyncio.all_tasks() - before == set()
        assert not node.services[0].settlement._tasks
        go_on.set()
        await place.serve()
        assert (await handle).result == TEXT


async def test_a_store_that_gives_nothing_costs_a_request_its_try_and_no_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_node.gate.STORE_TIMEOUT", 0.2)
    go_on = threading.Event()
    get = DirectoryStore.get
    monkeypatch.setattr(DirectoryStore, "get", lambda *_: go_on.wait(PATIENCE))
    await place.serve(retry={"max_attempts": 1})
    async with place.producer() as producer:
        with pytest.raises(BadRequest, match=r"cannot be fetched: it did not come within 0\.2 s"):
            await producer.call("work", "measure", {"text": TEXT})
        monkeypatch.setattr(DirectoryStore, "get", get)
        go_on.set()
        assert (await producer.call("work", "measure", {"text": TEXT})).result["length"] == 20_000


async def test_a_result_that_the_store_does_not_take_in_time_stays_in_its_message(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker_node.settlement.STORE_TIMEOUT", 0.2)
    go_on = threading.Event()
    monkeypatch.setattr(DirectoryStore, "put", lambda *_: go_on.wait(PATIENCE))
    await place.serve()
    async with place.producer() as producer:
        assert (await producer.call("work", "give", {"size": 20_000})).result == TEXT
        go_on.set()
    assert any(line.endswith("takes nothing: in 0.2 s") for line in caplog.messages)


@pytest.mark.parametrize("way", ["call", "publish"])
async def test_a_store_that_takes_nothing_holds_nobody_up_for_longer_than_their_timeout(
    place: Place, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(DirectoryStore, "put", lambda *_: go_on.wait(PATIENCE))
    await place.serve()
    async with place.producer() as producer:
        began = time.monotonic()
        with pytest.raises(Refused, match=r"not sent: .* did not take its arguments within 0\.[23]") as raised:
            await getattr(producer, way)("work", "measure", {"text": TEXT}, timeout=0.3)
        assert time.monotonic() - began < PATIENCE / 2
        assert raised.value.message_id
        assert (await producer.call("work", "measure", {"text": "short"})).result["length"] == 5
        go_on.set()


HANGING = """
import asyncio, sys, threading
from bridge_protocol.errors import Refused
from broker.memory import MemoryBroker
from broker.store import DirectoryStore
from producer.async_producer import AsyncProducer
from worker_node.node import Node
from worker_node.settings import NodeSettings

class Hanging(DirectoryStore):
    def put(self, reference, content):
        writing.set()
        threading.Event().wait()

async def main():
    broker, store = MemoryBroker(), Hanging(sys.argv[1])
    service = {"name": "work", "command": sys.argv[2:], "bridges": 1}
    settings = {"drain_timeout": 0.2, "claim_threshold": 10_000, "services": [service]}
    node = Node(NodeSettings.model_validate(settings), broker, store=store)
    await node.start()
    async with AsyncProducer(broker, store=store, claim_threshold=10_000) as producer:
        handle = await producer.submit("work", "give", {"size": 20_000})
        while not writing.is_set():
            await asyncio.sleep(0.01)
        await node.drain()
        handle.future.cancel()
        try:
            await producer.call("work", "give", {"text": "x" * 20_000}, timeout=0.2)
        except Refused:
            print("refused")

writing = threading.Event()
asyncio.run(main())
"""


def test_a_process_whose_store_hangs_ends_all_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path), *with_sdk("large")]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, b"refused\n"), done.stderr.decode()


# The directory.


def test_a_directory_store_keeps_sweeps_and_stays_inside(tmp_path: Path) -> None:
    inside = tmp_path / "store"
    with pytest.raises(ValueError, match="is no directory: make it"):
        DirectoryStore(inside)
    inside.mkdir()
    store = DirectoryStore(inside)
    claim = check_in(store, b"{}" * 100)
    assert check_out(store, claim, limit=1000) == b"{}" * 100
    with pytest.raises(BadRequest, match="has 200 bytes, the limit is 100"):
        check_out(store, claim, limit=100)
    secret = tmp_path / "secret"
    secret.write_bytes(b"{}")
    for reference in ("../secret", "../../secret", str(secret), ".", "", claim.reference + "/../../../secret"):
        for use in (lambda name: store.get(name, 10), store.delete, lambda name: store.put(name, b"x")):
            with pytest.raises(ValueError, match="a claim's reference must be 32 hexadecimal digits"):
                use(reference)
    linked = claim_check("f" * 32, b"{}")
    (inside / "ff").mkdir()
    (inside / "ff" / linked.reference).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        check_out(store, linked, limit=1000)
    foreign = inside / "ff" / "README"
    foreign.write_text("not a claim")
    old = time.time() - 1000
    for path in (*inside.rglob("*"), secret):
        os.utime(path, (old, old), follow_symlinks=False)
    store.get(claim.reference, 1000)  # in use
    begun = inside / "ff" / f"{'e' * 32}.part"
    begun.write_bytes(b"half")
    os.utime(begun, (old, old))
    assert store.sweep(500) == 2
    assert sorted(path.name for path in inside.rglob("*") if path.is_file()) == sorted([claim.reference, "README"])
    store.delete(claim.reference)
    store.delete(claim.reference)
    assert store.get(claim.reference, 1000) is None
    assert secret.exists()


async def test_nodes_sweep(place: Place) -> None:
    claim = check_in(place.store, b"{}")
    fresh = check_in(place.store, b"{}")
    old = time.time() - 8 * 86_400
    os.utime(place.store._path(claim.reference), (old, old))
    await place.serve()
    await until(lambda: [path.name for path in place.kept()] == [fresh.reference])
