"""The goals: ratios in one run, on one machine. Absolute numbers say more about the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.results import Run
from benchmarks.systems import AIO_PIKA, CELERY, DRAMATIQ, LIMIT, QUAYBRIDGE, TASKIQ, System
from benchmarks.works import PAYLOADS, START_BRIDGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is wanted: `reached` gives the figure, None where it was not measured. `most`: less is better."""

    work: str
    text: str
    wanted: float
    reached: Callable[[Run], float | None]
    unit: str = "×"
    most: bool = False

    def met(self, figure: float) -> bool:
        """Whether `figure` is good enough."""
        return figure <= self.wanted if self.most else figure >= self.wanted


def _ratio(
    work: str, quantity: str, over: str, *, under: str = QUAYBRIDGE.title, of: str | None = None
) -> Callable[[Run], float | None]:
    def reached(run: Run) -> float | None:
        ours, theirs = run.median(work, under, quantity), run.median(work, over, of or quantity)
        return None if ours is None or not theirs else ours / theirs

    return reached


def _value(work: str, subject: str, quantity: str) -> Callable[[Run], float | None]:
    return lambda run: run.median(work, subject, quantity)


def _compared(work: str, quantity: str, system: System, wanted: float, text: str, *, of: str | None = None) -> Goal:
    return Goal(work=work, text=text, wanted=wanted, reached=_ratio(work, quantity, system.title, of=of))


def _spread(run: Run) -> float | None:
    """How far a request's cost in the node lies from the one at the shortest queue, at most, as a fraction."""
    costs = [row.median for row in run.rows if row.work == "g" and row.quantity == "node"]
    return max(abs(cost / costs[0] - 1) for cost in costs) if len(costs) > 1 else None


def goals() -> Iterator[Goal]:
    """All of them, in the order of the works."""
    yield _compared("a", "round trips", CELERY, 15, "round trips, of Celery's")
    yield _compared("a", "round trips", AIO_PIKA, 3, "round trips, of aio-pika RPC's")
    yield _compared("a", "round trips", LIMIT, 0.65, "round trips, of the limit's")
    yield Goal(
        work="b",
        text="a lone call's p50, of the limit's",
        wanted=1.15,
        most=True,
        reached=_ratio("b", "p50", LIMIT.title),
    )
    yield _compared("c", "publishes", LIMIT, 0.9, "publishes, of bare pika's")
    yield _compared("c", "publishes", DRAMATIQ, 5, "publishes, of Dramatiq's")
    yield _compared("c", "publishes", TASKIQ, 2, "publishes, of Taskiq's")
    yield Goal(
        work="d", text="4 nodes, of 1 node", wanted=3.8, reached=_ratio("d", "requests", "1 node", under="4 nodes")
    )
    yield _compared("e", "files", CELERY, 1, "CPU-bound work, of Celery's")
    for name in PAYLOADS:
        yield _compared("f", name, LIMIT, 0.7, f"{name}, of the limit's")
    yield Goal(
        work="g",
        text="a request's cost in the node, by the queue's length",
        wanted=0.1,
        most=True,
        unit="±",
        reached=_spread,
    )
    subject = f"{START_BRIDGES} bridges"
    yield Goal(
        work="h",
        text=f"{subject}, start to READY",
        wanted=400,
        most=True,
        unit="ms",
        reached=_value("h", subject, "start to READY"),
    )
    yield Goal(
        work="h", text="an idle node", wanted=45, most=True, unit="MB", reached=_value("h", "an idle node", "memory")
    )
    yield Goal(
        work="h",
        text="an idle bridge",
        wanted=15,
        most=True,
        unit="MB",
        reached=_value("h", "an idle bridge", "memory"),
    )
    yield Goal(
        work="i",
        text="CPU of the node per request",
        wanted=110,
        most=True,
        unit="µs",
        reached=_value("i", QUAYBRIDGE.title, "node"),
    )
