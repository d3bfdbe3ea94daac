"""The pool with real bridges: recycling, growth, the breaker, new settings, and a storm of crashes."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rig import PATIENCE, Rig, descriptors, echo, misbehave, until

from bridge_protocol.errors import BridgeCrashed
from worker_node.dispatcher import Dispatcher
from worker_node.settings import NodeSettings, ServiceSettings, SessionSettings

SOAK = os.environ.get("QUAYBRIDGE_SOAK") == "1"
MEGABYTE = 2**20


def pids(service: Dispatcher) -> set[int]:
    return {bridge.process.pid for bridge in service.bridges()}


def with_changes(rig: Rig, **changes: Any) -> NodeSettings:
    """The settings of the rig's node, with changes to its service."""
    node = rig.nodes[0].settings
    service = ServiceSettings.model_validate({**dict(node.services[0]), **changes})
    return node.model_copy(update={"services": (service,)})


# Recycling.


async def test_recycling_costs_no_request_and_leaves_nothing_behind(rig: Rig) -> None:
    every, count = (50, 10_000) if SOAK else (20, 2_000)
    service = await rig.serve(misbehave("none"), bridges=2, recycle={"requests": every})
    await rig.call("echo")
    before = descriptors(), threading.active_count(), len(psutil.Process().children())
    seen: set[int] = set()
    answered = 0
    async with asyncio.timeout(PATIENCE * (10 if SOAK else 3)):
        # On a busy machine a bridge serves many before the next one is ready.
        while answered < count or len(seen) < 12:
            async for reply in rig.producer.map("work", "pid", [{}] * 100, in_flight=16):
                seen.add(reply.result)
                answered += 1
    assert service.settlement.counts.failed == service.settlement.counts.retried == 0
    # Each serves its number less the jitter at least, and then on until the next one is ready.
    assert len(seen) <= answered / (every * 0.85) + 4
    await until(lambda: [slot.state for slot in service.pool.slots].count("empty") == 1)
    assert len(psutil.Process().children()) == before[2]
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
    assert len(descriptors()) <= len(before[0])
    assert threading.active_count() <= before[1]
    print(f"{answered} requests, {len(seen)} bridges, 0 failures")


async def test_capacity_does_not_dip_while_a_bridge_is_replaced(rig: Rig) -> None:
    service = await rig.serve(misbehave("slow_start", 0.3), bridges=1, recycle={"requests": 1, "jitter": 0})
    for _ in range(3):
        old = pids(service)
        await rig.call("echo")
        # The old one serves until the new one is ready, which takes longer than these.
        assert [await rig.call("pid") for _ in range(5)] == [*old] * 5
        await until(lambda old=old: not pids(service) & old)
        assert service.pool.ready == 1


async def test_a_bridge_is_replaced_for_its_age(rig: Rig) -> None:
    service = await rig.serve(misbehave("none"), recycle={"age": 0.4})
    old = pids(service)
    await until(lambda: not pids(service) & old)


async def test_a_bridge_is_replaced_when_it_was_idle_for_too_long(rig: Rig) -> None:
    service = await rig.serve(misbehave("none"), recycle={"idle": 0.3})
    old = pids(service)
    await rig.call("echo")
    await until(lambda: not pids(service) & old)


async def test_a_bridge_that_leaks_is_replaced_between_two_requests(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    service = await rig.serve(misbehave("leak", 30), recycle={"memory": 100 * MEGABYTE, "memory_interval": 0.05})
    old = pids(service)
    async with asyncio.timeout(20):
        while pids(service) & old:
            await rig.call("misbehave")
    await until(lambda: len(pids(service)) == 1)
    assert [record.message for record in caplog.records if "it uses more memory than it may" in record.message]
    assert service.settlement.counts.failed == 0


async def test_what_the_children_of_a_bridge_use_counts(rig: Rig) -> None:
    hog = f"x = b'x' * {150 * MEGABYTE}; import time; time.sleep(1000)"
    service = await rig.serve(
        misbehave("forks", f'{sys.executable} -c "{hog}"'),
        recycle={"memory": 100 * MEGABYTE, "memory_interval": 0.05},
    )
    old = pids(service)
    await rig.call("misbehave")
    await until(lambda: not pids(service) & old)


async def test_a_bridge_over_its_hard_limit_is_killed_in_mid_request(rig: Rig) -> None:
    limits = {"memory_hard": 100 * MEGABYTE, "memory_interval": 0.05}
    service = await rig.serve(misbehave("leak_and_hang", 200), recycle=limits)
    old = pids(service)
    with pytest.raises(
        BridgeCrashed, match=r"more memory than recycle.memory_hard allows, 104,857,600 bytes"
    ) as raised:
        await rig.call("misbehave")
    assert raised.value.details["signal"] == "SIGKILL"
    await until(lambda: service.pool.ready == 1 and not pids(service) & old)


async def test_a_bridge_born_over_its_limit_is_a_mistake_that_is_told_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    service = await rig.serve(
        echo(), bridges=2, recycle={"memory": MEGABYTE, "memory_interval": 0.05, "requests": 2, "jitter": 0}
    )
    old = pids(service)
    await until(lambda: service.pool.ready == 2)
    for n in range(8):
        assert await rig.call("echo", {"n": n}) == {"n": n}
    await until(lambda: pids(service) != old)  # for what they served
    told = [record for record in caplog.records if "before its first request" in record.message]
    assert len(told) == 1
    assert told[0].levelno == logging.ERROR
    assert "raise the limit" in told[0].message


# How many.


async def test_a_pool_grows_while_requests_wait_and_shrinks_when_they_do_not(rig: Rig) -> None:
    service = await rig.serve(echo(), bridges="1-4", grow_after=0.05, shrink_after=0.5)
    assert len(pids(service)) == 1
    sleepers = [await rig.producer.submit("work", "sleep", {"seconds": 0.5}) for _ in range(16)]
    await until(lambda: service.pool.ready == 4)
    for sleeper in sleepers:
        await sleeper
    await until(lambda: len(pids(service)) == 1)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}
    assert service.settlement.counts.failed == 0


async def test_with_a_spare_bridge_a_killed_one_is_made_up_for_at_once(rig: Rig) -> None:
    service = await rig.serve(echo(), bridges="1-3", spare=1)
    busy = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await until(lambda: service.pool.ready == 2)
    (slot,) = [slot for slot in service.pool.slots if slot.runs]
    began = time.monotonic()
    os.kill(rig.bridge(slot.number).process.pid, signal.SIGKILL)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}
    spent = time.monotonic() - began
    with pytest.raises(BridgeCrashed):
        await busy
    await until(lambda: service.pool.ready == 2)
    print(f"killed, and served again after {spent * 1000:.0f} ms; ready again after {time.monotonic() - began:.3f} s")
    assert spent < 0.5


# New settings.


async def test_new_settings_replace_every_bridge_and_no_request_fails(rig: Rig) -> None:
    service = await rig.serve(misbehave("none"), bridges=2, environment={"GENERATION": "one"})
    old = pids(service)
    answered: list[str] = []

    async def ask() -> None:
        while not answered or answered[-20:] != ["two"] * 20:
            answered.append((await rig.call("look"))["environ"]["GENERATION"])

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        await until(lambda: len(answered) > 10)
        rig.nodes[0].reload(with_changes(rig, environment={"GENERATION": "two"}))
    assert set(answered) == {"one", "two"}
    await until(lambda: service.pool.ready == 2 and not pids(service) & old)
    assert service.settlement.counts.failed == service.settlement.counts.retried == 0


async def test_new_settings_whose_bridge_does_not_start_leave_the_old_ones_at_work(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    service = await rig.serve(misbehave("none"), bridges=2)
    await until(lambda: service.pool.ready == 2)
    old = pids(service)
    rig.nodes[0].reload(with_changes(rig, command=misbehave("exit_at_start")))
    await until(lambda: sum("did not start" in record.message for record in caplog.records) >= 3)
    assert pids(service) >= old
    assert await rig.call("pid") in old
    assert rig.nodes[0].serving
    rig.nodes[0].reload(with_changes(rig, command=misbehave("none")))
    await until(lambda: service.pool.ready == 2 and not pids(service) & old)


async def test_what_new_settings_do_not_change_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.serve(misbehave("none"))
    told = "whether one has sessions, and settings of the node itself, need a new process"
    rig.nodes[0].reload(with_changes(rig, run_timeout=5.0))
    assert told not in caplog.text
    rig.nodes[0].reload(with_changes(rig, sessions=SessionSettings(enabled=True)))
    assert told in caplog.text


async def test_a_replacement_is_told_the_number_of_the_seat_it_takes(rig: Rig) -> None:
    service = await rig.serve(misbehave("none"), bridges=2, environment={"CUDA_VISIBLE_DEVICES": "{slot}"})
    for _ in range(3):
        old = pids(service)
        rig.nodes[0].reload(rig.nodes[0].settings)
        await until(lambda old=old: service.pool.ready == 2 and not pids(service) & old)
        seen = {
            psutil.Process(bridge.process.pid).environ()["CUDA_VISIBLE_DEVICES"]: bridge.seat
            for bridge in service.bridges()
        }
        assert seen == {"0": 0, "1": 1}


# The breaker.


async def test_the_breaker_opens_and_probes_and_closes_again(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    model.touch()
    command = ("/bin/sh", "-c", f'[ -e "{model}" ] || exit 7; exec {" ".join(misbehave("none"))}')
    breaker = {"failures": 4, "window": 60}
    service = await rig.serve(command, bridges=2, breaker=breaker, recycle={"requests": 1})
    node = rig.nodes[0]
    model.unlink()
    for bridge in list(service.bridges()):
        os.kill(bridge.process.pid, signal.SIGKILL)
    await until(lambda: service.pool.unavailable and not node.serving)
    tried = len([record for record in caplog.records if "did not start" in record.message])
    assert tried >= 4
    model.touch()
    await until(lambda: service.pool.ready == 2 and node.serving)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


# Storms.


async def test_a_storm_of_crashes_loses_no_request_and_mixes_no_reply(rig: Rig) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    cycles, count = (300, 2_000) if SOAK else (30, 200)
    retry = {"max_attempts": 10, "first_delay": 1, "factor": 1}
    service = await rig.serve(misbehave("none"), bridges=8, retry=retry)
    killed = 0

    async def storm() -> None:
        nonlocal killed
        for _ in range(cycles):
            for bridge in draw.sample(list(service.bridges()), k=min(2, len(list(service.bridges())))):
                os.kill(bridge.process.pid, signal.SIGKILL)
                killed += 1
            await asyncio.sleep(0.025)

    async def ask(n: int) -> bool:
        await asyncio.sleep(draw.random() * cycles * 0.025)
        return bool(await rig.call("echo", {"n": n}, timeout=60) == {"n": n})

    storming = asyncio.create_task(storm())
    answers = await asyncio.gather(*(ask(n) for n in range(count)))
    await storming
    assert answers == [True] * count
    assert killed >= cycles
    await until(lambda: service.pool.ready == 8)
    print(f"{killed} kills, {count} requests: 0 lost, 0 wrong, {service.settlement.counts.retried} tried again")
