"""What a publisher that is none of ours can send to a node, all of it to one: each has its answer and its dead letter.

Nothing is requeued, the node's channels survive, and a good request is served right after each.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import sys
import time
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any

import pytest
from pika import BasicProperties
from raw_publisher import PATIENCE, ForgedHeaders, RawPublisher
from vhost import Vhost

from bridge_protocol.dead_letter import DeadLetter
from bridge_protocol.topology import EXCHANGE, dead_letter_queue, request_queue
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Delivery
from quaybridge.dead_letters import looking
from worker_node.node import Node
from worker_node.settings import NodeSettings, ServiceSettings

SERVICE = "work"
LIMIT = 64 * 1024  # bytes of a frame
MOST_ATTEMPTS = 2
RESULT, BAD, LARGE, LATE, FAILED = "result", "bad_request", "too_large", "deadline_exceeded", "application_error"


def body(**changes: Any) -> bytes:
    return json.dumps({"id": 7, "command": "echo", "args": {"text": "é"}, **changes}).encode()


def without(key: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(body()).items() if name != key}).encode()


GOOD = body()
RETRIED = body(command="fail", args={"retryable": True})
NOW = int(time.time() * 1000)


@dataclass(frozen=True)
class Row:
    """What is sent, and the type of its reply. `said` is in the error; of an unaddressed one only the letter tells.

    `table`: the bytes of its headers. `refused`: it never reaches a queue, for this reason of the broker's.
    """

    name: str
    answer: str = BAD
    said: str = ""
    body: bytes = GOOD
    properties: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    table: bytes | None = None
    addressed: bool = True
    refused: str = ""
    attempt: int = 1  # what the reply says of it


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01n" + b"F" + struct.pack(">I", len(table)) + table
    return table


def header(name: str, value: bytes) -> bytes:
    return bytes((len(name),)) + name.encode() + value


TOO_MUCH = "more than a broker takes"
BODIES = [
    Row("an empty body", said="must begin with", body=b""),
    Row("no JSON", said="must begin with", body=b"hello"),
    Row("half of it", said="bad_json", body=GOOD[:-1]),
    Row("bytes after it", said="bad_json", body=GOOD + b"x"),
    Row("white space before it", said="must begin with", body=b" " + GOOD),
    Row("a byte order mark", said="must begin with", body=b"\xef\xbb\xbf" + GOOD),
    Row("UTF-16", said="must begin with", body=GOOD.decode().encode("utf-16")),
    Row("no UTF-8", said="bad_utf8", body=GOOD.replace(b"echo", b"ech\xff")),
    Row("a surrogate in UTF-8", said="bad_utf8", body=b'{"id":7,"command":"echo","args":{"text":"\xed\xa0\x80"}}'),
    Row("a lone surrogate", said="bad_json", body=b'{"id":7,"command":"echo","args":{"text":"\\ud800"}}'),
    Row("NaN", said="bad_json", body=b'{"id":7,"command":"echo","args":{"text":NaN}}'),
    Row("an integer past 64 bits", said="64 bits", body=body(args={"n": 2**64})),
    Row("a key given twice", said="given twice", body=b'{"id":7,"id":8,"command":"echo"}'),
    Row(
        "nested too deep",
        said="too_deep",
        body=b'{"id":7,"command":"echo","args":' + b'{"a":' * 200 + b"1" + b"}" * 201,
    ),
    Row("an array", said="must begin with", body=b"[1]"),
    Row("a body over the limit", LARGE, "the limit is 65,536", body=body(args={"text": "x" * LIMIT})),
    Row("no id", said="id must be", body=without("id")),
    Row("an id of the wrong type", said="id must be", body=body(id="7")),
    Row("the handshake's id", said="id 0 is the handshake's", body=body(id=0)),
    Row("an id past 2^53", said="id must be", body=body(id=2**53)),
    Row("no command", said="command must be", body=without("command")),
    Row("an empty command", said="cannot be empty", body=body(command="")),
    Row("a command of control characters", said="control characters", body=body(command="a\nb")),
    Row("a long command", said="at most 255 bytes", body=body(command="x" * 256)),
    Row("args of the wrong type", said="args must be", body=body(args=[1])),
    Row("a cancel", said="is the node's own", body=body(command="cancel", args={"id": 8})),
    Row("a shutdown", said="is the node's own", body=body(command="shutdown")),
    Row("an attempt in the body", said="written by the node alone", body=body(attempt=1)),
    Row("a deadline of the wrong type", said="deadline must be", body=body(deadline="soon")),
    Row("a deadline in seconds", said="seconds?", body=body(deadline=NOW // 1000)),
    Row("a deadline that has passed", LATE, "it was not run", body=body(deadline=NOW - 1000)),
    Row("no args", RESULT, body=without("args")),
    Row("fields nobody knows", RESULT, body=body(schema=99, recycle=True, success=False)),
]

PROPERTIES = [
    Row(
        "another content type",
        said="content_type must be",
        properties={"content_type": "application/x-python-serialize"},
    ),
    Row("gzip", said="content_encoding 'gzip'", properties={"content_encoding": "gzip"}),
    Row("deflate", said="content_encoding 'deflate'", properties={"content_encoding": "deflate"}),
    Row("another command in the type", said="the type property says", properties={"type": "other"}),
    Row("a long message id", said="message_id must be", properties={"message_id": "x" * 129}),
    Row("control characters in the message id", said="message_id must be", properties={"message_id": "a\nb"}),
    Row("an empty correlation id", said="message_id must be", properties={"correlation_id": ""}),
    Row("a correlation id that is no UTF-8", said="message_id must be", properties={"correlation_id": b"\xff\xfe"}),
    Row("a type that is no UTF-8", said="the type property says", properties={"type": b"\xff"}),
    Row("no ids at all", RESULT, properties={"message_id": None, "correlation_id": None}),
    Row("no correlation id", RESULT, properties={"correlation_id": None}),
    Row("a message id that was used before", RESULT, properties={"correlation_id": None}),
    Row("not persistent", RESULT, properties={"delivery_mode": 1}),
    Row("not persistent, and bad", said="must begin with", properties={"delivery_mode": 1}, body=b"x"),
    Row("the highest priority there is", RESULT, properties={"priority": 255}),
    Row("a timestamp of no age", RESULT, properties={"timestamp": 2**64 - 1}),
    Row("an expiration", RESULT, properties={"expiration": "60000"}),
    Row(
        "an expiration that is none",
        properties={"expiration": "abc"},
        refused="406 PRECONDITION_FAILED - invalid expiration",
    ),
    Row(
        "a negative expiration", properties={"expiration": "-1"}, refused="406 PRECONDITION_FAILED - invalid expiration"
    ),
    Row(
        "an expiration with a space",
        properties={"expiration": " 5"},
        refused="406 PRECONDITION_FAILED - invalid expiration",
    ),
    Row(
        "somebody else's user id", properties={"user_id": "admin"}, refused="406 PRECONDITION_FAILED - user_id property"
    ),
    Row(
        "nobody's direct reply-to",
        properties={"reply_to": "amq.rabbitmq.reply-to"},
        refused="406 PRECONDITION_FAILED - fast reply consumer does not exist",
    ),
    Row(TOO_MUCH, body=b"x" * (16 * 1024 * 1024 + 1), refused="406 PRECONDITION_FAILED - message size"),
    Row("no reply address", RESULT, properties={"reply_to": None}, addressed=False),
    *(
        Row(f"replies to {address!r:.40}", said="reply_to must be", properties={"reply_to": address}, addressed=False)
        for address in (
            request_queue(SERVICE),
            dead_letter_queue(SERVICE),
            "quaybridge.control",
            "somebody.elses.queue",
            "",
            b"amq.gen-\xff",
            "quaybridge.reply." + "x" * 230,
        )
    ),
    Row("no reply address, and bad", said="must begin with", properties={"reply_to": None}, addressed=False, body=b"x"),
]

HEADERS = [
    Row("a protocol of tomorrow", said="protocol 2 is not spoken here", headers={"protocol": 2}),
    Row("no version of a protocol", said="protocol 'one' is not spoken here", headers={"protocol": "one"}),
    Row("a deadline that is text", said="deadline must be", headers={"deadline": "soon"}),
    Row("a deadline in seconds, in the header", said="seconds?", headers={"deadline": NOW // 1000}),
    Row("a deadline past the horizon", said="seconds?", headers={"deadline": 10**15}),
    Row(
        "a deadline that is no number", table=header("deadline", b"d\x7f\xf8" + b"\0" * 6), refused="541 INTERNAL_ERROR"
    ),
    Row("a header of no type", table=header("h", b"?"), refused="541 INTERNAL_ERROR"),
    Row("a deadline that is a double", RESULT, table=header("deadline", b"d" + struct.pack(">d", NOW + 1e9))),
    Row("a deadline that has passed, in the header", LATE, "it was not run", headers={"deadline": NOW - 1000}),
    Row("a session that disagrees", said="disagree", headers={"session": "a"}, body=body(args={"session_id": "b"})),
    *(
        Row(f"an attempt that is {attempt!r}", RESULT, headers={"attempt": attempt}, attempt=MOST_ATTEMPTS)
        for attempt in (-1, 0, 99, 2**62, "many", True, [1])
    ),
    Row("counts of the broker", RESULT, headers={"x-delivery-count": 99, "x-acquired-count": 99}),
    Row("a death", RESULT, headers={"x-death": [{"reason": "rejected", "count": 99}], "x-first-death-reason": "x"}),
    Row("a death, and bad", said="must begin with", headers={"x-first-death-reason": "x"}, body=b"x"),
    Row("a history of the future", said="must begin with", headers={"first-failed": 10**14, "replays": -1}, body=b"x"),
    Row("100 KiB of headers", RESULT, headers={"x": "y" * 100 * 1024}),
    Row("100 KiB of headers, and bad", said="must begin with", headers={"x": "y" * 100 * 1024}, body=b"x"),
    Row(
        "100 KiB of a traceparent, tried again",
        FAILED,
        "as asked",
        headers={"traceparent": "y" * 100 * 1024},
        body=RETRIED,
        attempt=2,
    ),
    Row("5,000 tables in one another", RESULT, table=nested(5000)),
    Row("5,000 tables for a deadline", said="deadline must be", table=b"\x08deadline" + nested(5000)[2:]),
    Row("a date in year 292 billion", RESULT, table=header("h", b"T\x7f" + b"\xff" * 7)),
    Row("a decimal with 255 places", RESULT, table=header("h", b"D\xff\x7f\xff\xff\xff")),
    Row("a name that is no UTF-8", RESULT, table=b"\x02\xff\xfet\x01"),
    Row("CC, and bad", said="must begin with", headers={"CC": ["victim"]}, body=b"x"),
    Row("BCC, tried again", FAILED, "as asked", headers={"BCC": ["victim"]}, body=RETRIED, attempt=2),
    Row("CC that is no list", headers={"CC": "victim"}, refused="406 PRECONDITION_FAILED"),
]

ROWS = BODIES + PROPERTIES + HEADERS
TO_VICTIM = 2


async def test_all_of_it(rabbitmq_each: Vhost, caplog: pytest.LogCaptureFixture) -> None:
    service = {
        "name": SERVICE,
        "command": (sys.executable, "-m", "examples.echo"),
        "bridges": 1,
        "frame_limit": LIMIT,
        "retry": {"max_attempts": MOST_ATTEMPTS, "first_delay": 1},
    }
    settings = NodeSettings(name="n1", services=(ServiceSettings.model_validate(service),))
    broker = AmqpBroker(parse_addresses(rabbitmq_each.url))
    node = Node(settings, broker)
    await node.start()
    try:
        rows = ROWS
        if rabbitmq_each.rabbitmq.control("version").startswith("3."):
            rows = [row for row in ROWS if row.name != TOO_MUCH]  # it takes that
        await asyncio.to_thread(send_all, rabbitmq_each.url, rows)
        await node.services[0].settlement.wait_idle()
        counts = node.counts[SERVICE]
    finally:
        await node.stop()
    assert (counts.handed_back, counts.redelivered, counts.replies_dropped, counts.replies_parked) == (0, 0, 0, 0)
    ours = [record for record in caplog.records if record.name.startswith("quaybridge")]
    assert not [record for record in ours if record.levelno >= logging.ERROR or "lost" in record.message]

    def take(letter: DeadLetter, delivery: Delivery) -> tuple[DeadLetter, int | None]:
        return letter, delivery.properties.delivery_mode

    letters: list[tuple[DeadLetter, int | None]] = []
    async with looking(broker, SERVICE) as look, aclosing(look.pages(take)) as pages:
        async for page in pages:
            letters += page
    kept = [row for row in ROWS if row.answer in (BAD, LARGE) and not row.refused]
    for row, (letter, mode) in zip(kept, letters, strict=True):
        assert (letter.code, letter.body, letter.by_broker) == (row.answer, row.body, False), row.name
        assert row.said in letter.error, (row.name, letter.error)
        assert (mode, letter.node, letter.attempt, letter.replays) == (2, "n1", 1, 0), row.name
        assert letter.first_time == letter.time, row.name


def send_all(url: str, rows: list[Row]) -> None:
    with closing(RawPublisher(url)) as publisher, closing(RawPublisher(url)) as bystander:
        victim = bystander.bind(EXCHANGE, "victim")
        for number, row in enumerate(rows):
            send(publisher, row, f"row-{number}")
            assert publisher.replies_waiting() == 0, row.name
            good = BasicProperties(reply_to=publisher.reply_queue, correlation_id=f"good-{number}")
            assert publisher.publish(EXCHANGE, SERVICE, GOOD, good) is None
            properties, answer = publisher.reply()
            assert (properties.type, properties.correlation_id) == (RESULT, f"good-{number}"), row.name
            assert json.loads(answer)["result"] == {"text": "é"}
        assert bystander.length(victim) == TO_VICTIM  # what the broker itself sent there
        assert publisher.length(request_queue(SERVICE)) == 0


def send(publisher: RawPublisher, row: Row, id: str) -> None:
    given: dict[str, Any] = {
        "message_id": id,
        "correlation_id": id,
        "reply_to": publisher.reply_queue,
        **(row.properties or {}),
    }
    if row.table is not None:
        properties = ForgedHeaders(row.table, **given)
    else:
        properties = BasicProperties(headers=row.headers, **given)
    before = publisher.length(dead_letter_queue(SERVICE))
    refusal = publisher.publish(EXCHANGE, SERVICE, row.body, properties)
    if row.refused:
        assert row.refused in (refusal or ""), (row.name, refusal)
        return
    assert refusal is None, (row.name, refusal)
    if row.addressed:
        replied, answer = publisher.reply()
        assert replied.type == row.answer, (row.name, replied.type, answer[:500])
        if row.answer != RESULT:
            assert row.said in json.loads(answer)["error"], (row.name, answer[:500])
        assert set(replied.headers) <= {"protocol", "attempt", "node", "redelivered"}, row.name
        assert replied.headers["attempt"] == row.attempt, row.name
    kept = row.answer in (BAD, LARGE)
    end = time.monotonic() + PATIENCE
    while publisher.length(dead_letter_queue(SERVICE)) != before + kept:
        assert time.monotonic() < end, row.name
        time.sleep(0.005)
