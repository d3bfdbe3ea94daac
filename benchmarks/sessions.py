"""Measures sessions, on RabbitMQ, in about three minutes: `python -m benchmarks.sessions [--rabbitmq NAME]`.

    cost       what a request of a session takes of the node's time and of a client's, as a ratio of one without: one
               node, two echo bridges; 1, 64 and 256 callers, each with a session of its own; in turn
    many       10,000 sessions opened on three nodes, and each asked once more: all must live; the nodes' memory
    restart    of 200 strict ones, how many a restart of the broker ends: none may
    failover   a node is killed: how long until the sessions it had are told, and served by another node

Exits with 1 if a goal is missed, and with 2 where there is nothing to measure on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.processes import BenchmarkError, Venue, worker_process
from benchmarks.rabbitmqs import Bench, bench, names
from benchmarks.systems import QUAYBRIDGE
from bridge_protocol.errors import SessionLost
from producer.async_producer import AsyncProducer
from producer.session import AsyncSession
from worker_node.partitions import HAND_BACK_AGAIN

ROUNDS = 5
SECONDS = 2.0  # of each kind in each round
CALLERS = (1, 64, 256)
MANY = 10_000
RESTARTED = 200
IN_FLIGHT = 256
READY_TIMEOUT = 60.0  # seconds
TIMEOUT = 120.0  # seconds of a request
KIB = 1024
ARGS = {"text": "x" * 200}

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One figure, and the most it may be."""

    text: str
    figure: float
    most: float

    @property
    def met(self) -> bool:
        """Whether it is no more than that."""
        return self.figure <= self.most


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__.partition("\n")[0])
    parser.add_argument("--rabbitmq", metavar="NAME", help="an image; default: the first there is")
    options = parser.parse_args()
    found = [options.rabbitmq] if options.rabbitmq else names(os.environ)
    if not found:
        console.print("nothing to measure on: `make rabbitmq` gets a RabbitMQ")
        return 2
    with bench(found[0]) as where:
        goals = [*_one_node(where), *_three_nodes(where)]
        table = Table(title=f"sessions on {where.version}")
        for column in ("", "figure", "at most", ""):
            table.add_column(column, justify="left" if not column else "right")
        for goal in goals:
            table.add_row(goal.text, f"{goal.figure:,.2f}", f"{goal.most:g}", "met" if goal.met else "missed")
    Console().print(table)
    return 0 if all(goal.met for goal in goals) else 1


@contextmanager
def _nodes(place: Venue, *numbers: int) -> Iterator[dict[str, psutil.Process]]:
    """Nodes with sessions, which serve; by name, their processes."""
    bridge = shlex.join((sys.executable, "-m", "examples.echo"))
    command = [sys.executable, "-m", "quaybridge", "worker", "--service", "echo", "--bridge", bridge, "--bridges", "2"]
    environment = {**place.environment(), "QUAYBRIDGE_SERVICES__ECHO__SESSIONS__ENABLED": "true"}
    with ExitStack() as stack:
        log = stack.enter_context((place.directory / "workers.log").open("a+b"))
        found: dict[str, psutil.Process] = {}
        for number in numbers:
            health = {"QUAYBRIDGE_HEALTH_FILE": str(place.directory / f"alive-{number}")}
            name = f"n{number}"
            process = stack.enter_context(worker_process([*command, "--name", name], {**environment, **health}, log))
            found[name] = psutil.Process(process.pid)
        deadline = time.monotonic() + READY_TIMEOUT
        while not all((place.directory / f"alive-{number}").exists() for number in numbers):
            if time.monotonic() > deadline or not all(process.is_running() for process in found.values()):
                log.seek(0)
                raise BenchmarkError(f"the nodes do not serve:\n{log.read().decode(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield found


# One node.


def _one_node(where: Bench) -> list[Goal]:
    with where.venue(QUAYBRIDGE) as place, _nodes(place, 1) as nodes:
        return [goal for callers in CALLERS for goal in asyncio.run(_cost(place.url, nodes["n1"], callers))]


async def _cost(url: str, node: psutil.Process, callers: int) -> list[Goal]:
    async with AsyncProducer(url) as producer:
        sessions = [producer.session(f"session {number}", service="echo") for number in range(callers)]

        async def plain(_: int) -> None:
            await producer.call("echo", "echo", ARGS, timeout=TIMEOUT)

        async def in_session(number: int) -> None:
            await sessions[number].call("echo", ARGS, timeout=TIMEOUT)

        taken: dict[str, list[tuple[float, float]]] = {"plain": [], "session": []}
        await _loop(plain, callers, node, SECONDS)
        await _loop(in_session, callers, node, SECONDS)
        for _ in range(ROUNDS):
            taken["plain"].append(await _loop(plain, callers, node, SECONDS))
            taken["session"].append(await _loop(in_session, callers, node, SECONDS))
    for kind, found in taken.items():
        seconds, cpu = (median(each[n] for each in found) for n in (0, 1))
        console.print(
            f"{callers} callers, {kind}: {1 / seconds:,.0f}/s, {cpu * 1e6:.0f} µs of the node's CPU time each"
        )
    ratios = [
        (session[0] / plain[0], session[1] / plain[1])
        for plain, session in zip(taken["plain"], taken["session"], strict=True)
    ]
    return [
        Goal(
            text=f"cost, {callers} callers: time of a request, of one without a session",
            figure=median(r[0] for r in ratios),
            most=1.3,
        ),
        Goal(
            text=f"cost, {callers} callers: the node's CPU time, of one without",
            figure=median(r[1] for r in ratios),
            most=1.3,
        ),
    ]


async def _loop(
    call: Callable[[int], Awaitable[None]], callers: int, node: psutil.Process, seconds: float
) -> tuple[float, float]:
    """Each caller calls, one at a time, for so long; seconds per request, and of the node's CPU time."""
    done = 0
    before, begin = sum(node.cpu_times()[:2]), time.perf_counter()

    async def again(number: int) -> None:
        nonlocal done
        while time.perf_counter() < begin + seconds:
            await call(number)
            done += 1

    await asyncio.gather(*map(again, range(callers)))
    return (time.perf_counter() - begin) / done, (sum(node.cpu_times()[:2]) - before) / done


# Three nodes.


def _three_nodes(where: Bench) -> list[Goal]:
    with where.venue(QUAYBRIDGE) as place, _nodes(place, 1, 2, 3) as nodes:
        return asyncio.run(_many(where, place.url, nodes))


async def _many(where: Bench, url: str, nodes: dict[str, psutil.Process]) -> list[Goal]:
    async with AsyncProducer(url) as producer:
        warm = [producer.session(f"warm {number}", service="echo") for number in range(4000)]
        await _all(warm)  # what nodes keep of their latest requests is full now
        before = sum(node.memory_info().rss for node in nodes.values())
        sessions = [producer.session(f"one of many {number}", service="echo") for number in range(MANY)]
        began = time.perf_counter()
        homes = await _all(sessions)
        console.print(f"{MANY:,} sessions opened at {MANY / (time.perf_counter() - began):,.0f}/s")
        growth = sum(node.memory_info().rss for node in nodes.values()) - before
        lost = (await _all(sessions)).count(None)
        chosen = sessions[:RESTARTED]
        await asyncio.to_thread(where.restart)
        ended = (await _all(chosen)).count(None)
        console.print(f"nodes settle for {HAND_BACK_AGAIN:g} s …")
        await asyncio.sleep(HAND_BACK_AGAIN + 1)
        gone = homes[0]
        assert gone is not None
        those = [session for session, home in zip(chosen, homes, strict=False) if home == gone]
        nodes[gone].kill()
        killed = time.perf_counter()
        told = (await _all(those)).count(None)
        await _all(those)
        failover = time.perf_counter() - killed
        console.print(f"{gone} killed: {told} of {len(those)} sessions were told, and served again")
    return [
        Goal(text=f"many: of {MANY:,} sessions on three nodes, lost", figure=lost, most=0),
        Goal(text="many: KiB of the nodes' memory for each", figure=growth / MANY / KIB, most=2),
        Goal(text=f"restart: of {RESTARTED} strict sessions, ended", figure=ended, most=0),
        Goal(text="failover: seconds from a node's SIGKILL until all it had are served", figure=failover, most=10),
    ]


async def _all(sessions: Sequence[AsyncSession]) -> list[str | None]:
    """Ask each of them once; the node that answered, or None if it was lost."""
    homes: list[str | None] = [None] * len(sessions)
    left = iter(range(len(sessions)))

    async def again() -> None:
        for number in left:
            try:
                reply = await sessions[number].call("echo", ARGS, timeout=TIMEOUT)
            except SessionLost:
                continue
            homes[number] = reply.node

    await asyncio.gather(*(again() for _ in range(IN_FLIGHT)))
    return homes


if __name__ == "__main__":
    sys.exit(main())
