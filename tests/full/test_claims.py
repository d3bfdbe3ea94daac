"""Claim checks from the command line, on RabbitMQ: what is too much for a message's comfort goes both ways."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from command_line import run, running

WORKER = ("worker", "--service", "echo", "--bridge", f"{sys.executable} -m examples.echo", "--bridges", "1")


async def test_two_megabytes_there_and_back(rabbitmq_url: str, tmp_path: Path) -> None:
    here = ("--broker", rabbitmq_url)
    store = ("--store", str(tmp_path))
    given = json.dumps({"text": "é" * 1_000_000})
    async with running(*WORKER, *here, *store) as worker:
        await worker.said("serving")
        called = await run("call", *here, *store, "echo", "echo", "--args", "-", stdin=given.encode())
        assert (called.status, called.err) == (0, "")
        assert json.loads(called.out) == json.loads(given)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        published = await run("publish", *here, *store, "echo", "echo", "--args", "-", stdin=given.encode())
        assert published.status == 0
        await run("call", *here, "echo", "echo")  # by now it was answered, by the one bridge
        (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert json.loads(file.read_bytes()) == json.loads(given)
        missing = await run("call", *here, "--store", str(tmp_path / "missing"), "echo", "echo")
        assert missing.status == 2
        assert "is no directory: make it" in missing.err
