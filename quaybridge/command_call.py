"""`quaybridge call`: one request, and its result on stdout, or its chunks as they come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quaybridge import request_options as options
from quaybridge.descriptions import as_json, ask_descriptions, print_descriptions
from quaybridge.exit_status import explained
from quaybridge.logs import LogLevel, log_to_stderr
from quaybridge.progress_bar import progress_bar

if TYPE_CHECKING:
    from bridge_protocol.description import Description
    from broker.contract import Broker
    from broker.store import Store
    from producer.async_producer import AsyncProducer
    from producer.progress import Progress
    from producer.reply import Reply


def call(
    service: options.Service,
    command: options.OptionalCommand = None,
    pairs: options.Pairs = None,
    args: options.Whole = None,
    timeout: options.Timeout = 30.0,
    whole_reply: Annotated[
        bool, typer.Option("--json", help="Print the whole reply, or description, as one line of JSON.")
    ] = False,
    store: options.StoreDirectory = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print its chunks as they come, one line of JSON each, and not its result.")
    ] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Ask nothing but what the service's commands are, and print that.")
    ] = False,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Send a request and print its result: laid out on a terminal, one line of JSON in a pipe.

    On a terminal stderr shows a bar while the bridge tells of its progress. A failure is one line on stderr that begins
    with its code, and exit status 1.
    """
    with explained(verbose=verbose):
        log_to_stderr(LogLevel.INFO if verbose else LogLevel.ERROR)
        arguments = options.read_arguments(pairs, args)
        place, shared = options.read_places(broker, store, config)
        if describe:
            said = asyncio.run(_describe(place, service, timeout))
            _print_whole(as_json(service, said)) if whole_reply else print_descriptions(service, said)
            return
        if command is None:
            raise typer.BadParameter(f"which command? quaybridge call {service} --describe lists those there are")
        with progress_bar() as on_progress:
            asking = _stream if stream else _call
            reply = asyncio.run(asking(place, shared, service, command, arguments, timeout, on_progress))
        if whole_reply:
            whole = asdict(reply)
            del whole["session_epoch"], whole["fresh"], whole["position"]  # it belongs to no session, and to no map
            _print_whole(whole)
        elif not stream:
            _print(reply.result, plain=not sys.stdout.isatty())


async def _describe(broker: Broker, service: str, timeout: float) -> tuple[Description, ...]:
    async with _producer(broker, None, timeout) as (producer, left):
        return await ask_descriptions(producer, service, left)


async def _call(
    broker: Broker,
    store: Store | None,
    service: str,
    command: str,
    arguments: dict[str, Any],
    timeout: float,
    on_progress: Callable[[Progress], None] | None,
) -> Reply:
    async with _producer(broker, store, timeout) as (producer, left):
        return await producer.call(service, command, arguments, timeout=left, progress=on_progress)


async def _stream(
    broker: Broker,
    store: Store | None,
    service: str,
    command: str,
    arguments: dict[str, Any],
    timeout: float,
    on_progress: Callable[[Progress], None] | None,
) -> Reply:
    async with _producer(broker, store, timeout) as (producer, left):
        stream = producer.stream(service, command, arguments, timeout=left, progress=on_progress)
        async for chunk in stream:
            _print(chunk, plain=True)
        assert stream.reply is not None
        return stream.reply


@asynccontextmanager
async def _producer(broker: Broker, store: Store | None, timeout: float) -> AsyncIterator[tuple[AsyncProducer, float]]:
    """A producer, and how much of `timeout` is left once it is connected."""
    from producer.async_producer import AsyncProducer

    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    async with AsyncProducer(broker, store=store, connect_timeout=min(timeout, options.CONNECT_TIMEOUT)) as producer:
        yield producer, max(end - loop.time(), 0.001)


def _print_whole(said: dict[str, Any]) -> None:
    from bridge_protocol.binary import encode_declared

    typer.echo(encode_declared(said))


def _print(value: object, *, plain: bool) -> None:
    from bridge_protocol.binary import encode_binary

    text, _ = encode_binary(value)
    if plain:
        typer.echo(text)
    else:
        import rich

        rich.print_json(text.decode())
