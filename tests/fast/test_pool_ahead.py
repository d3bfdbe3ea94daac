"""Requests ahead: what waits in a bridge's pipe, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pool_stories import LIMITS, Numbered

from worker_node.core.actions import Cancel, End, Recall, Send, Stop
from worker_node.core.ladder import Step
from worker_node.core.limits import Wear
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason


def ticket(number: int, **options: Any) -> Numbered:
    return Numbered(request_id=number, **{"light": True, **options})


def pool(
    *,
    bridges: int = 1,
    concurrency: int = 1,
    claimed: int = 2,
    most: int = 2,
    cancels: bool = True,
    wear: Wear = Wear(),  # noqa: B008 - it is frozen
) -> Pool[Numbered]:
    """A pool at time 0 whose bridges are up."""
    made: Pool[Numbered] = Pool(replace(LIMITS, least=bridges, most=bridges, wear=wear), lambda: 1.0)
    made.open(0)
    made.ahead = most
    for number in range(bridges):
        made.greeted(number, concurrency=concurrency, ahead=claimed, cancels=cancels, now=0)
    return made


def submitted(tried: Pool[Numbered], *tickets: Numbered, now: float = 0) -> list[Numbered]:
    """Those that were sent to a bridge."""
    sent = []
    for each in tickets:
        sent += [action.ticket for action in tried.submit(each, now) if isinstance(action, Send)]
    return sent


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, 3),
        ({"most": 1}, 2),
        ({"claimed": 1}, 2),
        ({"most": 0}, 1),
        ({"claimed": 0}, 1),
        ({"concurrency": 2}, 2),  # which of the two has begun the third could not be told
        ({"cancels": False}, 1),  # it could not be asked to give back
    ],
)
def test_as_many_wait_in_the_pipe_as_both_sides_allow(options: dict[str, int], sent: int) -> None:
    tried = pool(**options)
    tickets = [ticket(number) for number in range(1, 6)]
    assert submitted(tried, *tickets) == tickets[:sent]
    assert list(tried.waiting) == tickets[sent:]


def test_an_idle_bridge_comes_before_a_pipe_and_pipes_fill_evenly() -> None:
    tried = pool(bridges=2)
    slots = [
        action.slot for number in range(1, 7) for action in tried.submit(ticket(number), 0) if isinstance(action, Send)
    ]
    assert slots == [0, 1, 0, 1, 0, 1]


def test_what_is_heavy_or_must_be_alone_never_waits_in_a_pipe() -> None:
    for special in (ticket(2, light=False), ticket(2, alone=True)):
        tried = pool()
        assert submitted(tried, ticket(1), special) != [special]
        assert list(tried.waiting) == [special]
    tried = pool()
    submitted(tried, ticket(1, alone=True), ticket(2))
    assert [run.ticket.request_id for run in tried.slots[0].runs.values()] == [1]


def test_the_time_of_one_that_waits_counts_from_when_it_is_begun() -> None:
    tried = pool()
    submitted(tried, ticket(1), ticket(2))
    second = tried.run(0, 2)
    assert second is not None
    assert (second.begun, list(tried.slots[0].at_work)) == (False, [1])
    tried.finished(0, 1, 40)
    assert (second.begun, second.started, second.due) == (True, 40, 100)
    assert list(tried.slots[0].at_work) == [2]
    assert tried.due(100)[0] == Cancel(0, 2)


def test_when_one_takes_long_those_behind_it_are_recalled_and_go_elsewhere() -> None:
    tried = pool(bridges=2)
    first, other, second, third = (ticket(number) for number in (1, 2, 3, 4))
    submitted(tried, first, other, second, third)  # 3 waits behind 1, 4 behind 2
    tried.finished(1, 2, 0.04)
    tried.finished(1, 4, 0.041)
    assert tried.wake_at == 0.05
    assert tried.due(0.05) == [Recall(0, 3)]
    assert tried.due(1) == []
    assert tried.given_back(0, 3, 1) == [Send(1, second)]
    # And nothing new is put behind it.
    assert tried.submit(ticket(5), 1) == [Send(1, tried.slots[1].runs[5].ticket)]
    tried.finished(0, 1, 2)
    assert not tried.slots[0].slow


def test_one_that_was_begun_when_it_was_recalled_is_served_as_any_other() -> None:
    tried = pool()
    submitted(tried, ticket(1), ticket(2))
    assert tried.due(0.05) == [Recall(0, 2)]
    tried.finished(0, 1, 0.06)
    run = tried.run(0, 2)
    assert run is not None
    assert run.reason is None
    assert tried.finished(0, 2, 0.07) == []
    assert tried.slots[0].state == "idle"


def test_what_is_given_back_waits_where_it_was() -> None:
    tried = pool()
    tickets = [ticket(number) for number in range(1, 6)]
    for moment, each in enumerate(tickets):
        tried.submit(each, moment / 1000)
    tried.slots[0].slow = True
    tried.given_back(0, 3, 1)
    tried.given_back(0, 2, 1)
    assert list(tried.waiting) == tickets[1:]


def test_when_the_bridge_dies_only_what_it_had_begun_is_its_victim() -> None:
    tried = pool()
    first, second, third, fourth = (ticket(number) for number in range(1, 5))
    submitted(tried, first, second, third, fourth)
    actions = tried.exited(0, 1)
    assert [action for action in actions if isinstance(action, End)] == [End(first, Reason.CRASHED, 0)]
    assert list(tried.waiting) == [second, third, fourth]
    # The one that it died of had not been answered; with its reply, the next would have been begun.
    tried = pool()
    submitted(tried, first, second)
    tried.finished(0, 1, 1)
    assert End(second, Reason.CRASHED, 0) in tried.exited(0, 1)


@pytest.mark.parametrize("reason", [Reason.VIOLATION, Reason.FRAME_TIMEOUT, Reason.WRITE_TIMEOUT])
def test_when_its_replies_cannot_be_read_any_may_have_run_and_is_charged(reason: Reason) -> None:
    tried = pool()
    first, second, late = ticket(1), ticket(2), ticket(3, deadline=5)
    submitted(tried, first, second, late)
    tried.due(5)
    tried.condemn(0, reason, 6)
    ends = [action for action in tried.exited(0, 6) if isinstance(action, End)]
    assert ends == [End(first, reason, 0), End(second, Reason.NEIGHBOUR, 0), End(late, Reason.DEADLINE)]
    assert not tried.waiting


def test_when_it_is_killed_for_its_memory_only_what_it_was_at_is_charged() -> None:
    tried = pool(wear=Wear(memory_hard=100))
    first, second = ticket(1), ticket(2)
    submitted(tried, first, second)
    assert tried.measured(0, 101, 1) == [Stop(0, Step.KILL, Reason.MEMORY_HARD)]
    ends = [action for action in tried.exited(0, 1) if isinstance(action, End)]
    assert ends == [End(first, Reason.MEMORY_HARD, 0)]
    assert list(tried.waiting) == [second]


def test_nothing_is_put_behind_one_that_has_run_for_long_already() -> None:
    tried = pool()
    submitted(tried, ticket(1))
    assert submitted(tried, ticket(2), now=0.05) == []
    assert len(tried.waiting) == 1


def test_a_bridge_that_asks_to_be_replaced_is_asked_for_what_waits() -> None:
    tried = pool()
    first, second, third = ticket(1), ticket(2), ticket(3)
    submitted(tried, first, second)
    submitted(tried, third, now=0.001)
    actions = tried.finished(0, 1, 0.01, recycle=True)
    assert [action for action in actions if isinstance(action, Recall)] == [Recall(0, 2), Recall(0, 3)]
    assert tried.given_back(0, 2, 0.02) == []
    assert tried.due(1) == []  # once is enough
    assert tried.given_back(0, 3, 1) == [Stop(0, Step.ASK, Reason.RECYCLED)]
    assert list(tried.waiting) == [second, third]


@pytest.mark.parametrize("requests", [1, 2])
def test_no_more_wait_in_the_pipe_than_the_bridge_may_serve(requests: int) -> None:
    tried = pool(wear=Wear(requests=requests))
    assert len(submitted(tried, ticket(1), ticket(2), ticket(3))) == requests
    for number in range(1, requests + 1):
        actions = tried.finished(0, number, 0.01)
    assert Stop(0, Step.ASK, Reason.REQUESTS) in actions


def test_what_waits_again_still_ends_in_time() -> None:
    tried = pool()
    behind = ticket(2, deadline=10)
    submitted(tried, ticket(1), behind)
    tried.condemn(0, Reason.MEMORY_HARD, 1)
    tried.due(2)
    tried.exited(0, 3)  # and the next one takes long to start
    tried.due(3)
    assert tried.wake_at == 10
    assert tried.due(10) == [End(behind, Reason.DEADLINE)]


def test_when_what_held_up_the_others_is_gone_they_are_sent() -> None:
    tried = pool(most=0)
    alone, other = ticket(1, alone=True), ticket(3)
    submitted(tried, ticket(9))
    submitted(tried, alone, other)
    tried.ahead = 2
    assert tried.withdraw(lambda one: one is alone, 0.01) == [Send(0, other)]


def test_when_the_bridge_is_stopped_for_a_late_one_the_others_are_not_its_neighbours() -> None:
    tried = pool()
    late, behind = ticket(1), ticket(2)
    submitted(tried, late, behind)
    assert tried.due(60) == [Cancel(0, 1), Recall(0, 2)]
    assert tried.due(63) == [Stop(0, Step.TERMINATE, Reason.RUN_TIMEOUT)]
    actions = tried.exited(0, 64)
    assert [action for action in actions if isinstance(action, End)] == [End(late, Reason.RUN_TIMEOUT, 0)]
    assert list(tried.waiting) == [behind]


def test_one_that_is_late_before_it_is_begun_is_cancelled_and_takes_no_bridge_down() -> None:
    tried = pool()
    submitted(tried, ticket(1), ticket(2, deadline=10))
    assert tried.due(10) == [Cancel(0, 2)]
    assert tried.due(20) == []
    tried.finished(0, 1, 30)
    run = tried.run(0, 2)
    assert run is not None
    assert (run.reason, run.due) == (Reason.DEADLINE, 33)


def test_one_that_is_late_and_given_back_ends() -> None:
    tried = pool()
    late = ticket(2, deadline=10)
    submitted(tried, ticket(1), late)
    tried.due(10)
    assert tried.given_back(0, 2, 11) == [End(late, Reason.DEADLINE)]


def test_while_draining_what_is_given_back_is_handed_back() -> None:
    tried = pool()
    first, second, third = ticket(1), ticket(2), ticket(3)
    submitted(tried, first, second, third)
    tried.drain(0.01)
    assert tried.due(0.05) == [Recall(0, 2), Recall(0, 3)]
    assert tried.given_back(0, 2, 0.06) == [End(second, Reason.DRAINED)]
    assert tried.finished(0, 1, 1) == []
    assert tried.finished(0, 3, 2) == [Stop(0, Step.ASK, Reason.DRAINED)]
    assert third.request_id == 3


def test_aborted_all_of_it_is_handed_back() -> None:
    tried = pool()
    first, second = ticket(1), ticket(2)
    submitted(tried, first, second)
    tried.abort(1)
    assert tried.exited(0, 1) == [End(first, Reason.DRAINED, 0), End(second, Reason.DRAINED)]


def test_nothing_waits_in_the_pipe_behind_one_that_streams() -> None:
    """Its bridge may be held up for its reader, and then nothing could be given back."""
    tried = pool()
    streaming, other = ticket(1, streams=True, light=False), ticket(2)
    assert tried.submit(streaming, 0) == [Send(0, streaming)]
    assert tried.submit(other, 0) == []
    assert tried.finished(0, 1, 1) == [Send(0, other)]
    third = ticket(3)
    assert tried.submit(third, 1) == [Send(0, third)], "and behind others as before"
