"""The pool by the table, and by the story: a list of events, and exactly the actions that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pool_stories import LIMITS

from worker_node.core.actions import Cancel, End, Send, Start, Stop
from worker_node.core.ladder import Step
from worker_node.core.limits import Wear
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.slot import TRANSITIONS, Event, Phase
from worker_node.core.ticket import Ticket


@dataclass(slots=True, eq=False, kw_only=True)
class Named(Ticket):
    """A ticket that a story can name."""

    name: str = ""

    def __repr__(self) -> str:
        return self.name


def ticket(number: int, **options: Any) -> Named:
    return Named(request_id=number, name=f"t{number}", **options)


def pool(*, ready: int = 0, concurrency: int = 1, cancels: bool = False, **limits: Any) -> Pool[Named]:
    """An open pool at time 0; with `ready` all its bridges are up."""
    count = limits.pop("bridges", ready or LIMITS.most)
    made: Pool[Named] = Pool(replace(LIMITS, **{"least": count, "most": count, **limits}), lambda: 1.0)
    made.open(0)
    for number in range(ready):
        made.greeted(number, concurrency=concurrency, cancels=cancels, now=0)
    return made


# The table.


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_what_is_not_in_the_table_cannot_happen(phase: Phase, event: Event) -> None:
    tried = pool(ready=1)
    slot = tried.slots[0]
    slot.phase = phase
    if (phase, event) in TRANSITIONS:
        slot.move(event)
        assert slot.phase is TRANSITIONS[phase, event]
    else:
        with pytest.raises(KeyError):
            slot.move(event)
        assert slot.phase is phase


def test_every_phase_but_empty_ends_in_exit_and_only_empty_starts() -> None:
    assert {phase for phase, event in TRANSITIONS if event is Event.EXIT} == set(Phase) - {Phase.EMPTY}
    assert [phase for phase, event in TRANSITIONS if event is Event.START] == [Phase.EMPTY]


# Starting.


def test_an_eager_pool_starts_all_its_bridges_at_once() -> None:
    tried: Pool[Named] = Pool(replace(LIMITS, least=3, most=3), lambda: 0.0)
    assert tried.open(0) == [Start(0, 0), Start(1, 1), Start(2, 2)]
    assert tried.wake_at == LIMITS.start_timeout
    assert repr(tried) == "<Pool 3 starting, 0 waiting>"


def test_a_lazy_pool_starts_a_bridge_for_each_ticket_that_waits_for_one() -> None:
    tried = pool(bridges=3, eager=False)
    assert tried.empty
    first, second, third = ticket(1), ticket(2), ticket(3)
    assert tried.submit(first, 1) == [Start(0, 0)]
    assert tried.submit(second, 1) == [Start(1, 1)]
    assert tried.greeted(0, concurrency=1, cancels=False, now=2) == [Send(0, first)]
    assert tried.submit(third, 2) == [Start(2, 2)]
    assert tried.greeted(2, concurrency=1, cancels=False, now=3) == [Send(2, second)]
    assert tried.greeted(1, concurrency=1, cancels=False, now=3) == [Send(1, third)]


def test_a_lazy_pool_uses_an_idle_bridge_before_it_starts_another() -> None:
    tried = pool(bridges=3, eager=False)
    tried.submit(ticket(1), 0)
    tried.greeted(0, concurrency=1, cancels=False, now=0)
    tried.finished(0, 1, 1)
    assert tried.submit(ticket(2), 2) == [Send(0, next(tried.tickets()))]
    assert repr(tried) == "<Pool 1 busy, 2 empty, 0 waiting>"


def test_a_lazy_pool_whose_bridge_asked_to_be_replaced_stays_empty_until_there_is_work() -> None:
    tried = pool(bridges=1, eager=False)
    tried.submit(ticket(1), 0)
    tried.greeted(0, concurrency=1, cancels=False, now=0)
    tried.finished(0, 1, 1, recycle=True)
    assert tried.exited(0, 2) == []
    assert tried.due(100) == []
    assert tried.submit(ticket(2), 100) == [Start(0, 0)]


def test_a_start_that_takes_too_long_is_taken_down_step_by_step_and_begun_again() -> None:
    tried = pool(bridges=1)
    assert tried.due(29) == []
    assert tried.due(30) == [Stop(0, Step.TERMINATE, Reason.START_TIMEOUT)]
    assert tried.wake_at == 35
    assert tried.due(35) == [Stop(0, Step.KILL, Reason.START_TIMEOUT)]
    assert tried.due(99) == []
    assert tried.exited(0, 100) == []
    assert tried.wake_at == 100.5
    assert tried.due(100.5) == [Start(0, 0)]


def test_starts_that_fail_wait_twice_as_long_each_time_up_to_the_limit() -> None:
    tried = pool(bridges=1)
    now = 0.0
    waits = []
    for _ in range(7):
        assert tried.exited(0, now) == []
        waits.append(tried.wake_at - now)
        now = tried.wake_at
        assert tried.due(now) == [Start(0, 0)]
    assert waits == [0.5, 1, 2, 4, 8, 8, 8]


def test_the_pause_before_a_start_is_spread_over_its_upper_half() -> None:
    tried: Pool[Named] = Pool(replace(LIMITS, least=1, most=1), lambda: 0.0)
    tried.open(0)
    tried.exited(0, 0)
    assert tried.wake_at == 0.25


def test_a_first_crash_of_a_bridge_that_worked_costs_no_pause_and_a_reply_forgives_the_crashes_before_it() -> None:
    tried = pool(ready=1)
    for _ in range(5):
        assert tried.exited(0, 10) == [Start(0, 0)]
        tried.greeted(0, concurrency=1, cancels=False, now=10)
        tried.submit(ticket(1), 10)
        tried.finished(0, 1, 10)
    assert tried.exited(0, 10) == [Start(0, 0)]
    tried.greeted(0, concurrency=1, cancels=False, now=10)
    assert tried.exited(0, 10) == []  # the second in a row
    assert tried.due(10) == []
    assert tried.wake_at == 10.5


# Who serves whom.


def test_a_ticket_goes_to_an_idle_bridge_at_once_and_waits_while_there_is_none() -> None:
    tried = pool(ready=2)
    one, two, three = ticket(1), ticket(2), ticket(3)
    assert tried.submit(one, 0) == [Send(0, one)]
    assert tried.submit(two, 0) == [Send(1, two)]
    assert tried.submit(three, 0) == []
    assert repr(tried) == "<Pool 2 busy, 1 waiting>"
    assert tried.finished(1, 2, 1) == [Send(1, three)]
    assert tried.run(1, 3) is not None
    assert tried.run(1, 2) is None


def test_a_bridge_that_takes_several_gets_several_and_the_least_loaded_is_next() -> None:
    tried = pool(ready=2, concurrency=3)
    slots = [action.slot for number in range(7) for action in tried.submit(ticket(number), 0)]
    assert slots == [0, 1, 0, 1, 0, 1]
    assert tried.capacity == 6
    assert len(tried.waiting) == 1


def test_an_id_in_flight_on_a_bridge_waits_for_the_other_to_finish() -> None:
    tried = pool(ready=1, concurrency=4)
    tried.submit(ticket(7), 0)
    same, behind = ticket(7), ticket(8)
    assert tried.submit(same, 0) == []
    assert tried.submit(behind, 0) == []
    assert tried.finished(0, 7, 1) == [Send(0, same), Send(0, behind)]


def test_an_id_in_flight_on_one_bridge_may_run_on_another() -> None:
    tried = pool(ready=2)
    tried.submit(ticket(7), 0)
    same = ticket(7)
    assert tried.submit(same, 0) == [Send(1, same)]


def test_a_ticket_that_must_be_alone_gets_its_turn_and_shares_with_nobody() -> None:
    tried = pool(ready=1, concurrency=4)
    alone, behind = ticket(3, alone=True), ticket(4)
    tried.submit(ticket(1), 0)
    tried.submit(ticket(2), 0)
    assert tried.submit(alone, 0) == []
    assert tried.submit(behind, 0) == []  # it would fit, and has to wait its turn
    assert tried.finished(0, 1, 1) == []
    assert tried.finished(0, 2, 1) == [Send(0, alone)]
    assert tried.finished(0, 3, 2) == [Send(0, behind)]


def test_a_bridge_that_asked_to_be_replaced_finishes_what_runs_and_gets_nothing_more() -> None:
    tried = pool(ready=1, concurrency=2)
    tried.submit(ticket(1), 0)
    tried.submit(ticket(2), 0)
    later = ticket(3)
    assert tried.finished(0, 1, 1, recycle=True) == []
    assert tried.submit(later, 1) == []
    assert tried.finished(0, 2, 2) == [Stop(0, Step.ASK, Reason.RECYCLED)]
    assert tried.exited(0, 3) == [Start(0, 0)]
    assert tried.greeted(0, concurrency=2, cancels=False, now=4) == [Send(0, later)]


def test_a_bridge_that_cannot_go_on_gets_nothing_more() -> None:
    tried = pool(ready=2)
    tried.doom(0)
    first, second = ticket(1), ticket(2)
    assert tried.submit(first, 0) == [Send(1, first)]
    assert tried.submit(second, 0) == []
    assert tried.exited(0, 1) == [Start(0, 0)]
    assert tried.greeted(0, concurrency=1, cancels=False, now=2) == [Send(0, second)]


def test_a_reply_found_when_the_process_is_already_dead_counts_and_brings_no_next_request() -> None:
    tried = pool(ready=1)
    tried.submit(ticket(1), 0)
    next_one = ticket(2)
    tried.submit(next_one, 0)
    tried.doom(0)
    assert tried.finished(0, 1, 1) == []
    assert tried.exited(0, 1) == [Start(0, 0)]
    assert list(tried.waiting) == [next_one]


# What is late.


def test_a_request_past_the_run_timeout_takes_its_bridge_down_and_ends_when_that_is_dead() -> None:
    tried = pool(ready=1)
    slow = ticket(1)
    tried.submit(slow, 0)
    assert tried.wake_at <= 60
    assert tried.due(60) == [Stop(0, Step.TERMINATE, Reason.RUN_TIMEOUT)]
    assert list(tried.tickets()) == [slow]
    assert tried.due(65) == [Stop(0, Step.KILL, Reason.RUN_TIMEOUT)]
    assert tried.exited(0, 66) == [End(slow, Reason.RUN_TIMEOUT, 0), Start(0, 0)]


def test_a_deadline_before_the_run_timeout_ends_the_run_as_a_deadline() -> None:
    tried = pool(ready=1)
    slow = ticket(1, deadline=10)
    tried.submit(slow, 0)
    assert tried.due(10) == [Stop(0, Step.TERMINATE, Reason.DEADLINE)]
    assert tried.exited(0, 11) == [End(slow, Reason.DEADLINE, 0), Start(0, 0)]


def test_a_bridge_that_can_cancel_is_asked_to_and_lives_if_it_answers() -> None:
    tried = pool(ready=1, concurrency=2, cancels=True)
    tried.submit(ticket(1, deadline=10), 0)
    tried.submit(ticket(2), 0)
    assert tried.due(10) == [Cancel(0, 1)]
    run = tried.run(0, 1)
    assert run is not None
    assert run.reason is Reason.DEADLINE
    assert tried.finished(0, 1, 11) == []
    assert tried.slots[0].phase is Phase.READY


def test_a_bridge_that_does_not_cancel_in_time_is_stopped_and_its_other_requests_are_neighbours() -> None:
    tried = pool(ready=1, concurrency=2, cancels=True)
    late, neighbour = ticket(1, deadline=10), ticket(2)
    tried.submit(late, 0)
    tried.submit(neighbour, 0)
    assert tried.due(10) == [Cancel(0, 1)]
    assert tried.wake_at == 13
    assert tried.due(13) == [Stop(0, Step.TERMINATE, Reason.DEADLINE)]
    assert tried.exited(0, 14) == [End(late, Reason.DEADLINE, 0), End(neighbour, Reason.NEIGHBOUR, 0), Start(0, 0)]


def test_a_request_stays_late_for_the_reason_it_was_first_late_for() -> None:
    tried = pool(ready=1, cancels=True)
    slow = ticket(1, deadline=61)
    tried.submit(slow, 0)
    assert tried.due(60) == [Cancel(0, 1)]  # over the run timeout
    assert tried.due(63) == [Stop(0, Step.TERMINATE, Reason.RUN_TIMEOUT)]  # and by now past its deadline too
    assert tried.exited(0, 64) == [End(slow, Reason.RUN_TIMEOUT, 0), Start(0, 0)]


def test_a_bridge_that_was_stopped_for_a_late_request_is_replaced_without_a_pause_however_often() -> None:
    tried = pool(ready=1)
    for now in range(0, 1000, 100):
        tried.submit(ticket(1), now)
        tried.due(now + 60)
        assert tried.exited(0, now + 61)[1:] == [Start(0, 0)]
        tried.greeted(0, concurrency=1, cancels=False, now=now + 61)


def test_a_neighbour_that_answers_while_the_bridge_is_taken_down_is_served() -> None:
    tried = pool(ready=1, concurrency=2)
    late, neighbour = ticket(1, deadline=10), ticket(2)
    tried.submit(late, 0)
    tried.submit(neighbour, 0)
    tried.due(10)
    assert tried.finished(0, 2, 11) == []
    assert tried.exited(0, 12) == [End(late, Reason.DEADLINE, 0), Start(0, 0)]


def test_a_ticket_whose_deadline_passes_while_it_waits_never_runs() -> None:
    tried = pool(ready=1)
    tried.submit(ticket(1), 0)
    late = ticket(2, deadline=5)
    behind = ticket(3)
    tried.submit(late, 0)
    tried.submit(behind, 0)
    assert tried.wake_at <= 5
    assert tried.due(5) == [End(late, Reason.DEADLINE)]
    assert list(tried.waiting) == [behind]


def test_a_ticket_whose_deadline_has_passed_when_a_bridge_is_free_never_runs() -> None:
    tried = pool(ready=1)
    tried.submit(ticket(1), 0)
    late, behind = ticket(2, deadline=5), ticket(3)
    tried.submit(late, 0)
    tried.submit(behind, 0)
    assert tried.finished(0, 1, 6) == [End(late, Reason.DEADLINE), Send(0, behind)]


def test_a_ticket_that_is_late_when_it_comes_never_runs() -> None:
    tried = pool(ready=1)
    late = ticket(1, deadline=5)
    assert tried.submit(late, 5) == [End(late, Reason.DEADLINE)]


# How a bridge goes.


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        (Reason.START_FAILED, Step.KILL),
        (Reason.START_TIMEOUT, Step.TERMINATE),
        (Reason.RUN_TIMEOUT, Step.TERMINATE),
        (Reason.DEADLINE, Step.TERMINATE),
        (Reason.WRITE_TIMEOUT, Step.TERMINATE),
        (Reason.FRAME_TIMEOUT, Step.TERMINATE),
        (Reason.VIOLATION, Step.KILL),
        (Reason.RECYCLED, Step.ASK),
        (Reason.DRAINED, Step.ASK),
    ],
)
def test_each_reason_begins_at_its_rung_of_the_ladder_and_goes_on_to_the_last(reason: Reason, step: Step) -> None:
    tried = pool(ready=1)
    rungs = [Step.ASK, Step.TERMINATE, Step.KILL]
    expected = rungs[rungs.index(step) :]
    taken = [(0.0, action) for action in tried.condemn(0, reason, 0)]
    while tried.wake_at < math.inf:
        now = tried.wake_at
        taken += [(now, action) for action in tried.due(now)]
    assert taken == [(n * LIMITS.stop_timeout, Stop(0, rung, reason)) for n, rung in enumerate(expected)]


def test_a_bridge_that_fails_its_handshake_never_serves() -> None:
    tried = pool(bridges=1)
    waiting = ticket(1)
    tried.submit(waiting, 0)
    assert tried.condemn(0, Reason.START_FAILED, 0) == [Stop(0, Step.KILL, Reason.START_FAILED)]
    assert tried.exited(0, 0) == []
    assert list(tried.waiting) == [waiting]


def test_a_bridge_that_is_stopping_keeps_its_first_reason() -> None:
    tried = pool(ready=1)
    tried.condemn(0, Reason.VIOLATION, 0)
    assert tried.condemn(0, Reason.RUN_TIMEOUT, 1) == []
    assert tried.slots[0].reason is Reason.VIOLATION


@pytest.mark.parametrize(
    "reason", [Reason.CRASHED, Reason.WRITE_TIMEOUT, Reason.FRAME_TIMEOUT, Reason.VIOLATION, Reason.DRAINED]
)
def test_a_request_on_a_bridge_that_goes_shares_its_reason(reason: Reason) -> None:
    tried = pool(ready=1, concurrency=2)
    first, second = ticket(1), ticket(2)
    tried.submit(first, 0)
    tried.submit(second, 0)
    if reason is not Reason.CRASHED:
        tried.condemn(0, reason, 0)
    assert tried.exited(0, 1)[:2] == [End(first, reason, 0), End(second, reason, 0)]


# When no bridge can be started.


def test_a_pool_is_failing_once_the_latest_start_of_every_slot_failed_and_no_sooner() -> None:
    tried = pool(bridges=2)
    for _ in range(3):  # one slot alone may fail as often as it likes
        tried.exited(0, 0)
        assert not tried.failing
        assert tried.due(10) == [Start(0, 0)]
    tried.exited(1, 10)
    assert tried.failing
    tried.exited(0, 10)
    tried.due(20)
    tried.greeted(0, concurrency=1, cancels=False, now=21)
    assert not tried.failing


def test_a_crash_in_service_is_no_failed_start() -> None:
    tried = pool(ready=1)
    tried.exited(0, 1)
    assert not tried.failing


def test_a_failing_pool_hands_back_what_waits_when_it_is_told_that_no_more_comes() -> None:
    tried = pool(bridges=1, breaker_failures=1)
    waiting = ticket(1)
    tried.submit(waiting, 0)
    assert tried.give_up() == []
    tried.exited(0, 0)
    assert tried.give_up() == [End(waiting, Reason.START_FAILED)]
    assert not tried.waiting


def test_a_failing_lazy_pool_keeps_trying_without_work_until_a_bridge_starts() -> None:
    tried = pool(bridges=1, eager=False, breaker_failures=1)
    tried.submit(ticket(1), 0)
    tried.exited(0, 0)
    tried.give_up()
    assert tried.wake_at == 0.5
    assert tried.due(0.5) == [Start(0, 0)]
    tried.greeted(0, concurrency=1, cancels=False, now=1)
    assert not tried.failing
    assert tried.exited(0, 2) == []  # lazy again


def test_a_lazy_pool_tries_its_other_slots_before_it_is_failing() -> None:
    tried = pool(bridges=2, eager=False)
    tried.submit(ticket(1), 0)
    assert tried.exited(0, 0) == [Start(1, 1)]
    assert not tried.failing
    tried.exited(1, 0)
    assert tried.failing


# The end.


def test_draining_hands_back_what_waits_finishes_what_runs_and_stops_each_bridge_once_it_is_idle() -> None:
    tried = pool(ready=3, bridges=3)
    running, waiting = ticket(1), ticket(2)
    tried.submit(running, 0)
    tried.submit(ticket(3), 0)
    tried.submit(ticket(4), 0)
    tried.submit(waiting, 0)
    tried.finished(2, 4, 0)  # waiting runs there
    tried.finished(1, 3, 0)
    behind = [ticket(5), ticket(6)]
    tried.submit(behind[0], 0)
    tried.submit(behind[1], 0)
    assert tried.drain(1) == [End(behind[1], Reason.DRAINED)]
    assert tried.submit(ticket(7), 1)[0].reason is Reason.DRAINED
    assert tried.finished(0, 1, 2) == [Stop(0, Step.ASK, Reason.DRAINED)]
    assert tried.exited(0, 3) == []
    assert tried.due(1000) != [Start(0, 0)]


def test_draining_stops_what_is_idle_and_what_is_starting_at_once() -> None:
    tried = pool(bridges=2)
    tried.greeted(0, concurrency=1, cancels=False, now=0)
    assert tried.drain(1) == [Stop(0, Step.ASK, Reason.DRAINED), Stop(1, Step.ASK, Reason.DRAINED)]
    assert tried.exited(0, 2) == []
    assert tried.exited(1, 2) == []
    assert tried.empty
    assert tried.due(1000) == []
    assert tried.wake_at == math.inf


def test_aborting_kills_every_bridge_and_hands_back_what_ran_on_it() -> None:
    tried = pool(ready=2)
    running = ticket(1)
    tried.submit(running, 0)
    actions = tried.abort(1)
    assert [action for action in actions if isinstance(action, Stop) and action.step is Step.KILL] == [
        Stop(0, Step.KILL, Reason.DRAINED),
        Stop(1, Step.KILL, Reason.DRAINED),
    ]
    assert tried.exited(0, 2) == [End(running, Reason.DRAINED, 0)]
    assert tried.abort(3) == []  # the other is dying already


def test_tickets_that_somebody_else_has_now_are_forgotten_where_they_wait() -> None:
    tried = pool(ready=1)
    running, stale, kept = ticket(1), ticket(2), ticket(3)
    for one in (running, stale, kept):
        tried.submit(one, 0)
    tried.withdraw(lambda one: one is stale or one is running, 1)
    assert list(tried.tickets()) == [running, kept]


# How many bridges.


def test_a_pool_that_can_grow_does_so_when_a_ticket_has_waited_long_enough() -> None:
    tried = pool(ready=1, bridges=1, most=3, grow_after=0.5)
    tried.submit(ticket(1), 0)
    assert tried.submit(ticket(2), 1) == []
    assert tried.wake_at == 1.5
    assert tried.submit(ticket(3), 1.25) == []
    assert tried.due(1.5) == [Start(1, 1)]
    assert tried.due(1.7) == []
    assert tried.due(1.75) == [Start(2, 2)]
    assert tried.submit(ticket(4), 2) == []
    assert tried.due(5) == []  # three are the most


def test_a_bridge_that_is_starting_is_for_the_first_that_waits() -> None:
    tried = pool(ready=1, bridges=1, most=8, grow_after=0.1)
    tried.submit(ticket(1), 0)
    tried.submit(ticket(2), 0)
    assert tried.due(0.1) == [Start(1, 1)]
    assert tried.due(9) == []


def test_a_pool_that_can_grow_holds_twice_what_it_has_bridges_for_and_no_more_than_the_most() -> None:
    tried = pool(ready=1, bridges=1, most=5, grow_after=0.1)
    assert tried.capacity == 2
    tried.submit(ticket(1), 0)
    tried.submit(ticket(2), 0)
    tried.due(0.1)
    assert tried.capacity == 4
    tried.greeted(1, concurrency=3, cancels=False, now=1)
    assert tried.capacity == 1 + 3 + 2 * 3


def test_a_pool_that_has_grown_shrinks_to_its_least_the_longest_idle_first() -> None:
    tried = pool(ready=1, bridges=1, most=3, shrink_after=60)
    for number in (1, 2, 3):
        tried.submit(ticket(number), 0)
    for slot in (1, 2):
        tried.greeted(slot, concurrency=1, cancels=False, now=1)
    tried.finished(2, 3, 10)
    tried.finished(0, 1, 20)
    tried.finished(1, 2, 30)
    assert tried.due(69.9) == []
    assert tried.due(70) == [Stop(2, Step.ASK, Reason.SURPLUS)]
    assert tried.exited(2, 71) == []
    assert tried.due(80) == [Stop(0, Step.ASK, Reason.SURPLUS)]
    assert tried.exited(0, 81) == []
    assert tried.due(1000) == []  # one is the least
    assert repr(tried) == "<Pool 1 idle, 2 empty, 0 waiting>"


def test_a_spare_bridge_is_started_as_soon_as_the_last_idle_one_has_work() -> None:
    tried = pool(ready=1, bridges=1, most=3, spare=1)
    one = ticket(1)
    assert tried.submit(one, 0) == [Send(0, one), Start(1, 1)]
    tried.greeted(1, concurrency=1, cancels=False, now=1)
    two = ticket(2)
    assert tried.submit(two, 2) == [Send(1, two), Start(2, 2)]
    tried.finished(0, 1, 3)
    tried.greeted(2, concurrency=1, cancels=False, now=4)
    assert tried.exited(1, 5)[0] == End(two, Reason.CRASHED, 1)


def test_spare_bridges_do_not_go_when_the_pool_shrinks() -> None:
    tried = pool(ready=1, bridges=1, most=3, spare=1, shrink_after=60, run_timeout=1000)
    tried.submit(ticket(1), 0)
    tried.greeted(1, concurrency=1, cancels=False, now=0)
    assert tried.due(100) == []
    tried.finished(0, 1, 100)
    assert tried.due(160) == [Stop(1, Step.ASK, Reason.SURPLUS)]


# Wear.


def served(tried: Pool[Named], number: int, now: float) -> list[Any]:
    """Serve a request of that id, at once; what the end of it leads to."""
    (sent,) = tried.submit(ticket(number), now)
    return tried.finished(sent.slot, number, now)


def test_a_bridge_is_replaced_after_so_many_requests_by_one_that_is_ready() -> None:
    tried = pool(ready=1, prewarm=True, wear=Wear(requests=3))
    assert served(tried, 1, 1) == []
    assert served(tried, 2, 2) == []
    assert served(tried, 3, 3) == [Start(1, 0)]  # in the slot without a seat, for the same seat
    assert served(tried, 4, 4) == []  # it serves on
    assert tried.capacity == 1
    assert tried.greeted(1, concurrency=1, cancels=False, now=5) == [Stop(0, Step.ASK, Reason.REQUESTS)]
    assert tried.submit(waits := ticket(5), 6) == [Send(1, waits)]
    assert tried.exited(0, 7) == []
    assert repr(tried) == "<Pool 1 busy, 0 waiting>"


def test_a_worn_bridge_finishes_what_runs_on_it() -> None:
    tried = pool(ready=1, concurrency=2, prewarm=True, wear=Wear(requests=1))
    tried.submit(ticket(1), 0)
    tried.submit(ticket(2), 0)
    assert tried.finished(0, 1, 1) == [Start(1, 0)]
    assert tried.greeted(1, concurrency=2, cancels=False, now=2) == []
    assert tried.submit(third := ticket(3), 2) == [Send(1, third)]
    assert tried.finished(0, 2, 3) == [Stop(0, Step.ASK, Reason.REQUESTS)]


def test_only_one_bridge_is_replaced_at_a_time() -> None:
    tried = pool(ready=2, prewarm=True, wear=Wear(age=100))
    assert tried.due(100) == [Start(2, 0)]
    assert tried.greeted(2, concurrency=1, cancels=False, now=101) == [Stop(0, Step.ASK, Reason.AGE)]
    assert tried.exited(0, 102) == [Start(0, 1)]
    assert tried.greeted(0, concurrency=1, cancels=False, now=103) == [Stop(1, Step.ASK, Reason.AGE)]
    assert tried.exited(1, 104) == []
    assert [slot.seat for slot in tried.slots] == [1, None, 0]


def test_without_a_prewarmed_one_they_go_one_after_the_other() -> None:
    tried = pool(ready=2, wear=Wear(age=100))
    assert tried.due(100) == [Stop(0, Step.ASK, Reason.AGE)]
    assert tried.exited(0, 101) == [Start(0, 0)]
    assert tried.due(102) == []
    assert tried.greeted(0, concurrency=1, cancels=False, now=103) == [Stop(1, Step.ASK, Reason.AGE)]


def test_a_replacement_that_does_not_start_leaves_the_old_one_at_work() -> None:
    tried = pool(ready=1, prewarm=True, wear=Wear(requests=1))
    assert served(tried, 1, 0) == [Start(1, 0)]
    assert tried.exited(1, 1) == []
    assert not tried.failing
    assert tried.submit(second := ticket(2), 1) == [Send(0, second)]
    assert tried.due(1.5) == [Start(1, 0)]


def test_the_replacement_of_a_bridge_that_dies_takes_its_seat() -> None:
    tried = pool(ready=1, prewarm=True, wear=Wear(requests=1))
    served(tried, 1, 0)
    assert tried.exited(0, 1) == []  # the one that is starting is enough
    assert [slot.seat for slot in tried.slots] == [None, 0]
    assert tried.greeted(1, concurrency=1, cancels=False, now=2) == []


def test_a_bridge_that_asks_to_be_replaced_gets_nothing_more_and_its_replacement_starts_at_once() -> None:
    tried = pool(ready=1, prewarm=True)
    tried.submit(ticket(1), 0)
    tried.submit(waits := ticket(2), 0)
    assert tried.finished(0, 1, 1, recycle=True) == [Start(1, 0), Stop(0, Step.ASK, Reason.RECYCLED)]
    assert tried.exited(0, 2) == []
    assert tried.greeted(1, concurrency=1, cancels=False, now=3) == [Send(1, waits)]


def test_wear_is_spread_below_its_limits() -> None:
    spread = iter([1.0, 0.0])
    tried: Pool[Named] = Pool(replace(LIMITS, prewarm=True, wear=Wear(age=100, jitter=0.2)), lambda: next(spread))
    tried.open(0)
    tried.greeted(0, concurrency=1, cancels=False, now=0)
    tried.greeted(1, concurrency=1, cancels=False, now=0)
    assert [slot.expires for slot in tried.slots[:2]] == [80, 100]


def test_an_idle_bridge_is_replaced_only_if_it_ever_served() -> None:
    tried = pool(ready=1, prewarm=True, wear=Wear(idle=50))
    assert tried.due(60) == []
    served(tried, 1, 70)
    assert tried.due(119) == []
    assert tried.due(120) == [Start(1, 0)]


def test_memory_over_the_soft_limit_is_a_reason_to_replace_and_over_the_hard_one_to_kill() -> None:
    tried = pool(ready=1, prewarm=True, wear=Wear(memory=100, memory_hard=200))
    assert tried.measured(0, 100, 1) == []
    assert tried.measured(0, 101, 2) == [Start(1, 0)]
    running = ticket(1)
    tried.submit(running, 3)
    assert tried.measured(0, 201, 4) == [Stop(0, Step.KILL, Reason.MEMORY_HARD)]
    assert tried.exited(0, 5) == [End(running, Reason.MEMORY_HARD, 0)]


def test_a_bridge_born_over_its_memory_limit_is_left_alone() -> None:
    tried = pool(bridges=1, prewarm=True, wear=Wear(memory=100, memory_hard=200))
    tried.greeted(0, concurrency=1, cancels=False, now=0, memory=150)
    assert tried.slots[0].oversized
    assert tried.measured(0, 1000, 1) == []


# The breaker.


def test_the_breaker_opens_when_bridges_fail_to_start_again_and_again() -> None:
    tried = pool(bridges=2, breaker_failures=3, breaker_window=60)
    tried.submit(waits := ticket(1), 0)
    tried.exited(0, 0)
    tried.exited(1, 0)
    assert tried.failing
    assert not tried.unavailable
    assert tried.give_up() == []
    tried.due(0.5)
    tried.exited(0, 1)
    assert tried.unavailable
    assert tried.give_up() == [End(waits, Reason.START_FAILED)]


def test_a_pool_that_is_unavailable_tries_with_one_bridge_at_a_time_until_one_is_ready() -> None:
    tried = pool(bridges=3, breaker_failures=3)
    for slot in range(3):
        tried.exited(slot, 0)
    assert tried.unavailable
    assert tried.due(0.5) == [Start(0, 0)]
    assert tried.due(0.6) == []
    assert tried.greeted(0, concurrency=1, cancels=False, now=1) == [Start(1, 1), Start(2, 2)]
    assert not tried.unavailable


def test_one_seat_that_fails_does_not_make_a_pool_unavailable_whose_other_bridges_serve() -> None:
    tried = pool(ready=2, breaker_failures=1)
    tried.exited(0, 0)
    tried.exited(0, 1)
    assert not tried.unavailable
    assert tried.submit(one := ticket(1), 1) == [Send(1, one)]


def test_starts_that_time_out_open_the_breaker_when_they_last_as_long_as_its_window() -> None:
    tried = pool(bridges=1, breaker_failures=5, breaker_window=60, stop_timeout=1)
    now = 0.0
    while not tried.unavailable:
        now = max(now, tried.wake_at)
        for action in tried.due(now):
            if isinstance(action, Stop):
                tried.exited(action.slot, now)
        assert now < 100
    assert now > 60


# New settings.


def test_a_restart_replaces_each_bridge_by_one_that_is_ready_and_no_request_fails() -> None:
    tried = pool(ready=2, prewarm=True)
    tried.submit(running := ticket(1), 0)
    assert tried.restart(replace(LIMITS, prewarm=True, run_timeout=5), 1) == [Start(2, 0)]
    assert tried.submit(second := ticket(2), 1) == [Send(1, second)]
    assert tried.greeted(2, concurrency=1, cancels=False, now=2) == []
    assert tried.finished(0, 1, 3) == [Stop(0, Step.ASK, Reason.REPLACED)]
    assert tried.exited(0, 4) == [Start(0, 1)]
    assert tried.greeted(0, concurrency=1, cancels=False, now=5) == []
    assert tried.finished(1, 2, 6) == [Stop(1, Step.ASK, Reason.REPLACED)]
    assert tried.exited(1, 7) == []
    assert running not in tried.tickets()
    assert tried.submit(third := ticket(3), 8) == [Send(0, third)]
    assert tried.slots[0].runs[3].due == 13  # the new run timeout


def test_a_restart_with_more_bridges_starts_them_and_with_fewer_stops_some() -> None:
    tried = pool(ready=2, prewarm=True)
    assert tried.restart(replace(LIMITS, least=3, most=3, prewarm=True), 1) == [Start(2, 2), Start(3, 0)]
    tried = pool(ready=2, prewarm=True)
    assert tried.restart(replace(LIMITS, least=1, most=1, prewarm=True), 1) == [
        Stop(1, Step.ASK, Reason.REPLACED),
        Start(2, 0),
    ]


def test_a_bridge_that_is_starting_with_the_old_settings_is_started_anew() -> None:
    tried = pool(bridges=1, prewarm=True)
    assert tried.restart(replace(LIMITS, least=1, most=1, prewarm=True), 1) == [Stop(0, Step.ASK, Reason.REPLACED)]
    assert tried.exited(0, 2) == [Start(0, 0)]
