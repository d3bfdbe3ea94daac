"""Cancelling a request wherever it is: queued, waiting in a node, running, finished. And when its requester is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time

import pytest
from rig import PATIENCE, Rig, echo, foreign, misbehave, until

from bridge_protocol.control import cancel_key
from bridge_protocol.envelope import CANCEL_ON_DISCONNECT, History, Properties, request_properties
from bridge_protocol.errors import BridgeCrashed, Cancelled, OutcomeUnknown
from bridge_protocol.messages import Request, decode_request, encode_request
from bridge_protocol.topology import CONTROL, EXCHANGE
from broker.contract import ConnectionRefused, Message
from broker.memory import MemoryBroker, MemoryChannel
from producer.async_producer import AsyncProducer
from producer.handle import Handle
from producer.producer import Producer
from producer.reply import Reply
from worker_node import requesters
from worker_node.core.lookahead import SAMPLES
from worker_node.core.tombstones import KEPT
from worker_node.dispatcher import Dispatcher

QUEUE, DEAD = "quaybridge.work", "quaybridge.work.dead"


async def running(service: Dispatcher, count: int = 1) -> None:
    """Until so many requests run."""
    await until(lambda: sum(len(slot.runs) for slot in service.pool.slots) == count)


async def cancelled(handle: Handle) -> Cancelled:
    """What the caller of a request is told that must have been cancelled."""
    with pytest.raises(Cancelled) as raised:
        await asyncio.wait_for(handle.result(), PATIENCE)
    assert raised.value.message_id == handle.message_id
    return raised.value


async def nothing_is_left(rig: Rig) -> None:
    """No request is in the queue, none unacked, and none was kept."""
    await until(lambda: rig.broker.counts(QUEUE) == (0, 0))
    assert not rig.broker.messages(DEAD)


async def tell(rig: Rig, body: bytes) -> None:
    """Publish that to the nodes."""
    channel = await rig.broker.open("anybody", on_closed=lambda _: None)
    properties = Properties(message_id=secrets.token_hex(4))
    await channel.publish(
        Message(exchange=CONTROL, routing_key=cancel_key("work"), body=body, properties=properties), timeout=PATIENCE
    )
    await channel.close()


# Running.


async def test_a_bridge_that_can_stops_the_work_and_lives_on(rig: Rig) -> None:
    service = await rig.serve(echo())
    pid = await rig.call("pid")
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service)
    began = time.monotonic()
    assert await handle.cancel()
    assert time.monotonic() - began < 5
    error = await cancelled(handle)
    assert (error.attempt, error.node) == (1, "n1")
    assert "while it ran" in error.message
    assert await rig.call("pid") == pid
    await nothing_is_left(rig)
    assert service.settlement.counts.retried == 0


@pytest.mark.parametrize("mode", ["hang", "hang_ignoring_sigterm"])
async def test_a_bridge_that_cannot_is_ended_after_the_grace(rig: Rig, mode: str) -> None:
    service = await rig.serve(misbehave(mode), stop_timeout=0.2, retry={"max_attempts": 5})
    pid = await rig.call("pid")
    handle = await rig.producer.submit("work", "misbehave")
    await running(service)
    began = time.monotonic()
    assert await handle.cancel()
    assert time.monotonic() - began >= 0.2
    await cancelled(handle)
    assert await rig.call("pid") != pid
    await nothing_is_left(rig)
    assert service.settlement.counts.retried == 0


async def test_a_reply_within_the_grace_is_the_answer(rig: Rig) -> None:
    # This bridge cannot be told: it is in time all the same.
    service = await rig.serve(("/bin/sh", "-c", SLOW), stop_timeout=10)
    handle = await rig.producer.submit("work", "slow")
    await running(service)
    assert not await handle.cancel()
    assert (await handle).result == "done"
    assert service.settlement.counts.succeeded == 1
    await nothing_is_left(rig)


SLOW = f"""exec {misbehave("never")[0]} -S -E -c '
import json, os, struct, time
while header := os.read(0, 4):
    request = json.loads(os.read(0, struct.unpack(">I", header)[0]))
    if request["command"] == "slow":
        time.sleep(1)
    told = json.dumps({{"id": request["id"], "success": True, "result": "done"}}).encode()
    os.write(1, struct.pack(">I", len(told)) + told)
'"""


async def test_a_neighbour_on_the_bridge_is_not_cancelled(rig: Rig) -> None:
    service = await rig.serve(echo(2))
    neighbour = await rig.producer.submit("work", "sleep", {"seconds": 1})
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service, 2)
    assert await handle.cancel()
    assert (await neighbour).result == 1


async def test_a_bridge_that_crashes_instead_is_still_an_end(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang"), stop_timeout=30, retry={"max_attempts": 5})
    handle = await rig.producer.submit("work", "misbehave")
    await running(service)
    cancelling = asyncio.ensure_future(handle.cancel())
    await until(lambda: any(run.reason for run in service.pool.slots[0].runs.values()))
    rig.bridge().process.send_signal(9)  # type: ignore[arg-type]
    assert await cancelling
    await cancelled(handle)
    await nothing_is_left(rig)
    assert service.settlement.counts.retried == 0


# Waiting and queued.


async def test_one_that_waits_in_the_node_never_runs(rig: Rig) -> None:
    service = await rig.serve(echo())
    for _ in range(SAMPLES):
        service.lookahead.ran(0.012)  # as if requests were short: some are held in waiting
    first = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service)
    second = await rig.producer.submit("work", "echo", {"n": 2})
    await until(lambda: len(service.pool.waiting) == 1)
    assert await second.cancel()
    assert "before it ran" in (await cancelled(second)).message
    assert not first.done()
    assert await first.cancel()
    await cancelled(first)
    await nothing_is_left(rig)


async def test_one_that_is_queued_is_ended_when_its_turn_comes(rig: Rig) -> None:
    service = await rig.serve(echo())
    first = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service)
    queued = await rig.producer.submit("work", "echo", {"n": 2})
    after = await rig.producer.submit("work", "echo", {"n": 3})
    await until(lambda: rig.broker.counts(QUEUE) == (2, 1))
    assert not await queued.cancel(timeout=0.1)  # nothing can be said yet
    assert not queued.done()
    assert queued.message_id in service.tombstones
    assert await first.cancel()
    assert "before it ran" in (await cancelled(queued)).message
    assert (await after).result == {"n": 3}
    await nothing_is_left(rig)


async def test_every_node_of_the_service_knows(rig: Rig) -> None:
    services = [await rig.serve(echo()) for _ in range(2)]
    other = {"name": "other", "command": foreign(), "bridges": 1, "stop_timeout": 0.3}
    elsewhere = await rig.serve(foreign(), of_node={"services": [other]})
    sleeping = [await rig.producer.submit("work", "sleep", {"seconds": 1000}) for _ in range(2)]
    for service in services:
        await running(service)
    queued = await rig.producer.submit("work", "echo")
    await until(lambda: rig.broker.counts(QUEUE).ready == 1)
    assert not await queued.cancel(timeout=0.1)
    assert [queued.message_id in service.tombstones for service in (*services, elsewhere)] == [True, True, False]
    assert await sleeping[1].cancel()
    await cancelled(queued)
    assert await sleeping[0].cancel()


async def test_one_that_waits_for_its_next_try_is_ended_when_it_comes_back(rig: Rig) -> None:
    service = await rig.serve(misbehave("exit1_mid_request"), retry={"max_attempts": 5, "first_delay": 1.0})
    handle = await rig.producer.submit("work", "misbehave", timeout=60)
    await until(lambda: service.settlement.counts.retried == 1)
    assert await handle.cancel()
    assert (await cancelled(handle)).attempt == 2
    assert service.settlement.counts.retried == 1
    await nothing_is_left(rig)


async def test_a_cancel_that_overtakes_its_request(rig: Rig) -> None:
    """Sent before the request is: it is ended as soon as it comes."""
    service = await rig.serve(echo())
    request = rig.producer.sender.prepare("work", "echo", {}, timeout=PATIENCE)
    assert await rig.producer.cancel("work", request.message_id)
    await until(lambda: len(service.tombstones) == 1)
    await cancelled(await rig.producer.sender.send(request, PATIENCE))


async def test_a_second_copy_of_a_cancelled_request_does_not_run_either(rig: Rig) -> None:
    service = await rig.serve(echo())
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service)
    assert await handle.cancel()
    await cancelled(handle)
    channel = await rig.broker.open("again", on_closed=lambda _: None)
    body = encode_request(Request(id=7, command="sleep", args={"seconds": 1000}))
    properties = request_properties(message_id=handle.message_id, command="sleep")
    await channel.publish(Message(exchange=EXCHANGE, routing_key="work", body=body, properties=properties), timeout=5)
    await channel.close()
    await nothing_is_left(rig)
    assert service.settlement.counts.failed == 2


async def test_what_an_operator_has_tried_again_runs(rig: Rig) -> None:
    service = await rig.serve(echo())
    assert await rig.producer.cancel("work", "m1")
    await until(lambda: "m1" in service.tombstones)
    channel = await rig.broker.open("operator", on_closed=lambda _: None)
    body = encode_request(Request(id=7, command="echo", args={}))
    properties = request_properties(message_id="m1", command="echo", history=History(replays=1))
    await channel.publish(Message(exchange=EXCHANGE, routing_key="work", body=body, properties=properties), timeout=5)
    await channel.close()
    await nothing_is_left(rig)
    assert service.settlement.counts.succeeded == 1


async def test_tombstones_are_bounded(rig: Rig) -> None:
    service = await rig.serve(echo(), tombstones=100)
    for _ in range(500):
        await rig.producer.cancel("work", secrets.token_hex(16))
    await until(lambda: service.tombstones.dropped == 400)
    assert len(service.tombstones) == 100
    assert KEPT > 2**17 - 1


# Finished, and unknown.


async def test_one_that_has_finished_says_so(rig: Rig) -> None:
    await rig.serve(echo())
    handle = await rig.producer.submit("work", "echo", {"n": 1})
    assert isinstance(await handle, Reply)
    assert not await handle.cancel()
    assert handle.done()
    assert await rig.call("echo", {"n": 2}) == {"n": 2}


async def test_cancelling_and_answering_at_once_is_one_answer(rig: Rig) -> None:
    """Whichever comes first; whoever awaits it and whoever cancels it are told the same."""
    service = await rig.serve(echo(), bridges=2)
    handles = [await rig.producer.submit("work", "sleep", {"seconds": 0.005}) for _ in range(60)]
    answers = await asyncio.gather(*(handle.cancel() for handle in handles))
    ends = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)
    assert [isinstance(end, Cancelled) for end in ends] == answers
    assert all(isinstance(end, Cancelled | Reply) for end in ends)
    counts = service.settlement.counts
    assert (counts.succeeded, counts.failed) == (answers.count(False), answers.count(True))
    await nothing_is_left(rig)


async def test_nonsense_on_the_control_exchange_is_dropped(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    service = await rig.serve(echo())
    with caplog.at_level(logging.WARNING, "quaybridge.node"):
        for body in (
            b"",
            b"\xff\x00",
            b"[1, 2]",
            json.dumps({"protocol": 1, "control": "cancel", "service": "work", "message_id": "two words"}).encode(),
        ):
            await tell(rig, body)
        await tell(rig, b'{"protocol": 1, "control": "to come", "service": "work"}')
        await tell(rig, b'{"protocol": 1, "control": "cancel", "service": "other", "message_id": "m1"}')
        await tell(rig, b'{"protocol": 1, "control": "cancel", "service": "work", "message_id": "m2"}')
        await until(lambda: "m2" in service.tombstones)
    assert len(service.tombstones) == 1
    dropped = [message for message in caplog.messages if "not a control message" in message]
    assert len(dropped) == 4
    assert all(message.isprintable() for message in dropped)
    assert await rig.call("echo", {"n": 1}) == {"n": 1}


# Connections.


async def test_a_node_listens_again_after_its_connection_was_lost(rig: Rig) -> None:
    service = await rig.serve(echo())
    rig.broker.close_all("by the operator")
    await until(lambda: rig.nodes[0].serving and rig.producer.sender.link.up)
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service)
    assert await handle.cancel()
    await cancelled(handle)


async def test_a_node_whose_control_queue_is_deleted_listens_again(rig: Rig) -> None:
    service = await rig.serve(echo())
    (queue,) = (name for name in rig.broker._vhost.queues if name.startswith(f"{CONTROL}."))
    rig.broker.delete_queue(queue)
    await until(lambda: any(name.startswith(f"{CONTROL}.") for name in rig.broker._vhost.queues))
    await until(lambda: rig.nodes[0].serving)
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000})
    await running(service)
    assert await handle.cancel()


async def test_threads_cancel_too(rig: Rig) -> None:
    service = await rig.serve(echo())

    def use(loop: asyncio.AbstractEventLoop) -> None:
        with Producer(rig.broker, loop=loop) as producer:
            outcome = producer.submit("work", "sleep", {"seconds": 1000}, timeout=PATIENCE)
            asyncio.run_coroutine_threadsafe(running(service), loop).result(PATIENCE)
            queued = producer.submit("work", "echo", {"n": 1}, timeout=PATIENCE)
            assert not queued.cancel_request(timeout=0.1)
            assert not queued.done()
            assert outcome.cancel_request()
            for each in (outcome, queued):
                with pytest.raises(Cancelled):
                    each.result(PATIENCE)
                assert not each.cancelled()  # not given up here: it ended
                assert each.cancel_request()
            finished = producer.submit("work", "echo", {"n": 2})
            assert finished.result(PATIENCE).result == {"n": 2}
            assert not finished.cancel_request()
            assert producer.cancel("work", finished.message_id)

    await asyncio.to_thread(use, asyncio.get_running_loop())
    await nothing_is_left(rig)


# Requesters that are gone.


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes look after requesters every few milliseconds."""
    monkeypatch.setattr(requesters, "LOOK_EVERY", 0.02)


@pytest.mark.usefixtures("often")
async def test_what_shall_end_with_its_requester_does(rig: Rig) -> None:
    service = await rig.serve(echo())
    for _ in range(SAMPLES):
        service.lookahead.ran(0.012)
    gone = AsyncProducer(rig.broker)
    await gone.start()
    runs = await gone.submit("work", "sleep", {"seconds": 1000}, cancel_on_disconnect=True)
    await running(service)
    waits = await gone.submit("work", "echo", {"n": 1}, cancel_on_disconnect=True)
    stays = await rig.producer.submit("work", "echo", {"n": 2}, cancel_on_disconnect=True)
    await until(lambda: len(service.pool.waiting) == 2)
    await asyncio.sleep(0.2)  # many looks: they are there
    assert not any(handle.done() for handle in (runs, waits, stays))
    await gone.close()
    for handle in (runs, waits):
        with pytest.raises(OutcomeUnknown):
            await handle
    assert (await stays).result == {"n": 2}
    await nothing_is_left(rig)
    assert (service.settlement.counts.failed, service.settlement.counts.succeeded) == (2, 1)
    assert not len(service.tombstones)  # the same request, published again, may run


@pytest.mark.usefixtures("often")
async def test_others_outlive_their_requester(rig: Rig) -> None:
    service = await rig.serve(echo())
    gone = AsyncProducer(rig.broker)
    await gone.start()
    handle = await gone.submit("work", "sleep", {"seconds": 0.5})
    await running(service)
    await gone.close()
    with pytest.raises(OutcomeUnknown):
        await handle
    await until(lambda: service.settlement.counts.succeeded == 1)
    await until(lambda: service.settlement.counts.replies_dropped == 1)
    await nothing_is_left(rig)


@pytest.mark.usefixtures("often")
async def test_the_option_survives_a_retry(rig: Rig) -> None:
    service = await rig.serve(misbehave("exit1_mid_request"), retry={"max_attempts": 2, "first_delay": 1.0})
    with pytest.raises(BridgeCrashed):
        await rig.producer.call("work", "misbehave", cancel_on_disconnect=True, timeout=60)
    assert service.settlement.counts.retried == 1
    (letter,) = rig.broker.messages(DEAD)
    assert CANCEL_ON_DISCONNECT not in letter.properties.headers
    assert decode_request(letter.body).command == "misbehave"


@pytest.mark.usefixtures("often")
async def test_looking_costs_a_connection_only_while_there_is_something_to_look_after(rig: Rig) -> None:
    service = await rig.serve(echo())

    def looking() -> list[MemoryChannel]:
        return [channel for channel in rig.broker._channels if channel.name == "n1 requesters"]

    await asyncio.sleep(0.1)
    assert looking() == []
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000}, cancel_on_disconnect=True)
    await running(service)
    await until(looking)
    (channel,) = looking()
    assert await handle.cancel()
    await until(lambda: channel.closed)
    assert looking() == []


@pytest.mark.usefixtures("often")
async def test_a_broker_that_cannot_be_asked_means_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await rig.serve(echo())
    tried = 0

    async def refuse(broker: MemoryBroker, name: str, **_: object) -> MemoryChannel:
        nonlocal tried
        tried += 1
        raise ConnectionRefused("down")

    monkeypatch.setattr(MemoryBroker, "open", refuse)
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1000}, cancel_on_disconnect=True)
    await running(service)
    await until(lambda: tried > 3)
    assert not handle.done()
    assert await handle.cancel()
