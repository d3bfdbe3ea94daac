"""`quaybridge conformance`: whether a bridge does what the protocol asks, check by check."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from quaybridge.exit_status import ExitStatus, explained

if TYPE_CHECKING:
    from rich.table import Table

    from quaybridge.conformance.report import Report


def conformance(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND…", help="The bridge: a program and its arguments.", show_default=False),
    ],
    commands: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            metavar="[ROLE=]NAME",
            help="Which of its commands is the one that gives back its args (echo); or sleep=, count=, log=: see "
            "docs/bridges.md. Default: those of that name.",
        ),
    ] = None,
    variables: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="A variable the bridge needs.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="How long each reply, and each end, may take.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of the table.")] = False,
) -> None:
    """Take a bridge through a checklist, as a node would drive it, and print what passed, what failed and the fix.

    Exit status 0: everything that applies passed. 1: something failed. 5: it cannot be started, or does not answer.
    """
    with explained():
        roles = _roles(commands or ())
        environment = dict(_pair(given, "--env", "NAME=VALUE") for given in variables or ())
        report = _check(command, environment, roles, timeout)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    elif report.problem is not None:
        typer.echo(f"conformance: {report.problem}", err=True)
    else:
        _print(report)
    if report.problem is not None:
        raise typer.Exit(ExitStatus.NO_BRIDGE)
    if not report.conforms:
        raise typer.Exit(ExitStatus.FAILED)


def _roles(commands: list[str] | tuple[()]) -> dict[str, str]:
    from quaybridge.conformance.bench import ROLES

    roles = dict(_pair(given if "=" in given else f"echo={given}", "--command", "ROLE=NAME") for given in commands)
    for role in roles:
        if role not in ROLES:
            raise typer.BadParameter(f"--command: {role!r} is none of {', '.join(ROLES)}")
    return roles


def _pair(given: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{option} {given!r}: write {form}")
    return name, value


def _check(command: list[str], environment: dict[str, str], roles: dict[str, str], timeout: float) -> Report:
    import os

    from quaybridge.conformance.checklist import check_bridge
    from quaybridge.conformance.report import Report
    from quaybridge.program import program_problem
    from worker_node.settings import ServiceSettings

    if not command[0] or any("\0" in word for word in command):
        return Report(command=command, problem="the command is empty: give a program and its arguments after --")
    service = ServiceSettings(name="conformance", command=tuple(command), environment=environment)
    if problem := program_problem(service, os.environ):
        return Report(command=command, problem=problem)
    with _status() as on_check:
        return asyncio.run(
            check_bridge(command, environment=environment, commands=roles, timeout=timeout, on_check=on_check)
        )


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Where somebody looks at stderr: what is being checked."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda title: None
        return
    with console.status("") as status:
        yield lambda title: status.update(f"checking: {title}")


def _print(report: Report) -> None:
    from rich.console import Console

    from quaybridge.conformance.report import Status

    said = {
        Status.PASSED: "passed",
        Status.FAILED: "failed",
        Status.NOT_CLAIMED: "not claimed",
        Status.NOT_RUN: "not run, for lack of a handshake",
    }
    console = Console(file=sys.stdout, highlight=False)
    console.print(_table(report))
    counted = [(status, sum(row.status is status for row in report.rows)) for status in Status]
    verdict = "conforms" if report.conforms else "does NOT conform"
    counts = ", ".join(f"{count} {said[status]}" for status, count in counted if count)
    console.print(f"{verdict}: {counts}", markup=False)


def _table(report: Report) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from quaybridge.conformance.report import Status

    styles = {Status.PASSED: "green", Status.FAILED: "bold red", Status.NOT_CLAIMED: "dim", Status.NOT_RUN: "dim"}
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("what was seen")
    for row in report.rows:
        if row.status is Status.NOT_RUN:
            continue  # they are counted below
        seen = Text(row.detail, style="dim" if row.status is Status.NOT_CLAIMED else "")
        if row.fix is not None:
            seen.append(f"\nfix: {row.fix}", style="yellow")
        table.add_row(row.title, Text(row.status.value, style=styles[row.status]), seen)
    return table
