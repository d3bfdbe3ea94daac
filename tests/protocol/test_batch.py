"""A batch, on the embedded broker: its two files, whatever its input holds and whenever it was ended before."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from responder import SERVICE, Responder
from soak import SOAK

from bridge_protocol.errors import Code, UnknownService
from bridge_protocol.messages import Request
from broker.contract import Delivery
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from quaybridge.batch import Batch, BatchError, Earlier, Line, Lines, Records, Tally

ROOT = Path(__file__).parents[2]


def act(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Answers in an order of its own, and not at all with success what asks to fail."""
    loop = asyncio.get_running_loop()
    n = request.args["n"]
    if request.args.get("fail"):
        loop.call_later(n % 3 / 500, responder.fail, delivery, request, Code.APPLICATION_ERROR, f"{n} failed")
    else:
        loop.call_later(n % 7 / 500, responder.succeed, delivery, request, {"n": n, "é": "\n"})


INPUT = b"".join(
    {
        5: b"not JSON\n",
        9: b"\n",
        12: b"[1, 2]\r\n",
        13: b'  {"n": 13}\r\n',
        17: b'{"n": 1, "n": 2}\n',
        20: b'{"n": 20, "fail": true}\n',
        21: b'{"n": 21, "fail": true}\n',
        40: b'{"n": 40',  # without an end
    }.get(n, b'{"n": %d}\n' % n)
    for n in range(1, 41)
)


class Files:
    """A batch's files in a directory, and the batch itself."""

    def __init__(self, directory: Path) -> None:
        self.requests = directory / "requests.jsonl"
        self.replies = directory / "replies.jsonl"
        self.failures = directory / "replies.failures.jsonl"

    async def batch(self, producer: AsyncProducer, *, resume: bool = False, service: str = SERVICE) -> Tally:
        source = os.open(self.requests, os.O_RDONLY)
        target = os.open(self.replies, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if resume else os.O_TRUNC))
        failures = Records(path=self.failures)
        try:
            earlier = Earlier(target, self.failures) if resume else None
            tally = Tally()
            if not resume:
                self.failures.unlink(missing_ok=True)
            work = Batch(
                producer,
                service,
                "echo",
                replies=Records(target),
                failures=failures,
                tally=tally,
                in_flight=7,
                timeout=60,
            )
            await work.run(Lines(source), earlier)
        finally:
            failures.close()
            os.close(source)
            os.close(target)
        return tally

    def written(self) -> tuple[bytes, bytes]:
        return self.replies.read_bytes(), self.failures.read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path)
    found.requests.write_bytes(INPUT)
    return found


@pytest.fixture
async def producer() -> AsyncIterator[AsyncProducer]:
    broker = MemoryBroker()
    await Responder(act).start(broker)
    async with AsyncProducer(broker) as made:
        yield made


async def test_each_line_ends_in_one_of_the_files(files: Files, producer: AsyncProducer) -> None:
    tally = await files.batch(producer)
    replies, failures = ([json.loads(line) for line in written.splitlines()] for written in files.written())
    wrong = {5, 12, 17, 20, 21, 40}
    expected = [{"line": n, "result": {"n": n, "é": "\n"}} for n in range(1, 41) if n not in wrong | {9}]
    assert replies == expected
    assert [(each["line"], each["code"], each.get("broken", False)) for each in failures] == [
        (5, "bad_request", True),
        (12, "bad_request", True),
        (17, "bad_request", True),
        (20, "application_error", False),
        (21, "application_error", False),
        (40, "bad_request", True),
    ]
    assert failures[0]["text"] == "not JSON"
    assert failures[2]["error"].endswith("the key 'n' is given twice")
    assert failures[3]["args"] == {"n": 20, "fail": True}
    assert failures[3]["error"] == "20 failed"
    assert tally == Tally(answered=40, succeeded=33, failed=2, broken=4, end=len(INPUT))


def states(replies: bytes, failures: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What a batch that is killed can leave: the records up to one, in whichever file, and a part of the next."""
    records = sorted(
        [(json.loads(line)["line"], 0, line) for line in replies.splitlines(keepends=True)]
        + [(json.loads(line)["line"], 1, line) for line in failures.splitlines(keepends=True)]
    )
    left = [b"", b""]
    for _, file, line in records:
        for cut in {0, 1, len(line) // 2, len(line) - 1}:
            torn = list(left)
            torn[file] += line[:cut]
            yield torn[0], torn[1]
        left[file] += line
    yield left[0], left[1]


async def test_going_on_from_any_moment_writes_the_same(files: Files, producer: AsyncProducer) -> None:
    await files.batch(producer)
    whole = files.written()
    left = list(states(*whole))
    for replies, failures in left if SOAK else random.Random(7).sample(left, 25):
        files.replies.write_bytes(replies)
        files.failures.write_bytes(failures)
        tally = await files.batch(producer, resume=True)
        assert files.written() == whole
        assert (tally.succeeded, tally.failed, tally.broken) == (33, 2, 4)


async def test_it_stops_where_the_broker_takes_nothing(files: Files, producer: AsyncProducer) -> None:
    with pytest.raises(UnknownService):
        await files.batch(producer, service="nobody")
    assert files.replies.read_bytes() == b""
    assert not files.failures.exists()  # no line is blamed for it
    await files.batch(producer, resume=True)
    assert files.replies.read_bytes().count(b"\n") == 33


async def test_files_of_something_else_are_not_gone_on_with(files: Files, producer: AsyncProducer) -> None:
    files.replies.write_bytes(b"hello\n")
    with pytest.raises(BatchError, match="the replies hold a line that no batch wrote"):
        await files.batch(producer, resume=True)
    files.replies.write_bytes(b'{"line":41,"result":1}\n')
    with pytest.raises(BatchError, match="line 41 is in the replies, and line 1 is in neither file"):
        await files.batch(producer, resume=True)
    assert files.replies.read_bytes() == b'{"line":41,"result":1}\n'
    reading, writing = os.pipe()
    with pytest.raises(BatchError, match="needs the replies in a file"):
        Earlier(writing, files.failures)
    os.close(reading)
    os.close(writing)
    files.replies.unlink()
    await files.batch(producer)
    files.requests.write_bytes(b"".join(INPUT.splitlines(keepends=True)[:30]))
    with pytest.raises(BatchError, match="more lines were answered before than the input has"):
        await files.batch(producer, resume=True)


async def test_failures_of_yet_another_batch_mislead_nobody(files: Files, producer: AsyncProducer) -> None:
    """A shell empties the replies before the batch that was killed then could remove the failures of the one before."""
    await files.batch(producer)
    whole = files.written()
    files.replies.write_bytes(b'{"line":1,"res')
    await files.batch(producer, resume=True)
    assert files.written() == whole


# Lines.


async def lines_of(*pieces: bytes, limit: int = 1000) -> list[Line]:
    reading, writing = os.pipe()

    async def write() -> None:
        for piece in pieces:
            os.write(writing, piece)
            await asyncio.sleep(0)
        os.close(writing)

    try:
        writer = asyncio.ensure_future(write())
        found = [line async for line in Lines(reading, limit=limit)]
        await writer
        return found
    finally:
        os.close(reading)


async def test_lines_however_they_are_cut() -> None:
    text = b"a\n\nbcd\r\n" + b"x" * 11 + b"\nlast"
    expected = [(1, b"a", 2), (2, b"", 3), (3, b"bcd\r", 8), (4, None, 20), (5, b"last", 24)]
    for first, second in itertools.combinations(range(len(text) + 1), 2):
        found = await lines_of(text[:first], text[first:second], text[second:], limit=10)
        assert [(line.number, line.text, line.end) for line in found] == expected
    assert await lines_of(b"") == []


# Memory.


def peak(count: int) -> int:
    """The peak resident memory, in bytes, of a process that has such a batch."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "batch_memory.py"), str(count)],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    told: dict[str, Any] = json.loads(ran.stdout)
    assert told["answered"] == count
    print(told)
    return int(told["peak"])


def test_memory_does_not_grow_with_the_input() -> None:
    """Of input lines of 1 KB: what was kept of each would show."""
    few, many = (10_000, 1_000_000) if SOAK else (500, 10_000)
    assert peak(many) - peak(few) < 6 * 1024**2


async def test_bytes_in_a_result_are_declared_in_its_line(tmp_path: Path) -> None:
    records = Records(path=tmp_path / "replies.jsonl")
    records.add({"line": 1, "result": [b"hi", {"$bytes": "no"}]})
    records.add({"line": 2, "result": {"$bytes": "no"}})
    await records.write()
    records.close()
    first, second = (tmp_path / "replies.jsonl").read_bytes().splitlines()
    assert first == b'{"line":1,"result":[{"$bytes_":"aGk="},{"$bytes":"no"}],"binary":"$bytes_"}'
    assert second == b'{"line":2,"result":{"$bytes":"no"}}'
