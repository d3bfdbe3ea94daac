"""The pin table: by the story, and by random events against a plain model of it."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from soak import SOAK

from worker_node.core.sessions import REMEMBERED_ENDS, REMEMBERED_REQUESTS, Ending, Session, SessionLimits, Sessions

FLOOD = 1_000_000 if SOAK else 40_000


def table(most: int = 3, idle: float = math.inf, age: float = math.inf) -> Sessions:
    numbers = itertools.count(1)
    return Sessions(SessionLimits(most=most, idle=idle, age=age), lambda: f"e{next(numbers)}")


def test_a_session_is_found_until_it_ends_and_then_its_epoch_says_why() -> None:
    sessions = table()
    session = sessions.open("a", partition=7, slot=2, now=1)
    assert (session.epoch, session.partition, session.slot) == ("e1", 7, 2)
    assert sessions.get("a") is session
    assert sessions.on_slot(2) == [session]
    sessions.end(session, Ending.CRASHED, {"exit_code": 7})
    assert sessions.get("a") is None
    assert sessions.on_slot(2) == []
    assert sessions.why("e1").ending is Ending.CRASHED
    assert sessions.why("e1").details == {"exit_code": 7}
    assert sessions.open("a", partition=7, slot=0, now=2).epoch == "e2"
    assert sessions.why("another's").ending is Ending.UNKNOWN


def test_the_least_recently_used_that_is_not_busy_makes_room() -> None:
    sessions = table(most=3)
    a, b, c = (sessions.open(name, partition=0, slot=0, now=0) for name in "abc")
    assert sessions.surplus() is a
    sessions.use(a, 1)
    assert sessions.surplus() is b
    b.busy = 1
    assert sessions.surplus() is c
    c.busy = a.busy = 1
    assert sessions.surplus() is None
    c.busy = 0
    sessions.end(c, Ending.EVICTED)
    assert sessions.evicted == 1
    assert sessions.surplus() is None


def test_a_session_expires_when_it_is_idle_for_long_or_old_and_never_while_it_is_busy() -> None:
    sessions = table(idle=10, age=25)
    a = sessions.open("a", partition=0, slot=0, now=0)
    b = sessions.open("b", partition=0, slot=1, now=5)
    assert sessions.next_expiry == 10
    a.busy = 1
    assert sessions.expired(12) == []
    assert sessions.next_expiry == 15
    a.busy = 0
    sessions.use(a, 14)
    assert sessions.expired(15) == [(b, Ending.IDLE)]
    sessions.use(a, 20)
    sessions.use(b, 20)
    assert sessions.expired(25) == [(a, Ending.AGE)]


def test_a_session_remembers_its_latest_requests() -> None:
    session = table().open("a", partition=0, slot=0, now=0)
    for number in range(20):
        session.begin(f"m{number}")
    assert session.begun == tuple(f"m{number}" for number in range(20 - REMEMBERED_REQUESTS, 20))


def test_a_slot_is_quiet_since_its_last_request() -> None:
    sessions = table()
    assert sessions.quiet_since(0) == -math.inf
    a = sessions.open("a", partition=0, slot=0, now=3)
    sessions.open("b", partition=0, slot=0, now=5)
    assert sessions.quiet_since(0) == 5
    a.busy = 1
    assert sessions.quiet_since(0) == math.inf


def test_an_idle_session_takes_less_than_two_kilobytes_and_the_ended_are_bounded() -> None:
    sessions = Sessions(SessionLimits(most=100_000), lambda: f"{next(numbers):032x}@node-of-a-usual-length-1234")
    numbers = itertools.count()
    tracemalloc.start()
    try:
        for number in range(10_000):
            session = sessions.open(f"a session's id of usual length {number}", partition=0, slot=number % 8, now=0)
            for request in range(REMEMBERED_REQUESTS):
                session.begin(f"{number * 8 + request:032x}")
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / 10_000 < 2048
    for session in list(sessions):
        sessions.end(session, Ending.IDLE)
    for number in range(REMEMBERED_ENDS):
        sessions.end(sessions.open("again and again", partition=0, slot=number % 8, now=0), Ending.CLOSED)
    assert repr(sessions) == f"<Sessions 0 live, {REMEMBERED_ENDS} remembered>"


def test_a_flood_of_distinct_ids_takes_no_more_memory_than_its_first_part_and_is_counted() -> None:
    sessions = table(most=1000)
    tracemalloc.start()
    try:
        for number in range(FLOOD):
            if (surplus := sessions.surplus()) is not None:
                sessions.end(surplus, Ending.EVICTED)
            sessions.open(f"session {number}", partition=0, slot=number % 8, now=number)
            if number == 2 * REMEMBERED_ENDS:
                early, _ = tracemalloc.get_traced_memory()
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late < early * 1.1
    assert sessions.evicted == FLOOD - 1000
    assert repr(sessions) == f"<Sessions 1000 live, {REMEMBERED_ENDS} remembered>"
    assert sessions.why(f"e{FLOOD - 1000}").ending is Ending.EVICTED
    assert sessions.why("e1").ending is Ending.UNKNOWN


@dataclass(eq=False)
class Known:
    """What a plain model knows of a live session."""

    session: Session
    slot: int
    opened: float
    used: float


class SessionsMachine(RuleBasedStateMachine):
    """The table against a dictionary that is searched from end to end."""

    @initialize(most=st.integers(1, 4), idle=st.sampled_from([3.0, math.inf]), age=st.sampled_from([8.0, math.inf]))
    def begin(self, most: int, idle: float, age: float) -> None:
        self.sessions = table(most, idle, age)
        self.live: dict[str, Known] = {}
        self.gone: dict[str, Ending] = {}
        self.now = 0.0

    @rule(id=st.sampled_from("abcdefg"), slot=st.integers(0, 2))
    def request(self, id: str, slot: int) -> None:
        known = self.live.get(id)
        if known is None:
            while (surplus := self.sessions.surplus()) is not None:
                idle = [k for k in self.live.values() if not k.session.busy]
                assert surplus.used == min(k.used for k in idle)
                self.end(surplus, Ending.EVICTED)
            session = self.sessions.open(id, partition=0, slot=slot, now=self.now)
            assert session.epoch not in self.gone
            known = self.live[id] = Known(session, slot, self.now, self.now)
        self.sessions.use(known.session, self.now)
        known.used = self.now
        known.session.busy += 1

    @precondition(lambda self: any(known.session.busy for known in self.live.values()))
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        busy = [name for name, known in self.live.items() if known.session.busy]
        self.live[data.draw(st.sampled_from(busy))].session.busy -= 1

    @rule(slot=st.integers(0, 2))
    def lose_a_bridge(self, slot: int) -> None:
        on_slot = self.sessions.on_slot(slot)
        assert {session.id for session in on_slot} == {name for name, known in self.live.items() if known.slot == slot}
        for session in on_slot:
            self.end(session, Ending.CRASHED)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for session, ending in self.sessions.expired(self.now):
            assert not session.busy
            self.end(session, ending)

    def end(self, session: Session, ending: Ending) -> None:
        self.sessions.end(session, ending)
        del self.live[session.id]
        self.gone[session.epoch] = ending

    @invariant()
    def the_table_is_what_the_model_knows(self) -> None:
        if not hasattr(self, "sessions"):
            return
        assert {session.id: session for session in self.sessions} == {
            name: known.session for name, known in self.live.items()
        }
        assert all(self.sessions.get(name) is known.session for name, known in self.live.items())
        assert all(self.sessions.why(epoch).ending is ending for epoch, ending in self.gone.items())
        limits = self.sessions.limits
        for known in self.live.values():
            if not known.session.busy:
                assert self.sessions.next_expiry <= min(known.used + limits.idle, known.opened + limits.age)


SessionsMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestSessions = SessionsMachine.TestCase
