"""Layers and brokers. A test's folder is its layer; a test that needs RabbitMQ gets a vhost of its own in it.

Which RabbitMQ: the images named in RABBITMQ_IMAGES (or RABBITMQ_IMAGE), where Docker works and has them, and
the rabbitmq-server on PATH. Beside images that one, which is an old one as a rule, is for what names it and for
the contract; all that is for each RabbitMQ runs on it too in the long form, or where it is the only one. Where
there is none, these tests are skipped, and one line at the end says how to get one. With
QUAYBRIDGE_REQUIRE_CONTAINERS=1 a container that cannot be started is a failure.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
from soak import SOAK
from vhost import Vhost

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

END_TIMEOUT = 300.0  # seconds a test's end may take after its timeout

LAYERS = ("fast", "protocol", "full")
ON_PATH = "rabbitmq-server"  # stands for the one on PATH where others name an image

SKIPPED = "needs RabbitMQ"
# Programs that some tests need, and the Debian package each comes in.
PACKAGES = {
    "node": "nodejs",
    "cc": "gcc",
    "escript": "erlang-base",
    "amqp-publish": "amqp-tools",
    ON_PATH: "rabbitmq-server",
}

_missing = pytest.StashKey[Counter[str]]()
_missing_programs = pytest.StashKey[Counter[str]]()


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


def every_rabbitmq(layer: str) -> list[str]:
    """The names of all there are to test with in that layer: images, then the one on PATH."""
    images = os.environ.get("RABBITMQ_IMAGES", "").split() or [default_image()]
    if server_available() is not None or (layer == "full" and not SOAK and docker_available() is None):
        return images
    return [*images, ON_PATH]


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


@pytest.fixture(scope="module")
def rabbitmq_vhost_of_module(rabbitmqs: RabbitMQs, request: pytest.FixtureRequest) -> Iterator[Vhost]:
    """The same, one vhost for all tests of a file."""
    image = default_image()
    yield from _vhost_in(rabbitmqs, [image] if containers_required() else [image, ON_PATH], request)


@pytest.fixture
def own_rabbitmq(request: pytest.FixtureRequest) -> Iterator[ContainerRabbitMQ]:
    """A RabbitMQ in a container that no other test uses: to be killed, paused and stopped."""
    image = default_image()
    if problem := _problem(image):
        _missing_rabbitmq(problem, request)
    with ContainerRabbitMQ(image) as rabbitmq:
        yield rabbitmq


@pytest.fixture
def rabbitmq_url(rabbitmq_vhost: Vhost) -> str:
    """The URL of that vhost."""
    return rabbitmq_vhost.url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rabbitmq_each" in metafunc.fixturenames:
        names = every_rabbitmq(_layer(metafunc.definition.path))
        metafunc.parametrize("rabbitmq_each", names, indirect=True, ids=lambda name: name.rpartition(":")[2])


@pytest.fixture
def rabbitmq_each(rabbitmqs: RabbitMQs, request: pytest.FixtureRequest) -> Iterator[Vhost]:
    """A vhost in every RabbitMQ there is, one after the other."""
    yield from _vhost_in(rabbitmqs, [request.param], request)


@pytest.fixture
def rabbitmq_on_path(
    rabbitmqs: RabbitMQs, program: Callable[[str], str], request: pytest.FixtureRequest
) -> Iterator[Vhost]:
    """A vhost in the rabbitmq-server on PATH: Debian's stable one is old enough to be another product."""
    program(ON_PATH)
    yield from _vhost_in(rabbitmqs, [ON_PATH], request)


def _vhost_in(rabbitmqs: RabbitMQs, names: list[str], request: pytest.FixtureRequest) -> Iterator[Vhost]:
    rabbitmq = next(filter(None, map(rabbitmqs.get, names)), None)
    if rabbitmq is None:
        _missing_rabbitmq("; ".join(rabbitmqs.problems[name] for name in names), request)
    name = f"test-{secrets.token_hex(4)}"
    yield Vhost(name, rabbitmq.add_vhost(name), rabbitmq)
    rabbitmq.delete_vhost(name)


def _missing_rabbitmq(problem: str, request: pytest.FixtureRequest) -> NoReturn:
    if containers_required():
        pytest.fail(f"QUAYBRIDGE_REQUIRE_CONTAINERS=1, and {problem}")
    request.config.stash[_missing][problem] += 1
    pytest.skip(SKIPPED)


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Gives the path of a program in PACKAGES; without it the test is skipped, or fails where all of it must run."""

    def find(name: str) -> str:
        if path := shutil.which(name):
            return path
        if containers_required():
            pytest.fail(f"QUAYBRIDGE_REQUIRE_CONTAINERS=1, and there is no {name}: apt-get install {PACKAGES[name]}")
        request.config.stash[_missing_programs][name] += 1
        pytest.skip(f"needs {name}")

    return find


def pytest_configure(config: pytest.Config) -> None:
    # Begun by a shell's `&` they would ignore it, and so would every program they start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_missing] = Counter()
    config.stash[_missing_programs] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layer = _layer(item.path)
        if layer in LAYERS:
            item.add_marker(layer)


def _layer(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).parts[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the whole run where a test's end hangs: once a test has failed, pytest-timeout has no limit for that."""
    timeout = item.config.getoption("timeout") or float(item.config.getini("timeout"))
    timer = threading.Timer(timeout + END_TIMEOUT, _give_up, [item])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()
        timer.join()


def _give_up(item: pytest.Item) -> None:
    plugins = item.config.pluginmanager
    plugins.getplugin("capturemanager").suspend_global_capture()
    terminal = plugins.getplugin("terminalreporter")
    terminal.summary_failures()
    terminal.write_line(f"{item.nodeid} does not end: here is where it hangs, and this run ends")
    faulthandler.dump_traceback()
    os._exit(pytest.ExitCode.INTERNAL_ERROR)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and SKIPPED in report.longrepr[2]:
        report.longrepr = (__file__, 0, report.longrepr[2])  # in one place: one line for all of them
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    for name, count in config.stash[_missing_programs].items():
        line = f"SKIPPED {count} TESTS THAT NEED {name} (not found on PATH). Run `apt-get install {PACKAGES[name]}`."
        terminal.write_line(line, red=True, bold=True)
    if missing := config.stash[_missing]:
        (problem, _), *_ = missing.most_common(1)
        line = f"SKIPPED {missing.total()} TESTS THAT NEED RABBITMQ ({problem}). Run `make rabbitmq` to get one."
        terminal.write_line(line, red=True, bold=True)
