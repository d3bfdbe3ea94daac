"""quaybridge: nodes by `quaybridge worker`, as many bridges as there are CPUs, one AsyncProducer. Defaults everywhere.

The bridges are examples.echo and examples.analyse; requests run in them, one process away from the node. With all
guarantees: quorum queue, confirms both ways, replies on a connection of their own, ack after the reply's confirm.
"""

from __future__ import annotations

from typing import Any, Self

from producer.async_producer import AsyncProducer

TIMEOUT = 120.0  # seconds
_SERVICES = {"echo": "echo", "sleep": "echo", "summarise": "analyse"}
_PARAMETERS = {"echo": "text", "sleep": "seconds", "summarise": "path"}


class Client:
    """Calls and publishes."""

    def __init__(self, url: str) -> None:
        self._producer = AsyncProducer(url)

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.close()

    async def call(self, command: str, argument: Any) -> None:
        await self._producer.call(_SERVICES[command], command, {_PARAMETERS[command]: argument}, timeout=TIMEOUT)

    async def publish(self, argument: str) -> None:
        await self._producer.publish("echo", "echo", {"text": argument}, timeout=TIMEOUT)
