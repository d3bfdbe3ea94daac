"""Looking at, replaying, choosing and showing dead letters, on the embedded broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from bridge_protocol.dead_letter import DeadLetter, read_dead_letter
from bridge_protocol.errors import UnknownService
from bridge_protocol.messages import Request, encode_request, with_deadline
from bridge_protocol.topology import EXCHANGE, dead_letter_key, service_topology, shared_topology
from broker.contract import Channel, ChannelClosed, Delivery, Message
from broker.memory import MemoryBroker
from quaybridge import dead_letters as module
from quaybridge import replay as replaying
from quaybridge.dead_letters import looking
from quaybridge.letter_filter import LetterFilter, read_filter
from quaybridge.letter_record import described, line, record, summary, table
from quaybridge.replay import Replayed, replay, request_of

PATIENCE = 20  # seconds until a test gives up waiting
QUEUE, DEAD = "quaybridge.echo", "quaybridge.echo.dead"
NOW = 1_714_000_000.0
BODY = encode_request(Request(id=7, command="echo", args={"text": "é"}, deadline=1_713_999_999_000))


def letter(number: int = 1, **changes: Any) -> DeadLetter:
    least = DeadLetter(
        body=BODY,
        service="echo",
        code="bridge_crashed",
        error=f"crash {number}",
        message_id=f"m{number}",
        command="echo",
        first_time=NOW - 60,
        time=NOW - 30,
    )
    return replace(least, **changes)


class Bench:
    """A broker with dead letters."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.channel: Channel

    async def open(self) -> None:
        self.channel = await self.broker.open("test", on_closed=lambda _: None)
        await self.channel.declare((*shared_topology(), *service_topology("echo")))

    async def bury(self, *letters: DeadLetter) -> None:
        for one in letters:
            message = Message(
                exchange=EXCHANGE, routing_key=dead_letter_key("echo"), body=one.body, properties=one.properties()
            )
            await self.channel.publish(message, timeout=PATIENCE)

    def ids(self, queue: str = DEAD) -> list[str | None]:
        return [message.properties.message_id for message in self.broker.messages(queue)]

    async def look(self) -> list[list[str]]:
        async with looking(self.broker, "echo") as look, aclosing(look.pages(lambda one, _: one.id)) as pages:
            return [page async for page in pages]

    async def replay(self, chosen: Callable[[DeadLetter], bool] = bool, timeout: float | None = None) -> list[Replayed]:
        async with (
            looking(self.broker, "echo") as look,
            aclosing(replay(look, chosen, wall=lambda: NOW, timeout=timeout)) as replayed,
        ):
            return [one async for one in replayed]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.open()
    yield made
    await made.channel.close()


# Looking.


async def test_a_look_sees_all_in_order_page_by_page_and_takes_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    letters = [letter(number) for number in range(5)]
    await bench.bury(*letters)
    for _ in range(30):  # more often than a queue with a delivery limit would bear
        assert await bench.look() == [["m0", "m1"], ["m2", "m3"], ["m4"]]
        assert bench.ids() == ["m0", "m1", "m2", "m3", "m4"]
    assert [message.properties for message in bench.broker.messages(DEAD)] == [one.properties() for one in letters]


async def test_no_look_takes_more_consumers_than_brokers_give_back_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    monkeypatch.setattr(module, "MOST_PAGES", 4)
    await bench.bury(*(letter(number) for number in range(21)))
    assert [len(page) for page in await bench.look()] == [6, 6, 6, 3]


async def test_an_empty_queue_has_no_pages(bench: Bench) -> None:
    assert await bench.look() == []


async def test_what_comes_meanwhile_is_not_waited_for(bench: Bench) -> None:
    await bench.bury(letter(1))
    async with looking(bench.broker, "echo") as look, aclosing(look.pages(lambda one, _: one.id)) as pages:
        await bench.bury(letter(2))
        assert [page async for page in pages] == [["m1"]]
        assert (look.total, look.seen, look.missed) == (1, 1, 0)
    assert bench.ids() == ["m1", "m2"]


async def test_letters_that_another_look_holds_are_missed_and_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET", 0.05)
    await bench.bury(*(letter(number) for number in range(3)))
    async with (
        looking(bench.broker, "echo") as late,
        looking(bench.broker, "echo") as early,
        aclosing(early.pages(lambda one, _: one.id)) as pages,
        aclosing(late.pages(lambda one, _: one.id)) as others,
    ):
        assert [page async for page in pages] == [["m0", "m1", "m2"]]
        assert [page async for page in others] == [[]]
        assert (late.total, late.seen, late.missed) == (3, 0, 3)
        assert repr(late) == "<Look at quaybridge.echo.dead: 0 of 3 letters>"
    assert bench.ids() == ["m0", "m1", "m2"]


async def test_a_look_that_is_broken_off_keeps_nothing(bench: Bench) -> None:
    await bench.bury(letter(1), letter(2))
    async with looking(bench.broker, "echo") as look, aclosing(look.pages(lambda one, _: one.id)) as pages:
        async for page in pages:
            assert page == ["m1", "m2"]
            assert bench.ids() == []
            break
    assert bench.ids() == ["m1", "m2"]


async def test_a_page_that_cannot_be_kept_ends_the_look(bench: Bench) -> None:
    def take(one: DeadLetter, _: object) -> None:
        raise OSError("disk full")

    await bench.bury(letter(1), letter(2))
    with pytest.raises(OSError, match="disk full"):
        async with looking(bench.broker, "echo") as look, aclosing(look.pages(take)) as pages:
            assert [page async for page in pages] == []
    assert bench.ids() == ["m1", "m2"]


async def test_only_what_is_removed_is_gone(bench: Bench) -> None:
    def odd(one: DeadLetter, delivery: Delivery) -> int | None:
        return delivery.tag if one.id in ("m1", "m3") else None

    await bench.bury(*(letter(number) for number in range(4)))
    async with looking(bench.broker, "echo") as look, aclosing(look.pages(odd)) as pages:
        async for page in pages:
            look.remove(page)
    assert bench.ids() == ["m0", "m2"]


async def test_a_service_nobody_served_is_unknown(bench: Bench) -> None:
    with pytest.raises(UnknownService, match=r"no queue quaybridge\.other\.dead at memory: no worker has served"):
        async with looking(bench.broker, "other"):
            pass


@pytest.mark.parametrize("mishap", ["close_all", "delete_queue"])
async def test_a_connection_that_is_lost_ends_a_look(bench: Bench, mishap: str) -> None:
    await bench.bury(letter(1))
    argument = "maintenance" if mishap == "close_all" else DEAD
    with pytest.raises(ChannelClosed):
        await interrupted(bench, lambda: getattr(bench.broker, mishap)(argument))


async def interrupted(bench: Bench, mishap: Callable[[], None]) -> None:
    async with looking(bench.broker, "echo") as look, aclosing(look.pages(lambda one, _: one.id)) as pages:
        look.total = 2  # so that it waits
        asyncio.get_running_loop().call_later(0.01, mishap)
        assert [page async for page in pages] == []


# Replaying.


async def test_a_replay_puts_the_request_back_and_then_removes_its_letter(bench: Bench) -> None:
    original = letter(1, deadline=int(NOW * 1000) + 1, replays=1, priority=3, reply_to="quaybridge.reply.x")
    await bench.bury(original, letter(2))
    assert await bench.replay(lambda one: one.id == "m1") == [Replayed("m1", 2, "")]
    (request,) = bench.broker.messages(QUEUE)
    assert (request.exchange, request.routing_key, request.body) == (EXCHANGE, "echo", BODY)
    assert request.properties == original.replay_properties(deadline=original.deadline)
    assert bench.ids() == ["m2"]


async def test_all_are_replayed_in_order_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "AT_ONCE", 2)
    monkeypatch.setattr(module, "PAGE", 3)
    monkeypatch.setattr(replaying, "IN_MEMORY", 100)
    letters = [letter(number, body=b"%d" % number * number) for number in range(8)]
    await bench.bury(*letters)
    assert [one.id for one in await bench.replay()] == bench.ids(QUEUE) == [one.id for one in letters]
    assert [message.body for message in bench.broker.messages(QUEUE)] == [one.body for one in letters]
    assert bench.ids() == []


async def test_a_letter_whose_request_is_not_confirmed_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.bury(letter(1), letter(2))
    bench.broker.delete_queue(QUEUE)
    with pytest.raises(UnknownService, match="start a worker that serves it first"):
        await bench.replay()
    assert bench.ids() == ["m1", "m2"]


async def test_an_alarm_keeps_the_letters(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLISH_TIMEOUT", 0.05)
    await bench.bury(letter(1))
    bench.broker.block("disk full")
    with pytest.raises(Exception, match="disk full"):
        await bench.replay()
    bench.broker.unblock()
    assert (bench.ids(), bench.ids(QUEUE)) == (["m1"], [])


def sent(one: DeadLetter, timeout: float | None = None) -> tuple[bytes, object, str]:
    message, note = request_of(one, now=NOW, timeout=timeout)
    return message.body, message.properties.headers.get("deadline"), note


def test_a_deadline_that_has_not_passed_stays() -> None:
    future = int(NOW * 1000) + 1
    assert sent(letter(deadline=future)) == (BODY, future, "")


@pytest.mark.parametrize("deadline", [None, int(NOW * 1000)])
def test_a_deadline_that_has_passed_goes_from_header_and_body(deadline: int | None) -> None:
    body, header, note = sent(letter(deadline=deadline))
    assert json.loads(body) == {"id": 7, "command": "echo", "args": {"text": "é"}}
    assert header is None
    assert note == "without its deadline, which has passed"


def test_a_timeout_makes_a_new_deadline_in_header_and_body() -> None:
    body, header, note = sent(letter(), timeout=60)
    assert json.loads(body)["deadline"] == header == int(NOW * 1000) + 60_000
    assert note == "with 60 s from now"


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"{", b'{ "id": 1.10 }', b'{"deadline":null}', b'{"deadline":"x"}']
)
def test_a_body_without_a_deadline_stays_as_it_is(body: bytes) -> None:
    assert sent(letter(body=body))[0] == body
    assert b"x" in body or with_deadline(body, 5) == body


# Choosing.


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({}, True),
        ({"ids": ["m1", "other"]}, True),
        ({"ids": ["other"]}, False),
        ({"codes": ["bad_request", "bridge_crashed"]}, True),
        ({"codes": ["delivery_limit"]}, False),
        ({"commands": ["echo"]}, True),
        ({"commands": ["ech"]}, False),
        ({"older_than": "30"}, True),
        ({"older_than": "31s"}, False),
        ({"newer_than": "0.5m"}, True),
        ({"newer_than": "29s"}, False),
        ({"older_than": "10s", "newer_than": "1m"}, True),
        ({"codes": ["bridge_crashed"], "commands": ["other"]}, False),
    ],
)
def test_a_letter_passes_that_matches_all(given: dict[str, Any], passes: bool) -> None:
    assert read_filter(**given, now=NOW)(letter()) is passes


def test_a_letter_without_a_time_has_no_age() -> None:
    for ages in ({"before": NOW}, {"after": 0.0}):
        assert not LetterFilter(**ages)(letter(time=None))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"codes": ["bridge_crash"]}, "--code: there is no code 'bridge_crash': did you mean bridge_crashed?"),
        ({"codes": ["?"]}, "the codes are bad_request, too_large"),
        ({"older_than": "soon"}, "--older-than: 'soon' is no duration: write 90s, 15m, 2h, 7d or 1w"),
        ({"newer_than": "-5s"}, "--newer-than: '-5s' is no duration"),
        ({"newer_than": "5 s"}, "is no duration"),
        ({"newer_than": ""}, "is no duration"),
        ({"newer_than": "9" * 400 + "w"}, "is no duration"),
    ],
)
def test_a_filter_that_makes_no_sense_says_what_to_write(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^--") as refused:
        read_filter(**given, now=NOW)
    assert said in str(refused.value)


# Showing.

CRASH = {"exit_code": 3, "signal": None, "stderr": ["last\nwords", "\x1b[2J"], "served": 4}


def test_a_summary_says_what_happened_and_a_record_everything() -> None:
    one = letter(details=CRASH, slot=1, node="n1")
    said = summary(one)
    assert (said["id"], said["exit_code"], said["slot"], said["time"]) == ("m1", 3, 1, "2024-04-24T23:06:10.000Z")
    assert "body" not in said
    whole = json.loads(line(record(one)))
    assert whole == {**said, **whole}
    assert whole["details"] == CRASH
    assert whole["body"].encode() == BODY
    assert json.loads(line(record(replace(one, body=b"\xff\x00"))))["body_base64"] == "/wA="


def test_what_a_bridge_calls_its_exit_code_is_none() -> None:
    said = summary(letter(code="application_error", details={"exit_code": 99, "signal": "SIGMADEUP"}))
    assert (said["exit_code"], said["signal"]) == (None, None)


def test_details_of_any_depth_can_be_shown() -> None:
    deep = '{"a":' + "[" * 126 + "]" * 126 + "}"
    properties = replace(letter().properties(), headers={"details": deep})
    assert line(record(read_dead_letter(properties, BODY, service="echo")))


def test_nothing_shown_to_a_person_can_move_a_cursor_or_begin_a_line() -> None:
    hostile = letter(error="x\n[bold]forged\x1b[2J", details=CRASH, body=b"\x1b[2J", node="[red]n1")
    text = described(hostile)
    assert all(shown.isprintable() for shown in text.splitlines())
    for words in (
        "error: x\\n[bold]forged\\x1b[2J",
        "    last\\nwords",
        "exit_code: 3",
        "details.served: 4",
        "bad_start",
    ):
        assert words in text
    from rich.console import Console

    console = Console(width=160, record=True, color_system=None, file=None, quiet=False)
    with console.capture() as captured:
        console.print(table([summary(hostile), summary(letter(2, replays=3))], columns=160))
    rows = captured.get().splitlines()
    assert any("x\\n[bold]forged\\x1b[2J" in row for row in rows)
    assert any("1+3" in row and "m2" in row and "2024-04-24 23:06" in row for row in rows)
    assert "\x1b" not in captured.get()
    assert 'text": "é"' in described(letter())


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_an_id_is_shown_whole_on_however_narrow_a_terminal(columns: int) -> None:
    from rich.console import Console

    identity = "0f97f8f699d33799ab4ee23e79e25a01"
    console = Console(width=columns, color_system=None)
    with console.capture() as captured:
        console.print(table([{**summary(letter()), "id": identity, "code": "protocol_violation"}], columns=columns))
    first_column = "".join(row.split("  ")[0].strip() for row in captured.get().splitlines()[2:])
    assert first_column.endswith(identity)
    if columns >= 80:
        assert f" {identity} " in captured.get()
        assert " protocol_violation " in captured.get()
