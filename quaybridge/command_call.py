"""`quaybridge call`: one request, and its result on stdout."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quaybridge.exit_status import explained
from quaybridge.request import Arguments, Broker, Command, Config, Service, Timeout, Verbose, WholeArguments

if TYPE_CHECKING:
    from producer.reply import Reply


def call(
    service: Service,
    command: Command,
    arguments: Arguments = None,
    args: WholeArguments = None,
    timeout: Timeout = 30.0,
    whole_reply: Annotated[
        bool, typer.Option("--json", help="Print the whole reply as one JSON object: result, message_id, attempt, …")
    ] = False,
    broker: Broker = None,
    config: Config = None,
    verbose: Verbose = False,
) -> None:
    """Send a request and print its result: pretty on a terminal, one line of JSON in a pipe.

    A failure is one line on stderr, which begins with its code.
    """
    with explained(verbose=verbose):
        from quaybridge.request import read_request

        request = read_request(arguments, args, timeout, broker, config, verbose)
        reply = asyncio.run(request.call(service, command))
        _show(asdict(reply) if whole_reply else reply.result)
