"""A worker that is told to stop: idle, busy, with more waiting, while it starts, and while its broker is of no help.

Each time it has to end in time and with status 0, nothing may be lost, and nothing may run twice because of it.
(Busy, and the second signal while all is well: test_command_line. As process 1 of a container: test_compose.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from command_line import PATIENCE, Ended, Running, running
from relay import Relay, relay
from soak import SOAK
from vhost import Vhost

from bridge_protocol.topology import request_queue
from broker.address import parse_address
from broker.amqp import AmqpBroker
from producer.async_producer import AsyncProducer

SERVICE = "note"
GRACE = 2.0  # seconds: the drain timeout of these workers
# Beyond the grace: ending bridges, saying goodbye to a broker that does not answer, and the interpreter's own end.
MORE = 8.0

BRIDGE = """
import os, sys, time
from bridge_sdk import Bridge

time.sleep(float(sys.argv[2]))
bridge = Bridge()
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bridge.command
def note(number: int, seconds: float = 0.0, gate: str = "") -> int:
    os.write(log, f"{number}\\n".encode())
    time.sleep(seconds)
    while gate and not os.path.exists(gate):
        time.sleep(0.05)
    return number

bridge.serve()
"""


class Stage:
    """A vhost, a program for bridges, and the log of what they ran."""

    def __init__(self, vhost: Vhost, directory: Path) -> None:
        self.vhost = vhost
        self.log = directory / "log"
        self.log.touch()
        self._program = directory / "bridge.py"
        self._program.write_text(BRIDGE)

    def worker(self, url: str | None = None, *, starts_in: float = 0.0) -> tuple[str, ...]:
        """The command of a worker; without `url` it reaches the broker directly."""
        bridge = f"{sys.executable} {self._program} {self.log} {starts_in}"
        service = ("--service", SERVICE, "--bridge", bridge, "--bridges", "1")
        return ("worker", "--broker", url or self.vhost.url, *service)

    def ran(self) -> Counter[int]:
        """How often each number was run."""
        return Counter(map(int, self.log.read_text().split()))

    async def has_run(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while number not in self.ran():
                await asyncio.sleep(0.01)

    async def ready(self) -> int:
        """How many requests wait in the queue."""
        channel = await AmqpBroker([parse_address(self.vhost.url)]).open("look", on_closed=lambda _: None)
        try:
            return await channel.queue_length(request_queue(SERVICE))
        finally:
            await channel.close()


ENVIRON = {"QUAYBRIDGE_NODE__DRAIN_TIMEOUT": f"{GRACE}"}


@pytest.fixture
def stage(rabbitmq_vhost: Vhost, tmp_path: Path) -> Stage:
    return Stage(rabbitmq_vhost, tmp_path)


async def stopped(worker: Running, *, within: float) -> Ended:
    """Send SIGTERM; how it ended, which must be well and in time, with all its bridges."""
    bridges = psutil.Process(worker.process.pid).children(recursive=True)
    began = time.monotonic()
    worker.process.terminate()
    ended = await worker.ended()
    took = time.monotonic() - began
    assert (ended.status, "Traceback" in ended.err) == (0, False), ended.err
    assert took < within, f"{took:.1f} s\n{ended.err}"
    assert not any(bridge.is_running() for bridge in bridges)
    return ended


def through(wire: Relay, vhost: Vhost) -> str:
    """The vhost's URL by way of the relay."""
    address = parse_address(vhost.url)
    return f"amqp://{address.user}:{address.password}@127.0.0.1:{wire.port}/{quote(address.vhost, safe='')}"


async def test_idle(stage: Stage) -> None:
    async with running(*stage.worker(), environ=ENVIRON) as worker:
        await worker.said("serving")
        await stopped(worker, within=MORE)


async def test_while_its_bridge_starts(stage: Stage) -> None:
    async with running(*stage.worker(starts_in=600), environ=ENVIRON) as worker:
        async with asyncio.timeout(PATIENCE):
            while len(psutil.Process(worker.process.pid).children()) < 2:  # its reaper, and then the bridge
                await asyncio.sleep(0.01)
        await stopped(worker, within=MORE)


async def test_what_waits_is_handed_back_and_what_runs_is_finished_and_nothing_runs_twice(stage: Stage) -> None:
    async with running(*stage.worker(), environ=ENVIRON) as worker, AsyncProducer(stage.vhost.url) as producer:
        await worker.said("serving")
        # Short ones first, until it takes some ahead; those are to be handed back.
        numbers = count()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            await producer.call(SERVICE, "note", {"number": next(numbers)})
        first = next(numbers)
        handles = [await producer.submit(SERVICE, "note", {"number": first, "seconds": 1.0})]
        handles += [await producer.submit(SERVICE, "note", {"number": next(numbers)}) for _ in range(50)]
        await stage.has_run(first)
        worker.process.terminate()
        async with running(*stage.worker(), environ=ENVIRON) as successor:
            replies = await asyncio.gather(*handles)
            assert (await worker.ended()).status == 0
            await stopped(successor, within=MORE)
        assert [reply.result for reply in replies] == list(range(first, first + 51))
        assert replies[0].node != replies[-1].node
        assert any(reply.redelivered for reply in replies), "nothing was handed back: it shows nothing"
    assert stage.ran() == Counter(range(first + 51))


async def test_what_does_not_finish_in_time_is_handed_back(stage: Stage) -> None:
    async with running(*stage.worker(), environ=ENVIRON) as worker, AsyncProducer(stage.vhost.url) as producer:
        await worker.said("serving")
        await producer.publish(SERVICE, "note", {"number": 1, "seconds": 600.0})
        await stage.has_run(1)
        await stopped(worker, within=GRACE + MORE)
    async with asyncio.timeout(PATIENCE):
        while await stage.ready() != 1:
            await asyncio.sleep(0.1)


async def test_while_it_connects_again(stage: Stage) -> None:
    """The broker is gone, as far as it can tell; what ran is another's by then."""
    direct = parse_address(stage.vhost.url)
    async with relay(direct.host, direct.port) as wire, AsyncProducer(stage.vhost.url) as producer:
        async with running(*stage.worker(through(wire, stage.vhost)), environ=ENVIRON) as worker:
            await worker.said("serving")
            handle = await producer.submit(SERVICE, "note", {"number": 1, "seconds": 1.0})
            await stage.has_run(1)
            wire.target = ("127.0.0.1", 1)  # where nobody listens
            wire.cut()
            await worker.said("cannot connect")
            await stopped(worker, within=GRACE + MORE)
        async with running(*stage.worker(), environ=ENVIRON) as successor:
            reply = await handle
            assert (reply.result, reply.redelivered) == (1, True)
            await stopped(successor, within=MORE)
    assert stage.ran() == {1: 2}  # for the connection was lost, not because of the drain


@pytest.mark.parametrize("signals", [1, 2] if SOAK else [1])
async def test_while_its_broker_answers_nothing(stage: Stage, signals: int) -> None:
    """The network swallows everything, and the worker has not noticed yet. With a second signal it is quick."""
    direct = parse_address(stage.vhost.url)
    async with (
        relay(direct.host, direct.port) as wire,
        AsyncProducer(stage.vhost.url) as producer,
        running(*stage.worker(through(wire, stage.vhost)), environ=ENVIRON) as worker,
    ):
        await worker.said("serving")
        await producer.publish(SERVICE, "note", {"number": 1, "seconds": 600.0})
        await stage.has_run(1)
        wire.stall()
        if signals == 2:
            worker.process.terminate()
            await worker.said("draining")
        await stopped(worker, within=MORE + (GRACE if signals == 1 else 0))
    assert stage.ran() == {1: 1}


@pytest.fixture
def alarm(stage: Stage) -> Iterator[Callable[[bool], None]]:
    """Raises the broker's disk alarm, and ends it."""
    control = stage.vhost.rabbitmq.control
    before = control("eval", "rabbit_disk_monitor:get_disk_free_limit().").strip()

    def switch(on: bool) -> None:
        control("set_disk_free_limit", f"{10**15}" if on else before)

    yield switch
    switch(False)


async def test_while_an_alarm_blocks_its_replies(stage: Stage, alarm: Callable[[bool], None]) -> None:
    """It is done, and cannot say so: handed back within the grace, and answered by another once that is possible."""
    async with AsyncProducer(stage.vhost.url) as producer:
        async with running(*stage.worker(), environ=ENVIRON) as worker:
            await worker.said("serving")
            gate = stage.log.with_name("gate")
            handle = await producer.submit(SERVICE, "note", {"number": 1, "gate": str(gate)}, timeout=PATIENCE)
            await stage.has_run(1)
            await asyncio.to_thread(alarm, True)
            gate.touch()
            await worker.said("takes no messages for now: low on disk")
            await stopped(worker, within=GRACE + MORE)
        async with running(*stage.worker(), environ=ENVIRON) as successor:
            await successor.said("serving")
            await asyncio.to_thread(alarm, False)
            assert (await handle).result == 1
            await stopped(successor, within=MORE)
    assert await stage.ready() == 0


async def test_any_number_of_signals_is_status_0(stage: Stage) -> None:
    """To the very end: one that comes when all is done must not turn that into a failure."""
    async with running(*stage.worker(), environ=ENVIRON) as worker:
        await worker.said("serving")

        async def pester() -> None:
            # Past asyncio, which would look whether it has ended, and take its status away from who waits for it.
            while worker.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGTERM)
                await asyncio.sleep(0.001)

        pestering = asyncio.create_task(pester())
        ended = await worker.ended()
        await pestering
    assert (ended.status, "Traceback" in ended.err) == (0, False), ended.err
