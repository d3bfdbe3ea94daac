"""Map beyond its defaults: as they come, bounded by bytes, and with failures given in their places."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from responder import SERVICE, Responder
from virtual_time import virtual_time

from bridge_protocol.errors import ApplicationError, BadRequest, Code, CodedError, UnknownService
from bridge_protocol.messages import Request
from broker.contract import Delivery
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from producer.reply import Reply


def shuffle(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Answers in an order of its own; what has a number that ends in 3 fails."""
    n = request.args["n"]
    answer = responder.succeed
    if n % 10 == 3:
        asyncio.get_running_loop().call_later(n * 7 % 5, responder.fail, delivery, request, Code.APPLICATION_ERROR, "3")
    else:
        asyncio.get_running_loop().call_later(n * 7 % 5, answer, delivery, request, request.args["n"])


async def served() -> tuple[MemoryBroker, Responder]:
    broker, responder = MemoryBroker(), Responder(shuffle)
    await responder.start(broker)
    return broker, responder


def told(end: Reply | CodedError) -> Any:
    return end.result if isinstance(end, Reply) else type(end)


@virtual_time
async def test_failures_are_given_in_their_places() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        args: list[dict[str, Any]] = [{"n": n} for n in range(30)]
        args[7] = {"n": math.nan}
        ends = [end async for end in producer.map(SERVICE, "echo", args, in_flight=8, on_error="return")]
    expected: list[Any] = list(range(30))
    expected[3] = expected[13] = expected[23] = ApplicationError
    expected[7] = BadRequest
    assert [told(end) for end in ends] == expected


@virtual_time
async def test_as_they_come_each_says_which_it_is() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        args = [{"n": n} for n in range(30)]
        replies = producer.map(SERVICE, "echo", args, in_flight=8, on_error="return", ordered=False)
        ends = [end async for end in replies]
    positions = [end.position for end in ends]
    assert sorted(positions) == list(range(30))  # type: ignore[type-var]
    assert positions != sorted(positions)  # type: ignore[type-var]
    assert all(told(end) == (ApplicationError if end.position in (3, 13, 23) else end.position) for end in ends)


@virtual_time
async def test_as_they_come_the_first_failure_ends_it() -> None:
    broker, _ = await served()
    async with AsyncProducer(broker) as producer:
        seen: list[int] = []

        async def collect() -> None:
            async for reply in producer.map(SERVICE, "echo", [{"n": n} for n in range(30)], in_flight=8, ordered=False):
                seen.append(reply.result)

        with pytest.raises(ApplicationError):
            await collect()
        assert 0 < len(seen) < 30
        for _ in range(2):
            await asyncio.sleep(0)
        assert 3 not in seen
        assert repr(producer).endswith("0 awaiting replies>")


@virtual_time
async def test_the_bytes_in_flight_are_bounded() -> None:
    open_bytes = most = 0

    def later(responder: Responder, delivery: Delivery, request: Request) -> None:
        nonlocal open_bytes, most
        open_bytes += len(delivery.body)
        most = max(most, open_bytes)

        def answer() -> None:
            nonlocal open_bytes
            open_bytes -= len(delivery.body)
            responder.succeed(delivery, request, len(request.args["text"]))

        asyncio.get_running_loop().call_later(1, answer)

    broker, responder = MemoryBroker(), Responder(later)
    await responder.start(broker)
    async with AsyncProducer(broker) as producer:
        sizes = [10, 3000, 900, 90_000, 900, 900, 900, 10] * 3  # one is larger than the bound, and goes alone
        args = ({"text": "x" * size} for size in sizes)
        ends = [reply.result async for reply in producer.map(SERVICE, "echo", args, in_flight_bytes=5000)]
    assert ends == sizes
    assert 90_000 < most < 90_300


@virtual_time
async def test_with_failures_given_a_map_goes_on_where_there_is_no_service() -> None:
    async with AsyncProducer(MemoryBroker()) as producer:
        ends = [end async for end in producer.map("nobody", "echo", [{}, {}, {}], on_error="return")]
    assert [type(end) for end in ends] == [UnknownService] * 3


@virtual_time
async def test_bounds_that_cannot_be_are_told() -> None:
    async with AsyncProducer(MemoryBroker()) as producer:
        with pytest.raises(ValueError, match="in_flight_bytes must be at least 1, not 0"):
            await anext(producer.map(SERVICE, "echo", [], in_flight_bytes=0))
        with pytest.raises(ValueError, match="on_error must be 'raise' or 'return', not 'ignore'"):
            await anext(producer.map(SERVICE, "echo", [], on_error="ignore"))  # type: ignore[call-overload]
