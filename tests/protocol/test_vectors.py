"""The bad vectors on a real bridge's stdin: what the SDK answers names the same kind as a node's own reader."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from pipe_client import Client
from vectors import cases, octets

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import LIMIT_CEILING, FrameDecoder, encode_frame
from bridge_protocol.messages import Failure

ECHO = [sys.executable, "-m", "examples.echo"]


def kind(reply: Any) -> Any:
    assert isinstance(reply, Failure)
    assert reply.id is None
    assert reply.info is not None
    return reply.info.details["kind"]


def test_every_bad_payload_is_answered_with_its_kind_and_costs_nothing(tmp_path: Path) -> None:
    client = Client(ECHO, tmp_path / "stderr")
    try:
        tried = 0
        for case in (case.values[0] for file in ("payloads.json", "requests.json") for case in cases(file)):
            payload = octets(case["payload"])
            if "error" in case and payload.startswith(b"{"):
                client.write(encode_frame(payload))
                assert kind(client.receive()) == case["error"], case["name"]
                tried += 1
        assert tried > 100
        assert client.call("echo", text="é") == {"text": "é"}
        client.hang_up()
        assert client.wait() == 0
    finally:
        client.close()


ENDING = [
    "length 0 after a frame",
    "length 0xffffffff is not −1",
    "text after a frame",
    "an array",
    "a length of 8 bytes",
]


@pytest.mark.parametrize("name", ENDING)
def test_a_stream_that_is_none_is_answered_with_its_kind_and_ends_the_bridge(name: str, tmp_path: Path) -> None:
    (case,) = (case.values[0] for case in cases("frames.json") if case.values[0]["name"] == name)
    stream = octets(case["stream"])
    decoder = FrameDecoder(LIMIT_CEILING)
    decoder.receive(stream)
    with pytest.raises(FrameError) as in_node:
        deque(iter(decoder.next, None))
    client = Client(ECHO, tmp_path / "stderr")
    try:
        client.write(stream)
        replies = [client.receive() for _ in range(len(case["payloads"]) + 1)]  # {"id":1} is no request either
        assert kind(replies[-1]) == in_node.value.kind == case["error"]
        assert client.wait() == 1
        assert "standard input holds no frames" in client.stderr()
    finally:
        client.close()
