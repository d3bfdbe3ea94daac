"""The command line as far as it goes without a RabbitMQ: help, usage, configuration, and a broker that is not there."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command_line import run, running

ECHO = f"{sys.executable} -m examples.echo"


@pytest.fixture
def closed() -> Iterator[str]:
    """The URL of a port where nobody listens, and nobody else can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"amqp://user:hunter2@127.0.0.1:{bound.getsockname()[1]}/"


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def url(server: socket.socket) -> str:
    return f"amqp://user:hunter2@127.0.0.1:{server.getsockname()[1]}/"


async def test_help_lists_the_commands_and_what_the_exit_statuses_mean() -> None:
    ended = await run("--help")
    assert ended.status == 0
    for word in ("worker", "call", "publish", "dead", "conformance", "demo", "Exit status: 0 done", "130 interrupted"):
        assert word in ended.out
    for command in ("worker", "call", "publish", "conformance", "demo"):
        ended = await run(command, "--help")
        assert ended.status == 0
        assert "Exit status: 0 done" in ended.out


async def test_help_is_broken_into_lines_by_the_terminal_alone() -> None:
    ended = await run("worker", "--help", environ={"COLUMNS": "400"})
    assert "SIGHUP reads the configuration again and replaces every bridge" in ended.out


async def test_the_version_is_the_distributions() -> None:
    ended = await run("--version")
    assert (ended.status, ended.out.split()[0]) == (0, "quaybridge")


def test_help_and_the_public_names_import_nothing_heavy() -> None:
    heavy = {"pika", "pydantic", "orjson", "psutil", "testcontainers", "rich"}
    program = f"import sys, quaybridge, quaybridge.command_line; print(*{heavy!r}.intersection(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == []


USAGE = [
    (["nonsense"], "nonsense"),
    (["worker", "--brigdes", "4"], "--brigdes"),
    (["worker", "--bridges", "four"], "--bridges"),
    (["worker", "--log-level", "loud"], "loud"),
    (["worker"], "no service is configured: give --service NAME --bridge COMMAND"),
    (["worker", "--service", "a"], "services.a.command is not set (the bridge's program"),
    (["worker", "--service", "a", "--bridges", "2"], "services.a.command is not set"),
    (["worker", "--bridge", "cat"], "--bridge needs --service, to say whose it is"),
    (["worker", "--service", "A", "--bridge", "cat"], "--service: services.A.name = 'A': 'A' is no service name"),
    (["worker", "--service", "a", "--bridge", "it's"], "--bridge: services.a.command"),
    (["worker", "--service", "a", "--bridge", "cat", "--bridges", "0"], "services.a.bridges = '0': should be 1 … 1024"),
    (["worker", "--service", "a", "--bridge", "cat", "--start", "now"], "--start: services.a.start = 'now'"),
    (["worker", "--service", "a", "--bridge", "cat", "--run-timeout", "0"], "--run-timeout: services.a.run_timeout"),
    (["worker", "--service", "a", "--bridge", "cat", "--broker", "http://a:hunter2@b"], "must be amqp or amqps"),
    (["worker", "--config", "/no/such/file"], "cannot be read: No such file or directory"),
    (["call", "echo"], "which command? quaybridge call echo --describe lists those there are"),
    (["call", "echo", "echo", "word"], "write key=text, key:=json or key@=file"),
    (["call", "echo", "echo", "--args", "[]"], "should be a JSON object"),
    (["call", "echo", "echo", "--timeout", "0"], "--timeout"),
    (["call", "echo", "echo", "--broker", "amqp://10.1.1.1/"], "user guest is for this machine only"),
    (["dead", "list"], "service"),
    (["dead", "list", "Echo"], "no service name"),
    (["dead", "list", "control"], "reserved"),
    (["dead", "list", "echo", "--code", "bridge_crash"], "did you mean bridge_crashed?"),
    (["dead", "list", "echo", "--older-than", "soon"], "write 90s, 15m, 2h, 7d or 1w"),
    (["dead", "list", "echo", "--limit", "0"], "--limit"),
    (["dead", "show", "echo"], "id"),
    (["dead", "replay", "echo"], "say which: some IDs, or --all"),
    (["dead", "replay", "echo", "m1", "--all"], "say which: some IDs, or --all"),
    (["dead", "replay", "echo", "m1", "--timeout", "0"], "--timeout"),
    (["dead", "purge", "echo", "--broker", "http://a:hunter2@b"], "must be amqp or amqps"),
    (["publish", "echo", "echo", "--broker", "amqp://a:hunter2@b:x/"], "the port of a broker URL must be a number"),
]


@pytest.mark.parametrize(("arguments", "told"), USAGE, ids=[" ".join(arguments) for arguments, _ in USAGE])
async def test_usage_and_configuration_end_with_2(arguments: list[str], told: str) -> None:
    ended = await run(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert "hunter2" not in ended.err


async def test_arguments_come_from_stdin_too(closed: str) -> None:
    command = ("call", "echo", "echo", "--args", "-", "--broker", closed, "--timeout", "0.2")
    assert (await run(*command, stdin=b"[]")).status == 2
    assert (await run(*command, stdin=b"{}")).status == 3


@pytest.mark.parametrize("command", ["call", "publish"])
async def test_a_broker_that_is_not_there_ends_with_3(command: str, closed: str, silent: socket.socket) -> None:
    for broker in (closed, url(silent)):
        ended = await run(command, "echo", "echo", "--broker", broker, "--timeout", "0.5")
        assert (ended.status, ended.out) == (3, "")
        assert ended.err.startswith("broker_unavailable: cannot connect to amqp://user:***@127.0.0.1:")
        assert ended.err.count("\n") == 1
        assert "hunter2" not in ended.err


@pytest.mark.parametrize("command", ["list", "export", "purge"])
async def test_dead_letters_of_a_broker_that_is_not_there_end_with_3(command: str, closed: str) -> None:
    ended = await run("dead", command, "echo", "--broker", closed)
    assert (ended.status, ended.out, ended.err.count("\n")) == (3, "", 1)
    assert "cannot be reached" in ended.err
    assert "hunter2" not in ended.err


async def test_the_environment_and_the_file_name_the_broker(tmp_path: Path, closed: str) -> None:
    file = tmp_path / "my.toml"
    file.write_text(f'broker = "{closed}"')
    for environ in ({"QUAYBRIDGE_BROKER": closed}, {"QUAYBRIDGE_CONFIG": str(file)}):
        ended = await run("call", "echo", "echo", "--timeout", "0.2", environ=environ)
        assert closed.rpartition(":")[2].rstrip("/") in ended.err
        assert ended.status == 3


@pytest.mark.parametrize(
    ("bridge", "start", "told"),
    [
        ("no-such-program", "eager", "service a: 'no-such-program' is not found on PATH"),
        ("no-such-program", "lazy", "service a: 'no-such-program' is not found on PATH"),
        ("/", "eager", "service a: '/' is a directory: name a program"),
        (__file__, "eager", f"service a: {__file__!r} is not executable"),
        ("sh -c 'exit 7'", "eager", "exit code 7"),
        (
            "sh -c 'echo Loading model; sleep 9'",
            "eager",
            '"Loading model\\n" looks like text: did the program print to',
        ),
    ],
)
async def test_a_bridge_that_cannot_start_ends_with_5(bridge: str, start: str, told: str, closed: str) -> None:
    ended = await run("worker", "--service", "a", "--bridge", bridge, "--start", start, "--broker", closed)
    assert ended.status == 5
    assert told in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_worker_that_still_waits_for_its_broker(number: signal.Signals, closed: str) -> None:
    arguments = ("--service", "echo", "--bridge", ECHO, "--bridges", "1", "--broker", closed)
    async with running("worker", *arguments) as worker:
        bridge = psutil.Process(int((await worker.said(r"bridge (\d+) is ready"))[1]))
        worker.process.send_signal(number)
        ended = await worker.ended()
    assert ended.status == 0
    assert "Traceback" not in ended.err
    assert not bridge.is_running()


def worker_arguments(bridge: str, broker: str) -> tuple[str, ...]:
    return ("--service", "a", "--bridge", bridge, "--bridges", "1", "--broker", broker)


async def test_sigusr1_has_a_worker_log_what_each_slot_is_doing(closed: str) -> None:
    async with running("worker", *worker_arguments(ECHO, closed)) as worker:
        pid = (await worker.said(r"bridge (\d+) is ready"))[1]
        worker.process.send_signal(signal.SIGUSR1)
        await worker.said(rf"INFO +a\[0\] idle: bridge {pid}, up \d+\.\d s, 0 served, \d+\.\d MB\n")
        worker.process.send_signal(signal.SIGTERM)
        assert (await worker.ended()).status == 0


async def test_a_bridge_that_prints_to_stdout_is_told_of_in_one_line(closed: str, tmp_path: Path) -> None:
    reply = b'{"id":0,"success":true,"result":1}'
    said = len(reply).to_bytes(4, "big") + reply
    file = tmp_path / "bridge.py"
    file.write_text(
        f"import os, time; os.read(0, 999); os.write(1, {said!r}); time.sleep(0.3)\nprint('Model loaded', flush=True)\n"
        "time.sleep(1000)\n"
    )
    async with running("worker", *worker_arguments(f"{sys.executable} {file}", closed)) as worker:
        pid = (await worker.said(r"bridge (\d+) is ready"))[1]
        await worker.said(
            rf"WARNING +a\[0\]: bridge {pid} .*Model loaded.*looks like text: did the program print to stdout"
        )
        worker.process.send_signal(signal.SIGTERM)
        ended = await worker.ended()
    assert (
        len([line for line in ended.err.splitlines() if f"bridge {pid} " in line]) == 2
    )  # it was ready, and it printed


@pytest.mark.parametrize("broker", ["nobody there", "no such host", "silence"])
async def test_a_worker_gives_up_a_broker_it_never_reached(broker: str, closed: str, silent: socket.socket) -> None:
    nowhere = "amqp://user:hunter2@no.such.host.invalid/"
    where = {"nobody there": closed, "no such host": nowhere, "silence": url(silent)}[broker]
    arguments = ("worker", "--service", "echo", "--bridge", ECHO, "--bridges", "1", "--broker", where)
    ended = await run(*arguments, environ={"QUAYBRIDGE_NODE__CONNECT_TIMEOUT": "1.5"})
    assert (ended.status, "Traceback" in ended.err, "hunter2" in ended.err) == (3, False, False)
    # One line for each connection, however often it was tried, and a last one.
    tries = [line for line in ended.err.splitlines() if "cannot connect" in line]
    assert len(tries) <= 2
    assert re.search("cannot be reached|gave no answer in 1.5 s", ended.err.splitlines()[-1])


async def test_an_interrupted_call_ends_with_130_and_silence(silent: socket.socket) -> None:
    async with running("call", "echo", "echo", "--broker", url(silent)) as call:
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        with connection:
            call.process.send_signal(signal.SIGINT)
            ended = await call.ended()
    assert (ended.status, ended.out, ended.err) == (130, "", "")
