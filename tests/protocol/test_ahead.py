"""Requests ahead, with real bridges: they save time, and cost nobody any."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from rig import BRIDGES, PYTHON, Rig, echo, until

from bridge_protocol.errors import ApplicationError, BridgeCrashed, Cancelled, DeadlineExceeded, ProtocolViolation
from producer.handle import Handle
from worker_node.core.lookahead import ENOUGH
from worker_node.dispatcher import Dispatcher


def queues(mode: str, began: Path) -> tuple[str, ...]:
    """The command of a bridge that takes requests ahead, and goes wrong in this way; it tells what it began."""
    return (*PYTHON, str(BRIDGES / "queues.py"), mode, str(began))


@asynccontextmanager
async def stopped(rig: Rig) -> AsyncIterator[None]:
    """The first bridge does not get on meanwhile: what is sent to it waits in its pipe."""
    pid = rig.bridge().process.pid
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def in_the_pipe(rig: Rig, service: Dispatcher, *commands: str) -> list[Handle]:
    """Handles of these, with a number each from 0, which all wait in the first bridge's pipe."""
    handles = [
        await rig.producer.submit("work", command, {"number": number}) for number, command in enumerate(commands)
    ]
    await until(lambda: len(service.pool.slots[0].runs) == len(commands))
    return handles


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


async def test_what_may_have_run_unheard_is_tried_again_as_such(rig: Rig, tmp_path: Path) -> None:
    """What follows the text is not read, and the bridge goes on until it is killed: what runs twice is labelled."""
    began = tmp_path / "began"
    service = await rig.serve(queues("prints", began), retry={"max_attempts": 2, "first_delay": 1})
    await warm(rig, service)
    began.write_text("")
    async with stopped(rig):
        handles = await in_the_pipe(rig, service, "misbehave", "echo", "echo")
    assert {(await handle).attempt for handle in handles} == {2}
    assert sorted(began.read_text().splitlines()) == ["0 1", "0 2", "1 1", "1 2", "2 1", "2 2"]


async def test_an_answer_out_of_turn_is_a_violation(rig: Rig, tmp_path: Path) -> None:
    service = await rig.serve(queues("answers_out_of_turn", tmp_path / "began"))
    await warm(rig, service)
    async with stopped(rig):
        first, second = await in_the_pipe(rig, service, "misbehave", "echo")
    with pytest.raises(ProtocolViolation, match="before it answered the one before, and claims 'ahead'"):
        await first
    with pytest.raises(BridgeCrashed, match="because of another request on it"):
        await second


async def test_what_nobody_asked_back_is_not_given_back(rig: Rig, tmp_path: Path) -> None:
    """Or it would go back and forth for ever."""
    service = await rig.serve(queues("gives_back_unasked", tmp_path / "began"))
    await warm(rig, service)
    with pytest.raises(ApplicationError, match="given_back"):
        await rig.call("misbehave")


async def test_what_waits_behind_a_bridges_last_request_goes_to_the_next_bridge(rig: Rig, tmp_path: Path) -> None:
    service = await rig.serve(queues("wants_to_go", tmp_path / "began"))
    await warm(rig, service)
    async with stopped(rig):
        handles = await in_the_pipe(rig, service, "misbehave", "echo", "echo")
    first, *others = [await handle for handle in handles]
    assert {reply.attempt for reply in others} == {1}
    assert first.result not in {reply.result for reply in others}


async def test_one_that_is_cancelled_or_late_while_it_waits_is_not_run_and_holds_up_nobody(
    rig: Rig, tmp_path: Path
) -> None:
    service = await rig.serve((sys.executable, str(BRIDGES / "notes.py"), str(tmp_path / "began")))
    await warm(rig, service)
    pid = rig.bridge().process.pid
    async with stopped(rig):
        first, second = await in_the_pipe(rig, service, "note", "note")
        late = await rig.producer.submit("work", "note", {"number": 2}, timeout=0.3)
        last = await rig.producer.submit("work", "note", {"number": 3})
        await until(lambda: len(service.pool.slots[0].runs) == 4)
        cancelling = asyncio.ensure_future(second.cancel())
        await until(lambda: sum(run.reason is not None for run in service.pool.slots[0].runs.values()) == 2)
    assert [(await first).result, (await last).result] == [0, 3]
    assert await cancelling
    with pytest.raises(Cancelled, match="before it ran"):
        await second
    with pytest.raises(DeadlineExceeded):
        await late
    await until(lambda: not service.pool.slots[0].runs)
    assert (tmp_path / "began").read_text().split() == ["0", "3"]
    assert rig.bridge().process.pid == pid


async def test_a_drain_hands_back_what_waits_behind_a_long_one(rig: Rig) -> None:
    service = await rig.serve(echo())
    await warm(rig, service)
    async with stopped(rig):
        long = await rig.producer.submit("work", "sleep", {"seconds": 2})
        behind = await rig.producer.submit("work", "pid")
        await until(lambda: len(service.pool.slots[0].runs) == 2)
        stopping = asyncio.ensure_future(rig.nodes[0].drain())
        await until(lambda: service.pool.draining)
    pid = rig.bridge().process.pid
    await rig.serve(echo())
    reply = await behind
    assert (reply.attempt, reply.result == pid, long.done()) == (1, False, False)
    assert (await long).result == 2
    await stopping
