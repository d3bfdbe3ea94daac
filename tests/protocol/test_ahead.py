"""Requests ahead, with real bridges: they save time, and cost nobody any."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from rig import Rig, echo, until

from bridge_protocol.errors import BridgeCrashed
from worker_node.core.lookahead import ENOUGH
from worker_node.dispatcher import Dispatcher


async def warm(rig: Rig, service: Dispatcher) -> None:
    """Until the node knows that requests are short."""

    async def ask() -> None:
        while service.pool.ahead < 4:
            await rig.call("echo")

    await asyncio.gather(*(ask() for _ in range(8)))


async def test_only_the_request_a_bridge_had_begun_is_charged_with_its_death(rig: Rig) -> None:
    service = await rig.serve(echo())  # each request is tried once
    await warm(rig, service)
    bridge = rig.bridge().process.pid
    os.kill(bridge, signal.SIGSTOP)  # so that nothing is given back
    begun, *ahead = [await rig.producer.submit("work", "echo", {"number": number}) for number in range(4)]
    await until(lambda: len(service.pool.slots[0].runs) == 4)
    os.kill(bridge, signal.SIGKILL)
    with pytest.raises(BridgeCrashed):
        await begun
    replies = [await handle for handle in ahead]
    assert [reply.result for reply in replies] == [{"number": number} for number in (1, 2, 3)]
    assert {reply.attempt for reply in replies} == {1}
    assert service.settlement.counts.retried == 0


async def test_short_requests_do_not_wait_behind_a_long_one(rig: Rig) -> None:
    service = await rig.serve(echo(), bridges=2)
    await warm(rig, service)
    slow = await rig.producer.submit("work", "sleep", {"seconds": 3})
    quick = [await rig.producer.submit("work", "echo", {"number": number}) for number in range(12)]
    assert [(await handle).result["number"] for handle in quick] == list(range(12))
    assert not slow.done()
    assert (await slow).result == 3
    assert service.settlement.counts.succeeded >= ENOUGH


async def test_nothing_waits_in_a_pipe_where_that_is_not_wanted(rig: Rig) -> None:
    service = await rig.serve(echo(), pipelining=False)
    service.pool.ahead = 16
    service.look_ahead()
    assert service.pool.ahead == 0


async def test_a_bridge_that_takes_several_at_once_takes_none_ahead(rig: Rig) -> None:
    service = await rig.serve((sys.executable, "-m", "examples.echo", "2"))
    await until(lambda: service.pool.slots[0].phase == "ready")
    assert service.pool.slots[0].ahead == 0
