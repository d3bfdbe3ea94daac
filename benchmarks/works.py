"""The works that are measured, a letter each. A work does one round, and gives what it found.

Within a round the systems follow each other, each alone on the machine; every second round goes the other way about.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import Final

from benchmarks.cpu import resident, tree
from benchmarks.order import Measure, Order
from benchmarks.processes import Venue, run_client, workers
from benchmarks.rabbitmqs import Bench
from benchmarks.systems import AIO_PIKA, ANALYSE, CELERY, LIMIT, QUAYBRIDGE, SYSTEMS, System

KIB, MIB = 1024, 1024 * 1024
MOST_ON_THE_WAY = 16 * MIB  # bytes of large payloads that are in flight at once
NODES = (1, 2, 4)
WAITING = 0.02  # seconds of simulated waiting in (d)
PAYLOADS = {"1 KiB": KIB, "64 KiB": 64 * KIB, "1 MiB": MIB, "10 MiB": 10 * MIB}
START_BRIDGES = 8
SETTLED = 3.0  # seconds after which an idle process has the memory it keeps
LARGEST_FILE = 60 * KIB  # of (e): one long file at the end would measure itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long, and how much. `depths`: of the queues of (g); `files` of (e)."""

    seconds: float = 5.0
    warm: float = 3.0
    depths: tuple[int, ...] = (1_000, 100_000)
    files: int = 300


QUICK: Final = Scale(seconds=2.0, warm=2.5, depths=(1_000, 20_000), files=100)
FULL_DEPTHS: Final = (1_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One number: of which work, about what, which quantity, in which unit."""

    work: str
    subject: str
    quantity: str
    unit: str
    value: float


Work = Callable[[Bench, Scale, bool], Iterator[Finding]]


def echo(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(a), (b) and (i): calls of 200 characters, 256 in flight and one at a time, and what CPU time they take."""
    for system in reversed(SYSTEMS) if backwards else SYSTEMS:
        with bench.venue(system) as place, workers(system, place) as pids:
            order = _order(system, place, bench, pids, scale)
            busy = run_client(replace(order, kind="closed" if system.replies else "one_way"), place)
            yield from _rate("a", system.title, "round trips" if system.replies else "requests", busy)
            for name, spent in busy.cpu.items():
                yield Finding(work="i", subject=system.title, quantity=name, unit="µs", value=spent)
            if system.replies:
                lone = run_client(replace(order, kind="lone"), place)
                yield from _latency("b", system.title, lone)


def publish(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(c): publishes of 200 characters, each confirmed, up to 256 under way where the client can; nobody consumes."""
    for system in reversed(SYSTEMS) if backwards else SYSTEMS:
        with bench.venue(system) as place:
            with workers(system, place):
                pass  # it declares the queue
            order = _order(system, place, bench, [], scale)
            yield from _rate("c", system.title, "publishes", run_client(replace(order, kind="publish"), place))


def nodes(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(d): one, two and four nodes, each request 20 ms of waiting."""
    for number in reversed(NODES) if backwards else NODES:
        with bench.venue(QUAYBRIDGE) as place, workers(QUAYBRIDGE, place, number=number) as pids:
            order = _order(QUAYBRIDGE, place, bench, pids, scale)
            found = run_client(
                replace(order, kind="closed", command="sleep", arguments=(WAITING,), in_flight=128), place
            )
            yield from _rate("d", f"{number} node{'s' if number > 1 else ''}", "requests", found)


def analyse(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(e): files of the standard library analysed, by as many processes as there are CPUs."""
    files = _files(scale.files)
    processes = len(os.sched_getaffinity(0))
    for system in (CELERY, ANALYSE) if backwards else (ANALYSE, CELERY):
        with bench.venue(system) as place, workers(system, place, processes=processes) as pids:
            order = _order(system, place, bench, pids, scale)
            found = run_client(replace(order, kind="all", command="summarise", arguments=files, in_flight=64), place)
            yield Finding(work="e", subject=system.title, quantity="files", unit="/s", value=found.rate)


def payloads(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(f): echoes of 1 KiB to 10 MiB."""
    for system in (QUAYBRIDGE, LIMIT) if backwards else (LIMIT, QUAYBRIDGE):
        for name, size in PAYLOADS.items():
            with bench.venue(system) as place, workers(system, place) as pids:
                order = _order(system, place, bench, pids, scale)
                in_flight = min(256, max(4, MOST_ON_THE_WAY // size))
                found = run_client(replace(order, kind="closed", size=size, in_flight=in_flight), place)
                yield Finding(work="f", subject=system.title, quantity=name, unit="/s", value=found.rate)


def standing(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(g): a node that consumes a queue in which so many requests always wait."""
    for depth in reversed(scale.depths) if backwards else scale.depths:
        with bench.venue(QUAYBRIDGE) as place:
            with workers(QUAYBRIDGE, place):
                pass  # it declares the queue
            order = replace(_order(QUAYBRIDGE, place, bench, [], scale), depth=depth)
            run_client(replace(order, kind="fill"), place)
            with workers(QUAYBRIDGE, place) as pids:
                watched = {**order.watched, **_watched(QUAYBRIDGE, pids)}
                found = run_client(replace(order, kind="standing", watched=watched), place)
            subject = f"{depth:,} waiting"
            yield Finding(work="g", subject=subject, quantity="requests", unit="/s", value=found.rate)
            for name in ("node", "bridges", "broker"):
                yield Finding(work="g", subject=subject, quantity=name, unit="µs", value=found.cpu[name])


def start(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """(h): eight bridges from nothing; and what an idle node and an idle SDK bridge have resident."""
    with bench.venue(QUAYBRIDGE) as place:
        found = run_client(Order(kind="start", url=place.url, bridges=START_BRIDGES), place)
        assert found.p50 is not None
        subject = f"{START_BRIDGES} bridges"
        yield Finding(work="h", subject=subject, quantity="start to READY", unit="ms", value=found.p50)
    with bench.venue(QUAYBRIDGE) as place, workers(QUAYBRIDGE, place) as pids:
        sleep(SETTLED)
        (node,) = pids
        yield Finding(work="h", subject="an idle node", quantity="memory", unit="MB", value=resident(node) / 1e6)
        bridge = tree(node)[-1]  # the first below the node is its reaper
        yield Finding(work="h", subject="an idle bridge", quantity="memory", unit="MB", value=resident(bridge) / 1e6)


# What each letter asks for. Several letters are one work: they share its processes.
WORKS: Final[Mapping[str, Work]] = {
    "a": echo, "b": echo, "i": echo, "c": publish, "d": nodes, "e": analyse, "f": payloads, "g": standing, "h": start,
}  # fmt: skip


def guard(bench: Bench, scale: Scale, backwards: bool) -> Iterator[Finding]:
    """What the guard compares: (a), of quaybridge and aio-pika's RPC alone."""
    for system in (AIO_PIKA, QUAYBRIDGE) if backwards else (QUAYBRIDGE, AIO_PIKA):
        with bench.venue(system) as place, workers(system, place) as pids:
            yield from _rate(
                "a", system.title, "round trips", run_client(_order(system, place, bench, pids, scale), place)
            )


def _order(system: System, place: Venue, bench: Bench, pids: Sequence[int], scale: Scale) -> Order:
    return Order(
        kind="closed",
        system=system.name,
        url=place.url,
        seconds=scale.seconds,
        warm=scale.warm,
        watched={"broker": bench.pids, **_watched(system, pids)},
    )


def _watched(system: System, pids: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The processes whose CPU time is told: of quaybridge the node apart from its bridges."""
    trees = [tree(pid) for pid in pids]
    if system.name == QUAYBRIDGE.name:
        return {"node": tuple(pids), "bridges": tuple(pid for each in trees for pid in each[1:])}
    return {"worker": tuple(pid for each in trees for pid in each)}


def _rate(work: str, subject: str, quantity: str, found: Measure) -> Iterator[Finding]:
    yield Finding(work=work, subject=subject, quantity=quantity, unit="/s", value=found.rate)
    yield from _latency(work, subject, found)


def _latency(work: str, subject: str, found: Measure) -> Iterator[Finding]:
    for quantity, value in (("p50", found.p50), ("p99", found.p99)):
        if value is not None:
            yield Finding(work=work, subject=subject, quantity=quantity, unit="ms", value=value)


def _files(number: int) -> tuple[str, ...]:
    """So many files of the standard library, from all over it."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [
        str(path)
        for path in sorted(library.rglob("*.py"))
        if "site-packages" not in path.parts
        and "lib2to3" not in path.parts
        and 2 * KIB < path.stat().st_size < LARGEST_FILE
    ]
    return tuple(found[:: max(1, len(found) // number)][:number])
