"""What a service's commands are, as its bridge says: asked of one, and laid out for a person or a program."""

from __future__ import annotations

import asyncio
import secrets
import sys
from typing import TYPE_CHECKING, Any

from bridge_protocol.errors import BadRequest, DeadlineExceeded, QuaybridgeError, UnknownService

if TYPE_CHECKING:
    from bridge_protocol.description import Argument, Description
    from producer.async_producer import AsyncProducer

SOON = 1.0  # seconds in which whoever is idle has answered


class NotDescribed(QuaybridgeError):
    """Raised when a bridge does not say what its commands are."""


async def ask_descriptions(producer: AsyncProducer, service: str, timeout: float) -> tuple[Description, ...]:
    """What one of the service's bridges answers to a ping: what it said in its handshake.

    Raises UnknownService if no worker serves it, at once; DeadlineExceeded if they are all busy for `timeout` seconds;
    NotDescribed; and what a call raises.
    """
    from bridge_protocol.description import read_descriptions
    from bridge_protocol.messages import PING
    from bridge_protocol.topology import service_name_problem

    if problem := service_name_problem(service):
        raise BadRequest(problem)
    handle = await producer.submit(service, PING, timeout=timeout)
    await asyncio.wait([handle.future], timeout=min(SOON, timeout))
    # To cancel what nobody asked for is to ask whether anybody is there.
    if not handle.done() and not await producer.cancel(service, secrets.token_hex(16), timeout=timeout):
        handle.future.cancel()
        raise UnknownService(f"no worker serves {service!r} now: start one, and ask again")
    try:
        reply = await handle
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"the workers that serve {service!r} are busy: none answered in {timeout:g} s", message_id=error.message_id
        ) from None
    if not (found := read_descriptions(reply.result)):
        raise NotDescribed(f"the bridge of {service!r} does not say what its commands are")
    return found


def as_json(service: str, descriptions: tuple[Description, ...]) -> dict[str, Any]:
    """The same, for a program."""
    return {
        "service": service,
        "commands": [
            {
                "name": each.name,
                "doc": each.doc,
                "args": [_argument_as_json(argument) for argument in each.arguments],
                "more": each.more,
                "result": each.result,
                "streams": each.streams,
            }
            for each in descriptions
        ],
    }


def _argument_as_json(argument: Argument) -> dict[str, Any]:
    said = {"name": argument.name, "type": argument.type, "required": argument.required}
    return said if argument.required else {**said, "default": argument.default}


def print_descriptions(service: str, descriptions: tuple[Description, ...]) -> None:
    """Print them for a person: what can be called, with what, and what comes of it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    for number, each in enumerate(descriptions):
        if number:
            console.print()
        head = Text(_printable(each.name), style="bold")
        if each.result:
            head.append(f"  {'streams' if each.streams else '→'} {_printable(each.result)}", style="not bold cyan")
        elif each.streams:
            head.append("  streams", style="not bold cyan")
        console.print(head)
        for line in each.doc.splitlines():
            console.print(Padding(Text(_printable(line)), (0, 0, 0, 4), expand=False))
        for argument in each.arguments:
            console.print(Padding(_argument(argument), (0, 0, 0, 4), expand=False))
        if each.more:
            console.print(Text("    … any others", style="dim"))


def _argument(argument: Argument) -> Any:
    from rich.text import Text

    from bridge_protocol.codec import encode

    text = Text(_printable(argument.name), style="green")
    if argument.type:
        text.append(f": {_printable(argument.type)}", style="default")
    if not argument.required:
        default = encode({"": argument.default}).decode()[4:-1]
        text.append(f" = {_printable(default)}" if argument.default is not None else "  optional", style="dim")
    return text


def _printable(text: str) -> str:
    from quaybridge.exit_status import printable

    return printable(text)
