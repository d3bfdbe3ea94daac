"""More sessions than anybody could keep, each new, through a whole node: what it remembers is bounded, and it says so.

The long form has a million of them.
"""

from __future__ import annotations

import asyncio
import gc
import logging

import psutil
import pytest
from rig import PATIENCE, Rig, with_sdk
from soak import SOAK

from bridge_protocol.errors import SessionLost
from worker_node.core.sessions import REMEMBERED_ENDS
from worker_node.node import Node

SESSIONS = 1_000_000 if SOAK else 16_000
KEPT = 500
IN_FLIGHT = 64
WARM = REMEMBERED_ENDS + 2000  # after so many everything that has a bound has reached it
MIB = 1024 * 1024
MOST_GROWTH = 32 if SOAK else 6  # MiB, of producer, broker and node together, and of their bridges
LONG = PATIENCE * (200 if SOAK else 5)


async def test_a_flood_of_session_ids_takes_no_more_than_is_kept(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bounds = {"enabled": True, "max": KEPT}
    service = await rig.serve(with_sdk("counts"), bridges=2, sessions=bounds, answered={"count": 1000})
    node = rig.nodes[0]
    used: list[int] = []
    async with asyncio.timeout(LONG):
        await flood(rig, range(WARM))
        used.append(memory(node))
        await flood(rig, range(WARM, SESSIONS))
        used.append(memory(node))
    growth = (used[1] - used[0]) / MIB
    print(f"{SESSIONS - WARM:,} sessions more: {used[0] / MIB:.1f} MiB and {growth:+.1f} MiB")
    assert growth < MOST_GROWTH
    sessions = service.sessions
    assert sessions is not None
    assert (len(sessions), sessions.evicted) == (KEPT, SESSIONS - KEPT)
    assert service.settlement.counts.succeeded == SESSIONS
    node.log_state()
    assert f"work: {KEPT} sessions, {SESSIONS - KEPT} evicted so far" in caplog.messages
    # The latest live on, and why the others ended is known of as many as that is remembered of.
    assert await ask(rig, f"s{SESSIONS - 1}") == 2
    session = rig.producer.session(f"s{SESSIONS - KEPT - REMEMBERED_ENDS // 2}", service="work")
    session.epoch = "0" * 32 + "@n1"
    with pytest.raises(SessionLost, match="this node knows nothing of it"):
        await session.call("count", timeout=PATIENCE)
    assert repr(sessions) == f"<Sessions {KEPT} live, {REMEMBERED_ENDS} remembered>"


async def flood(rig: Rig, numbers: range) -> None:
    """A new session for each number, and one request in it."""
    left = iter(numbers)

    async def each() -> None:
        for number in left:
            assert await ask(rig, f"s{number}") == 1

    await asyncio.gather(*(each() for _ in range(IN_FLIGHT)))


async def ask(rig: Rig, id: str) -> int:
    reply = await rig.producer.session(id, service="work").call("count", timeout=PATIENCE)
    number: int = reply.result["count"]
    return number


def memory(node: Node) -> int:
    """What this process and its bridges use, in bytes."""
    gc.collect()
    bridges = [psutil.Process(bridge.process.pid) for bridge in node.services[0].bridges()]
    return sum(process.memory_info().rss for process in (psutil.Process(), *bridges))
