"""What `call` and `publish` take alike: which request, and to which broker."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from broker.contract import Broker
    from broker.store import Store

Service = Annotated[str, typer.Argument(help="The service that is asked.")]
Command = Annotated[str, typer.Argument(help="One of its bridge's commands.")]
OptionalCommand = Annotated[
    str | None, typer.Argument(help="One of its bridge's commands.", metavar="COMMAND", show_default=False)
]
Pairs = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=text | key:=json | key@=file …", help="The command's arguments.", show_default=False),
]
Whole = Annotated[
    str | None, typer.Option("--args", metavar="JSON|-", help="Arguments as one JSON object; - reads it from stdin.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", min=0.001, max=86_400, help="How long to wait in all.")]
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", metavar="URL", help="Where RabbitMQ is; several, separated by commas, are tried in turn."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML. Default: QUAYBRIDGE_CONFIG, else ./quaybridge.toml."),
]
StoreDirectory = Annotated[
    str | None,
    typer.Option("--store", metavar="DIRECTORY", help="Where large payloads wait, shared with the workers."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Say more on stderr: what is logged, and a failure's details.")
]

CONNECT_TIMEOUT = 10.0  # seconds: somebody is waiting


def read_arguments(pairs: list[str] | None, whole: str | None) -> dict[str, Any]:
    """The request's arguments. Raises BadParameter, which ends the command with its usage."""
    from quaybridge import arguments

    try:
        content = sys.stdin.buffer.read() if whole == "-" else whole
    except OSError as error:
        raise typer.BadParameter(f"--args -: stdin cannot be read: {error.strerror}") from None
    try:
        return arguments.read_arguments(pairs or (), content)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def read_broker(url: str | None, config: Path | None) -> Broker:
    """The broker that flags, environment or file name. Raises SettingsError."""
    return read_places(url, None, config)[0]


def read_places(url: str | None, store: str | None, config: Path | None) -> tuple[Broker, Store | None]:
    """The broker, and the store if there is one, that flags, environment or file name. Raises SettingsError."""
    from broker.amqp import AmqpBroker
    from quaybridge.failpoints import armed_failpoints
    from quaybridge.settings import BROKER, STORE, given, read_configuration

    flags = given({BROKER: ("--broker", url), STORE: ("--store", store)})
    configuration = read_configuration(config, environ=os.environ, flags=flags)
    broker = AmqpBroker(configuration.broker())
    if (failpoints := armed_failpoints(os.environ)) is None:
        return broker, configuration.store()
    from broker.failpoints import FailingBroker

    return FailingBroker(broker, failpoints), configuration.store()
