"""The pool and sessions by the story: a list of events, and exactly the actions that follow."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pool_stories import LIMITS

from worker_node.core.actions import End, Forget, Recall, Send, Start, Stop
from worker_node.core.ladder import Step
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.sessions import Ending, SessionLimits, Sessions
from worker_node.core.ticket import Claim, Ticket

numbers = itertools.count(1)


@dataclass(slots=True, eq=False, kw_only=True)
class Named(Ticket):
    """A ticket that a story can name."""

    name: str = ""

    def __repr__(self) -> str:
        return self.name


def plain() -> Named:
    number = next(numbers)
    return Named(request_id=number, name=f"plain {number}")


def asks(session: str, *, deadline: float = math.inf, alone: bool = False, light: bool = False, **claim: Any) -> Named:
    """A request of that session, of a partition that is named as it is."""
    number = next(numbers)
    claimed = Claim(session=session, partition=ord(session[0]), **{"message_id": f"m{number}", **claim})
    name = f"{session} {number}"
    return Named(request_id=number, name=name, claim=claimed, deadline=deadline, alone=alone, light=light)


def pool(*, bridges: int = 2, most: int = 100, idle: float = math.inf, ahead: int = 0, **limits: Any) -> Pool[Named]:
    """A pool at time 0 with all its bridges up, which take so many requests ahead. Epochs are e1, e2, …"""
    epochs = map("e{}".format, itertools.count(1))
    sessions = Sessions(SessionLimits(most=most, idle=idle), epochs.__next__)
    numbers = {"least": bridges, "most": bridges, **limits}
    made: Pool[Named] = Pool(replace(LIMITS, **numbers), lambda: 1.0, sessions)
    made.open(0)
    made.ahead = ahead
    for number in range(bridges):
        made.greeted(number, concurrency=1, cancels=bool(ahead), ahead=ahead, now=0)
    return made


def table(tried: Pool[Named]) -> Sessions:
    return tried.sessions


def epoch(tried: Pool[Named], session: str) -> str:
    live = table(tried).get(session)
    assert live is not None
    return live.epoch


# Pinned.


def test_a_new_session_goes_to_the_slot_with_the_fewest_and_its_requests_stay_there() -> None:
    tried = pool()
    a, b, c = asks("a"), asks("b"), asks("c")
    assert tried.submit(a, 0) == [Send(0, a)]
    assert tried.submit(b, 0) == [Send(1, b)]
    assert tried.finished(1, b.request_id, 1) == []
    assert tried.submit(c, 1) == [Send(1, c)]  # of two with one session each the one that is idle
    assert tried.finished(1, c.request_id, 2) == []
    d, again = asks("d"), asks("a", epoch="e1")
    assert tried.submit(d, 2) == []  # the busy one: it has fewer
    assert tried.submit(again, 2) == []  # the other is idle, and not its own
    assert tried.finished(0, a.request_id, 3) == [Send(0, d)]
    assert tried.finished(0, d.request_id, 4) == [Send(0, again)]


def test_an_epoch_that_is_gone_is_told_at_once_though_all_bridges_are_busy() -> None:
    tried = pool(bridges=1)
    tried.submit(plain(), 0)
    late = asks("a", epoch="gone")
    assert tried.submit(late, 0) == [End(late, Reason.SESSION_LOST)]
    lenient = asks("a", epoch="gone", lenient=True)
    assert tried.submit(lenient, 0) == []
    assert lenient.fresh
    assert epoch(tried, "a") == "e1"


def test_what_began_in_an_epoch_does_not_begin_in_it_again() -> None:
    tried = pool()
    first = asks("a", message_id="m")
    tried.submit(first, 0)
    tried.finished(0, first.request_id, 1)
    again = asks("a", message_id="m")
    assert tried.submit(again, 2) == [End(again, Reason.REPEATED)]
    tried.exited(0, 3)
    anew = asks("a", message_id="m")
    assert tried.submit(anew, 4)[-1] == Send(1, anew)  # in a new one


# Ends.


def test_with_its_bridge_a_session_is_gone_and_what_waited_for_it_is_told_or_pinned_anew() -> None:
    tried = pool()
    running, strict, lenient = asks("a"), asks("a", epoch="e1"), asks("a", epoch="e1", lenient=True)
    tried.submit(running, 0)
    tried.submit(strict, 0)
    tried.submit(lenient, 0)
    assert tried.exited(0, 1, {"signal": "SIGKILL"}) == [
        End(running, Reason.CRASHED, 0),
        End(strict, Reason.SESSION_LOST),
        Start(0, 0),
        Send(1, lenient),
    ]
    assert table(tried).why("e1").ending is Ending.CRASHED
    assert table(tried).why("e1").details == {"signal": "SIGKILL"}
    assert lenient.fresh
    assert epoch(tried, "a") == "e2"


def test_of_too_many_the_least_recently_used_that_is_idle_makes_room_and_its_bridge_is_told() -> None:
    tried = pool(most=2)
    a, b = asks("a"), asks("b")
    tried.submit(a, 0)
    tried.submit(b, 0)
    tried.finished(1, b.request_id, 1)
    c = asks("c")
    assert tried.submit(c, 2) == [Forget(1, "b"), Send(1, c)]
    d = asks("d")
    assert tried.submit(d, 3) == []  # all are busy: one too many, until one is not
    assert len(table(tried)) == 3
    assert tried.finished(0, a.request_id, 4)[0] == Forget(0, "a")
    assert (len(table(tried)), table(tried).evicted) == (2, 2)


def test_a_session_that_is_idle_for_long_ends_when_its_time_comes() -> None:
    tried = pool(idle=10)
    a = asks("a")
    tried.submit(a, 0)
    tried.finished(0, a.request_id, 5)
    assert tried.wake_at <= 15
    assert tried.due(14) == []
    assert tried.due(15) == [Forget(0, "a")]
    assert table(tried).why("e1").ending is Ending.IDLE


def test_closing_ends_it_and_needs_no_further_word_to_its_bridge() -> None:
    tried = pool()
    a = asks("a")
    tried.submit(a, 0)
    tried.finished(0, a.request_id, 1)
    closing = asks("a", epoch="e1", closes=True)
    assert tried.submit(closing, 2) == [Send(0, closing)]
    assert tried.finished(0, closing.request_id, 3) == []
    assert len(table(tried)) == 0
    assert table(tried).why("e1").ending is Ending.CLOSED


def test_when_its_queue_moves_an_idle_session_ends_and_a_busy_one_when_it_is_done() -> None:
    tried = pool()
    a, a2 = asks("a"), asks("a2")
    tried.submit(a, 0)
    tried.submit(a2, 0)
    tried.finished(1, a2.request_id, 1)
    assert tried.moved(ord("b"), 2) == []
    assert tried.moved(ord("a"), 2) == [Forget(1, "a2")]
    assert tried.finished(0, a.request_id, 3) == [Forget(0, "a")]
    assert table(tried).why("e1").ending is table(tried).why("e2").ending is Ending.MOVED


def test_a_session_whose_queue_comes_back_while_it_is_busy_lives_on() -> None:
    tried = pool()
    a = asks("a")
    tried.submit(a, 0)
    tried.moved(ord("a"), 1)
    back = asks("a", epoch="e1")
    tried.submit(back, 2)
    assert tried.finished(0, a.request_id, 3) == [Send(0, back)]
    assert tried.finished(0, back.request_id, 4) == []
    assert epoch(tried, "a") == "e1"


def test_a_request_that_is_late_while_it_waits_for_its_slot_ends_and_leaves_its_session() -> None:
    tried = pool(bridges=1)
    busy, late = plain(), asks("a", deadline=5)
    tried.submit(busy, 0)
    tried.submit(late, 0)
    assert tried.wake_at <= 5
    assert tried.due(5) == [End(late, Reason.DEADLINE)]
    live = table(tried).get("a")
    assert live is not None
    assert live.busy == 0


# Recycling.


@pytest.mark.parametrize(("asked_again", "replaced_at"), [((), 11), ((9, 17, 25, 33, 41), 31)])
def test_a_worn_bridge_waits_for_its_sessions_to_be_quiet_and_not_for_ever(
    asked_again: tuple[int, ...], replaced_at: int
) -> None:
    """Quiet for 10 s after the last request at 1; or, with a request every 8 s, 30 s after it was worn at 1."""
    tried = pool(bridges=1, session_quiet=10, session_patience=30)
    a = asks("a")
    tried.submit(a, 0)
    assert tried.finished(0, a.request_id, 1, recycle=False) == []
    tried.slots[0].wear_out(Reason.MEMORY, 1)
    stopped = None
    for now in range(2, 50):
        actions = tried.due(now)
        if Stop(0, Step.ASK, Reason.MEMORY) in actions:
            stopped = now
            break
        if now in asked_again:
            again = asks("a", epoch="e1")
            tried.submit(again, now)
            tried.finished(0, again.request_id, now)
    assert stopped == replaced_at
    tried.exited(0, stopped)
    assert table(tried).why("e1").ending is Ending.RECYCLED


# Ahead.


def begun(tried: Pool[Named], session: str) -> tuple[str, ...]:
    live = table(tried).get(session)
    assert live is not None
    return live.begun


def test_short_requests_of_sessions_wait_in_their_bridges_pipe() -> None:
    tried = pool(bridges=1, ahead=2)
    a, b, c, d = (asks(name, light=True, message_id=name) for name in "abcd")
    assert tried.submit(a, 0) == [Send(0, a)]
    assert tried.submit(b, 0) == [Send(0, b)]
    assert tried.submit(c, 0) == [Send(0, c)]
    assert tried.submit(d, 0) == []
    assert (begun(tried, "a"), begun(tried, "b")) == (("a",), ())
    assert tried.finished(0, a.request_id, 0.01) == [Send(0, d)]
    assert begun(tried, "b") == ("b",)


def test_nothing_of_a_session_goes_ahead_of_others_that_wait() -> None:
    tried = pool(bridges=1, ahead=2)
    a, big, b = asks("a"), plain(), asks("b", light=True)
    tried.submit(a, 0)
    assert tried.submit(big, 0) == []
    assert tried.submit(b, 0) == []


def test_a_request_that_its_bridge_gives_back_waits_for_the_same_bridge_and_has_not_begun() -> None:
    tried = pool(bridges=1, ahead=2)
    a, b = asks("a", light=True), asks("b", light=True, message_id="b")
    tried.submit(a, 0)
    tried.submit(b, 0)
    assert tried.due(0.05) == [Recall(0, b.request_id)]
    assert tried.given_back(0, b.request_id, 0.1) == []
    assert begun(tried, "b") == ()
    assert tried.finished(0, a.request_id, 5) == [Send(0, b)]
    assert begun(tried, "b") == ("b",)


def test_one_that_is_given_back_though_it_was_taken_for_begun_may_come_again() -> None:
    """The bridge answered the one before, and gave this one back, before it heard of either."""
    tried = pool(bridges=1, ahead=2)
    a, b = asks("a", light=True), asks("b", light=True, message_id="b")
    tried.submit(a, 0)
    tried.submit(b, 0)
    tried.due(0.05)
    tried.finished(0, a.request_id, 0.1)
    assert begun(tried, "b") == ("b",)
    assert tried.given_back(0, b.request_id, 0.1) == [Send(0, b)]
    assert begun(tried, "b") == ("b",)


def test_one_that_is_cancelled_in_the_pipe_leaves_its_session() -> None:
    tried = pool(bridges=1, ahead=2)
    a, b = asks("a", light=True), asks("b", light=True)
    tried.submit(a, 0)
    tried.submit(b, 0)
    tried.due(0.05)
    tried.cancel(b, 0.06)
    assert tried.given_back(0, b.request_id, 0.1) == [End(b, Reason.CANCELLED)]
    live = table(tried).get("b")
    assert live is not None
    assert live.busy == 0


def test_when_a_bridge_dies_what_waited_in_its_pipe_did_not_run_and_is_told_or_pinned_anew() -> None:
    tried = pool(bridges=2, ahead=2)
    a, x, b = asks("a", light=True), asks("x", light=True), asks("b", light=True)
    assert tried.submit(a, 0) == [Send(0, a)]
    assert tried.submit(x, 0) == [Send(1, x)]
    assert tried.submit(b, 0) == [Send(0, b)]
    assert tried.finished(0, a.request_id, 0.01) == []
    assert tried.finished(0, b.request_id, 0.02) == []
    running = asks("a", epoch="e1", light=True)
    strict, opener = asks("b", epoch="e3", light=True), asks("c", light=True)
    assert tried.submit(running, 0.03) == [Send(0, running)]
    assert tried.submit(strict, 0.03) == [Send(0, strict)]
    tried.finished(1, x.request_id, 0.03)
    table(tried).end(table(tried).on_slot(1)[0], Ending.CLOSED)
    tried.slots[1].doomed = True
    assert tried.submit(opener, 0.03) == [Send(0, opener)]
    tried.slots[1].doomed = False
    assert tried.exited(0, 0.04) == [
        End(running, Reason.CRASHED, 0),
        End(strict, Reason.SESSION_LOST),
        Start(0, 0),
        Send(1, opener),
    ]


# Shares.


def turns(share: float, count: int = 40) -> str:
    """Who gets each turn of one bridge while both kinds always wait: `s` or `p`."""
    tried = pool(bridges=1, session_share=share)
    sent: list[Named] = []
    running = plain()
    tried.submit(running, 0)
    for _ in range(count):
        tried.submit(plain(), 0)
        tried.submit(asks("a"), 0)
    while len(sent) < count:
        (action,) = tried.finished(0, running.request_id, 1)
        assert isinstance(action, Send)
        running = action.ticket
        sent.append(running)
    return "".join("p" if ticket.claim is None else "s" for ticket in sent)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.75, 0.95])
def test_sessions_and_other_requests_get_their_share_and_neither_starves_the_other(share: float) -> None:
    said = turns(share)
    assert abs(said.count("s") - share * len(said)) <= 1
    longest = max(map(len, (*said.split("s"), *said.split("p"))))
    assert longest <= math.ceil(1 / min(share, 1 - share))


def test_a_kind_that_waits_alone_gets_every_turn() -> None:
    tried = pool(bridges=1, session_share=0.05)
    running = asks("a")
    tried.submit(running, 0)
    waiting = [asks("a") for _ in range(10)]
    for ticket in waiting:
        tried.submit(ticket, 0)
    for ticket in waiting:
        assert tried.finished(0, running.request_id, 1) == [Send(0, ticket)]
        running = ticket
