"""Sessions from end to end, on the embedded broker and real bridges: what is kept, lost and told, and rebuilt."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest
from crowd import who_takes_it
from rig import PATIENCE, Rig, foreign, until, with_sdk

from bridge_protocol.envelope import Properties, request_properties
from bridge_protocol.errors import BadRequest, BridgeCrashed, SessionLost, UnknownService
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import EXCHANGE, partition_of, session_key
from broker.contract import Message
from broker.memory import MemoryChannel
from producer.session import AsyncSession
from worker_node import partitions
from worker_node.node import Node
from worker_node.partitions import Partitions, weight


async def serve(rig: Rig, **options: Any) -> Node:
    """A node with sessions."""
    sessions = {"enabled": True, **options.pop("sessions", {})}
    await rig.serve(with_sdk("counts"), sessions=sessions, **options)
    return rig.nodes[-1]


def opened(rig: Rig, count: int, **options: Any) -> list[AsyncSession]:
    return [rig.producer.session(f"s{number}", service="work", **options) for number in range(count)]


def owner(nodes: list[Node], session: str) -> Node:
    """The node that the broker is to choose for it."""
    return max(nodes, key=lambda node: weight(node.name, partition_of(session)))


async def count(session: AsyncSession) -> int:
    number: int = (await session.call("count", timeout=PATIENCE)).result["count"]
    return number


def live(node: Node) -> int:
    return len(node.services[0].sessions)


def consumers(node: Node) -> Partitions:
    return node._partitions[0][1]


async def test_each_session_meets_its_own_bridge_in_order_while_others_run(rig: Rig) -> None:
    await serve(rig, bridges=2)
    sessions = opened(rig, 8)
    handles = [[await session.submit("count", timeout=PATIENCE) for _ in range(10)] for session in sessions]
    bridges: Counter[int] = Counter()
    for line in handles:
        replies = [await handle for handle in line]
        assert [reply.result["count"] for reply in replies] == list(range(1, 11))
        assert len({reply.session_epoch for reply in replies}) == 1
        bridges[replies[0].result["pid"]] += 1
    assert sorted(bridges.values()) == [4, 4], "the slot with the fewest sessions gets the next"


async def test_a_strict_session_is_told_once_why_its_bridge_is_gone(rig: Rig) -> None:
    await serve(rig)
    (session,) = opened(rig, 1)
    assert await count(session) == 1
    with pytest.raises(BridgeCrashed):
        await session.call("crash", timeout=PATIENCE)
    with pytest.raises(SessionLost, match="its bridge ended") as raised:
        await count(session)
    assert raised.value.details["signal"] == "SIGKILL"
    assert raised.value.details["ending"] == "crashed"
    assert [await count(session), await count(session)] == [1, 2]


async def test_a_request_that_opens_its_session_is_tried_again_at_once(rig: Rig) -> None:
    node = await serve(rig, retry={"max_attempts": 3})
    (session,) = opened(rig, 1)
    reply = await session.call("crash", timeout=PATIENCE)
    assert (reply.result, reply.attempt, reply.fresh) == ("survived", 2, False)
    assert node.counts["work"].retried == 1
    other = rig.producer.session("other", service="work")
    with pytest.raises(BridgeCrashed) as raised:
        await other.call("crash", {"attempts": 9}, timeout=PATIENCE)
    assert raised.value.attempt == 3


async def test_a_lenient_session_goes_on_afresh_and_is_told(rig: Rig) -> None:
    await serve(rig, retry={"max_attempts": 2})
    (session,) = opened(rig, 1, mode="prefer")
    first = await session.call("count", timeout=PATIENCE)
    reply = await session.call("crash", timeout=PATIENCE)
    assert (reply.result, reply.fresh) == ("survived", True)
    assert reply.session_epoch != first.session_epoch
    assert await count(session) == 1


async def test_what_was_lost_is_rebuilt_from_the_journal(rig: Rig) -> None:
    await serve(rig)
    (session,) = opened(rig, 1, mode="rebuild", journal=["start_at"])
    await session.call("start_at", {"number": 5}, timeout=PATIENCE)
    await session.call("start_at", {"number": 40}, timeout=PATIENCE)
    assert await count(session) == 41
    rig.bridge().process.send_signal(9)
    assert await count(session) == 41
    assert session.rebuilt == 1
    assert await count(session) == 42


async def test_a_journal_over_its_limit_rebuilds_nothing(rig: Rig) -> None:
    await serve(rig)
    (session,) = opened(rig, 1, mode="rebuild", journal=["start_at"], max_journal=1)
    for number in range(3):
        await session.call("start_at", {"number": number}, timeout=PATIENCE)
    rig.bridge().process.send_signal(9)
    with pytest.raises(SessionLost, match="its journal is over its limit"):
        await count(session)


async def test_closing_a_session_tells_its_bridge(rig: Rig) -> None:
    node = await serve(rig)
    first, second = opened(rig, 2)
    await count(first)
    await count(second)
    await first.close()
    await first.close()
    assert live(node) == 1
    assert (await rig.call("ended")) == ["s0"]
    with pytest.raises(BadRequest, match="closed here"):
        await first.call("count")
    async with rig.producer.session("s0", service="work") as again:
        assert await count(again) == 1


async def test_a_bridge_that_knows_no_sessions_is_not_told_of_their_end(rig: Rig) -> None:
    await rig.serve(foreign(), sessions={"enabled": True})
    (session,) = opened(rig, 1)
    await session.call("echo", {"a": 1}, timeout=PATIENCE)
    assert live(rig.nodes[0]) == 1
    await session.close()
    assert live(rig.nodes[0]) == 0
    assert (await rig.call("echo"))["status"] == "ok"


async def test_too_many_sessions_cost_the_least_recently_used_one(rig: Rig) -> None:
    node = await serve(rig, sessions={"max": 3})
    sessions = opened(rig, 5)
    for session in sessions:
        await count(session)
    assert live(node) == 3
    assert node.services[0].sessions.evicted == 2
    assert next(iter(node.services[0].states())) == "work: 3 sessions, 2 evicted so far"
    assert (await rig.call("ended")) == ["s0", "s1"]
    with pytest.raises(SessionLost, match="least recently used of too many"):
        await count(sessions[0])
    assert await count(sessions[4]) == 2


async def test_a_session_that_is_idle_ends(rig: Rig) -> None:
    node = await serve(rig, sessions={"idle": 0.2})
    (session,) = opened(rig, 1)
    await count(session)
    await until(lambda: live(node) == 0)
    with pytest.raises(SessionLost, match="idle for too long"):
        await count(session)


async def test_neither_sessions_nor_plain_requests_starve_the_others(rig: Rig) -> None:
    await serve(rig, bridges=1)
    sessions = opened(rig, 4)
    done: list[str] = []

    async def one(kind: str, request: Awaitable[Any]) -> None:
        await request
        done.append(kind)

    work = [one("session", session.call("plain", {"seconds": 0.01}, timeout=PATIENCE)) for session in sessions * 6]
    work += [one("plain", rig.call("plain", {"seconds": 0.01})) for _ in range(24)]
    await asyncio.gather(*work)
    for kind in ("session", "plain"):
        assert done[:24].count(kind) >= 6, done


async def test_queues_move_as_computed_when_nodes_join_and_leave_and_the_old_owner_forgets(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "HAND_BACK", 0.0)
    first = await serve(rig)
    sessions = opened(rig, 64)
    await asyncio.gather(*map(count, sessions))
    assert live(first) == 64
    second = await serve(rig)
    both = [first, second]
    kept = [session for session in sessions if owner(both, session.id) is first]
    moved = [session for session in sessions if owner(both, session.id) is second]
    assert kept
    assert moved
    assert await asyncio.gather(*map(count, kept)) == [2] * len(kept)
    for loss in await asyncio.gather(*map(count, moved), return_exceptions=True):
        assert isinstance(loss, SessionLost)
        assert f"it was on the node {first.name}" in loss.message
        assert loss.node == second.name
    assert await asyncio.gather(*map(count, moved)) == [1] * len(moved)
    await until(lambda: (live(first), live(second)) == (len(kept), len(moved)))
    assert consumers(second).owned == sorted({partition_of(session.id) for session in moved})
    assert consumers(first).owned == sorted({partition_of(session.id) for session in kept})
    await second.drain()
    assert await asyncio.gather(*map(count, kept)) == [3] * len(kept)
    losses = await asyncio.gather(*map(count, moved), return_exceptions=True)
    assert all(isinstance(loss, SessionLost) for loss in losses)
    assert await asyncio.gather(*map(count, moved)) == [1] * len(moved)


async def test_a_broker_restart_ends_no_session(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "HAND_BACK", 2.0)
    for _ in range(3):
        await serve(rig)
    sessions = opened(rig, 60)
    assert await asyncio.gather(*map(count, sessions)) == [1] * 60
    for expected in (2, 3):
        rig.broker.close_all("restarting")
        assert await asyncio.gather(*map(count, sessions)) == [expected] * 60
    assert sum(map(live, rig.nodes)) == 60


async def test_with_more_nodes_than_a_delivery_may_come_back_times_a_restart_makes_no_dead_letter(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "HAND_BACK", 3.0)
    to_its_owner, returns = await who_takes_it(rig.broker)
    assert to_its_owner
    assert returns <= 12


async def test_a_node_that_has_started_consumes_every_queue(rig: Rig) -> None:
    node = await serve(rig)
    assert all(partition.consumer is not None for partition in consumers(node)._partitions)
    assert node._services[0][1].running == 1


@pytest.mark.parametrize("server", ["RabbitMQ 3.10.8", "RabbitMQ 4.0.5"])
async def test_before_rabbitmq_4_a_node_says_at_its_start_that_sessions_do_not_spread(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: str
) -> None:
    monkeypatch.setattr(MemoryChannel, "server", server)
    await serve(rig)
    rig.broker.close_all("restarting")
    (session,) = opened(rig, 1)
    assert await count(session) == 1
    said = [text for text in caplog.messages if "gives a session queue to the first node that takes it" in text]
    assert len(said) == (server < "RabbitMQ 4")  # once, and not again after a reconnect
    assert all(text.startswith(f"work: {server} ") for text in said)


async def test_a_recycled_bridge_waits_for_its_sessions_to_be_quiet(rig: Rig) -> None:
    await serve(rig, recycle={"requests": 3}, sessions={"quiet": 0.5, "patience": 60})
    (session,) = opened(rig, 1)
    for expected in range(1, 9):
        assert await count(session) == expected
    pid = rig.bridge().process.pid
    await until(lambda: all(bridge.process.pid != pid for bridge in rig.nodes[0].services[0].bridges()))
    with pytest.raises(SessionLost, match="its bridge was replaced"):
        await count(session)


async def test_without_the_setting_there_are_no_sessions(rig: Rig) -> None:
    await rig.serve(with_sdk("counts"))
    (session,) = opened(rig, 1)
    with pytest.raises(UnknownService, match=r"sessions\.enabled"):
        await count(session)


@pytest.mark.parametrize("session", ["", "é" * 129, "two\nlines", "\x7f", 7])
async def test_what_cannot_be_a_session_is_refused_by_the_producer(rig: Rig, session: Any) -> None:
    with pytest.raises(BadRequest, match="session's id"):
        rig.producer.session(session, service="work")


async def test_nonsense_in_a_session_queue_is_a_bad_request(rig: Rig) -> None:
    await serve(rig)
    channel = await rig.broker.open("raw", on_closed=lambda _: None)
    replies: list[Any] = []
    reply_to = await channel.declare_reply_queue()
    await channel.consume(reply_to, replies.append, no_ack=True)
    key = session_key("work", partition_of("right"))
    assert partition_of("elsewhere") != partition_of("right")
    bad: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"session": ""}, {}, "1 … 256 bytes"),
        ({"session": "a" * 257}, {}, "1 … 256 bytes"),
        ({"session": "a\x01b"}, {}, "control characters"),
        ({"session": 7}, {}, "as text"),
        ({}, {}, "as text"),
        ({"session": "right"}, {"session_id": "wrong"}, "disagree"),
        ({"session": "right", "session-epoch": 7}, {}, "session-epoch"),
        ({"session": "right", "session-epoch": "x" * 300}, {}, "session-epoch"),
        ({"session": "right", "session-mode": "maybe"}, {}, "session-mode"),
        ({"session": "elsewhere"}, {}, "partition"),
    ]
    for number, (headers, args, match) in enumerate(bad):
        name = f"m{number}"
        made = request_properties(message_id=name, command="count", reply_to=reply_to)
        properties = Properties(
            message_id=name, correlation_id=name, reply_to=reply_to, headers={**made.headers, **headers}
        )
        body = encode_request(Request(id=1, command="count", args=args))
        message = Message(exchange=EXCHANGE, routing_key=key, body=body, properties=properties)
        await channel.publish(message, timeout=5)
        await until(lambda expected=number + 1: len(replies) == expected)
        assert replies[-1].properties.type == "bad_request", headers
        assert re.search(match, replies[-1].body.decode()), headers
    await channel.close()


async def test_an_epoch_that_nobody_gave_is_a_lost_session(rig: Rig) -> None:
    await serve(rig)
    (session,) = opened(rig, 1)
    session.epoch = "made-up"
    with pytest.raises(SessionLost, match="no node has such an epoch"):
        await count(session)
