"""`quaybridge demo`: the main job on real input, and the proof that it was done right."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quaybridge.exit_status import ExitStatus, explained
from quaybridge.logs import LogLevel, log_to_stderr

if TYPE_CHECKING:
    from quaybridge.broker_choice import Choice
    from quaybridge.demo import Outcome, Plan


def demo(
    broker: Annotated[
        str, typer.Option(metavar="auto|memory|URL", help="Where to run: the best found here, embedded, or a RabbitMQ.")
    ] = "auto",
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Worker nodes.")] = 2,
    bridges: Annotated[int, typer.Option(min=1, max=256, help="Bridge subprocesses in each node.")] = 2,
    corpus: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Whose .py files to analyse. Default: the standard library's."),
    ] = None,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Half-way, kill a bridge and (with RabbitMQ) a node with SIGKILL.")
    ] = False,
    dspy: Annotated[
        bool,
        typer.Option("--dspy", help="Instead: DSPy programs in sessions answer questions, on the embedded broker."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Analyse every Python file of a corpus through real bridges, and prove the result.

    The same analysis is done a second time, in this process and without a queue: exit status 1 if the two differ.
    """
    # What was started has to be stopped, by whatever signal it ends, also where a shell's `&` had it ignore SIGINT.
    # SIGTERM is as SIGINT, and so for whoever handles that at the time: asyncio cancels its main task then, where an
    # exception of a handler's own would hit any line it runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    with explained():
        from quaybridge.broker_choice import chosen_broker
        from quaybridge.demo import Plan, python_files, standard_library

        log_to_stderr(LogLevel.ERROR)
        if dspy:
            if broker not in ("auto", "memory"):
                raise typer.BadParameter("--dspy is shown on the embedded broker: leave --broker out")
            _answer_questions(nodes, as_json=as_json)
            return
        if broker not in ("auto", "memory"):
            _check_url(broker)
        directory = corpus or standard_library()
        files = python_files(directory)
        show = _Screen(quiet=as_json)
        if broker == "auto":
            show.line("looking for a broker …")
        with chosen_broker(broker) as choice:
            show.line(f"broker: {choice.described} ({choice.why})")
            show.line(f"{len(files):,} files of {directory}, {nodes} nodes × {bridges} bridges")
            plan = Plan(url=choice.url, nodes=nodes, bridges=bridges, corpus=directory, chaos=chaos)
            verified = _run(plan, choice, files, show, as_json=as_json)
    if not verified:
        raise typer.Exit(ExitStatus.FAILED)


def _answer_questions(nodes: int, *, as_json: bool) -> None:
    from dataclasses import asdict

    from quaybridge.dspy_demo import answer_by_programs

    answered = [asdict(one) for one in asyncio.run(answer_by_programs(nodes))]
    if as_json:
        typer.echo(json.dumps(answered))
        return
    columns = list(answered[0])
    widths = [
        max(len(one[column]) for one in (*answered, dict(zip(columns, columns, strict=True)))) for column in columns
    ]
    for line in (columns, *(one.values() for one in answered)):
        typer.echo("  ".join(f"{value:<{width}}" for value, width in zip(line, widths, strict=True)).rstrip())
    sessions = len({one["session"] for one in answered})
    served = len({one["node"] for one in answered})
    typer.echo(f"{len(answered)} questions answered by {sessions} programs in {sessions} sessions over {served} nodes")


def _check_url(url: str) -> None:
    from broker.address import parse_addresses
    from quaybridge.settings import SettingsError

    try:
        parse_addresses(url)
    except ValueError as error:
        raise SettingsError(f"--broker: {error}") from None


def _run(plan: Plan, choice: Choice, files: list[str], show: _Screen, *, as_json: bool) -> bool:
    from quaybridge.demo import analyse_by_bridges, analyse_here

    with show.progress("through bridges", len(files)) as advance:
        outcome = asyncio.run(analyse_by_bridges(plan, files, advance))
    for done in outcome.chaos:
        show.line(f"chaos: {done}")
    with show.progress("in this process", len(files)) as advance:
        expected = analyse_here(files, advance)
    differing = [path for path in files if outcome.findings.get(path) != expected[path]]
    _report(plan, choice, outcome, verified=not differing, as_json=as_json)
    for path in differing[:5]:
        sys.stderr.write(f"differs: {path}\n")
    return not differing


def _report(plan: Plan, choice: Choice, outcome: Outcome, *, verified: bool, as_json: bool) -> None:
    from quaybridge.demo import functions

    figures: dict[str, object] = {
        "broker": choice.described,
        "nodes": plan.nodes,
        "bridges": plan.bridges,
        "files": len(outcome.findings),
        "functions": functions(outcome.findings),
        "failures": outcome.failures,
        "redelivered": outcome.redelivered,
        "requests_per_second": round(outcome.rate, 1),
        "p50_ms": round(outcome.percentile(50) * 1000, 2),
        "p99_ms": round(outcome.percentile(99) * 1000, 2),
        "verified": verified,
    }
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        if name != "verified":
            text = f"{value:,}" if isinstance(value, int | float) else str(value)
            typer.echo(f"{_LABELS.get(name, name):<12} {text}")
    if verified:
        typer.echo("verified: identical to the in-process run")
    else:
        typer.echo("NOT verified: the bridges' results differ from the in-process run")


_LABELS = {"requests_per_second": "requests/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "redelivered": "redeliveries"}


class _Screen:
    """What a person sees meanwhile: on stderr, so that stdout holds the result alone."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def line(self, text: str) -> None:
        """Say one thing."""
        if not self._quiet:
            sys.stderr.write(text + "\n")

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar that moves each time the function it gives is called; nothing where nobody would see it move."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        if self._quiet or not console.is_terminal:
            yield _ignore
            return
        columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)


def _ignore() -> None:
    """Nobody looks."""
