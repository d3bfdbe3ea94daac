"""Starting a RabbitMQ that does not start, and leaving nothing behind. (That it works, every full test shows.)"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from quaybridge.rabbitmq import (
    ContainerRabbitMQ,
    PrivateRabbitMQ,
    RabbitMQError,
    docker_available,
    server_available,
)

PATIENCE = 30.0  # seconds


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


def put_on_path(script: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / "rabbitmq-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


def test_a_server_that_ends_is_quoted(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path("echo starting; echo no cookie >&2; exit 3", tmp_path, monkeypatch)
    with pytest.raises(RabbitMQError, match=r"status 3:\nstarting\nno cookie"), PrivateRabbitMQ():
        raise AssertionError("it did not start")
    assert list(temporary.iterdir()) == []


def test_an_interrupted_start_leaves_neither_processes_nor_data(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Erlang does with its port mapper: a process that leaves session and parent.
    put_on_path('setsid sleep 600 & echo "$! $$" > "$HOME/started"; exec sleep 600', tmp_path, monkeypatch)
    rabbitmq = PrivateRabbitMQ()
    started: list[int] = []
    threads = threading.active_count()

    def interrupt() -> str | None:
        for file in temporary.glob("*/started"):
            if numbers := file.read_text().split():
                started.extend(map(int, numbers))
                raise KeyboardInterrupt
        return None

    monkeypatch.setattr(rabbitmq, "_problem", interrupt)
    with pytest.raises(KeyboardInterrupt), rabbitmq:
        raise AssertionError("it did not start")
    assert len(started) == 2
    assert not any(_runs(number) for number in started)
    assert list(temporary.iterdir()) == []
    assert threading.active_count() == threads


def test_a_server_ends_with_whoever_started_it_and_was_killed(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path('setsid sleep 600 & echo "$! $$" > "$HOME/started"; exec sleep 600', tmp_path, monkeypatch)
    program = "from quaybridge.rabbitmq import PrivateRabbitMQ; PrivateRabbitMQ().__enter__()"
    starter = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(temporary)})
    end = time.monotonic() + PATIENCE
    started: list[int] = []
    while len(started) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
        for file in temporary.glob("*/started"):
            started = [int(number) for number in file.read_text().split()]
    starter.kill()
    starter.wait()
    while any(_runs(number) for number in started):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_without_a_server_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert server_available() == "there is no rabbitmq-server on PATH"
    with pytest.raises(RabbitMQError, match="no rabbitmq-server on PATH"), PrivateRabbitMQ():
        raise AssertionError("it did not start")


def test_without_docker_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    problem = docker_available()
    assert problem is not None
    assert problem.startswith(("no Docker daemon answers", "the package testcontainers is not installed"))
    with pytest.raises(RabbitMQError, match=r"Docker daemon|testcontainers"), ContainerRabbitMQ():
        raise AssertionError("it did not start")
