"""The command line: `quaybridge worker | call | publish | dead | conformance | demo`, or `python -m quaybridge`.

Each command imports what it needs when it runs, so that `quaybridge --help` is there at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from quaybridge.command_batch import MEANINGS as BATCH_MEANINGS
from quaybridge.command_batch import batch
from quaybridge.command_call import call
from quaybridge.command_conformance import conformance
from quaybridge.command_dead import dead_letter_commands
from quaybridge.command_demo import demo
from quaybridge.command_publish import publish
from quaybridge.command_worker import worker
from quaybridge.exit_status import MEANINGS


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"quaybridge {version('quaybridge')}")
        raise typer.Exit


def quaybridge(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Programs that crash, leak and hang, in any language, behind a RabbitMQ queue, with nothing lost."""


def application() -> typer.Typer:
    """All commands together."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(epilog=MEANINGS)(quaybridge)
    for command in (demo, worker, call, publish):
        app.command(epilog=MEANINGS)(command)
    app.command(epilog=BATCH_MEANINGS)(batch)
    app.command(epilog=MEANINGS)(conformance)
    app.add_typer(dead_letter_commands(), name="dead")
    return app


def main() -> None:
    """What the program `quaybridge` runs."""
    application()(prog_name="quaybridge")


if __name__ == "__main__":
    main()
