"""Bytes from end to end: producers, the embedded broker, a node and real bridges."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
from rig import BRIDGES, PATIENCE, PYTHON, Rig, foreign, with_sdk

from bridge_protocol.dead_letter import read_dead_letter
from bridge_protocol.envelope import Properties
from bridge_protocol.errors import ApplicationError, BadRequest, BridgeCrashed, ProtocolViolation
from broker.contract import Delivery, Message
from broker.store import DirectoryStore
from producer.async_producer import AsyncProducer
from producer.producer import Producer
from quaybridge.replay import request_of
from quaybridge.testing import open_service
from worker_node.node import Node

EVERY = bytes(range(256))
LOOKALIKE = {"$bytes": "aGk="}


async def letter(rig: Rig) -> Delivery:
    """The dead letter there is, taken."""
    found: asyncio.Queue[Delivery] = asyncio.Queue()
    channel = await rig.broker.open("test", on_closed=lambda _: None)
    await channel.consume("quaybridge.work.dead", found.put_nowait, prefetch=1)
    async with asyncio.timeout(PATIENCE):
        delivery = await found.get()
    delivery.ack()
    await channel.close()
    return delivery


async def send(rig: Rig, body: bytes) -> None:
    """What another producer publishes, whose replies nobody awaits."""
    channel = await rig.broker.open("test", on_closed=lambda _: None)
    message = Message(exchange="quaybridge", routing_key="work", body=body, properties=Properties())
    await channel.publish(message, timeout=PATIENCE)
    await channel.close()


@pytest.mark.parametrize("style", ["sync", "async"])
async def test_there_and_back_with_what_only_looks_like_them(rig: Rig, style: str) -> None:
    await rig.serve((*with_sdk("octets"), style))
    args: dict[str, Any] = {"data": EVERY, "deep": [{"none": b""}], "like": LOOKALIKE, "$bytes": "x", "text": "é"}
    assert await rig.call("echo", args) == args
    assert await rig.call("echo", {"like": LOOKALIKE}) == {"like": LOOKALIKE}
    assert await rig.call("echo", {"data": bytearray(b"a"), "view": memoryview(b"b")}) == {"data": b"a", "view": b"b"}
    assert await rig.call("sha256", {"data": EVERY}) == hashlib.sha256(EVERY).digest()
    chunks = rig.producer.stream("work", "cut", {"data": EVERY, "size": 100}, timeout=PATIENCE)
    assert [chunk async for chunk in chunks] == [EVERY[:100], EVERY[100:200], EVERY[200:]]


async def test_many_at_once_keep_apart(rig: Rig) -> None:
    await rig.serve(with_sdk("octets"), bridges=2)
    items = [{"data": bytes([n]) * n, "n": n} if n % 2 else {"n": n, "like": LOOKALIKE} for n in range(200)]
    replies = rig.producer.map("work", "echo", items, timeout=PATIENCE)
    assert [reply.result async for reply in replies] == items


async def test_in_a_session_and_when_it_is_rebuilt(rig: Rig) -> None:
    await rig.serve(with_sdk("octets"), sessions={"enabled": True})
    session = rig.producer.session("s1", service="work", mode="rebuild", journal=["keep"])
    assert (await session.call("keep", {"data": b"\xfe"}, timeout=PATIENCE)).result == b""
    with pytest.raises(BridgeCrashed):
        await rig.call("crash", {"data": EVERY})
    assert (await session.call("keep", {"data": b""}, timeout=PATIENCE)).result == b"\xfe"
    await session.close()


async def test_in_threads(rig: Rig) -> None:
    await rig.serve(with_sdk("octets"))

    def ask(loop: asyncio.AbstractEventLoop) -> None:
        with Producer(rig.broker, loop=loop) as producer:
            assert producer.call("work", "echo", {"data": EVERY}, timeout=PATIENCE).result == {"data": EVERY}
            stream = producer.stream("work", "cut", {"data": b"abc", "size": 2}, timeout=PATIENCE)
            assert list(stream) == [b"ab", b"c"]

    await asyncio.to_thread(ask, asyncio.get_running_loop())


async def test_a_bridge_that_does_not_claim_them_is_not_sent_any(rig: Rig) -> None:
    """It is refused before it runs, kept, and the bridge serves on."""
    await rig.serve(foreign())
    with pytest.raises(BadRequest, match="there are bytes in its arguments, and its bridge takes none"):
        await rig.call("echo", {"data": [b"hi"]})
    assert (await rig.call("echo", {"like": LOOKALIKE}))["echoed"] == {"like": LOOKALIKE}
    kept = await letter(rig)
    assert read_dead_letter(kept.properties, kept.body, service="work").code == "bad_request"
    assert rig.nodes[0].services[0].pool.ready == 1


async def test_a_bridges_own_field_means_nothing(rig: Rig) -> None:
    await rig.serve((*PYTHON, str(BRIDGES / "unaware.py")))
    assert await rig.call("echo", {"like": LOOKALIKE}) == {"like": LOOKALIKE}


async def test_whoever_does_not_take_them_is_told_so(rig: Rig) -> None:
    await rig.serve(with_sdk("octets"))
    await send(rig, b'{"id":7,"command":"make","args":{"size":3}}')
    kept = await letter(rig)  # nobody awaits the failure
    said = read_dead_letter(kept.properties, kept.body, service="work")
    assert (said.code, said.details["type"]) == ("application_error", "ResultError")
    assert "whoever asked does not say that they are taken" in said.error


async def test_what_is_no_base64_is_a_bad_request_and_does_not_run(rig: Rig) -> None:
    await rig.serve(with_sdk("octets"))
    await send(rig, b'{"id":7,"command":"sha256","args":{"data":{"b":"?"}},"binary":"b"}')
    kept = await letter(rig)
    said = read_dead_letter(kept.properties, kept.body, service="work")
    assert said.code == "bad_request"
    assert "data should stand for bytes, and is no base64" in said.error


async def test_arguments_of_the_wrong_kind_are_told_apart(rig: Rig) -> None:
    await rig.serve(with_sdk("octets"))
    with pytest.raises(ApplicationError, match="data must be bytes, not str"):
        await rig.call("sha256", {"data": "text"})
    with pytest.raises(BadRequest, match="not JSON"):
        await rig.call("echo", {"data": object()})


async def test_a_reply_that_is_no_base64_is_a_violation(rig: Rig, tmp_path: Path) -> None:
    """Of the bridge: the caller hears of it, and does not wait in vain."""
    bridge = tmp_path / "liar.py"
    source = (BRIDGES / "unaware.py").read_text()
    claims = '{"capabilities": {"binary": True}} if request["command"] == "ping" else {"$bytes": "?"}'
    bridge.write_text(source.replace('request["args"]', claims))
    await rig.serve((*PYTHON, str(bridge)))
    with pytest.raises(ProtocolViolation, match="its result cannot be read: it should stand for bytes"):
        await rig.call("echo", {"data": b"hi"})


async def test_large_ones_wait_in_the_store_and_a_dead_letter_is_replayed(rig: Rig, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    node = rig.node(with_sdk("octets"), of_node={"claim_threshold": 10_000})
    rig.nodes[0] = node = Node(node.settings, rig.broker, store=store)
    await node.start()
    await rig.producer.start()
    large = EVERY * 100
    async with AsyncProducer(rig.broker, store=store, claim_threshold=10_000) as producer:
        assert (await producer.call("work", "sha256", {"data": large})).result == hashlib.sha256(large).digest()
        assert (await producer.call("work", "make", {"size": 20_000})).result == {"data": b"\xff" * 20_000}
        args = {"data": large, "like": LOOKALIKE}
        assert (await producer.call("work", "echo", args)).result == args
        with pytest.raises(BridgeCrashed):
            await producer.call("work", "crash", {"data": large})
    kept = await letter(rig)
    assert len(kept.body) < 500
    again, _ = request_of(read_dead_letter(kept.properties, kept.body, service="work"), now=0.0, timeout=None)
    channel = await rig.broker.open("test", on_closed=lambda _: None)
    await channel.publish(again, timeout=PATIENCE)
    await channel.close()
    assert read_dead_letter(*_parts(await letter(rig)), service="work").replays == 1  # it ran, and crashed again


def _parts(delivery: Delivery) -> tuple[Properties, bytes]:
    return delivery.properties, delivery.body


def test_in_a_test_of_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands in the test's own process see and give the same."""
    (tmp_path / "pictures.py").write_text(
        "from bridge_sdk import Bridge\nbridge = Bridge()\n"
        "@bridge.command\ndef turn(image: bytes) -> bytes:\n    return image[::-1]\n"
        "@bridge.command\ndef cut(image: bytes):\n    yield image[:1]\n    yield image[1:]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with open_service("mock", "pictures") as service:
        assert service.call("turn", {"image": b"\x00\xff"}).result == b"\xff\x00"
    sys.modules.pop("pictures")
