"""What becomes of a publish, and who is told when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge_protocol.errors import Refused
from broker.confirm import Confirm


@pytest.mark.parametrize("error", [None, Refused("a queue is full")])
async def test_it_is_told_in_the_same_turn_and_once(error: Refused | None) -> None:
    confirm = Confirm()
    told: list[str] = []
    confirm.add_done_callback(lambda _: told.append("first"))
    confirm.add_done_callback(lambda ended: told.append(f"second: {ended.exception()}"))
    assert not confirm.done()
    assert repr(confirm) == "<Confirm pending>"
    end(confirm, error)
    assert told == ["first", f"second: {error}"]
    assert confirm.done()
    confirm.succeed()
    confirm.fail(Refused("too late"))
    assert confirm.exception() is error
    assert len(told) == 2
    assert repr(confirm) == ("<Confirm confirmed>" if error is None else f"<Confirm {error!r}>")


async def test_who_asks_after_its_end_is_told_a_turn_later() -> None:
    confirm = Confirm()
    confirm.succeed()
    told: list[Confirm] = []
    confirm.add_done_callback(told.append)
    assert told == []
    await asyncio.sleep(0)
    assert told == [confirm]


async def test_each_of_those_who_await_it_hears_of_its_end_or_is_cancelled_alone() -> None:
    confirm = Confirm()

    async def wait() -> str:
        await confirm
        return "taken"

    first, second, third = (asyncio.ensure_future(wait()) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    assert not confirm.done()
    confirm.succeed()
    assert await asyncio.gather(first, third) == ["taken", "taken"]
    assert second.cancelled()
    assert await wait() == "taken"


async def test_whoever_awaits_it_gets_what_it_ended_with() -> None:
    confirm = Confirm()
    asyncio.get_running_loop().call_soon(confirm.fail, Refused("a queue is full"))
    for _ in range(2):
        with pytest.raises(Refused, match="a queue is full"):
            await confirm


async def test_what_a_callback_raises_is_the_loops_and_the_others_are_told() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    confirm = Confirm()
    told: list[Confirm] = []

    def fail(_: Confirm) -> None:
        raise LookupError("on purpose")

    confirm.add_done_callback(fail)
    confirm.add_done_callback(told.append)
    confirm.succeed()
    assert told == [confirm]
    assert [repr(context["exception"]) for context in reported] == ["LookupError('on purpose')"]


def end(confirm: Confirm, error: Exception | None) -> None:
    if error is None:
        confirm.succeed()
    else:
        confirm.fail(error)
