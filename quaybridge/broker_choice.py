"""Which broker the demo runs on, and why: the best that is to be had here, or the one that is named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from quaybridge.rabbitmq import (
    DEFAULT_IMAGE,
    ContainerRabbitMQ,
    PrivateRabbitMQ,
    docker_available,
    image_present,
    server_available,
)

EMBEDDED = "memory"
AUTOMATIC = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A broker to use. `url` None: the embedded one. `described` says what it is, `why` how it was chosen."""

    url: str | None
    described: str
    why: str


@contextmanager
def chosen_broker(wanted: str, environ: Mapping[str, str] = os.environ) -> Iterator[Choice]:
    """The broker that `wanted` names (`auto`, `memory` or a URL); one started for it is gone after the block.

    `auto` takes the first of: QUAYBRIDGE_BROKER; a container, where Docker runs and has the image
    (RABBITMQ_IMAGE); a private node of the rabbitmq-server on PATH; the embedded broker.
    Raises RabbitMQError if what was found does not start.
    """
    if wanted == EMBEDDED:
        yield Choice(url=None, described="embedded broker", why="as asked")
        return
    if wanted != AUTOMATIC:
        yield Choice(url=wanted, described="RabbitMQ", why="as asked")
        return
    if url := environ.get("QUAYBRIDGE_BROKER"):
        yield Choice(url=url, described="RabbitMQ", why="QUAYBRIDGE_BROKER names it")
        return
    image = environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE
    no_container = docker_available()
    if no_container is None and not image_present(image):
        no_container = f"Docker has no image {image} (docker pull {image} gets it)"
    if no_container is None:
        with ContainerRabbitMQ(image) as container:
            yield Choice(url=container.url, described=f"RabbitMQ in a container of {image}", why="Docker runs here")
        return
    no_server = server_available()
    if no_server is None:
        with PrivateRabbitMQ() as private:
            why = f"rabbitmq-server is on PATH, and {no_container}"
            yield Choice(url=private.url, described="RabbitMQ as a private node", why=why)
        return
    yield Choice(url=None, described="embedded broker", why=f"{no_container}, and {no_server}")
