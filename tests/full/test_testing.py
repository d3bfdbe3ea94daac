"""quaybridge.testing on RabbitMQ: the body that the other adapters pass, and the container of a user's own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from container import needs_container
from service_body import SETTINGS, meets_every_failure
from soak import SOAK
from vhost import Vhost

from quaybridge.rabbitmq import DEFAULT_IMAGE, RabbitMQ
from quaybridge.testing import Service

BRIDGES = Path(__file__).parent.parent / "bridges"
BODY = """
import pytest
from service_body import SETTINGS, meets_every_failure

@pytest.mark.quaybridge("diary", **SETTINGS)
def test_it(rabbitmq_service):
    meets_every_failure(rabbitmq_service)
    assert rabbitmq_service.adapter == "rabbitmq"
"""


@pytest.fixture(scope="module")
def quaybridge_rabbitmq(rabbitmq_vhost_of_module: Vhost) -> RabbitMQ:
    """In the place of the plugin's: the one that all of these tests share."""
    return rabbitmq_vhost_of_module.rabbitmq


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BRIDGES))


@pytest.mark.usefixtures("_importable")
@pytest.mark.quaybridge("diary", **SETTINGS)
def test_the_same_body_ends_the_same(rabbitmq_service: Service) -> None:
    meets_every_failure(rabbitmq_service)


@pytest.mark.skipif(not SOAK, reason="starts a container of its own: make soak")
def test_a_users_tests_get_a_container_of_their_own(tmp_path: Path) -> None:
    needs_container(os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE)
    (tmp_path / "test_it.py").write_text(BODY)
    path = os.pathsep.join((str(BRIDGES), str(BRIDGES.parent)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
