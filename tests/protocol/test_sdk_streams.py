"""Streams and progress of a bridge made with the SDK, byte by byte at its pipes, without a node."""

from __future__ import annotations

import fcntl
import select
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipe_client import Client

from bridge_protocol.messages import CANCEL, Chunk, Failure, Progress, Result

STREAMS = Path(__file__).parents[1] / "bridges" / "streams.py"


@pytest.fixture(params=[1, 4], ids=["in turn", "concurrent"])
def bridge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    client = Client([sys.executable, str(STREAMS), str(request.param)], tmp_path / "stderr")
    assert client.shake_hands()["capabilities"]["stream"] is True
    yield client
    client.hang_up()
    client.close()


def said(client: Client) -> list[Any]:
    """All that it says, up to a final reply."""
    found: list[Any] = [client.said()]
    while not isinstance(found[-1], Result | Failure):
        found.append(client.said())
    return found


def test_a_generator_says_its_chunks_and_then_what_it_returns(bridge: Client) -> None:
    request = bridge.send("count", to=3)
    assert said(bridge) == [
        *(Chunk(id=request, seq=number, data=str(number)) for number in range(3)),
        Result(id=request, result=3),
    ]
    request = bridge.send("nothing")
    assert said(bridge) == [Result(id=request, result=None)]


def test_progress_is_said_as_it_is(bridge: Client) -> None:
    request = bridge.send("steps", to=2)
    assert said(bridge) == [
        *(Progress(id=request, data={"done": n, "total": 2, "note": f"step {n}"}) for n in range(2)),
        Result(id=request, result=2),
    ]


def test_what_a_generator_raises_comes_after_its_chunks(bridge: Client) -> None:
    bridge.send("fails", after=1)
    chunk, failure = said(bridge)
    assert chunk.data == 0
    assert failure.info.details == {"after": 1}
    bridge.send("strange")
    chunk, failure = said(bridge)
    assert failure.error.startswith("ValueError: chunk 1 is not JSON")
    assert bridge.call("steps", to=0) == 0


@pytest.mark.parametrize("pause", [0.0, 30.0], ids=["while it writes", "while it waits"])
def test_a_stream_is_cancelled_between_two_frames_though_nobody_reads(bridge: Client, pause: float) -> None:
    """Its pipe is full, or it sleeps; what comes then is whole frames, and one reply."""
    request = bridge.send("count", to=10**9 if not pause else 10, pause=pause)
    assert isinstance(bridge.said(), Chunk)
    if not pause:
        assert bridge.process.stdout is not None
        sink = bridge.process.stdout.fileno()
        # Until it can write no more: nothing is added to what waits.
        before = -1
        while before != (before := _waiting(sink)) or before == 0:
            select.select([], [], [], 0.1)
    bridge.send(CANCEL, id=request)
    *chunks, last = said(bridge)
    assert isinstance(last, Failure)
    assert (last.id, last.error) == (request, "cancelled")
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert bridge.call("steps", to=0) == 0


def _waiting(descriptor: int) -> int:
    """How many bytes wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0])


def test_asynchronous_generators_run_beside_each_other_and_are_cancelled(tmp_path: Path) -> None:
    client = Client([sys.executable, str(STREAMS), "4"], tmp_path / "stderr")
    client.shake_hands()
    first = client.send("ticks", to=10**9)
    second = client.send("ticks", to=20)
    seen: dict[int, list[int]] = {first: [], second: []}
    while not isinstance(message := client.said(), Result):
        assert isinstance(message, Chunk)
        seen[message.id].append(message.data)
    assert (message.id, message.result) == (second, None)
    assert seen[second] == list(range(20))
    assert seen[first] == list(range(len(seen[first])))
    client.send(CANCEL, id=first)
    *_, last = said(client)
    assert isinstance(last, Failure)
    assert (last.id, last.error) == (first, "cancelled")
    client.hang_up()
    assert client.wait() == 0
    client.close()
