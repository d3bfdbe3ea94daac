"""Requests for later and requests of more weight, on the embedded broker, by a clock of the test's own."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from responder import SERVICE, Responder
from virtual_time import virtual_time

from bridge_protocol.errors import BadRequest, DeadlineExceeded, UnknownService
from bridge_protocol.messages import Request
from bridge_protocol.topology import MAX_DELAY
from broker.contract import Channel, ConnectionRefused, Delivery
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer

EPOCH = 1_714_564_800.0  # where the test's time of day begins


def now() -> float:
    return asyncio.get_running_loop().time()


class Served:
    """The embedded broker, a responder that notes when each request came, and a producer."""

    def __init__(self) -> None:
        self.came: dict[Any, float] = {}
        self.broker = MemoryBroker()
        self.responder = Responder(self._answer)
        self.began = now()

    async def start(self, **options: Any) -> AsyncProducer:
        await self.responder.start(self.broker)
        return AsyncProducer(self.broker, wall=lambda: EPOCH + now() - self.began, **options)

    def _answer(self, responder: Responder, delivery: Delivery, request: Request) -> None:
        self.came[request.args["n"]] = now() - self.began
        if request.command != "silence":
            responder.succeed(delivery, request, None)


@pytest.mark.parametrize("delay", [0, 0.4, 0.6, 1, 2.5, 59.7, 3600, 100_000.2, MAX_DELAY])
def test_a_delay_is_exact_to_a_second(delay: float) -> None:
    @virtual_time
    async def run() -> None:
        served = Served()
        async with await served.start() as producer:
            handle = await producer.submit(SERVICE, "echo", {"n": 1}, delay=delay, timeout=5)
            await handle
            assert abs(served.came[1] - delay) < 0.6

    run()


@virtual_time
async def test_a_moment_is_a_delay_too() -> None:
    served = Served()
    async with await served.start() as producer:
        start = datetime.fromtimestamp(EPOCH, UTC)
        moments: list[tuple[float, datetime | float]] = [
            (90, start + timedelta(seconds=90)),
            (7200, (start + timedelta(hours=2)).astimezone(timezone(timedelta(hours=-5)))),
            (30, EPOCH + 30),
            (0, EPOCH - 0.5),
        ]
        for wanted, at in moments:
            await producer.publish(SERVICE, "note", {"n": wanted}, at=at)
        await asyncio.sleep(8000)
    responder = {request.args["n"]: delivery for delivery, request in served.responder.seen}
    assert set(responder) == {90, 7200, 30, 0}


@virtual_time
async def test_the_timeout_counts_from_when_it_is_due() -> None:
    served = Served()
    async with await served.start() as producer:
        handle = await producer.submit(SERVICE, "silence", {"n": 1}, delay=100, timeout=5)
        with pytest.raises(DeadlineExceeded):
            await handle
        assert 104 < now() - served.began < 107
        (delivery, request), *_ = served.responder.seen
        assert request.deadline == delivery.properties.headers["deadline"] == int((EPOCH + 105) * 1000)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"delay": -1}, "a delay must be 0 … 131,071 seconds (36 h), not -1"),
        ({"delay": MAX_DELAY + 1}, "a delay must be 0 … 131,071 seconds (36 h), not 131072"),
        ({"delay": math.nan}, "a delay must be 0 … 131,071 seconds (36 h), not nan"),
        ({"delay": math.inf}, "a delay must be 0 … 131,071 seconds (36 h), not inf"),
        ({"delay": True}, "a delay must be 0 … 131,071 seconds (36 h), not True"),
        ({"delay": "5"}, "a delay must be 0 … 131,071 seconds (36 h), not '5'"),
        ({"delay": 1, "at": EPOCH}, "give a delay or a moment (at), not both"),
        ({"at": datetime(2024, 5, 1)}, "at must have a time zone: datetime.now(UTC) + timedelta(hours=1), for example"),  # noqa: DTZ001
        ({"at": "tomorrow"}, "at must be a datetime or seconds since 1970, not 'tomorrow'"),
        ({"at": EPOCH - 60}, "at must not have passed, and that was 60 s ago"),
        ({"at": EPOCH + MAX_DELAY + 1}, "at must be at most 131,071 s (36 h) from now, not 131,072 s"),
        (
            {"at": EPOCH * 1000},
            "at must be at most 131,071 s (36 h) from now, not 1,712,850,235,200 s; are those",
        ),
        ({"priority": 10}, "a priority must be a whole number, 0 … 9, not 10"),
        ({"priority": -1}, "a priority must be a whole number, 0 … 9, not -1"),
        ({"priority": 1.5}, "a priority must be a whole number, 0 … 9, not 1.5"),
        ({"priority": True}, "a priority must be a whole number, 0 … 9, not True"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(wrong: dict[str, Any], told: str) -> None:
    @virtual_time
    async def run() -> None:
        served = Served()
        async with await served.start() as producer:
            for send in (producer.submit, producer.publish):
                with pytest.raises(BadRequest) as raised:
                    await send(SERVICE, "echo", {"n": 1}, **wrong)
                assert raised.value.message.startswith(told)
                assert "\n" not in raised.value.message
        assert served.came == {}

    run()


@virtual_time
async def test_a_service_that_is_not_there_is_told_before_it_waits() -> None:
    served = Served()
    async with await served.start() as producer:
        with pytest.raises(UnknownService, match="no queue for service 'nobody': start a worker that serves it first"):
            await producer.publish("nobody", "echo", delay=60)
        assert (await producer.submit(SERVICE, "echo", {"n": 1})).done() is False  # its own channel is well
    async with AsyncProducer(MemoryBroker()) as producer:
        with pytest.raises(UnknownService):
            await producer.submit("nobody", "echo", delay=60)


async def refused(*_: object, **__: object) -> Channel:
    raise ConnectionRefused("down")


def test_what_waited_for_a_connection_waits_only_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_time(waited)(monkeypatch)


async def waited(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served()
    async with await served.start() as producer:
        await producer.publish(SERVICE, "note", {"n": 0}, delay=1)  # it has seen the service
        await asyncio.sleep(2)
        with monkeypatch.context() as down:
            down.setattr(served.broker, "open", refused)
            assert producer.sender.link.channel is not None
            producer.sender.link.rebuild("the test has it so")
            await asyncio.sleep(0.01)
            sending = asyncio.ensure_future(producer.submit(SERVICE, "echo", {"n": 1}, delay=60, timeout=50))
            await asyncio.sleep(20)
        await (await sending)
        assert abs(served.came[1] - 62) < 1


@virtual_time
async def test_a_priority_is_on_the_message() -> None:
    served = Served()
    async with await served.start() as producer:
        await producer.call(SERVICE, "echo", {"n": 1}, priority=7)
        await producer.publish(SERVICE, "note", {"n": 2}, priority=0, delay=2)
        async for _ in producer.map(SERVICE, "echo", [{"n": 3}], priority=9):
            pass
        await asyncio.sleep(3)
        await producer.call(SERVICE, "echo", {"n": 4})
    priorities = {request.args["n"]: delivery.properties.priority for delivery, request in served.responder.seen}
    assert priorities == {1: 7, 2: 0, 3: 9, 4: None}
