"""Layers and brokers. A test's folder is its layer; a test that needs RabbitMQ gets a vhost of its own in it.

Which RabbitMQ: the images named in RABBITMQ_IMAGES (or RABBITMQ_IMAGE), where Docker works and has them, and
the rabbitmq-server on PATH. Where there is none, these tests are skipped, and one line at the end says how to
get one. With QUAYBRIDGE_REQUIRE_CONTAINERS=1 a container that cannot be started is a failure.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from quaybridge.rabbitmq import (
    DEFAULT_IMAGE,
    ContainerRabbitMQ,
    PrivateRabbitMQ,
    RabbitMQ,
    RabbitMQError,
    docker_available,
    image_present,
    server_available,
)

LAYERS = ("fast", "protocol", "full")
ON_PATH = "rabbitmq-server"  # stands for the one on PATH where others name an image

_missing = pytest.StashKey[set[str]]()


@dataclass(frozen=True)
class Vhost:
    """A vhost for one test, in a RabbitMQ shared by all."""

    name: str
    url: str
    rabbitmq: RabbitMQ

    def control(self, command: str, *arguments: str) -> str:
        """Run a rabbitmqctl command in this vhost."""
        return self.rabbitmq.control(command, "--vhost", self.name, *arguments)

    def delete_queue(self, queue: str) -> None:
        """Remove a queue behind the back of whoever uses it."""
        if self.rabbitmq.management_port is None:
            self.control("delete_queue", queue)
        else:
            self.rabbitmq.manage("DELETE", f"/api/queues/{quote(self.name, safe='')}/{quote(queue, safe='')}")


class RabbitMQs:
    """Each RabbitMQ the tests ask for, started once. `problems` says why one could not be."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, RabbitMQ] = {}
        self.problems: dict[str, str] = {}

    def get(self, name: str) -> RabbitMQ | None:
        """The one named by its image, or ON_PATH; None if there is a problem with it."""
        if name in self._running:
            return self._running[name]
        if name not in self.problems:
            if problem := _problem(name):
                self.problems[name] = problem
                return None
            try:
                started = PrivateRabbitMQ() if name == ON_PATH else ContainerRabbitMQ(name)
                self._running[name] = self._stack.enter_context(started)
            except RabbitMQError as error:
                self.problems[name] = str(error)
        return self._running.get(name)


def containers_required() -> bool:
    return os.environ.get("QUAYBRIDGE_REQUIRE_CONTAINERS") == "1"


def default_image() -> str:
    return os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE


def every_rabbitmq() -> list[str]:
    """The names of all there are to test with: images, then the one on PATH."""
    images = os.environ.get("RABBITMQ_IMAGES", "").split() or [default_image()]
    return images + ([ON_PATH] if server_available() is None else [])


def _problem(name: str) -> str | None:
    if name == ON_PATH:
        return server_available()
    if problem := docker_available():
        return problem
    if image_present(name) or containers_required():  # where it is required, it may be pulled
        return None
    return f"Docker does not have the image {name}"


@pytest.fixture(scope="session")
def rabbitmqs() -> Iterator[RabbitMQs]:
    with ExitStack() as stack:
        yield RabbitMQs(stack)


@pytest.fixture
def rabbitmq_vhost(rabbitmqs: RabbitMQs, request: pytest.FixtureRequest) -> Iterator[Vhost]:
    """A vhost in the RabbitMQ the full layer runs on: the image's, else the one on PATH."""
    image = default_image()
    yield from _vhost_in(rabbitmqs, [image] if containers_required() else [image, ON_PATH], request)


@pytest.fixture
def rabbitmq_url(rabbitmq_vhost: Vhost) -> str:
    """The URL of that vhost."""
    return rabbitmq_vhost.url


@pytest.fixture(params=every_rabbitmq(), ids=lambda name: name.rpartition(":")[2])
def rabbitmq_each(rabbitmqs: RabbitMQs, request: pytest.FixtureRequest) -> Iterator[Vhost]:
    """A vhost in every RabbitMQ there is, one after the other."""
    yield from _vhost_in(rabbitmqs, [request.param], request)


def _vhost_in(rabbitmqs: RabbitMQs, names: list[str], request: pytest.FixtureRequest) -> Iterator[Vhost]:
    rabbitmq = next(filter(None, map(rabbitmqs.get, names)), None)
    if rabbitmq is None:
        problem = "; ".join(rabbitmqs.problems[name] for name in names)
        if containers_required():
            pytest.fail(f"QUAYBRIDGE_REQUIRE_CONTAINERS=1, and {problem}")
        request.config.stash[_missing].add(problem)
        pytest.skip(f"needs RabbitMQ: {problem}")
    name = f"test-{secrets.token_hex(4)}"
    yield Vhost(name, rabbitmq.add_vhost(name), rabbitmq)
    rabbitmq.delete_vhost(name)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_missing] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layer = item.path.relative_to(Path(__file__).parent).parts[0]
        if layer in LAYERS:
            item.add_marker(layer)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if missing := config.stash[_missing]:
        problems = "; ".join(sorted(missing))
        terminalreporter.write_line(
            f"SKIPPED ALL THAT NEEDS RABBITMQ ({problems}). Run `make rabbitmq` to get one.", red=True, bold=True
        )
