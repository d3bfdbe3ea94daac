"""The command line over RabbitMQ: a worker that serves, calls to it, and how both end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
from command_line import PATIENCE, run, running
from vhost import Vhost

from bridge_protocol.topology import Queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker

WORKER = ("worker", "--service", "echo", "--bridge", f"{sys.executable} -m examples.echo", "--bridges", "1")


async def test_what_a_user_does_first(rabbitmq_url: str, tmp_path: Path) -> None:
    here = ("--broker", rabbitmq_url)
    async with running(*WORKER, *here, "--name", "alpha") as worker:
        await worker.said("alpha: serving")
        called = await run(
            "call", *here, "echo", "echo", "text=é", "number:=1", "--args", "-", stdin=b'{"more": [1, {}]}'
        )
        assert (called.status, called.err) == (0, "")
        assert called.out.count("\n") == 1
        assert json.loads(called.out) == {"more": [1, {}], "text": "é", "number": 1}
        whole = json.loads((await run("call", *here, "echo", "echo", "--json")).out)
        assert re.fullmatch("[0-9a-f]{32}", whole.pop("message_id"))
        assert whole == {"result": {}, "attempt": 1, "redelivered": False, "node": "alpha"}
        (tmp_path / "image").write_bytes(b"hi\xff")
        given = await run("call", *here, "echo", "echo", f"image@={tmp_path}/image")
        assert given.out == '{"image":{"$bytes":"aGn/"}}\n'
        declared = json.loads((await run("call", *here, "echo", "echo", f"a@={tmp_path}/image", "--json")).out)
        assert (declared["result"], declared["binary"]) == ({"a": {"$bytes": "aGn/"}}, "$bytes")
        described = await run("call", *here, "echo", "--describe")
        assert (described.status, described.err) == (0, "")
        assert 'fail  → None\n    message: str = "as asked"\n    retryable: bool = false\n' in described.out
        as_json = json.loads((await run("call", *here, "echo", "--describe", "--json")).out)
        assert [each["name"] for each in as_json["commands"]] == ["echo", "fail", "log", "pid", "sleep"]
        published = await run("publish", *here, "echo", "echo")
        assert (published.status, published.err) == (0, "")
        assert re.fullmatch("[0-9a-f]{32}\n", published.out)
        failed = await run("call", *here, "echo", "fail", "message=two\nlines")
        assert (failed.status, failed.out) == (1, "")
        assert re.fullmatch(r"application_error: .*two\\nlines\n", failed.err)
        told = await run("call", *here, "--verbose", "echo", "fail")
        assert '  type: "ApplicationError"' in told.err.splitlines()
        unknown = await run("call", *here, "ehco", "echo")
        assert (unknown.status, unknown.out) == (1, "")
        assert unknown.err.startswith("unknown_service: ")
        late = await run("call", *here, "echo", "sleep", "seconds:=60", "--timeout", "1")
        assert (late.status, late.err.partition(":")[0]) == (1, "deadline_exceeded")
        worker.process.send_signal(signal.SIGINT)
        assert (await worker.ended()).status == 0
    nobody = await run("call", *here, "echo", "--describe", "--timeout", "60")
    assert (nobody.status, nobody.out) == (1, "")
    assert nobody.err == "unknown_service: no worker serves 'echo' now: start one, and ask again\n"


async def in_flight(vhost: Vhost) -> None:
    """Wait until the worker has the one request."""
    async with asyncio.timeout(PATIENCE):
        while await asyncio.to_thread(unacknowledged, vhost) != {"quaybridge.echo": 1}:
            pass


def unacknowledged(vhost: Vhost) -> dict[str, int]:
    """How many messages consumers hold, by queue, where there are any."""
    listed = vhost.control("list_queues", "--silent", "name", "messages_unacknowledged").splitlines()
    counts = {name: int(count) for name, _, count in (line.rpartition("\t") for line in listed)}
    return {name.strip(): count for name, count in counts.items() if count}


async def test_the_first_signal_finishes_what_runs(rabbitmq_vhost: Vhost) -> None:
    here = ("--broker", rabbitmq_vhost.url)
    async with running(*WORKER, *here) as worker:
        await worker.said("serving")
        async with running("call", *here, "echo", "sleep", "seconds:=5") as call:
            await in_flight(rabbitmq_vhost)
            worker.process.send_signal(signal.SIGTERM)
            called, ended = await asyncio.gather(call.ended(), worker.ended())
    assert (called.status, called.out, called.err) == (0, "5\n", "")
    assert (ended.status, "Traceback" in ended.err) == (0, False)


async def test_the_second_signal_ends_it_at_once_and_hands_back_what_ran(rabbitmq_vhost: Vhost) -> None:
    here = ("--broker", rabbitmq_vhost.url)
    async with running(*WORKER, *here) as worker:
        bridge = psutil.Process(int((await worker.said(r"bridge (\d+) is ready"))[1]))
        await worker.said("serving")
        assert (await run("publish", *here, "echo", "sleep", "seconds:=600")).status == 0
        await in_flight(rabbitmq_vhost)
        worker.process.send_signal(signal.SIGTERM)
        await worker.said("draining")
        worker.process.send_signal(signal.SIGTERM)
        ended = await worker.ended()
    assert (ended.status, "Traceback" in ended.err) == (0, False)
    assert not bridge.is_running()
    async with running(*WORKER, *here) as successor:
        await successor.said("serving")
        await in_flight(rabbitmq_vhost)


async def test_sighup_replaces_the_bridges_by_ones_with_the_configuration_as_it_is_now(
    rabbitmq_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "quaybridge.toml"

    def configure(bridge: str, more: str = "") -> None:
        table = f'[services.echo]\ncommand = ["{sys.executable}", "-m", "{bridge}"]\nbridges = 1\n{more}'
        file.write_text(f'broker = "{rabbitmq_url}"\n{table}')

    configure("examples.echo")
    async with running("worker", "--config", str(file)) as worker:
        first = psutil.Process(int((await worker.said(r"bridge (\d+) is ready"))[1]))
        await worker.said("serving")
        configure("examples.echo", "bridgse = 2")
        worker.process.send_signal(signal.SIGHUP)
        await worker.said(r"not reloaded: .*quaybridge.toml: unknown key services.echo.bridgse: did you mean")
        assert first.is_running()
        configure("examples.echo", "environment.NEW = '1'")
        async with running("call", "--broker", rabbitmq_url, "echo", "sleep", "seconds:=1") as call:
            worker.process.send_signal(signal.SIGHUP)
            second = psutil.Process(int((await worker.said(r"bridge (\d+) is ready"))[1]))
            called = await call.ended()
        assert (called.status, called.out) == (0, "1\n")
        assert second.environ()["NEW"] == "1"
        worker.process.send_signal(signal.SIGTERM)
        ended = await worker.ended()
    assert ended.status == 0
    assert f"bridge {first.pid} is replaced: by one with new settings" in ended.err
    assert not first.is_running()


async def test_a_queue_with_other_arguments_ends_a_worker_with_4(rabbitmq_url: str) -> None:
    channel = await AmqpBroker(parse_addresses(rabbitmq_url)).open("test", on_closed=lambda reason: None)
    await channel.declare([Queue("quaybridge.echo")])
    await channel.close()
    ended = await run(*WORKER, "--broker", rabbitmq_url)
    assert ended.status == 4
    assert "queue 'quaybridge.echo'" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["worker", "call"])
async def test_a_wrong_password_ends_with_3_at_once(command: str, rabbitmq_url: str) -> None:
    wrong = re.sub(r":[^:@]*@", ":hunter2@", rabbitmq_url)
    arguments = WORKER if command == "worker" else ("call", "echo", "echo")
    ended = await run(*arguments, "--broker", wrong)
    assert ended.status == 3
    assert "refused" in ended.err.splitlines()[-1]
    assert "hunter2" not in ended.err
