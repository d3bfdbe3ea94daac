"""The publishes of a channel, and what each of the broker's answers ends."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol.envelope import Properties
from bridge_protocol.errors import Refused
from broker.amqp_publishes import Publishes
from broker.confirm import Confirm
from broker.contract import ChannelClosed, Message, Unroutable

OPEN, TAKEN = "open", "taken"


def message(message_id: str = "m", routing_key: str = "key") -> Message:
    return Message(exchange="e", routing_key=routing_key, body=b"{}", properties=Properties(message_id=message_id))


def outcome(confirm: Confirm) -> object:
    if not confirm.done():
        return OPEN
    error = confirm.exception()
    return TAKEN if error is None else type(error)


async def outcomes(answers: list[tuple[int, bool, bool]], count: int) -> list[object]:
    """What becomes of `count` publishes after these (sequence number, multiple, taken)."""
    publishes = Publishes(asyncio.get_running_loop(), lambda _: None)
    futures = [publishes.add(message(f"{number}"), timeout=60) for number in range(count)]
    for answer in answers:
        publishes.on_confirm(*answer)
    found = [outcome(future) for future in futures]
    publishes.end(ChannelClosed("the end"))
    assert all(future.done() for future in futures)
    return found


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], [OPEN] * 4),
        ([(1, False, True)], [TAKEN, OPEN, OPEN, OPEN]),
        ([(3, False, True)], [OPEN, OPEN, TAKEN, OPEN]),
        ([(3, True, True)], [TAKEN, TAKEN, TAKEN, OPEN]),
        ([(2, False, False), (4, True, True)], [TAKEN, Refused, TAKEN, TAKEN]),
        ([(3, True, False), (4, False, True)], [Refused, Refused, Refused, TAKEN]),
        ([(1, False, True), (1, False, False), (1, True, False)], [TAKEN, OPEN, OPEN, OPEN]),
        ([(9, False, True), (0, True, True)], [OPEN] * 4),
        ([(9, True, True)], [TAKEN] * 4),
    ],
)
async def test_an_answer_ends_what_it_names(answers: list[tuple[int, bool, bool]], expected: list[object]) -> None:
    assert await outcomes(answers, 4) == expected


@given(answers=st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=12))
def test_the_first_answer_that_covers_a_publish_decides(answers: list[tuple[int, bool, bool]]) -> None:
    expected: list[object] = []
    for number in range(1, 11):
        covering = [
            taken for sequence, multiple, taken in answers if number == sequence or (multiple and number < sequence)
        ]
        expected.append(OPEN if not covering else TAKEN if covering[0] else Refused)
    assert asyncio.run(outcomes(answers, 10)) == expected


async def test_a_return_ends_the_first_publish_like_it() -> None:
    publishes = Publishes(asyncio.get_running_loop(), lambda _: None)
    same = [publishes.add(message("same"), timeout=60) for _ in range(2)]
    other = publishes.add(message("other"), timeout=60)
    elsewhere = publishes.add(message("same", "elsewhere"), timeout=60)
    publishes.on_return("e", "key", Properties(message_id="same"))
    assert [outcome(future) for future in (*same, other, elsewhere)] == [Unroutable, OPEN, OPEN, OPEN]
    publishes.on_return("e", "key", Properties(message_id="never published"))
    publishes.on_return("e", "elsewhere", Properties(message_id="same"))
    publishes.on_return("e", "key", Properties(message_id="same"))
    publishes.on_confirm(4, True, True)
    assert [outcome(future) for future in (*same, other, elsewhere)] == [Unroutable, Unroutable, TAKEN, Unroutable]
    publishes.end(ChannelClosed("the end"))


async def test_what_is_held_is_sent_in_order_and_numbered_then() -> None:
    sent: list[str | None] = []
    publishes = Publishes(asyncio.get_running_loop(), lambda one: sent.append(one.properties.message_id))
    publishes.on_blocked("low on memory")
    held = [publishes.add(message(f"{number}"), timeout=60) for number in range(4)]
    assert repr(publishes) == "<Publishes 0 unconfirmed, 4 held>"
    publishes.on_confirm(9, True, True)
    assert not held[0].done()
    assert sent == []
    publishes.on_blocked(None)
    assert sent == ["0", "1", "2", "3"]
    publishes.on_confirm(3, True, True)
    assert [outcome(publish) for publish in held] == [TAKEN, TAKEN, TAKEN, OPEN]
    publishes.end(ChannelClosed("the end", 320))
    error = held[3].exception()
    assert isinstance(error, ChannelClosed)
    assert (error.reason, error.code) == ("the end", 320)
