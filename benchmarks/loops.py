"""The loops of a client process: how requests are kept under way while they are counted.

Each lets the system run warm, then counts for some seconds. A request counts where it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from statistics import median, quantiles
from typing import Any

from benchmarks.cpu import cpu_of_each
from benchmarks.order import Measure, Order
from benchmarks.tally import Tally

TALLY_PAUSE = 0.001  # seconds between two looks at the tally
PUBLISHERS = 16  # that publish at once, for what has no replies


class Count:
    """What ended since the last `begin`: how much, and how long each took."""

    def __init__(self, order: Order) -> None:
        self._watched = {**order.watched, "client": (os.getpid(),)}
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.latencies: list[float] = []
        self._cpu = cpu_of_each(self._watched)
        self._started = time.perf_counter()

    def measure(self, count: int | None = None) -> Measure:
        """What was counted; `count` where it was counted otherwise."""
        seconds = time.perf_counter() - self._started
        cpu = cpu_of_each(self._watched)
        number = len(self.latencies) if count is None else count
        latencies = sorted(self.latencies)
        return Measure(
            rate=number / seconds,
            count=number,
            p50=median(latencies) * 1000 if latencies else None,
            p99=quantiles(latencies, n=100)[98] * 1000 if len(latencies) > 1 else None,
            cpu={name: (cpu[name] - self._cpu[name]) / max(number, 1) * 1e6 for name in cpu},
        )


# Asynchronous clients.


async def run(client: Any, order: Order, tally: Tally | None) -> Measure:
    """Do what `order` says with an asynchronous client."""
    count = Count(order)
    match order.kind:
        case "closed" | "lone":
            order = replace(order, in_flight=1) if order.kind == "lone" else order
            argument = order.argument()
            return await _together(lambda: client.call(order.command, argument), order, count)
        case "publish":
            argument = order.argument()
            return await _together(lambda: client.publish(argument), order, count)
        case "one_way":
            assert tally is not None
            return await _one_way(client, order, count, tally)
        case "all":
            return await _all(client, order, count)
        case _:
            raise ValueError(f"a client cannot {order.kind}")


async def _together(action: Callable[[], Awaitable[None]], order: Order, count: Count) -> Measure:
    """Do it again and again, so many at a time."""
    over = False

    async def again() -> None:
        while not over:
            started = time.perf_counter()
            await action()
            count.latencies.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(order.in_flight):
            group.create_task(again())
        await asyncio.sleep(order.warm)
        count.begin()
        await asyncio.sleep(order.seconds)
        measure = count.measure()
        over = True
    return measure


async def _one_way(client: Any, order: Order, count: Count, tally: Tally) -> Measure:
    over = False
    sent = 0

    async def again() -> None:
        nonlocal sent
        while not over:
            if sent - tally.total() < order.in_flight:
                sent += 1
                await client.publish(order.argument())
            else:
                await asyncio.sleep(TALLY_PAUSE)

    async with asyncio.TaskGroup() as group:
        for _ in range(PUBLISHERS):
            group.create_task(again())
        await asyncio.sleep(order.warm)
        done = tally.total()
        count.begin()
        await asyncio.sleep(order.seconds)
        measure = count.measure(tally.total() - done)
        over = True
    return measure


async def _all(client: Any, order: Order, count: Count) -> Measure:
    for argument in order.arguments[: order.in_flight]:
        await client.call(order.command, argument)
    count.begin()
    arguments = iter(order.arguments)

    async def again() -> None:
        for argument in arguments:
            started = time.perf_counter()
            await client.call(order.command, argument)
            count.latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(again() for _ in range(order.in_flight)))
    return count.measure()


# Clients that are not.


def run_in_thread(client: Any, order: Order, tally: Tally | None) -> Measure:
    """Do what `order` says with a client that blocks."""
    count = Count(order)
    match order.kind:
        case "closed" | "lone":
            in_flight = 1 if order.kind == "lone" else order.in_flight
            return _timed(
                _window(client, order.command, itertools.repeat(order.argument()), in_flight, count), order, count
            )
        case "publish":
            return _timed(_publishes(client, order, count), order, count)
        case "one_way":
            assert tally is not None
            done = 0

            def mark() -> None:
                nonlocal done
                done = tally.total()

            publishes = _tallied(client, order, tally)
            _timed(publishes, order, count, mark)
            return count.measure(tally.total() - done)
        case "all":
            for _ in _window(client, order.command, order.arguments[: order.in_flight], order.in_flight, count):
                pass
            count.begin()
            for _ in _window(client, order.command, order.arguments, order.in_flight, count):
                pass
            return count.measure()
        case _:
            raise ValueError(f"a client cannot {order.kind}")


def _timed(steps: Iterator[None], order: Order, count: Count, mark: Callable[[], None] = lambda: None) -> Measure:
    end = time.perf_counter() + order.warm
    while time.perf_counter() < end:
        next(steps)
    mark()
    count.begin()
    end = time.perf_counter() + order.seconds
    while time.perf_counter() < end:
        next(steps)
    return count.measure()


def _window(client: Any, command: str, arguments: Any, in_flight: int, count: Count) -> Iterator[None]:
    """Keep so many under way, and wait for the oldest."""
    waiting: deque[tuple[float, Any]] = deque()
    for argument in arguments:
        waiting.append((time.perf_counter(), client.send(command, argument)))
        if len(waiting) == in_flight:
            yield _take_one(client, waiting, count)
    while waiting:
        yield _take_one(client, waiting, count)


def _take_one(client: Any, waiting: deque[tuple[float, Any]], count: Count) -> None:
    started, sent = waiting.popleft()
    client.wait(sent)
    count.latencies.append(time.perf_counter() - started)


def _publishes(client: Any, order: Order, count: Count) -> Iterator[None]:
    while True:
        started = time.perf_counter()
        client.publish(order.argument())
        count.latencies.append(time.perf_counter() - started)
        yield


def _tallied(client: Any, order: Order, tally: Tally) -> Iterator[None]:
    sent = 0
    while True:
        if sent - tally.total() < order.in_flight:
            sent += 1
            client.publish(order.argument())
        else:
            time.sleep(TALLY_PAUSE)
        yield
