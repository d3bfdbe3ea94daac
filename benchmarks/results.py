"""Results: what all rounds found, with what it was found on. Kept as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.systems import AIO_PIKA, LIMIT, SYSTEMS
from benchmarks.works import Finding

LEAST_LIMIT = 3.0  # times aio-pika's RPC: a machine on which the limit is slower was busy with something else


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity, with a value of each round."""

    work: str
    subject: str
    quantity: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that half of the rounds reached."""
        return median(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All rounds on one RabbitMQ. `load`: the machine's load average before it, which should be near nothing."""

    broker: str
    load: float
    rows: tuple[Row, ...]

    def median(self, work: str, subject: str, quantity: str) -> float | None:
        """The median of one quantity, if it was measured."""
        for row in self.rows:
            if (row.work, row.subject, row.quantity) == (work, subject, quantity):
                return row.median
        return None

    @property
    def void(self) -> str | None:
        """Why its figures count for nothing, or None."""
        limit = self.median("a", LIMIT.title, "round trips")
        peer = self.median("a", AIO_PIKA.title, "round trips")
        if limit is None or peer is None or limit >= LEAST_LIMIT * peer:
            return None
        return (
            f"void: the limit is {limit / peer:.1f} × aio-pika's RPC, below {LEAST_LIMIT:g}: something else was running"
        )


def run_of(broker: str, load: float, findings: Iterable[Finding]) -> Run:
    """The findings of all rounds, put together."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for found in findings:
        values.setdefault((found.work, found.subject, found.quantity, found.unit), []).append(found.value)
    rows = (
        Row(work=work, subject=subject, quantity=quantity, unit=unit, values=tuple(each))
        for (work, subject, quantity, unit), each in values.items()
    )
    return Run(broker=broker, load=load, rows=tuple(sorted(rows, key=lambda row: row.work)))


def machine() -> dict[str, str]:
    """What it is measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "processors": f"{len(os.sched_getaffinity(0))} × {model}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The packages that are measured."""
    return {package: version(package) for system in SYSTEMS for package in system.packages}


def as_json(runs: Iterable[Run], *, rounds: int, scale: str) -> dict[str, Any]:
    """Everything, for `results/latest.json`."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "scale": scale,
        "machine": machine(),
        "versions": versions(),
        "runs": [{**asdict(run), "void": run.void} for run in runs],
    }
