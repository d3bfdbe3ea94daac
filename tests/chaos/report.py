"""A run's report, as one table for a person and as JSON for a program."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from rich.table import Table

from chaos.run import Report


def as_table(report: Report) -> Table:
    """The table of one run."""
    verdict = report.verdict
    assert verdict is not None
    table = Table(title=f"Chaos on {report.broker}, seed {report.seed}, {report.seconds:.0f} s", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, count in report.faults.items():
        table.add_row(f"faults: {name}", f"{count:,}")
    table.add_row("requests, confirmed", f"{report.requests:,}, {report.confirmed:,}")
    table.add_row("publishes of unknown outcome, repeated", f"{report.unknown:,}, {report.republished:,}")
    table.add_row("redelivered, tried again", f"{report.redelivered:,}, {report.retried:,}")
    table.add_row("lost", f"{len(verdict.lost):,}")
    table.add_row("unexpected, wrong", f"{len(verdict.unexpected):,}, {len(verdict.wrong):,}")
    table.add_row("duplicated (bound)", f"{verdict.duplicated:,} ({report.bound:,})")
    table.add_row("dead, expired, parked", f"{report.dead:,}, {report.expired:,}, {report.parked:,}")
    for name, seconds in report.recoveries.items():
        if seconds:
            table.add_row(f"recovery from {name}, p50 / max", f"{median(seconds):.2f} / {max(seconds):.2f} s")
    table.add_row("left in queues", ", ".join(f"{name} {count}" for name, count in report.left.items()) or "nothing")
    outcome = "passed" if report.passed else "void" if report.void and verdict.sound else "FAILED"
    table.add_row("outcome", outcome, style="green" if report.passed else "red")
    return table


def problems(report: Report) -> list[str]:
    """What is wrong with a run, one line each: a few of each kind."""
    verdict = report.verdict
    assert verdict is not None
    return [
        *(f"lost: {message_id}" for message_id in verdict.lost[:20]),
        *(f"unexpected: {message_id}" for message_id in verdict.unexpected[:20]),
        *(f"wrong: {what}" for what in verdict.wrong[:20]),
        *(f"void: {what}" for what in report.void),
        *(f"left in {name}: {count}" for name, count in report.left.items()),
        *(f"trouble: {what}" for what in report.troubles),
    ]


def as_json(report: Report) -> dict[str, Any]:
    """All of it."""
    return {**asdict(report), "passed": report.passed, "problems": problems(report)}
