"""The pytest plugin: services to test against. It imports nothing until a test asks for one.

    import pytest

    pytestmark = pytest.mark.quaybridge("shout")

    def test_it_shouts(bridge_service):
        assert bridge_service.call("shout", {"text": "hello"}).result == "HELLO"

docs/testing.md has all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from quaybridge.rabbitmq import ContainerRabbitMQ
    from quaybridge.testing.service import Service

SETTING = "quaybridge_adapter"
DEFAULT = "mock"
MARKER = (
    "quaybridge(bridge, *, command=None, seed=0, **settings): the bridge of the test's service: a module, or "
    "module:attribute; and settings of the service"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    text = f"what quaybridge_service runs on: mock, memory or rabbitmq (default: {DEFAULT})"
    parser.addini(SETTING, text, default=DEFAULT)
    parser.getgroup("quaybridge").addoption("--quaybridge-adapter", dest=SETTING, metavar="NAME", help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    if (name := _chosen(config)) != DEFAULT:
        from quaybridge.testing.adapters import UnknownAdapter, adapter_named

        try:
            adapter_named(name)
        except UnknownAdapter as error:
            raise pytest.UsageError(f"{SETTING}: {error}") from None


@pytest.fixture
def mock_service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The marked bridge's commands in this process, behind a node on the embedded broker."""
    with _service("mock", request) as service:
        yield service


@pytest.fixture
def bridge_service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The marked bridge as a process, behind a node on the embedded broker."""
    with _service("memory", request) as service:
        yield service


@pytest.fixture
def rabbitmq_service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The marked bridge as a process, behind a node on RabbitMQ in a container; skipped where there can be none."""
    with _service("rabbitmq", request) as service:
        yield service


@pytest.fixture
def quaybridge_service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The one of the three that the setting, or an indirect parameter, names."""
    with _service(getattr(request, "param", _chosen(request.config)), request) as service:
        yield service


@pytest.fixture(scope="session")
def quaybridge_rabbitmq() -> Iterator[ContainerRabbitMQ]:
    """A RabbitMQ in a container (of the image RABBITMQ_IMAGE names), for all tests that need one.

    Where none can be started tests are skipped, or fail if QUAYBRIDGE_REQUIRE_CONTAINERS is 1.
    """
    from quaybridge.rabbitmq import DEFAULT_IMAGE, ContainerRabbitMQ, docker_available, image_present

    image = os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE
    required = os.environ.get("QUAYBRIDGE_REQUIRE_CONTAINERS") == "1"
    problem = docker_available()
    if problem is None and not required and not image_present(image):  # where it is required, it may be pulled
        problem = f"Docker does not have the image {image}: docker pull {image}"
    if problem is not None:
        (pytest.fail if required else pytest.skip)(f"no container of RabbitMQ can be started here: {problem}")
    with ContainerRabbitMQ(image) as rabbitmq:
        yield rabbitmq


def _chosen(config: pytest.Config) -> str:
    return config.getoption(SETTING) or str(config.getini(SETTING))


@contextmanager
def _service(adapter: str, request: pytest.FixtureRequest) -> Iterator[Service]:
    from quaybridge.testing.adapters import adapter_named
    from quaybridge.testing.service import open_service

    marker = request.node.get_closest_marker("quaybridge")
    if marker is None:
        pytest.fail('this test does not say what its service is: mark it @pytest.mark.quaybridge("module:bridge")')
    options: dict[str, Any] = marker.kwargs
    if not adapter_named(adapter).server:
        with open_service(adapter, *marker.args, **options) as service:
            yield service
        return
    import secrets

    rabbitmq = request.getfixturevalue("quaybridge_rabbitmq")
    vhost = f"test-{secrets.token_hex(4)}"
    url = rabbitmq.add_vhost(vhost)
    try:
        with open_service(adapter, *marker.args, url=url, **options) as service:
            yield service
    finally:
        rabbitmq.delete_vhost(vhost)
