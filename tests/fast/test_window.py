"""The window: bounds, order, and what becomes of the room of those who gave up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import turns, virtual_time

from producer.window import Window


def test_bounds_by_count() -> None:
    window = Window(2, 1000)
    assert [window.try_enter(1) for _ in range(3)] == [True, True, False]
    window.leave(1)
    assert window.try_enter(1)
    assert repr(window) == "<Window 2/2 messages, 2/1000 bytes>"


def test_bounds_by_size() -> None:
    window = Window(100, 10)
    assert [window.try_enter(size) for size in (6, 4, 1)] == [True, True, False]


def test_a_message_over_the_bound_goes_alone() -> None:
    window = Window(100, 10)
    assert window.try_enter(50)
    assert not window.try_enter(1)
    window.leave(50)
    assert window.try_enter(1)
    assert not window.try_enter(50)


@pytest.mark.parametrize(("count", "size"), [(0, 1), (1, 0)])
def test_needs_some_room(count: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least one message and one byte"):
        Window(count, size)


@virtual_time
async def test_first_come_first_served() -> None:
    window = Window(1, 100)
    assert window.try_enter(1)
    order: list[int] = []

    async def enter(number: int) -> None:
        await window.enter(1)
        order.append(number)

    waiters = [asyncio.ensure_future(enter(number)) for number in range(3)]
    await turns(2)
    assert order == []
    for expected in ([0], [0, 1], [0, 1, 2]):
        window.leave(1)
        assert not window.try_enter(1)  # nobody gets ahead of those who wait
        await turns(2)
        assert order == expected
    await asyncio.gather(*waiters)


@virtual_time
async def test_a_small_one_does_not_overtake_a_large_one() -> None:
    window = Window(10, 10)
    assert window.try_enter(6)
    large = asyncio.ensure_future(window.enter(8))
    await turns(1)
    assert not window.try_enter(1)
    window.leave(6)
    await large
    assert window.try_enter(1)


@virtual_time
async def test_who_gives_up_waiting_makes_way_for_those_behind() -> None:
    window = Window(10, 10)
    assert window.try_enter(6)
    large, small = asyncio.ensure_future(window.enter(8)), asyncio.ensure_future(window.enter(2))
    await turns(1)
    large.cancel()
    await small
    assert large.cancelled()
    assert repr(window) == "<Window 2/10 messages, 8/10 bytes>"


@virtual_time
async def test_who_gives_up_with_the_room_in_hand_gives_it_on() -> None:
    window = Window(1, 10)
    assert window.try_enter(1)
    first, second = asyncio.ensure_future(window.enter(1)), asyncio.ensure_future(window.enter(1))
    await turns(1)
    window.leave(1)  # first has it, and does not know yet
    first.cancel()
    await second
    assert first.cancelled()
    window.leave(1)
    assert repr(window) == "<Window 0/1 messages, 0/10 bytes>"


@virtual_time
async def test_who_gives_up_in_the_turn_in_which_room_is_left_is_passed_over() -> None:
    window = Window(1, 10)
    assert window.try_enter(1)
    first, second = asyncio.ensure_future(window.enter(1)), asyncio.ensure_future(window.enter(1))
    await turns(1)
    first.cancel()  # it has not run since
    window.leave(1)
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


@virtual_time
async def test_waiting_can_be_bounded_in_time() -> None:
    window = Window(1, 10)
    assert window.try_enter(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await window.enter(1)
    assert asyncio.get_running_loop().time() == 3
    window.leave(1)
    assert window.try_enter(1)


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "give up"]), st.integers(1, 12)), max_size=40))
def test_whatever_happens_the_bounds_hold_and_the_room_comes_back(steps: list[tuple[str, int]]) -> None:
    @virtual_time
    async def run() -> None:
        window = Window(3, 10)
        inside: list[int] = []
        waiting: list[asyncio.Task[None]] = []

        async def enter(size: int) -> None:
            await window.enter(size)
            inside.append(size)
            assert len(inside) <= 3
            assert len(inside) == 1 or sum(inside) <= 10

        for step, number in steps:
            if step == "enter":
                waiting.append(asyncio.ensure_future(enter(number)))
            elif step == "leave" and inside:
                window.leave(inside.pop(number % len(inside)))
            elif step == "give up" and waiting:
                waiting[number % len(waiting)].cancel()
            await turns(number % 3)
        while inside or not all(task.done() for task in waiting):
            if inside:
                window.leave(inside.pop())
            await turns(2)
        assert repr(window) == "<Window 0/3 messages, 0/10 bytes>"
        assert all(task.cancelled() or task.exception() is None for task in waiting)

    run()
