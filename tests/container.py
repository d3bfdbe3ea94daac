"""Whether a test that starts containers of its own can run here."""

from __future__ import annotations

import os

import pytest

from quaybridge.rabbitmq import docker_available, image_present


def needs_container(image: str) -> None:
    """Skip, saying why, where no container of `image` can be started; fail where containers are required."""
    required = os.environ.get("QUAYBRIDGE_REQUIRE_CONTAINERS") == "1"
    problem = docker_available()
    if problem is None and not required and not image_present(image):  # where it is required, it may be pulled
        problem = f"Docker does not have the image {image}: docker pull {image}"
    if problem is None:
        return
    if required:
        pytest.fail(f"QUAYBRIDGE_REQUIRE_CONTAINERS=1, and {problem}")
    pytest.skip(f"no container of RabbitMQ can be started here: {problem}")
