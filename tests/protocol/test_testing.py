"""quaybridge.testing without a server: its services, and its plugin in a pytest of its own, as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import documents
import pytest
from service_body import SETTINGS, meets_every_failure

from bridge_sdk import Bridge
from quaybridge.testing import Service, open_service

BRIDGES = Path(__file__).parent.parent / "bridges"
PATIENCE = 120  # seconds
PLUGIN = "quaybridge.testing.plugin"


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BRIDGES))


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize("quaybridge_service", ["mock", "memory"], indirect=True)
@pytest.mark.quaybridge("diary", **SETTINGS)
def test_the_same_body_ends_the_same(quaybridge_service: Service) -> None:
    meets_every_failure(quaybridge_service)


def test_a_mock_answers_by_a_bridge_that_is_given() -> None:
    bridge = Bridge()
    bridge.command("double")(lambda n: 2 * n)
    with open_service("mock", bridge, name="sums") as service:
        assert service.producer.call("sums", "double", {"n": 4}).result == 8
        assert repr(service) == "<Service sums on mock: <Script seed 0: 0 failures, 1 requests>>"


def test_a_program_serves_where_bridges_are_processes() -> None:
    command = (sys.executable, str(BRIDGES / "foreign.py"))
    with open_service("memory", "diary", command=command) as service:
        assert service.call("echo", {"a": 1}).result["echoed"] == {"a": 1}


def test_what_cannot_be_is_refused_before_anything_runs() -> None:
    for adapter, options, said in (
        ("redis", {}, "choose one of mock, memory, rabbitmq"),
        ("rabbitmq", {}, "needs the url"),
        ("memory", {}, "give bridge as a text"),
        ("mock", {"run_timeuot": 1}, "run_timeuot"),
    ):
        with pytest.raises(Exception, match=said), open_service(adapter, Bridge(), **options):  # type: ignore[arg-type]
            pass


def run_pytest(directory: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """pytest on a directory: its exit status and all it said. Of plugins only ours, for the others take a second."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-W", "error", "-p", PLUGIN, *arguments],
        cwd=directory,
        env={**os.environ, **environment, "COLUMNS": "400", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


def test_pytest_finds_the_plugin_by_itself() -> None:
    (found,) = (point for point in entry_points(group="pytest11") if point.name == "quaybridge")
    assert found.value == PLUGIN


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """The README's bridge, and the tests of docs/testing.md beside it."""
    (tmp_path / "shout.py").write_text(documents.blocks("../README.md", "python")[0])
    (tmp_path / "test_shout.py").write_text(documents.block("testing.md", "python"))
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
    return tmp_path


def test_the_documented_tests_pass_and_what_needs_docker_is_skipped_with_one_sentence(users: Path) -> None:
    status, said = run_pytest(users, DOCKER_HOST="unix:///nowhere.sock", QUAYBRIDGE_REQUIRE_CONTAINERS="")
    assert status == 0, said
    assert "6 passed, 1 skipped" in said
    assert "no container of RabbitMQ can be started here: " in said


def test_the_setting_chooses_and_an_unknown_name_is_told_those_there_are(users: Path) -> None:
    (users / "test_shout.py").write_text(
        "import pytest\n"
        "@pytest.mark.quaybridge('shout')\n"
        "def test_it(quaybridge_service):\n    assert quaybridge_service.adapter == 'memory'\n"
    )
    (users / "pytest.ini").write_text("[pytest]\nquaybridge_adapter = memory\n")
    status, said = run_pytest(users)
    assert (status, "1 passed" in said) == (0, True), said
    status, said = run_pytest(users, "--quaybridge-adapter", "redis")
    assert status == 4
    assert "there is no adapter 'redis': choose one of mock, memory, rabbitmq" in said


def test_a_run_that_does_not_use_it_imports_none_of_it_and_one_that_does_is_told_what_is_missing(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "import pytest\n"
        "def test_nothing():\n"
        "    ours = {name for name in sys.modules if name.split('.')[0] in\n"
        "            ('bridge_protocol', 'bridge_sdk', 'broker', 'pika', 'producer', 'quaybridge', 'worker_node')}\n"
        "    assert ours == {'quaybridge', 'quaybridge.testing', 'quaybridge.testing.plugin'}\n"
        "def test_without_a_marker(mock_service):\n"
        "    pass\n"
        "@pytest.mark.quaybridge('shout')\n"
        "def test_without_docker(rabbitmq_service):\n"
        "    pass\n"
    )
    environment = {"DOCKER_HOST": "unix:///nowhere.sock", "QUAYBRIDGE_REQUIRE_CONTAINERS": "1"}
    status, said = run_pytest(tmp_path, **environment)
    assert status == 1
    assert "1 passed, 2 errors" in said, said
    assert 'mark it @pytest.mark.quaybridge("module:bridge")' in said
    assert "no container of RabbitMQ can be started here: " in said
