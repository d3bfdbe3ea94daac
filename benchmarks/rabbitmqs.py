"""The RabbitMQ that is measured on: a container of each image that is named, or a private node."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

from benchmarks.cpu import tree
from benchmarks.processes import Venue, venue
from benchmarks.systems import System
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from quaybridge.rabbitmq import (
    DEFAULT_IMAGE,
    ContainerRabbitMQ,
    PrivateRabbitMQ,
    RabbitMQ,
    docker_available,
    image_present,
    server_available,
)

PRIVATE = "rabbitmq-server"


def names(environ: Mapping[str, str]) -> list[str]:
    """Those there are: the images of RABBITMQ_IMAGES (or RABBITMQ_IMAGE), or PRIVATE. Nothing: none can be started."""
    images = environ.get("RABBITMQ_IMAGES", "").split() or [environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE]
    if docker_available() is None and (present := [image for image in images if image_present(image)]):
        return present
    return [PRIVATE] if server_available() is None else []


class Bench:
    """One RabbitMQ that was started for this. `version` as it tells it, `pids` its processes."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self._rabbitmq = rabbitmq
        self._url = _nearest(rabbitmq)
        self.version = asyncio.run(_version(rabbitmq.url))
        self.pids = tree(rabbitmq.pid)

    def __repr__(self) -> str:
        return f"<Bench {self.version}>"

    def restart(self) -> None:
        """Stop the broker and start it again; returns when it answers."""
        for command in ("stop_app", "start_app", "await_startup"):
            self._rabbitmq.control(command)

    @contextmanager
    def venue(self, system: System) -> Iterator[Venue]:
        """A vhost for `system`, with nothing in it, which is removed after the block."""
        name = f"benchmark-{system.name}-{secrets.token_hex(4)}"
        self._rabbitmq.add_vhost(name)
        try:
            if system.quorum_by_vhost:
                self._rabbitmq.manage("PUT", f"/api/vhosts/{name}", {"default_queue_type": "quorum"})
            with venue(f"{self._url}{quote(name, safe='')}") as place:
                yield place
        finally:
            self._rabbitmq.delete_vhost(name)


@contextmanager
def bench(name: str) -> Iterator[Bench]:
    """The RabbitMQ of that name (see `names`), gone after the block. Raises RabbitMQError if it does not start."""
    with PrivateRabbitMQ() if name == PRIVATE else ContainerRabbitMQ(name) as rabbitmq:
        yield Bench(rabbitmq)


def _nearest(rabbitmq: RabbitMQ) -> str:
    """Its URL up to the vhost: past Docker's port forwarding, where that can be passed by."""
    if isinstance(rabbitmq, ContainerRabbitMQ):
        inner = rabbitmq.inner_url
        where = urlsplit(inner)
        try:
            socket.create_connection((str(where.hostname), where.port or 0), timeout=2).close()
        except OSError:
            return rabbitmq.url.removesuffix("%2F")
        return inner
    return rabbitmq.url.removesuffix("%2F")


async def _version(url: str) -> str:
    channel = await AmqpBroker(parse_addresses(url)).open("benchmark", on_closed=lambda _: None)
    server = channel.server
    await channel.close()
    return server
