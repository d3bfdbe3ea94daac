"""A ticket that nobody wants any more: what the pool does about it, wherever it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pool_stories import LIMITS, Numbered

from worker_node.core.actions import Cancel, End, Send, Stop
from worker_node.core.ladder import Step
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.slot import Phase


def ticket(number: int, **options: Any) -> Numbered:
    return Numbered(request_id=number, **options)


def pool(*, cancels: bool = False, concurrency: int = 1, bridges: int = 1) -> Pool[Numbered]:
    """A pool at time 0 whose bridges are up."""
    made: Pool[Numbered] = Pool(replace(LIMITS, least=bridges, most=bridges), lambda: 1.0)
    made.open(0)
    for number in range(bridges):
        made.greeted(number, concurrency=concurrency, cancels=cancels, now=0)
    return made


def test_one_that_waits_ends_at_once_and_those_behind_it_move_up() -> None:
    tried = pool()
    running, second, third = ticket(1), ticket(2), ticket(3)
    for each in (running, second, third):
        tried.submit(each, 0)
    assert tried.cancel(second, 1) == [End(second, Reason.CANCELLED)]
    assert list(tried.waiting) == [third]
    assert tried.finished(0, 1, 2) == [Send(0, third)]


def test_one_that_held_up_the_others_lets_them_go() -> None:
    tried = pool(concurrency=2)
    tried.submit(ticket(1), 0)
    alone, behind = ticket(2, alone=True), ticket(3)
    tried.submit(alone, 0)
    tried.submit(behind, 0)
    assert tried.cancel(alone, 1) == [End(alone, Reason.CANCELLED), Send(0, behind)]


def test_a_bridge_that_can_is_told_and_keeps_its_life() -> None:
    tried = pool(cancels=True)
    running = ticket(1)
    tried.submit(running, 0)
    assert tried.cancel(running, 10) == [Cancel(0, 1)]
    assert tried.wake_at == 13
    run = tried.run(0, 1)
    assert run is not None
    assert run.reason is Reason.CANCELLED
    assert tried.finished(0, 1, 11) == []
    assert tried.slots[0].state == "idle"


@pytest.mark.parametrize("cancels", [True, False])
def test_one_that_runs_on_takes_its_bridge_down_after_the_grace(cancels: bool) -> None:
    tried = pool(cancels=cancels)
    running = ticket(1)
    tried.submit(running, 0)
    tried.cancel(running, 10)
    assert tried.due(12.9) == []
    assert tried.due(13) == [Stop(0, Step.TERMINATE, Reason.CANCELLED)]
    assert tried.due(18) == [Stop(0, Step.KILL, Reason.CANCELLED)]
    assert End(running, Reason.CANCELLED, 0) in tried.exited(0, 18)
    assert tried.slots[0].faults == 0  # the bridge did nothing wrong


def test_a_deadline_before_the_end_of_the_grace_counts_and_it_stays_cancelled() -> None:
    tried = pool(cancels=True)
    running = ticket(1, deadline=11.0)
    tried.submit(running, 0)
    tried.cancel(running, 10)
    assert tried.due(11) == [Stop(0, Step.TERMINATE, Reason.CANCELLED)]


def test_neighbours_of_one_that_took_its_bridge_down_are_told_apart() -> None:
    tried = pool(concurrency=2)
    running, neighbour = ticket(1), ticket(2)
    tried.submit(running, 0)
    tried.submit(neighbour, 0)
    tried.cancel(running, 0)
    tried.due(3)
    ended = [action for action in tried.exited(0, 4) if isinstance(action, End)]
    assert ended == [End(running, Reason.CANCELLED, 0), End(neighbour, Reason.NEIGHBOUR, 0)]


def test_one_whose_bridge_crashes_meanwhile_is_cancelled_and_not_tried_again() -> None:
    tried = pool(cancels=True)
    running = ticket(1)
    tried.submit(running, 0)
    tried.cancel(running, 1)
    assert End(running, Reason.CANCELLED, 0) in tried.exited(0, 2)


def test_one_on_a_bridge_that_is_stopping_is_cancelled_without_a_word_to_it() -> None:
    tried = pool(cancels=True)
    running = ticket(1)
    tried.submit(running, 0)
    tried.condemn(0, Reason.VIOLATION, 1)
    assert tried.slots[0].phase is Phase.STOPPING
    assert tried.cancel(running, 1) == []
    assert End(running, Reason.CANCELLED, 0) in tried.exited(0, 2)


def test_one_that_is_late_already_stays_late() -> None:
    tried = pool(cancels=True)
    running = ticket(1, deadline=5.0)
    tried.submit(running, 0)
    tried.due(5)
    assert tried.cancel(running, 6) == []
    assert End(running, Reason.DEADLINE, 0) in tried.exited(0, 9)


def test_said_twice_it_happens_once() -> None:
    tried = pool(cancels=True)
    running = ticket(1)
    tried.submit(running, 0)
    tried.cancel(running, 1)
    assert tried.cancel(running, 2) == []
    assert tried.wake_at == 4


def test_one_that_is_gone_is_nobodys() -> None:
    tried = pool()
    running = ticket(1)
    tried.submit(running, 0)
    tried.finished(0, 1, 1)
    tried.submit(ticket(1), 2)  # another of the same id
    assert tried.cancel(running, 3) == []


def test_one_whose_reader_stalled_is_stopped_as_if_it_were_cancelled_and_keeps_that_reason() -> None:
    tried = pool(cancels=True)
    running = ticket(1)
    tried.submit(running, 0)
    assert tried.cancel(running, 1, Reason.READER_STALLED) == [Cancel(0, 1)]
    assert tried.cancel(running, 2) == [], "it is being stopped already"
    run = tried.run(0, 1)
    assert run is not None
    assert run.reason is Reason.READER_STALLED
    (stop,) = tried.due(5)
    assert stop == Stop(0, Step.TERMINATE, Reason.READER_STALLED)
    assert End(running, Reason.READER_STALLED, 0) in tried.exited(0, 6)


def test_what_shares_a_bridge_with_one_whose_reader_stalled_is_its_neighbour() -> None:
    tried = pool(concurrency=2)
    stalled, other = ticket(1), ticket(2)
    tried.submit(stalled, 0)
    tried.submit(other, 0)
    tried.cancel(stalled, 1, Reason.READER_STALLED)
    tried.due(5)
    ended = tried.exited(0, 6)
    assert End(stalled, Reason.READER_STALLED, 0) in ended
    assert End(other, Reason.NEIGHBOUR, 0) in ended
