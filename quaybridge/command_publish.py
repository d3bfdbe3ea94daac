"""`quaybridge publish`: one request whose reply nobody awaits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from quaybridge import request_options as options
from quaybridge.exit_status import explained
from quaybridge.logs import LogLevel, log_to_stderr

if TYPE_CHECKING:
    from broker.contract import Broker
    from broker.store import Store


def publish(
    service: options.Service,
    command: options.Command,
    pairs: options.Pairs = None,
    args: options.Whole = None,
    timeout: options.Timeout = 30.0,
    store: options.StoreDirectory = None,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Send a request without awaiting its reply; print its message id once the broker has it safe.

    The timeout is for the publishing alone: the request itself may wait for a worker as long as it must.
    """
    with explained(verbose=verbose):
        log_to_stderr(LogLevel.INFO if verbose else LogLevel.ERROR)
        arguments = options.read_arguments(pairs, args)
        typer.echo(
            asyncio.run(_publish(*options.read_places(broker, store, config), service, command, arguments, timeout))
        )


async def _publish(
    broker: Broker, store: Store | None, service: str, command: str, arguments: dict[str, Any], timeout: float
) -> str:
    from producer.async_producer import AsyncProducer

    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    async with AsyncProducer(broker, store=store, connect_timeout=min(timeout, options.CONNECT_TIMEOUT)) as producer:
        return await producer.publish(service, command, arguments, timeout=max(end - loop.time(), 0.001))
