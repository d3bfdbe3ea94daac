"""A node and its broker, when the broker forgets it, takes nothing from it, or is gone while the node has to end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rig import PATIENCE, Rig, echo, misbehave, until, with_sdk

from bridge_protocol.topology import partition_of, request_queue, session_queue
from broker.contract import ChannelClosed, Consumer, Message
from broker.memory import MemoryBroker, MemoryChannel
from broker.memory_queue import MemoryQueue
from worker_node import isolation
from worker_node.dispatcher import Dispatcher

QUEUE = "quaybridge.work"
SOON = {"watch_interval": 0.05}


def forget_consumers(broker: MemoryBroker) -> None:
    """Give nothing more to whoever consumes now: as RabbitMQ 4.3 does after an ack timeout."""
    for subscription in broker._vhost.queues[QUEUE].subscriptions:
        subscription.unacked += 1_000_000


@contextmanager
def past_the_alarm(broker: MemoryBroker) -> Iterator[None]:
    """What is published inside is not held back, as what came before the alarm was not."""
    reason, broker._blocked = broker._blocked, None
    yield
    broker._blocked = reason


def busy(service: Dispatcher) -> bool:
    return all(slot.state == "busy" for slot in service.pool.slots if slot.seat is not None)


# The start.


def silence(monkeypatch: pytest.MonkeyPatch, silent: str) -> asyncio.Event:
    """Have a queue answer nobody from now on, as one that has lost its majority; set once somebody has asked it."""
    consume, asked = MemoryChannel.consume, asyncio.Event()

    async def answered(channel: MemoryChannel, queue: str, *arguments: Any, **options: Any) -> Consumer:
        if queue == silent:
            asked.set()
            while not channel.closed:
                await asyncio.sleep(0.01)
            raise ChannelClosed("closed")
        return await consume(channel, queue, *arguments, **options)

    monkeypatch.setattr(MemoryChannel, "consume", answered)
    return asked


async def test_a_start_waits_for_a_queue_that_answers_nobody_as_long_as_for_the_broker(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has lost its majority. The others are served."""
    asked = silence(monkeypatch, session_queue("work", partition_of("one of it")))
    node = rig.node(with_sdk("counts"), sessions={"enabled": True}, of_node={"connect_timeout": 0.5})
    await rig.producer.start()
    began = time.monotonic()
    await asyncio.wait_for(node.start(), PATIENCE)
    assert asked.is_set()
    assert time.monotonic() - began >= 0.5
    assert await rig.call("plain")
    other = rig.producer.session("another", service="work")
    assert (await other.call("count", timeout=PATIENCE)).result["count"] == 1


async def test_who_is_to_stop_while_a_queue_answers_nobody_finishes_what_runs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_node.node.UNSUBSCRIBE_TIMEOUT", 0.2)
    asked = silence(monkeypatch, session_queue("work", 0))
    node = rig.node(with_sdk("counts"), sessions={"enabled": True})
    await rig.producer.start()
    running = asyncio.create_task(node.run())
    await until(lambda: node.serving)
    handle = await rig.producer.submit("work", "plain", {"seconds": 2}, timeout=PATIENCE)
    await until(lambda: asked.is_set() and busy(node.services[0]))
    node.request_stop()
    await asyncio.wait_for(running, PATIENCE)
    assert handle.done()
    assert node.counts["work"].handed_back == 0


@pytest.mark.parametrize("silent", [request_queue("first"), session_queue("first", partition_of("one of it"))])
async def test_a_queue_that_answers_nobody_does_not_keep_a_node_from_connecting_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    first, work = ({"name": name, "command": with_sdk("counts"), "bridges": 1} for name in ("first", "work"))
    node = rig.node((), of_node={"services": [{**first, "sessions": {"enabled": True}}, work]})
    await rig.producer.start()
    await node.start()
    asked = silence(monkeypatch, silent)
    rig.broker.close_all("the broker restarts")
    async with asyncio.timeout(PATIENCE):
        await asked.wait()
    await until(lambda: node.serving)
    assert await rig.call("plain")
    other = rig.producer.session("another", service="first")
    assert (await other.call("count", timeout=PATIENCE)).result["count"] == 1


async def test_a_suspect_does_not_wait_for_a_queue_that_answers_nobody(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "SETTLED_WITHIN", 0.2)
    first, work = ({"name": name, "command": with_sdk("counts"), "bridges": 1} for name in ("first", "work"))
    node = rig.node((), of_node={"services": [first, work]})
    await rig.producer.start()
    await node.start()
    asked = silence(monkeypatch, request_queue("first"))
    rig.broker.close_all("the broker restarts")
    async with asyncio.timeout(PATIENCE):
        await asked.wait()
    publish, suspect = MemoryQueue.put, isolation.SUSPECT_FROM

    def came_back_often(queue: MemoryQueue, message: Message, now: float, trail: Any = (), returns: int = 0) -> None:
        publish(queue, message, now, trail, suspect if queue.name == request_queue("work") else returns)

    monkeypatch.setattr(MemoryQueue, "put", came_back_often)
    assert await rig.call("plain")
    await until(lambda: not node._isolation.active)
    monkeypatch.setattr(MemoryQueue, "put", publish)
    assert await rig.call("plain")


# The watchdog.


async def test_a_consumer_that_the_broker_has_forgotten_is_made_anew(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.serve(misbehave("hang"), bridges=2, of_node=SOON)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}
    forget_consumers(rig.broker)
    assert await rig.call("echo", {"a": 2}) == {"a": 2}
    said = f"n1 requests: connection lost: 1 request waits in {QUEUE}, where this consumer is given none"
    assert said in caplog.messages
    forget_consumers(rig.broker)  # and once more: what helped the first time is tried again as soon
    assert await rig.call("echo", {"a": 3}) == {"a": 3}


async def test_a_consumer_that_the_broker_has_forgotten_is_made_anew_though_sessions_are_busy(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """What their queues gave to this node says nothing of what its other consumer may be given."""
    service = await rig.serve(with_sdk("counts"), sessions={"enabled": True}, run_timeout=60.0, of_node=SOON)
    sessions = [rig.producer.session(f"s{number}", service="work") for number in range(4)]
    at_work = [await session.submit("count", {"seconds": 60}, timeout=PATIENCE) for session in sessions]
    await until(lambda: len(list(service.pool.tickets())) == len(sessions))
    forget_consumers(rig.broker)
    plain = await rig.producer.submit("work", "plain", timeout=PATIENCE)
    said = f"n1 requests: connection lost: 1 request waits in {QUEUE}, where this consumer is given none"
    await until(lambda: said in caplog.messages)
    for handle in at_work:
        await handle.cancel()
    assert await plain


async def quiet_over_many_looks(rig: Rig, caplog: pytest.LogCaptureFixture, looked: Callable[[], object]) -> None:
    """Nothing is rebuilt, while the lookout looks twenty times."""
    await until(lambda: looked())
    caplog.clear()
    await asyncio.sleep(20 * SOON["watch_interval"])
    assert not [line for line in caplog.messages if "connection lost" in line]


async def test_a_full_pool_is_no_wedge(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    service = await rig.serve(echo(), bridges=2, of_node=SOON)
    await until(lambda: service.pool.ready == 2)
    for _ in range(2):
        await rig.producer.publish("work", "sleep", {"seconds": 30})
    await until(lambda: busy(service))
    for _ in range(5):
        await rig.producer.publish("work", "echo", {})
    await quiet_over_many_looks(rig, caplog, lambda: rig.broker.counts(QUEUE).ready >= 3)


async def test_a_run_that_its_own_redelivery_joined_is_no_wedge(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The delivery it began with is gone with its channel; the one that came for it fills the consumer."""
    service = await rig.serve(echo(), of_node=SOON)
    await rig.producer.publish("work", "sleep", {"seconds": 30})
    await until(lambda: busy(service))
    rig.broker.close_all("maintenance")
    await until(lambda: service.settlement.counts.joined)
    assert service.held == 1
    for _ in range(3):
        await rig.producer.publish("work", "echo", {})
    await quiet_over_many_looks(rig, caplog, lambda: rig.broker.counts(QUEUE).ready)


async def test_work_whose_replies_are_held_back_by_an_alarm_is_no_wedge(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    service = await rig.serve(misbehave("hang"), bridges=2, of_node={**SOON, "stall_timeout": 0.2})
    await until(lambda: service.pool.ready == 2)
    rig.broker.block("disk full")
    calls = []
    for n in range(5):
        with past_the_alarm(rig.broker):
            calls.append((await rig.producer.submit("work", "echo", {"n": n})).future)
        await asyncio.sleep(0.1)
    await quiet_over_many_looks(rig, caplog, lambda: service.settlement.stalled and rig.broker.counts(QUEUE).ready)
    rig.broker.unblock()
    assert [reply.result for reply in await asyncio.gather(*calls)] == [{"n": n} for n in range(5)]


async def test_a_node_whose_bridges_do_not_start_is_no_wedge(
    rig: Rig, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    model.touch()
    script = f"[ -e {model} ] && exec {' '.join(misbehave('exit1_mid_request'))}; exit 1"
    service = await rig.serve(("/bin/sh", "-c", script), of_node=SOON)
    model.unlink()
    await rig.producer.publish("work", "misbehave")
    await until(lambda: service.pool.failing)
    for _ in range(3):
        await rig.producer.publish("work", "echo", {})
    await quiet_over_many_looks(rig, caplog, lambda: rig.broker.counts(QUEUE) == (3, 0))


async def test_a_node_beside_others_that_take_everything_is_no_wedge(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await rig.serve(misbehave("hang"), of_node=SOON)
    stopping = asyncio.Event()

    async def keep_calling() -> None:
        while not stopping.is_set():
            await rig.call("echo", {})

    calling = [asyncio.create_task(keep_calling()) for _ in range(5)]
    await quiet_over_many_looks(rig, caplog, lambda: True)
    stopping.set()
    await asyncio.gather(*calling)


async def test_a_look_costs_nothing_when_the_queue_is_gone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.serve(misbehave("hang"), of_node=SOON)
    rig.broker.delete_queue(QUEUE)
    await until(lambda: QUEUE in rig.broker._vhost.queues and rig.nodes[0].serving)
    await asyncio.sleep(5 * SOON["watch_interval"])
    assert not [line for line in caplog.messages if line.startswith("n1 replies: ")]
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


# An alarm at the broker.


async def test_an_alarm_stops_the_intake_keeps_the_bridges_and_ends_by_itself(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quaybridge")
    service = await rig.serve(misbehave("hang"), bridges=2, of_node={"stall_timeout": 0.2})
    await until(lambda: service.pool.ready == 2)
    pids = {bridge.process.pid for bridge in service.bridges()}
    rig.broker.block("disk full")
    calls = []
    for n in range(4):
        with past_the_alarm(rig.broker):
            calls.append((await rig.producer.submit("work", "echo", {"n": n})).future)
    await until(lambda: service.settlement.pending)
    await until(lambda: service.settlement.stalled)
    assert not rig.nodes[0].serving
    await until(lambda: rig.broker._vhost.queues[QUEUE].subscriptions == [])
    rig.broker.unblock()
    await asyncio.gather(*calls)
    await until(lambda: rig.nodes[0].serving and rig.broker.counts(QUEUE) == (0, 0))
    assert {bridge.process.pid for bridge in service.bridges()} == pids
    assert service.settlement.counts.redelivered == 0
    assert any("no more requests are taken" in line for line in caplog.messages)
    assert any("requests are taken again" in line for line in caplog.messages)


async def test_draining_during_an_alarm_hands_back_what_it_cannot_answer(rig: Rig) -> None:
    service = await rig.serve(echo(), of_node={"drain_timeout": 0.5})
    call = asyncio.ensure_future(rig.call("sleep", {"seconds": 0.2}))
    await until(lambda: busy(service))
    rig.broker.block("disk full")
    await until(lambda: service.settlement.pending == 1)
    began = time.monotonic()
    await rig.nodes[0].drain()
    assert 0.4 < time.monotonic() - began < 5
    assert rig.broker.counts(QUEUE) == (1, 0)
    rig.broker.unblock()
    await rig.serve(echo())
    assert await call == 0.2


# Draining without a broker.


async def test_draining_does_not_wait_for_replies_that_nobody_will_count(rig: Rig) -> None:
    service = await rig.serve(echo(), of_node={"drain_timeout": 15})
    rig.broker.block("disk full")
    with past_the_alarm(rig.broker):
        call = (await rig.producer.submit("work", "echo")).future
    await until(lambda: service.settlement.pending == 1)
    draining = asyncio.ensure_future(rig.nodes[0].drain())
    await asyncio.sleep(0.3)
    assert not draining.done()
    requests = rig.nodes[0]._consuming.channel
    assert isinstance(requests, MemoryChannel)
    requests._fail("CONNECTION_FORCED - maintenance", 320)  # the request is the broker's again
    await asyncio.wait_for(draining, 5)
    assert rig.broker.counts(QUEUE) == (1, 0)
    rig.broker.unblock()
    await rig.serve(echo())
    assert (await call).redelivered


async def test_draining_while_the_connection_is_down_ends_and_takes_nothing_up_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await rig.serve(echo(), of_node={"drain_timeout": 15})
    await rig.producer.publish("work", "sleep", {"seconds": 0.5})
    await until(lambda: busy(service))

    async def refuse(*_: object, **__: object) -> object:
        await asyncio.sleep(30)
        raise AssertionError("it was waited for")

    monkeypatch.setattr(rig.broker, "open", refuse)
    rig.broker.close_all("gone")
    began = time.monotonic()
    await rig.nodes[0].drain()
    assert time.monotonic() - began < 5
    assert rig.broker.counts(QUEUE) == (1, 0)
    assert service.pool.empty


async def test_draining_while_it_connects_again_takes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await rig.serve(echo(), of_node={"drain_timeout": 15})
    await rig.producer.publish("work", "sleep", {"seconds": 1})
    await until(lambda: busy(service))
    rig.broker.close_all("and back at once")
    draining = asyncio.ensure_future(rig.nodes[0].drain())
    await rig.producer.publish("work", "echo", {})
    await draining
    assert rig.broker.counts(QUEUE) == (2, 0)
    assert service.pool.empty
    assert service.settlement.counts.handed_back == 0
