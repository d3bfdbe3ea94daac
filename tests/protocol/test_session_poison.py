"""Requests of sessions that end what runs them: alone in their node, kept as dead letters, and replayed."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from rig import PATIENCE, Rig, until, with_sdk
from soak import SOAK

from bridge_protocol import topology
from bridge_protocol.dead_letter import DeadLetter, read_dead_letter
from bridge_protocol.envelope import SessionClaim
from bridge_protocol.errors import BridgeCrashed
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import DELIVERY_LIMIT, partition_of, session_key, session_queue
from broker.contract import Delivery
from producer.session import AsyncSession
from quaybridge.dead_letters import looking
from quaybridge.replay import Replayed, replay, request_of
from worker_node import isolation
from worker_node.node import Node

DEAD = "quaybridge.work.dead"


async def serve(rig: Rig) -> Node:
    """A node with sessions, and four bridges."""
    node = rig.node(with_sdk("counts"), bridges=4, sessions={"enabled": True}, retry={"max_attempts": 1})
    if len(rig.nodes) == 1:
        await rig.producer.start()
    await node.start()
    return node


async def count(session: AsyncSession) -> int:
    number: int = (await session.call("count", timeout=PATIENCE)).result["count"]
    return number


def running(node: Node) -> list[str]:
    """The sessions of which a request runs."""
    runs = [run.ticket for slot in node.services[0].pool.slots for run in slot.runs.values()]
    return sorted(ticket.claim.session for ticket in runs if ticket.claim is not None)


def letters(rig: Rig) -> list[DeadLetter]:
    return [read_dead_letter(one.properties, one.body, service="work") for one in rig.broker.messages(DEAD)]


async def give_back(rig: Rig, session: str, times: int) -> None:
    """Take the first request in that session's queue, and hand it back so often."""
    channel = await rig.broker.open("raw", on_closed=lambda _: None)
    taken: list[Delivery] = []
    consumer = await channel.consume(session_queue("work", partition_of(session)), taken.append, prefetch=1)
    for number in range(1, times + 1):
        await until(lambda: len(taken) == number)  # noqa: B023
        if number == times:
            await channel.cancel(consumer)
        taken[-1].reject(requeue=True)
    await channel.close()


async def test_a_suspect_of_a_session_runs_alone_and_costs_no_other_its_session(rig: Rig) -> None:
    first = await serve(rig)
    neighbours = [rig.producer.session(f"s{number}", service="work") for number in range(6)]
    suspect = rig.producer.session("suspect", service="work")
    assert partition_of("suspect") not in {partition_of(session.id) for session in neighbours}
    await asyncio.gather(*map(count, neighbours))
    slow = [await session.submit("count", {"seconds": 0.3}, timeout=PATIENCE) for session in neighbours[:2]]
    first._partitions[0][1].want(False)  # so that it can be taken and given back
    await first._partitions[0][1].settled()
    asked = await suspect.submit("count", {"seconds": 0.3}, timeout=PATIENCE)
    await give_back(rig, "suspect", isolation.SESSION_SUSPECT_FROM)
    await until(lambda: first._isolation.active)
    assert not asked.done()
    later = [await session.submit("count", timeout=PATIENCE) for session in neighbours[2:]]
    await until(lambda: "suspect" in running(first))
    assert running(first) == ["suspect"]
    assert all(handle.done() for handle in slow)
    await until(lambda: len(first._isolation._later) == len(later))
    assert (await asked).result["count"] == 1
    assert [(await handle).result["count"] for handle in (*slow, *later)] == [2] * 6
    assert repr(first._isolation) == "<Isolation of nothing, 0 held>"
    assert first.counts["work"].handed_back == 0


async def test_a_session_request_that_ends_its_node_each_time_is_a_dead_letter_and_its_neighbours_complete(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's end: what it held is charged, as by a kill. Long form: real numbers, and the lot decides."""
    limit = DELIVERY_LIMIT if SOAK else 6
    monkeypatch.setattr(topology, "DELIVERY_LIMIT", limit)
    monkeypatch.setattr(isolation, "SESSION_SUSPECT_FROM", limit // 2 if SOAK else 2)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def innocent_first(held: list[isolation._Taken]) -> int:
        names = [taken.delivery.properties.headers["session"] for taken in held]
        return chance.randrange(len(names)) if SOAK else next((n for n, name in enumerate(names) if name != "p"), 0)

    node = await serve(rig)
    poison = await rig.producer.session("p", service="work").submit("count", {"seconds": 60}, timeout=600)
    sessions = [rig.producer.session(f"s{number}", service="work") for number in range(3)]
    neighbours = [await session.submit("count", {"seconds": 0.3}, timeout=600) for session in sessions]
    rounds = 0
    while True:
        await until(lambda: "p" in running(node) or letters(rig))  # noqa: B023
        await node.stop()
        rounds += 1
        if letters(rig):
            break
        node = await serve(rig)
        node._isolation._draw = lambda _, node=node: innocent_first(node._isolation._held)  # type: ignore[misc]
    assert rounds == limit + 1
    if not all(handle.done() for handle in neighbours):
        await serve(rig)
    assert [(await handle).result["count"] for handle in neighbours] == [1, 1, 1]
    (letter,) = letters(rig)
    assert (letter.message_id, letter.code, letter.by_broker) == (poison.message_id, "delivery_limit", True)
    assert letter.session is not None
    assert letter.session.id == "p"
    assert not poison.done()  # only the broker knows of its end
    poison.future.cancel()  # nobody listens any more


async def replayed(rig: Rig) -> list[Replayed]:
    async with (
        looking(rig.broker, "work") as look,
        aclosing(replay(look, lambda _: True, wall=time.time, timeout=PATIENCE)) as found,
    ):
        return [one async for one in found]


async def test_a_replayed_letter_of_a_session_goes_to_its_session(rig: Rig) -> None:
    """To a new one if it opened it; never without the state it was meant for."""
    node = await serve(rig)
    opener = rig.producer.session("opener", service="work")
    with pytest.raises(BridgeCrashed):
        await opener.call("crash", {"attempts": 1}, timeout=PATIENCE)
    strict = rig.producer.session("strict", service="work")
    await count(strict)
    with pytest.raises(BridgeCrashed):
        await strict.call("crash", timeout=PATIENCE)
    first, second = letters(rig)
    assert (first.session.id, first.session.epoch) == ("opener", None)  # type: ignore[union-attr]
    assert first.routing_key == session_key("work", partition_of("opener"))
    assert second.session is not None
    assert second.session.epoch is not None
    crashed = node.counts["work"].failed
    assert [one.id for one in await replayed(rig)] == [first.id, second.id]
    await until(lambda: node.counts["work"].failed == crashed + 2 and len(letters(rig)) == 2)
    again = {letter.id: letter for letter in letters(rig)}
    # The one opened a session and crashed again; the other's session is gone, and nobody is there to be told.
    assert (again[first.id].code, again[first.id].replays) == ("bridge_crashed", 1)
    assert (again[second.id].code, again[second.id].replays) == ("session_lost", 1)
    assert "its bridge ended" in again[second.id].error


async def test_what_is_replayed_runs_again_in_a_session_that_remembers_it(rig: Rig) -> None:
    """What the broker brings again is not run twice in an epoch; what an operator sends again is."""
    node = await serve(rig)
    session = rig.producer.session("s", service="work")
    assert await count(session) == 1
    letter = DeadLetter(
        body=encode_request(Request(id=7, command="count", args={"session_id": "s"})),
        service="work",
        code="application_error",
        error="not yet",
        message_id="m",
        session=SessionClaim(id="s", epoch=session.epoch),
    )
    channel = await rig.broker.open("raw", on_closed=lambda _: None)
    for replays in (0, 1):
        request, _ = request_of(replace(letter, replays=replays), now=time.time(), timeout=None)
        await channel.publish(request, timeout=PATIENCE)
        await until(lambda: node.counts["work"].succeeded == replays + 2)  # noqa: B023
    await channel.close()
    assert await count(session) == 4
