"""The command line: `quaybridge worker | call | publish | batch | conformance | dead | demo`.

Each command imports what it needs when it runs, so that `quaybridge --help` is there at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from quaybridge.exit_status import MEANINGS
from quaybridge.help_text import help_text

_MODULES = {
    "demo": "quaybridge.command_demo",
    "worker": "quaybridge.command_worker",
    "call": "quaybridge.command_call",
    "publish": "quaybridge.command_publish",
    "batch": "quaybridge.command_batch",
    "conformance": "quaybridge.command_conformance",
    "dead": "quaybridge.command_dead",
}


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


def application(asked: str | None = None) -> typer.Typer:
    """The command that is asked for; all together where there is none of that name.

    Only that one, since a worker lives long, and keeps what it imports.
    """
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(epilog=MEANINGS)(quaybridge)
    for name in [asked] if asked in _MODULES else _MODULES:
        module = import_module(_MODULES[name])
        if name == "dead":
            app.add_typer(module.dead_letter_commands(), name=name)
        else:
            command = getattr(module, name)
            meanings = module.MEANINGS if name == "batch" else MEANINGS
            app.command(epilog=meanings, help=help_text(command))(command)
    return app
