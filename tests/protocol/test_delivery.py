"""A request that comes again, too late, or kills what runs it: what the node makes of it, with real bridges."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rig import PATIENCE, PYTHON, Rig, echo, misbehave, until

from bridge_protocol.envelope import CANCEL_ON_DISCONNECT, REPLAYS, Properties, request_properties
from bridge_protocol.errors import BridgeCrashed, DeadlineExceeded
from bridge_protocol.messages import Failure, Request, Result, decode_message, encode_request, format_timestamp
from bridge_protocol.topology import EXCHANGE, Queue, service_topology, shared_topology
from broker.contract import Channel, Delivery, Message
from producer.async_producer import AsyncProducer

QUEUE, DEAD, REPLIES = "quaybridge.work", "quaybridge.work.dead", "quaybridge.reply.test"
TRUSTED = 3  # returns from which a request runs alone in its node

# Begins the program of a bridge; `tell` may be called by any thread.
SPEAKER = """
import json, os, struct, sys, threading, time
lock = threading.Lock()
def requests():
    while header := os.read(0, 4):
        size, = struct.unpack(">I", header)
        yield json.loads(os.read(0, size))
def tell(id, **said):
    told = json.dumps({"id": id, **said}).encode()
    with lock:
        os.write(1, struct.pack(">I", len(told)) + told)
"""
# Writes down what it began, and takes several requests at once.
RECORDER = """
log = open(sys.argv[1], "a")
def work(asked):
    time.sleep(asked["args"].get("seconds", 0))
    tell(asked["id"], success=True, result=asked["args"].get("name"))
for asked in requests():
    if asked["command"] == "ping":
        tell(asked["id"], success=True, result={"capabilities": {"concurrency": int(sys.argv[2])}})
        continue
    name, attempt = asked["args"].get("name"), asked.get("attempt", 1)
    log.write(f"{name} {attempt}\\n")
    log.flush()
    if asked["command"] == "crash":
        os._exit(7)
    if asked["command"] == "flaky" and attempt == 1:
        tell(asked["id"], success=False, error="not yet", error_info={"retryable": True, "retry_after": 1})
    else:
        threading.Thread(target=work, args=(asked,)).start()
"""
FAILS_FIRST = """
for asked in requests():
    if "attempt" in asked or asked["command"] == "ping":
        tell(asked["id"], success=True, result=asked["args"].get("n"))
    else:
        tell(asked["id"], success=False, error="not yet", error_info={"retryable": True, "retry_after": 2})
"""
CANCELS = """
for asked in requests():
    if asked["command"] == "ping":
        tell(asked["id"], success=True, result={"capabilities": {"cancel": True}})
    elif asked["command"] == "cancel":
        tell(asked["args"]["id"], success=True, result="too late")
    elif asked["command"] == "pid":
        tell(asked["id"], success=True, result=os.getpid())
"""


def program(text: str, *arguments: object) -> tuple[str, ...]:
    return (*PYTHON, "-c", SPEAKER + text, *map(str, arguments))


class Raw:
    """Somebody who speaks to the broker directly, and has a durable queue for replies."""

    def __init__(self, rig: Rig, log: Path) -> None:
        self.rig = rig
        self.log = log
        self.replies: list[Delivery] = []

    async def open(self) -> None:
        self.channel: Channel = await self.rig.broker.open("raw", on_closed=lambda _: None)
        await self.channel.declare((*shared_topology(), *service_topology("work"), Queue(REPLIES)))
        await self.channel.consume(REPLIES, self.replies.append, no_ack=True)

    def bridge(self, concurrency: int = 1) -> tuple[str, ...]:
        return program(RECORDER, self.log, concurrency)

    async def send(
        self, message_id: str, command: str = "work", *, reply_to: str | None = REPLIES, **options: Any
    ) -> None:
        """Publish a request; its args are its name and `options`, but for these of its envelope."""
        headers = options.pop("headers", {})
        deadline, timestamp = options.pop("deadline", None), options.pop("timestamp", "")
        properties = request_properties(message_id=message_id, command=command, reply_to=reply_to, deadline=deadline)
        properties = replace(properties, headers={**properties.headers, **headers})
        await self.publish(properties, command, {"name": message_id, **options}, timestamp)

    async def publish(self, properties: Properties, command: str, args: dict[str, Any], timestamp: str = "") -> None:
        number = abs(hash(properties.message_id)) % 2**50 + 1
        body = encode_request(Request(id=number, command=command, args=args, timestamp=timestamp))
        message = Message(exchange=EXCHANGE, routing_key="work", body=body, properties=properties)
        await self.channel.publish(message, timeout=PATIENCE)

    async def give_back(self, times: int, count: int = 1) -> None:
        """Take the first `count` requests and hand them back, so often."""
        taken: list[Delivery] = []
        consumer = await self.channel.consume(QUEUE, taken.append, prefetch=count)
        for n in range(1, times + 1):
            await until(lambda: len(taken) == count * n)  # noqa: B023
            if n == times:
                await self.channel.cancel(consumer)
            for delivery in taken[-count:]:
                delivery.reject(requeue=True)

    @property
    def began(self) -> list[str]:
        """What a bridge began, each with its attempt."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def results(self) -> dict[str, Any]:
        """By message id, what came back, where that was a success; each came once."""
        said = {reply.properties.message_id or "": decode_message(reply.body) for reply in self.replies}
        assert len(said) == len(self.replies)
        return {name: message.result for name, message in said.items() if isinstance(message, Result)}


@pytest.fixture
async def raw(rig: Rig, tmp_path: Path) -> AsyncIterator[Raw]:
    made = Raw(rig, tmp_path / "log")
    await made.open()
    yield made
    await made.channel.close()


def unsettled(rig: Rig) -> int:
    counts = rig.broker.counts(QUEUE)
    return counts.ready + counts.unacked


async def lose_requests(rig: Rig) -> None:
    """Have the node lose the connection that its requests came by, and nobody else theirs."""
    channel = rig.nodes[0]._consuming.channel
    assert channel is not None
    channel._fail("CONNECTION_FORCED - maintenance", 320)  # type: ignore[attr-defined]
    await until(lambda: channel.closed)


# Idempotency.


async def test_a_redelivery_joins_the_run_that_is_under_way(rig: Rig, raw: Raw) -> None:
    service = await rig.serve(raw.bridge())
    await raw.send("a", seconds=0.8)
    await until(lambda: raw.began)
    await lose_requests(rig)
    await until(lambda: service.settlement.counts.joined)
    await until(lambda: unsettled(rig) == 0 and raw.replies)
    assert raw.began == ["a 1"]
    assert raw.results() == {"a": "a"}
    assert raw.replies[0].properties.headers["redelivered"] is True
    assert service.settlement.counts.succeeded == service.settlement.counts.redelivered == 1


async def test_what_was_answered_when_the_connection_was_gone_is_answered_without_a_run(rig: Rig, raw: Raw) -> None:
    service = await rig.serve(raw.bridge())
    await raw.send("a", seconds=0.4)
    await until(lambda: raw.began)
    node = rig.nodes[0]
    opens = rig.broker.open
    mended = asyncio.Event()

    async def open_later(*arguments: Any, **options: Any) -> Any:
        await mended.wait()
        return await opens(*arguments, **options)

    rig.broker.open = open_later  # type: ignore[method-assign]
    await lose_requests(rig)
    await until(lambda: not any(service.pool.tickets()))
    assert not raw.replies  # its delivery is stale: whoever gets it next answers
    mended.set()
    await until(lambda: node.serving and unsettled(rig) == 0 and raw.replies)
    assert raw.began == ["a 1"]
    assert raw.results() == {"a": "a"}
    assert (service.settlement.counts.repeated, service.settlement.counts.joined) == (1, 0)


async def test_one_request_published_twice_runs_once_and_each_address_is_answered(rig: Rig, raw: Raw) -> None:
    """As a producer does it that got no confirm, and has another address for replies by then."""
    await raw.channel.declare([Queue("quaybridge.reply.other")])
    service = await rig.serve(raw.bridge(4))
    await raw.send("a", seconds=0.5)
    await until(lambda: raw.began)
    await raw.send("a", seconds=0.5, reply_to="quaybridge.reply.other")
    await until(lambda: service.settlement.counts.joined == 1)
    await raw.send("a", seconds=0.5)
    await until(lambda: unsettled(rig) == 0 and rig.broker.messages("quaybridge.reply.other"))
    assert raw.began == ["a 1"]
    assert raw.results() == {"a": "a"}  # once, though two deliveries asked for it there
    assert len(rig.broker.messages("quaybridge.reply.other")) == 1
    await raw.send("a", seconds=0.5, reply_to="quaybridge.reply.other")
    await until(lambda: service.settlement.counts.repeated == 1 and unsettled(rig) == 0)
    assert raw.began == ["a 1"]


async def test_neither_another_body_nor_a_replay_gets_the_answer_of_the_name(rig: Rig, raw: Raw) -> None:
    service = await rig.serve(raw.bridge(4))
    await raw.send("a", seconds=0.2)
    await until(lambda: raw.began)
    await raw.send("a", seconds=0.2, other=True)
    await raw.send("a", seconds=0.2, headers={REPLAYS: 1})
    await until(lambda: unsettled(rig) == 0)
    await raw.send("a", seconds=0.2, headers={REPLAYS: 2})
    await until(lambda: len(raw.replies) == 4 and unsettled(rig) == 0)
    assert raw.began == ["a 1"] * 4
    assert (service.settlement.counts.joined, service.settlement.counts.repeated) == (0, 0)


async def test_a_requester_that_came_back_elsewhere_is_not_gone(rig: Rig, raw: Raw) -> None:
    await raw.channel.declare([Queue("quaybridge.reply.other")])
    service = await rig.serve(raw.bridge(4))
    headers = {CANCEL_ON_DISCONNECT: True}
    await raw.send("a", seconds=0.5, reply_to="quaybridge.reply.other", headers=headers)
    await until(lambda: raw.began)
    await raw.send("a", seconds=0.5, headers=headers)
    await until(lambda: service.settlement.counts.joined == 1)
    assert list(service.watched()) == [REPLIES]
    service.requester_gone("quaybridge.reply.other")
    await until(lambda: raw.replies and unsettled(rig) == 0)
    assert raw.results() == {"a": "a"}


async def test_what_was_answered_before_it_was_cancelled_is_told_that_answer_again(rig: Rig, raw: Raw) -> None:
    service = await rig.serve(raw.bridge())
    await raw.send("a")
    await until(lambda: raw.replies and unsettled(rig) == 0)
    service.cancel("a")
    await raw.send("a")
    await until(lambda: len(raw.replies) == 2 and unsettled(rig) == 0)
    assert [reply.properties.type for reply in raw.replies] == ["result", "result"]
    assert raw.began == ["a 1"]


async def test_a_failure_is_no_answer_to_keep(rig: Rig, raw: Raw) -> None:
    await rig.serve(raw.bridge())
    for n in (1, 2):
        await raw.send("a", "crash")
        await until(lambda: len(raw.replies) == n and unsettled(rig) == 0)  # noqa: B023
    assert raw.began == ["a 1", "a 1"]


async def test_what_was_joined_is_retried_once_and_dead_once(rig: Rig, raw: Raw) -> None:
    retry = {"max_attempts": 2, "factor": 1}
    service = await rig.serve(raw.bridge(4), retry=retry)
    await raw.send("a", seconds=30)
    await until(lambda: raw.began)
    await raw.send("a", seconds=30)
    await until(lambda: service.settlement.counts.joined == 1)
    for attempt in (1, 2):
        await until(lambda: raw.began[-1] == f"a {attempt}")  # noqa: B023
        os.kill(rig.bridge().process.pid, signal.SIGKILL)
    await until(lambda: raw.replies and unsettled(rig) == 0)
    assert raw.began == ["a 1", "a 2"]
    assert len(raw.replies) == len(rig.broker.messages(DEAD)) == 1


# Retries.


async def test_two_thousand_retries_at_once_all_come_back(rig: Rig) -> None:
    service = await rig.serve(program(FAILS_FIRST), bridges=2, retry={"max_attempts": 2})
    async with asyncio.timeout(PATIENCE):
        handles = [await rig.producer.submit("work", "flaky", {"n": n}, timeout=PATIENCE) for n in range(2000)]
        replies = await asyncio.gather(*handles)
    assert [(reply.result, reply.attempt) for reply in replies] == [(n, 2) for n in range(2000)]
    assert service.settlement.counts.retried == 2000
    assert (service.settlement.counts.failed, service.settlement.counts.dead) == (0, 0)


async def test_a_bridge_is_tried_again_when_it_asked_for_that_and_not_sooner(rig: Rig, raw: Raw) -> None:
    await rig.serve(raw.bridge(), retry={"max_attempts": 2, "first_delay": 600})
    began = time.monotonic()
    await raw.send("a", "flaky")
    await until(lambda: raw.replies)
    assert 1.0 <= time.monotonic() - began < 30
    assert raw.began == ["a 1", "a 2"]


async def test_a_retry_that_could_not_start_before_the_deadline_is_not_scheduled(rig: Rig) -> None:
    service = await rig.serve(misbehave("exit1_mid_request"), retry={"max_attempts": 3, "first_delay": 5})
    with pytest.raises(BridgeCrashed) as raised:
        await rig.call("misbehave", timeout=2)
    assert raised.value.attempt == 1
    assert service.settlement.counts.retried == 0


# Poison.


async def test_a_request_that_kills_its_bridge_every_time_is_a_dead_letter_and_its_neighbours_complete(
    rig: Rig, raw: Raw
) -> None:
    service = await rig.serve(raw.bridge(4), retry={"max_attempts": 3, "factor": 1})
    await until(lambda: service.pool.capacity == 4)
    neighbours = [f"n{n}" for n in range(12)]
    for name in neighbours[:6]:
        await raw.send(name, seconds=0.2)
    await raw.send("poison", "crash")
    for name in neighbours[6:]:
        await raw.send(name, seconds=0.2)
    await until(lambda: len(raw.replies) == 13 and unsettled(rig) == 0)
    assert raw.results() == {name: name for name in neighbours}
    assert [line for line in raw.began if "poison" in line] == ["poison 1", "poison 2", "poison 3"]
    (letter,) = rig.broker.messages(DEAD)
    assert letter.properties.message_id == "poison"
    assert (letter.properties.headers["code"], letter.properties.headers["attempt"]) == ("bridge_crashed", 3)


# Alone in the node.


async def test_a_third_redelivery_runs_with_nothing_else_in_the_node(rig: Rig, raw: Raw) -> None:
    await raw.send("suspect", seconds=0.5)
    await raw.give_back(TRUSTED)
    for n in range(8):
        await raw.send(f"n{n}", seconds=0.1)
    service = await rig.serve(raw.bridge(4))
    await until(lambda: raw.began)
    assert raw.began == ["suspect 1"]
    # While it runs, nothing is taken that would be charged for its crash.
    while not raw.replies:
        assert rig.broker.counts(QUEUE) in ((8, 1), (8, 0))
        await asyncio.sleep(0.01)
    await until(lambda: len(raw.replies) == 9 and unsettled(rig) == 0)
    assert raw.began[0] == "suspect 1"
    assert service.settlement.counts.handed_back == 0


async def test_what_runs_when_a_suspect_comes_is_finished_first_and_what_was_taken_with_it_too(
    rig: Rig, raw: Raw
) -> None:
    work = {"name": "work", "command": raw.bridge(4), "bridges": 1, "stop_timeout": 0.3}
    other = {"name": "other", "command": echo(), "bridges": 1, "stop_timeout": 0.3}
    await raw.send("suspect", seconds=0.3)
    await raw.send("another", seconds=0.3)
    await raw.give_back(TRUSTED - 1, count=2)
    held: list[Delivery] = []
    consumer = await raw.channel.consume(QUEUE, held.append, prefetch=2)
    await until(lambda: len(held) == 2)
    await raw.channel.cancel(consumer)
    service = await rig.serve((), of_node={"services": [work, other]})
    elsewhere = await rig.producer.submit("other", "sleep", {"seconds": 1.0})
    await raw.send("first", seconds=0.3)
    await until(lambda: [s.prefetch for s in rig.broker._vhost.queues[QUEUE].subscriptions] == [4])
    for delivery in held:
        delivery.reject(requeue=True)
    await raw.send("second", seconds=0.3)
    await until(lambda: rig.nodes[0]._isolation.active)
    # Those of the other service wait with the suspects, where nobody charges them.
    waiting = await rig.producer.submit("other", "echo", {"a": 1})
    rig.nodes[0]._isolation._draw = lambda suspects: 0
    await until(lambda: "suspect 1" in raw.began)
    assert raw.began == ["first 1", "second 1", "suspect 1"]
    assert elsewhere.done()
    assert not waiting.done()
    assert (rig.broker.counts(QUEUE), rig.broker.counts("quaybridge.other")) == ((0, 2), (1, 0))
    await until(lambda: raw.began[3:] == ["another 1"])
    assert len(raw.replies) == 3  # one suspect after the other
    await until(lambda: len(raw.replies) == 4 and unsettled(rig) == 0)
    assert (await waiting).result == {"a": 1}
    assert service.settlement.counts.handed_back == 0


async def test_several_suspects_run_one_after_the_other_and_are_not_charged_for_each_other(rig: Rig, raw: Raw) -> None:
    for n in range(6):
        await raw.send(f"s{n}", seconds=0.1)
    await raw.give_back(TRUSTED, count=6)
    service = await rig.serve(raw.bridge(4), bridges=2)
    most = 0
    while len(raw.replies) < 6:
        most = max(most, rig.broker.counts(QUEUE).unacked)
        await asyncio.sleep(0.002)
    assert most == 1
    assert sorted(raw.began) == [f"s{n} 1" for n in range(6)]
    assert service.settlement.counts.handed_back == 0


async def test_a_count_that_the_publisher_wrote_is_no_evidence(rig: Rig, raw: Raw) -> None:
    await rig.serve(raw.bridge(4))
    for name in "abcd":
        await raw.send(name, seconds=0.3, headers={"x-delivery-count": 99})
    await until(lambda: rig.broker.counts(QUEUE).unacked == 4)
    await until(lambda: len(raw.replies) == 4)


async def test_a_suspect_that_is_late_when_its_turn_comes_is_not_run(rig: Rig, raw: Raw) -> None:
    work = {"name": "work", "command": raw.bridge(), "bridges": 1, "stop_timeout": 0.3}
    other = {"name": "other", "command": echo(), "bridges": 1, "stop_timeout": 0.3}
    await raw.send("suspect", deadline=int(time.time() * 1000) + 700)
    await raw.give_back(TRUSTED)
    await raw.channel.declare(service_topology("other"))
    await rig.producer.start()
    running = await rig.producer.submit("other", "sleep", {"seconds": 1.0})
    await rig.node((), of_node={"services": [other, work]}).start()
    await until(lambda: raw.replies and unsettled(rig) == 0)
    assert raw.replies[0].properties.type == "deadline_exceeded"
    assert not raw.began
    assert running.done()


@pytest.mark.parametrize("ending", ["drain", "stop"])
async def test_a_node_that_ends_while_a_suspect_waits_hands_it_back(rig: Rig, raw: Raw, ending: str) -> None:
    work = {"name": "work", "command": raw.bridge(), "bridges": 1, "stop_timeout": 0.3}
    other = {"name": "other", "command": echo(), "bridges": 1, "stop_timeout": 0.3}
    await raw.send("suspect")
    await raw.give_back(TRUSTED)
    node = rig.node((), of_node={"services": [other, work]})
    await rig.producer.start()
    await raw.channel.declare(service_topology("other"))
    running = await rig.producer.submit("other", "sleep", {"seconds": 1.0 if ending == "drain" else 600})
    await node.start()
    await until(lambda: node._isolation.active and rig.broker.counts("quaybridge.other").unacked)
    await (node.drain() if ending == "drain" else node.stop())
    assert rig.broker.counts(QUEUE) == (1, 0)
    assert not raw.began
    if ending == "drain":
        assert (await running).result == 1.0


async def test_a_suspect_whose_connection_is_lost_while_it_runs_is_joined_as_any_other(rig: Rig, raw: Raw) -> None:
    await raw.send("suspect", seconds=1.0)
    await raw.give_back(TRUSTED)
    service = await rig.serve(raw.bridge(4))
    await until(lambda: raw.began)
    await lose_requests(rig)
    await until(lambda: raw.replies and unsettled(rig) == 0)
    assert raw.began == ["suspect 1"]
    assert service.settlement.counts.joined + service.settlement.counts.repeated == 1
    assert await rig.producer.call("work", "work", {"name": "after"}, timeout=PATIENCE)


# Deadlines.


async def test_a_request_that_is_late_before_it_starts_is_not_run_and_answered_once(rig: Rig, raw: Raw) -> None:
    await raw.send("late", deadline=int(time.time() * 1000) - 1)
    await raw.send("after")
    await rig.serve(raw.bridge())
    await until(lambda: len(raw.replies) == 2 and unsettled(rig) == 0)
    assert raw.began == ["after 1"]
    (late,) = [reply for reply in raw.replies if reply.properties.message_id == "late"]
    assert late.properties.type == "deadline_exceeded"


async def test_a_request_that_becomes_late_while_it_waits_in_the_node_is_not_run(rig: Rig, raw: Raw) -> None:
    service = await rig.serve(raw.bridge())
    for _ in range(64):
        service.lookahead.ran(0.012)  # so that four are held in waiting
    (node,) = rig.nodes
    node._adjust()  # at once, not when it looks next
    await node._adjusted()
    await raw.send("long", seconds=1.0)
    await until(lambda: raw.began)
    await raw.send("late", deadline=int(time.time() * 1000) + 500)
    await until(lambda: service.pool.waiting)
    await until(lambda: len(raw.replies) == 2 and unsettled(rig) == 0)
    assert raw.began == ["long 1"]
    assert [reply.properties.message_id for reply in raw.replies] == ["late", "long"]  # told when it was late


async def test_a_retry_that_is_late_when_it_comes_back_is_not_run(rig: Rig, raw: Raw) -> None:
    """It was in time when it was scheduled; then it waited behind another."""
    await rig.serve(raw.bridge(), retry={"max_attempts": 2})
    await raw.send("late", "flaky", deadline=int(time.time() * 1000) + 1500)
    await until(lambda: raw.began)
    await raw.send("long", seconds=2.0)
    await until(lambda: len(raw.replies) == 2 and unsettled(rig) == 0)
    assert raw.began == ["late 1", "long 1"]
    (late,) = [reply for reply in raw.replies if reply.properties.message_id == "late"]
    assert (late.properties.type, late.properties.headers["attempt"]) == ("deadline_exceeded", 2)


async def test_a_request_that_is_late_while_it_runs_is_killed_and_answered_once(rig: Rig, raw: Raw) -> None:
    service = await rig.serve(raw.bridge())
    pid = rig.bridge().process.pid
    await raw.send("late", seconds=30, deadline=int(time.time() * 1000) + 700)
    await until(lambda: raw.began)
    await until(lambda: raw.replies and unsettled(rig) == 0)
    assert not psutil.pid_exists(pid)
    assert [reply.properties.type for reply in raw.replies] == ["deadline_exceeded"]
    assert not isinstance(decode_message(raw.replies[0].body), Result)
    assert service.settlement.counts.dead == 0


async def test_a_bridge_that_can_cancel_is_asked_first_and_lives_on(rig: Rig) -> None:
    await rig.serve(program(CANCELS))
    pid = await rig.call("pid")
    with pytest.raises(DeadlineExceeded):
        await rig.call("hang", timeout=0.5)
    assert await rig.call("pid") == pid


async def test_the_producers_timeout_is_the_deadline_in_the_header(rig: Rig, raw: Raw) -> None:
    async with AsyncProducer(rig.broker) as producer:
        before = time.time()
        handle = await producer.submit("work", "work", timeout=20)
        (message,) = rig.broker.messages(QUEUE)
        assert before + 20 - 1 <= message.properties.headers["deadline"] / 1000 <= time.time() + 20
        await raw.channel.purge(QUEUE)
        assert not handle.done()


async def test_a_clock_that_is_ahead_is_told_in_one_line(rig: Rig, raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "quaybridge.node")
    await rig.serve(raw.bridge(4))
    for name in "abc":
        await raw.send(name, timestamp=format_timestamp(time.time() + 300))
    await until(lambda: len(raw.replies) == 3)
    lines = [record.getMessage() for record in caplog.records if "in the future" in record.getMessage()]
    assert len(lines) == 1
    assert "request a was made" in lines[0] or "request b was made" in lines[0]


async def test_a_failure_in_words_is_one(rig: Rig, raw: Raw) -> None:
    """What a stranger sends that cannot be run is answered once, whoever asks."""
    await rig.serve(raw.bridge())
    await raw.send("a", deadline=12)
    await until(lambda: raw.replies and unsettled(rig) == 0)
    assert isinstance(decode_message(raw.replies[0].body), Failure)
    assert not raw.began
