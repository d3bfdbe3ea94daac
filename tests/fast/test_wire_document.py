"""docs/wire.md says what the code does: its examples are exact, and its names, numbers and lists are the code's."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import pytest
from documents import blocks, text

from bridge_protocol import control, messages, topology
from bridge_protocol.description import Argument, Description, read_descriptions
from bridge_protocol.envelope import FRESH, Properties, SessionClaim, reply_to_problem, session_headers
from bridge_protocol.errors import Code, FrameKind, RequestFailed, exception_for
from bridge_protocol.frames import DEFAULT_LIMIT, LIMIT_CEILING, FrameDecoder, encode_frame
from bridge_protocol.handshake import Capabilities, handshake, read_capabilities
from bridge_protocol.messages import HANDSHAKE_ID, MAX_ID, Failure, Result
from worker_node.core.admission import Admitted, admit
from worker_node.settings import ServiceSettings

WIRE = text("wire.md")
FRAMES = re.findall(r"^    ((?:[0-9a-f]{2} ){3}[0-9a-f]{2})  (\{.*\})$", WIRE, re.MULTILINE)


def table(heading: str) -> list[str]:
    """The names in the first column of the tables under a heading."""
    section = WIRE.split(f"\n## {heading}")[1].split("\n## ")[0].split("\n# ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize(("length", "payload"), FRAMES, ids=[payload[:60] for _, payload in FRAMES])
def test_each_frame_is_a_frame_and_a_message(length: str, payload: str) -> None:
    encoded = payload.encode()
    frame = bytes.fromhex(length) + encoded
    assert frame == encode_frame(encoded)
    decoder = FrameDecoder()
    decoder.receive(frame)
    assert decoder.next() == encoded
    if '"command"' in payload and "capabilities" not in payload:
        messages.decode_request(encoded)
    else:
        messages.decode_message(encoded)


def test_there_are_frames_of_every_kind() -> None:
    payloads = [json.loads(payload) for _, payload in FRAMES]
    assert {payload.get("command") for payload in payloads} >= {"ping", "echo", "cancel", "shutdown"}
    assert {payload.get("event") for payload in payloads} >= {"progress", "chunk"}
    assert {payload.get("success") for payload in payloads} == {True, False, None}
    assert FRAMES[0][1] in WIRE
    (hexadecimal,) = re.findall(r"^    ([0-9a-f]{8} [0-9a-f]+)$", WIRE, re.MULTILINE)
    assert bytes.fromhex(hexadecimal) == encode_frame(FRAMES[0][1].encode())


def test_the_handshake_is_the_one_a_node_sends_and_the_claims_are_read() -> None:
    greeting, terse, full = (json.loads(payload) for _, payload in FRAMES if json.loads(payload)["id"] == HANDSHAKE_ID)
    sent = handshake("n1-0", "2024-05-01T12:00:00.000Z")
    assert json.loads(messages.encode_request(sent)) == greeting
    assert read_capabilities(terse["result"]) == Capabilities()
    claimed = read_capabilities(full["result"])
    assert claimed == Capabilities(
        protocol=1, concurrency=4, cancel=True, stream=True, shutdown=True, commands=("echo", "sleep")
    )


def test_the_names_are_the_codes_and_the_kinds() -> None:
    assert table("1.11 Errors and limits")[: len(FrameKind)] == [kind.value for kind in FrameKind]
    claims, described = table("1.6 Handshake")[-16:-6], table("1.6 Handshake")[-6:]
    claims.remove("descriptions")  # which no node looks at
    assert claims == list(Capabilities.__dataclass_fields__)
    assert set(described) == {"args" if name == "arguments" else name for name in Description.__dataclass_fields__}
    replies = {code.value for code in Code if issubclass(exception_for(code), RequestFailed)}
    assert {"type", "result"} | replies - {"bridge_unavailable"} == set(table("2.4 Codes"))  # `type` heads the column
    section = WIRE.split("\n## 2.4 Codes")[1].split("\n## ")[0]
    assert all(f"`{code.value}`" in section for code in Code)


def test_the_example_of_a_description_is_read() -> None:
    said = json.loads(blocks("wire.md", "json")[0])
    image = Argument(name="image", type="bytes", required=True)
    width = Argument(name="width", type="int", default=80)
    assert read_descriptions({"capabilities": {"descriptions": [said]}}) == (
        Description(
            name="thumbnail",
            doc="A small copy of an image.",
            arguments=(image, width),
            more=True,
            result="bytes",
            streams=True,
        ),
    )


def test_the_numbers_are_the_numbers() -> None:
    assert f"16 MiB ({DEFAULT_LIMIT:,} bytes)" in WIRE
    assert LIMIT_CEILING == 128 * 2**20
    assert "from 1,024 bytes to 128 MiB" in WIRE
    assert f"2^53−1 ({MAX_ID:,})" in WIRE
    assert f"1 … {topology.MAX_DELAY:,} (36 h)" in WIRE
    settings = ServiceSettings(name="echo", command=("program",))
    limits = dict(re.findall(r"^\| (\w+) \| (\d+) s .*\| `\w+` \|$", WIRE, re.MULTILINE))
    assert limits == {
        name: f"{getattr(settings, f'{name}_timeout'):g}" for name in ("start", "run", "write", "frame", "stop")
    }


def test_the_topology_is_the_one_nodes_declare() -> None:
    declared = [*topology.shared_topology(), *topology.service_topology("echo")]
    queues = {item.name: item for item in declared if isinstance(item, topology.Queue)}
    documented = json.loads(blocks("wire.md", "json")[1].replace("<service>", "echo"))
    assert documented == queues["quaybridge.echo"].arguments
    kept = json.loads(re.findall(r'^`(\{"x-queue-type": .*\})`\.$', WIRE, re.MULTILINE)[0])
    for name in ("quaybridge.echo.dead", "quaybridge.undeliverable"):
        assert kept == queues[name].arguments
    assert kept == topology.durable_reply_queue("shell").arguments
    named = {name.replace("<service>", "echo") for name in table("2.1 Topology")}
    for item in declared:
        if not isinstance(item, topology.Binding):
            assert item.name in named or re.fullmatch(r"quaybridge\.delay\.(\d|1[0-6])", item.name)


def test_the_example_of_a_delay_is_the_route_of_a_delay() -> None:
    found = re.search(r"exchange     (\S+) .*\n +routing key  (\S+)\n", WIRE)
    assert found is not None
    assert found.groups() == topology.delay_route("echo", 5)


def test_the_complete_message_is_admitted_and_each_reply_address_too() -> None:
    section = WIRE.split("A complete message, byte for byte:")[1].split("\n\n`id`")[0]
    properties = dict(re.findall(r"(\w+)=(\S+)", section.split("headers")[0]))
    headers: dict[str, Any] = {
        name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", section.split("headers")[1])
    }
    (body,) = re.findall(r"body +(\{.*\})", section)
    assert properties.pop("delivery_mode") == "2"
    assert properties.pop("reply_to") == "amq.rabbitmq.reply-to"
    admitted = admit(body.encode(), Properties(**properties, headers=headers), limit=DEFAULT_LIMIT, max_attempts=3)
    assert isinstance(admitted, Admitted)
    assert (admitted.command, admitted.deadline, admitted.attempt) == ("echo", headers["deadline"], 1)
    for address in ("amq.rabbitmq.reply-to.g1h2A", "amq.gen-abc", "quaybridge.reply.shell"):
        assert reply_to_problem(address) is None


def test_the_examples_of_control_messages_are_such() -> None:
    body, owned, consumed, granted = re.findall(r'^    (\{"protocol":1,"control".*\})$', WIRE, re.MULTILINE)
    cancel = control.decode_control(body.encode())
    assert isinstance(cancel, control.Cancel)
    assert control.encode_cancel(cancel) == body.encode()
    assert control.cancel_key("<service>") in WIRE
    owns = control.decode_control(owned.encode())
    assert isinstance(owns, control.Owns)
    assert control.encode_owns(owns) == owned.encode()
    assert control.owns_key("<service>") in WIRE
    consumes = control.decode_control(consumed.encode())
    assert isinstance(consumes, control.Consumes)
    assert control.encode_consumes(consumes) == consumed.encode()
    credit = control.decode_control(granted.encode())
    assert isinstance(credit, control.Credit)
    assert control.encode_credit(credit) == granted.encode()


def test_the_numbers_of_a_stream_are_the_numbers() -> None:
    section = WIRE.split("\n## 2.10 Streams")[1].split("\n## ")[0]
    settings = ServiceSettings(name="echo", command=("program",)).stream
    assert f"{control.WINDOW_CHUNKS} chunks or {control.WINDOW_BYTES // 2**20} MiB" in section
    assert f"{settings.delay * 1000:g} ms (`stream.delay`)" in section
    assert f"{settings.reader_timeout:g} s (`stream.reader_timeout`)" in section
    assert (
        f"after each {control.WINDOW_CHUNKS // 4} chunks and after each {control.WINDOW_BYTES // 4096} KiB" in section
    )
    assert control.MAX_RUN == 64


def test_messages_are_told_apart_as_it_says() -> None:
    """A message with `success` is a final reply, whatever else it holds; fields not named are ignored."""
    said = messages.decode_message(b'{"id":7,"success":true,"result":1,"event":"chunk","command":"x","timestamp":[]}')
    assert isinstance(said, Result)
    said = messages.decode_message(b'{"id":null,"success":false,"error":"x"}')
    assert isinstance(said, Failure)


def test_sessions_meet_where_it_says() -> None:
    section = WIRE.split("## 2.9 Sessions")[1].split("## 2.10")[0]
    assert f"quaybridge.<service>.session.<k>`, `k` 0 … {topology.PARTITIONS - 1}," in section
    assert topology.partition_of("user-7") == zlib.crc32(b"user-7") % 32
    assert topology.session_key("<service>", 7) == "<service>.session.7"
    claimed = SessionClaim(id="user-7", epoch="e", lenient=True)
    assert set(session_headers(claimed)) == {"session", "session-epoch", "session-mode"}
    for name in (*session_headers(claimed), FRESH):
        assert f"| `{name}` |" in section
    assert session_headers(claimed)["session-mode"] == "prefer"
