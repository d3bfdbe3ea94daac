"""The compose file as its users run it: built, scaled, called from outside, a worker killed, and all of it stopped."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge_protocol.errors import BridgeCrashed
from producer.producer import Producer
from quaybridge.rabbitmq import DEFAULT_IMAGE, docker_available, image_present

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds for what takes a few on an idle machine


class Compose:
    """One project of the compose file, under a name of its own and on free ports."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.password = secrets.token_hex(16)
        self._environ = {
            **os.environ,
            "RABBITMQ_PORT": "0",
            "RABBITMQ_MANAGEMENT_PORT": "0",
            "RABBITMQ_PASSWORD": self.password,
        }

    def __call__(self, *arguments: str) -> str:
        """Run `docker compose` with these arguments; what it wrote to stdout."""
        return run("docker", "compose", "--project-name", self.name, *arguments, environ=self._environ)

    @property
    def url(self) -> str:
        """The broker, as this host reaches it."""
        return f"amqp://quaybridge:{self.password}@{self('port', 'rabbitmq', '5672').strip()}/"

    def workers(self) -> list[str]:
        """The ids of the workers' containers that run."""
        return self("ps", "--quiet", "--status", "running", "worker").split()


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def state(container: str) -> dict[str, object]:
    """What Docker knows of a container's life."""
    found: dict[str, object] = json.loads(run("docker", "inspect", "--format", "{{json .State}}", container))
    return found


def problem() -> str | None:
    """Why the compose file cannot be run here, or None."""
    if shutil.which("docker") is None:
        return "there is no docker on PATH"
    if trouble := docker_available():
        return trouble
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        return "docker has no compose plugin"
    if os.environ.get("QUAYBRIDGE_REQUIRE_CONTAINERS") == "1":  # what is missing may be pulled
        return None
    for image in (
        os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE,
        os.environ.get("BASE_IMAGE") or "python:3.13-slim",
    ):
        if not image_present(image):
            return f"Docker does not have the image {image}: docker pull {image}"
    return None


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """The project with three workers, healthy; gone afterwards with its images, networks and data."""
    if trouble := problem():
        if os.environ.get("QUAYBRIDGE_REQUIRE_CONTAINERS") == "1":
            pytest.fail(f"QUAYBRIDGE_REQUIRE_CONTAINERS=1, and {trouble}")
        pytest.skip(f"the compose file cannot be run here: {trouble}")
    compose = Compose(f"quaybridge-test-{secrets.token_hex(4)}")
    try:
        compose("up", "--build", "--detach", "--wait", "--scale", "worker=3")
        yield compose
    finally:
        compose("--profile", "demo", "down", "--volumes", "--remove-orphans", "--rmi", "local", "--timeout", "20")


def answering(producer: Producer, wanted: int) -> set[str | None]:
    """The nodes that answer, asked until there are `wanted` of them or patience ends."""
    nodes: set[str | None] = set()
    end = time.monotonic() + PATIENCE
    while len(nodes) < wanted and time.monotonic() < end:
        requests = ({"source": f"x = {number}"} for number in range(60))
        nodes |= {reply.node for reply in producer.map("analyse", "summarise", requests, in_flight=30)}
    return nodes


def test_three_workers_are_healthy_and_answer_this_host(compose: Compose) -> None:
    assert [state(worker)["Status"] for worker in compose.workers()] == ["running"] * 3
    health = [json.loads(run("docker", "inspect", "--format", "{{json .State.Health}}", w)) for w in compose.workers()]
    assert [found["Status"] for found in health] == ["healthy"] * 3
    with Producer(compose.url) as producer:
        path = "/usr/src/quaybridge/quaybridge/__main__.py"  # in the image, and the same as here
        found = producer.call("analyse", "summarise", {"path": path}, timeout=60).result
        assert found["lines"] == len((ROOT / "quaybridge" / "__main__.py").read_text().splitlines())
        assert len(answering(producer, 3)) == 3


def test_a_worker_that_is_killed_takes_nothing_with_it(compose: Compose) -> None:
    slow = "\n".join(f"def f{number}(x):\n    return x if x else {number}" for number in range(3000))
    with Producer(compose.url) as producer:
        requests = [producer.submit("analyse", "summarise", {"source": slow}, timeout=PATIENCE) for _ in range(300)]
        requests[0].result()
        run("docker", "kill", compose.workers()[0])
        replies = [request.result() for request in requests]
        assert {reply.result["functions"] for reply in replies} == {3000}
        assert any(reply.redelivered for reply in replies), "it was killed too late to matter"
        assert len(compose.workers()) == 2
        assert len(answering(producer, 2)) == 2


def test_it_scales_and_a_worker_that_is_stopped_drains(compose: Compose) -> None:
    before = compose.workers()
    compose("up", "--detach", "--wait", "--no-recreate", "--scale", "worker=4")
    after = compose.workers()
    assert len(after) == 4
    with Producer(compose.url) as producer:
        assert len(answering(producer, 4)) == 4
    stopped = before[0]
    run("docker", "stop", "--time", "30", stopped)
    assert state(stopped)["ExitCode"] == 0
    assert "stopped" in logs(stopped)


# It leaves a process behind when it starts, which soon ends: an orphan, for process 1 to wait for.
LITTERING = """
import subprocess, time
from bridge_sdk import Bridge

subprocess.run("sleep 0.2 &", shell=True)
bridge = Bridge()

@bridge.command
def work(seconds: float) -> float:
    print("at work")
    time.sleep(seconds)
    return seconds

bridge.serve()
"""


@pytest.fixture
def process_1(compose: Compose) -> Iterator[str]:
    """The id of a container whose first process is a worker, which serves `work` with one bridge."""
    worker = compose.workers()[0]
    image = run("docker", "inspect", "--format", "{{.Image}}", worker).strip()
    variables = {
        "QUAYBRIDGE_BROKER": f"amqp://quaybridge:{compose.password}@rabbitmq:5672/",
        "QUAYBRIDGE_SERVICES__WORK__COMMAND": f"python -c {shlex.quote(LITTERING)}",
        "QUAYBRIDGE_SERVICES__WORK__BRIDGES": "1",
        "QUAYBRIDGE_SERVICES__WORK__RETRY__MAX_ATTEMPTS": "1",
    }
    environment = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    container = run("docker", "run", "--detach", "--network", f"{compose.name}_default", *environment, image).strip()
    try:
        until(lambda: "serving" in logs(container))
        yield container
    finally:
        run("docker", "rm", "--force", container)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes(container: str) -> dict[str, str]:
    """Name and state of each process in the container; a process that is there twice counts once."""
    stats = run("docker", "exec", container, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true").splitlines()
    return {line.partition("(")[2].rpartition(")")[0]: line.rpartition(")")[2].split()[0] for line in stats}


def kill(container: str, pid: str) -> None:
    """From inside: there its number is another."""
    run("docker", "exec", container, "python", "-c", f"import os; os.kill({pid}, 9)")


def test_a_worker_as_process_1_is_no_root_and_reaps_what_others_leave(compose: Compose, process_1: str) -> None:
    assert run("docker", "exec", process_1, "cat", "/proc/1/comm").strip() == "quaybridge"
    assert run("docker", "exec", process_1, "id", "--user").strip() != "0"
    with Producer(compose.url) as producer:
        assert producer.call("work", "work", {"seconds": 0}).result == 0
        until(lambda: "sleep" not in processes(process_1))
        assert "Z" not in processes(process_1).values()
        # And the node still learns how its own ended.
        running = producer.submit("work", "work", {"seconds": 600}, timeout=PATIENCE)
        until(lambda: f"{running.message_id}: at work" in logs(process_1))
        (pid,) = re.findall(r"bridge (\d+) is ready", logs(process_1))
        kill(process_1, pid)
        with pytest.raises(BridgeCrashed, match="signal SIGKILL"):
            running.result()
        assert producer.call("work", "work", {"seconds": 0}).result == 0


def test_a_worker_as_process_1_drains_when_it_is_stopped(compose: Compose, process_1: str) -> None:
    with Producer(compose.url) as producer:
        running = producer.submit("work", "work", {"seconds": 2}, timeout=PATIENCE)
        until(lambda: f"{running.message_id}: at work" in logs(process_1))
        run("docker", "stop", "--time", "30", process_1)
        assert running.result().result == 2
    assert state(process_1)["ExitCode"] == 0
    assert "stopped" in logs(process_1)


def test_a_worker_as_process_1_ends_as_its_node_does(process_1: str) -> None:
    node, *_ = run("docker", "exec", process_1, "cat", "/proc/1/task/1/children").split()  # the rest are orphans
    kill(process_1, node)
    assert run("docker", "wait", process_1).strip() == "137"


def logs(container: str) -> str:
    return subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True).stderr


def test_the_demo_runs_in_its_profile(compose: Compose) -> None:
    words = ("demo", "--corpus", "/usr/src/quaybridge", "--nodes", "1", "--json")
    compose("--profile", "demo", "build", "demo")
    figures = json.loads(compose("--profile", "demo", "run", "--rm", "demo", *words))
    assert (figures["broker"], figures["failures"], figures["verified"]) == ("RabbitMQ", 0, True)
