"""The tables: for the terminal, and in Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goals import goals
from benchmarks.results import Row, Run

TITLES = {
    "a": "(a) 200-character echo, 256 in flight",
    "b": "(b) A lone call",
    "c": "(c) One-way publish, confirmed",
    "d": "(d) Nodes, each request 20 ms of waiting",
    "e": "(e) CPU-bound work, as many processes as CPUs",
    "f": "(f) Payloads: round trips",
    "g": "(g) A queue that stays so long",
    "h": "(h) Cold start, and memory of what is idle",
    "i": "(i) CPU time per request of (a)",
}
_COLUMNS = ("", "", "median", "least … most")


def show(runs: Sequence[Run], console: Console) -> None:
    """Print everything."""
    for run in runs:
        for title, rows in _sections(run):
            table = Table(*_COLUMNS, title=f"{title}: {run.broker}", title_justify="left")
            for row in rows:
                table.add_row(row.subject, row.quantity, _figure(row.median, row.unit), _spread(row))
            console.print(table)
        reached = list(_reached(run))
        if reached:
            table = Table("goal", "wanted", "reached", "", title=f"Goals: {run.broker}", title_justify="left")
            for cells in reached:
                table.add_row(*cells)
            console.print(table)
        if run.void is not None:
            console.print(f"[bold red]{run.void}[/]")


def markdown(results: dict[str, Any], runs: Sequence[Run]) -> str:
    """The same as a page's part: the machine, the goals, and every table."""
    machine = results["machine"]
    lines = [
        f"Measured {results['when']} on {machine['processors']}, {machine['memory']}, {machine['system']}, "
        f"Python {machine['python']}; {results['rounds']} rounds, medians.",
        "",
        "Versions: " + ", ".join(f"{package} {number}" for package, number in results["versions"].items()) + ".",
        "",
    ]
    for run in runs:
        lines += [f"### {run.broker}", "", f"Load of the machine before: {run.load:.2f}.", ""]
        if run.void is not None:
            lines += [f"**{run.void}**", ""]
        if reached := list(_reached(run)):
            lines += _markdown_table(("goal", "wanted", "reached", ""), reached)
        for title, rows in _sections(run):
            cells = [(row.subject, row.quantity, _figure(row.median, row.unit), _spread(row)) for row in rows]
            lines += [f"**{title}**", "", *_markdown_table(_COLUMNS, cells)]
    return "\n".join(lines)


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        *("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)),
        "",
    ]


def _sections(run: Run) -> Iterator[tuple[str, list[Row]]]:
    for work, title in TITLES.items():
        if rows := [row for row in run.rows if row.work == work]:
            yield title, sorted(rows, key=lambda row: _first(rows, row))


def _first(rows: list[Row], row: Row) -> tuple[int, int]:
    """Subjects in the order they came in the first round, their quantities together."""
    subjects = [each.subject for each in rows]
    return subjects.index(row.subject), rows.index(row)


def _reached(run: Run) -> Iterator[tuple[str, str, str, str]]:
    for goal in goals():
        if (figure := goal.reached(run)) is not None:
            wanted = f"{'≤' if goal.most else '≥'} {goal.wanted:g} {goal.unit}"
            verdict = "reached" if goal.met(figure) else "missed"
            yield f"({goal.work}) {goal.text}", wanted, _figure(figure, goal.unit), verdict


def _figure(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def _spread(row: Row) -> str:
    if len(row.values) < 2:
        return ""
    return f"{_figure(min(row.values), '').strip()} … {_figure(max(row.values), '').strip()}"
