"""The pool against everything at once: random events, and what must hold whatever came before.

The machine stands for the dispatcher: it performs what the pool asks for, and keeps its own books of who was
where. The normal run is short; QUAYBRIDGE_SOAK=1 makes it long.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker_node.core.actions import Action, Cancel, End, Forget, Recall, Send, Start, Stop
from worker_node.core.ladder import Step
from worker_node.core.limits import PoolLimits, Wear
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.sessions import Session, SessionLimits, Sessions
from worker_node.core.slot import Phase, Slot
from worker_node.core.ticket import Claim, Ticket

SOAK = os.environ.get("QUAYBRIDGE_SOAK") == "1"
MOST_BRIDGES = 3


HARMLESS = {
    Reason.RECYCLED,
    Reason.REQUESTS,
    Reason.AGE,
    Reason.IDLE,
    Reason.MEMORY,
    Reason.REPLACED,
    Reason.SURPLUS,
}


class Place(Enum):
    """Where a ticket is, by the machine's own books."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ENDED = "ended"
    WITHDRAWN = "withdrawn"


@dataclass(slots=True, eq=False, kw_only=True)
class Booked(Ticket):
    """A ticket, and where the machine saw it go."""

    number: int
    place: Place = Place.WAITING
    slot: int | None = None
    stale: bool = False
    cancelled: bool = False
    epoch: str | None = None  # that it ran in
    returned: bool = False  # from a bridge's pipe


# What a request of a session may be like.
IN_SESSION = {
    "session": st.sampled_from("abcde"),
    "named": st.sampled_from(["none", "live", "gone"]),
    "lenient": st.booleans(),
    "closes": st.sampled_from([False, False, False, True]),
    "patience": st.sampled_from([math.inf, 1.0, 5.0]),
    "again": st.integers(0, 9),
    "alone": st.sampled_from([False, False, True]),
    "light": st.booleans(),
}


class PoolMachine(RuleBasedStateMachine):
    """`live`: the slots whose process runs, as a dispatcher would know it from its start and its exit."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.tickets: list[Booked] = []
        self.live: dict[int, list[Step]] = {}
        self.started: list[int] = []  # the numbers of tickets in the order they began
        self.drained = False
        self.homes: dict[str, int] = {}  # by epoch, the bridge that served it first
        self.bridges: dict[int, int] = {}  # by slot, which of all bridges it holds
        self.began = 0
        self.ran: dict[str, list[str]] = {}  # by epoch, the message ids that ran in it

    @initialize(
        least=st.integers(1, MOST_BRIDGES),
        more=st.integers(0, 2),
        spare=st.integers(0, 1),
        prewarm=st.booleans(),
        eager=st.booleans(),
        wear=st.sampled_from([Wear(), Wear(requests=2), Wear(age=9, idle=4, jitter=0.5), Wear(memory=50)]),
        run_timeout=st.sampled_from([2.0, 20.0]),
        jitter=st.sampled_from([0.0, 0.5, 1.0]),
        concurrency=st.integers(0, 3),
        most_sessions=st.integers(1, 4),
        idle=st.sampled_from([math.inf, 2.0]),
        ahead=st.integers(0, 2),
        most_ahead=st.integers(0, 2),
    )
    def begin(
        self,
        least: int,
        more: int,
        spare: int,
        prewarm: bool,
        eager: bool,
        wear: Wear,
        run_timeout: float,
        jitter: float,
        concurrency: int,
        most_sessions: int,
        idle: float,
        ahead: int,
        most_ahead: int,
    ) -> None:
        self.limits = PoolLimits(
            least=least,
            most=least + more,
            spare=spare,
            eager=eager,
            prewarm=prewarm and eager,
            grow_after=0.2,
            shrink_after=5 if more else math.inf,
            wear=wear,
            breaker_failures=3,
            start_timeout=10,
            run_timeout=run_timeout,
            cancel_timeout=1,
            stop_timeout=2,
            restart_delay=0.5,
            max_restart_delay=4,
            session_quiet=1,
            session_patience=6,
        )
        self.sessions = Sessions(
            SessionLimits(most=most_sessions, idle=idle, age=30), map("e{}".format, itertools.count()).__next__
        )
        self.pool: Pool[Booked] = Pool(self.limits, lambda: jitter, self.sessions)
        self.pool.ahead = most_ahead
        self.perform(self.pool.open(self.now))
        for slot in self.in_phase(Phase.STARTING):
            if concurrency:  # most stories begin when the bridges are up
                self.perform(self.pool.greeted(slot, concurrency=concurrency, ahead=ahead, cancels=True, now=self.now))

    # What a dispatcher does.

    def perform(self, actions: list[Action[Booked]]) -> None:
        for action in actions:
            match action:
                case Start(slot, seat):
                    assert slot not in self.live, "a second process in one slot"
                    assert 0 <= seat < self.pool.limits.most
                    self.live[slot] = []
                    self.began += 1
                    self.bridges[slot] = self.began
                case Send(slot, ticket):
                    assert self.live[slot] == [], "a request for a bridge that is being stopped"
                    assert ticket.place is Place.WAITING
                    assert ticket.deadline > self.now, "started too late"
                    ticket.place, ticket.slot = Place.RUNNING, slot
                    if ticket.claim is not None:
                        self.sent_in_session(ticket, ticket.claim, slot)
                    elif not ticket.returned:
                        self.started.append(ticket.number)
                case Forget(slot, _):
                    assert self.live[slot] == []
                case Recall(slot, request_id):
                    assert self.pool.slots[slot].runs[request_id].recalled
                case Cancel(slot, request_id):
                    assert self.pool.slots[slot].cancels
                    assert self.pool.slots[slot].runs[request_id].due > self.now
                case Stop(slot, step, reason):
                    assert step not in self.live[slot], "the same step twice"
                    assert Step.KILL not in self.live[slot], "after a kill there is no other step"
                    assert isinstance(reason, Reason)
                    self.live[slot].append(step)
                case End(ticket, reason, slot):
                    assert isinstance(reason, Reason)
                    assert ticket.place is (Place.WAITING if slot is None else Place.RUNNING)
                    assert ticket.slot == slot
                    assert reason not in HARMLESS, "a request was cut off without need"
                    if slot is None:
                        assert reason in (
                            Reason.DEADLINE,
                            Reason.DRAINED,
                            Reason.START_FAILED,
                            Reason.CANCELLED,
                            Reason.SESSION_LOST,
                            Reason.REPEATED,
                        )
                    if reason is Reason.SESSION_LOST:
                        assert ticket.claim is not None
                        assert ticket.claim.epoch is not None
                        assert not ticket.claim.lenient
                        live = self.sessions.get(ticket.claim.session)
                        assert live is None or live.epoch != ticket.claim.epoch
                    assert (reason is Reason.CANCELLED) <= ticket.cancelled, "somebody else's cancel"
                    if reason is Reason.DEADLINE:
                        assert ticket.deadline <= self.now
                    ticket.place = Place.ENDED

    def sent_in_session(self, ticket: Booked, claim: Claim, slot: int) -> None:
        session = ticket.session
        assert session is not None
        assert session.slot == slot
        assert self.homes.setdefault(session.epoch, self.bridges[slot]) == self.bridges[slot], "an epoch on two bridges"
        if claim.epoch is not None:
            assert ticket.fresh == (session.epoch != claim.epoch)
            assert claim.lenient or not ticket.fresh
        assert claim.message_id is not None
        ran = self.ran.setdefault(session.epoch, [])
        assert claim.message_id not in ran[-8:], "twice in one epoch"
        ran.append(claim.message_id)
        ticket.epoch = session.epoch

    def in_phase(self, phase: Phase) -> list[int]:
        return [slot.number for slot in self.pool.slots if slot.phase is phase]

    # What happens.

    @rule(
        request_id=st.integers(1, 4),
        alone=st.booleans(),
        light=st.booleans(),
        patience=st.sampled_from([math.inf, 0.0, 1.0, 5.0]),
    )
    def submit(self, request_id: int, alone: bool, light: bool, patience: float) -> None:
        deadline = self.now + patience
        ticket = Booked(request_id=request_id, deadline=deadline, alone=alone, light=light, number=len(self.tickets))
        self.tickets.append(ticket)
        self.perform(self.pool.submit(ticket, self.now))

    @rule(**IN_SESSION)
    def submit_in_session(
        self,
        session: str,
        named: str,
        lenient: bool,
        closes: bool,
        patience: float,
        again: int,
        alone: bool,
        light: bool,
    ) -> None:
        live = self.sessions.get(session)
        epoch = {"none": None, "live": live.epoch if live is not None else None, "gone": "another's"}[named]
        message_id = f"m{len(self.tickets)}"
        if not again and live is not None and live.begun:
            message_id = live.begun[-1]
        claim = Claim(
            session=session,
            partition=ord(session) % 2,
            message_id=message_id,
            epoch=epoch,
            lenient=lenient,
            closes=closes,
        )
        number = len(self.tickets)
        ticket = Booked(
            request_id=1000 + number,
            deadline=self.now + patience,
            alone=alone,
            light=light,
            number=number,
            claim=claim,
        )
        self.tickets.append(ticket)
        self.perform(self.pool.submit(ticket, self.now))

    @rule(partition=st.integers(0, 1))
    def moved(self, partition: int) -> None:
        self.perform(self.pool.moved(partition, self.now))
        assert all(session.busy and session.moved for session in self.sessions if session.partition == partition)

    @precondition(lambda self: self.in_phase(Phase.STARTING))
    @rule(data=st.data(), concurrency=st.integers(1, 3), ahead=st.integers(0, 2), cancels=st.booleans())
    def greeted(self, data: st.DataObject, concurrency: int, ahead: int, cancels: bool) -> None:
        slot = data.draw(st.sampled_from(self.in_phase(Phase.STARTING)))
        self.perform(self.pool.greeted(slot, concurrency=concurrency, ahead=ahead, cancels=cancels, now=self.now))

    @precondition(lambda self: any(slot.runs for slot in self.pool.slots))
    @rule(data=st.data(), recycle=st.sampled_from([False, False, True]))
    def reply(self, data: st.DataObject, recycle: bool) -> None:
        running = [(slot.number, request_id) for slot in self.pool.slots for request_id in slot.runs]
        slot, request_id = data.draw(st.sampled_from(running))
        run = self.pool.run(slot, request_id)
        assert run is not None
        assert run.ticket.place is Place.RUNNING
        assert run.ticket.slot == slot
        run.ticket.place = Place.FINISHED
        self.perform(self.pool.finished(slot, request_id, self.now, recycle=recycle))

    @precondition(lambda self: any(not run.begun for slot in self.pool.slots for run in slot.runs.values()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        unbegun = [
            (slot.number, request_id)
            for slot in self.pool.slots
            for request_id, run in slot.runs.items()
            if not run.begun
        ]
        slot, request_id = data.draw(st.sampled_from(unbegun))
        self.returns(self.pool.slots[slot].runs[request_id].ticket)
        self.perform(self.pool.given_back(slot, request_id, self.now))

    def returns(self, ticket: Booked) -> None:
        """It comes out of a bridge's pipe, where it had not begun."""
        assert ticket.place is Place.RUNNING
        ticket.place, ticket.slot = Place.WAITING, None
        if ticket.claim is None and not ticket.returned:
            self.started.remove(ticket.number)
        elif ticket.claim is not None:
            self.ran[ticket.epoch].remove(ticket.claim.message_id)
        ticket.returned = True

    @precondition(lambda self: any(self.pool.tickets()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.pool.tickets(), key=lambda ticket: ticket.number)))
        waited = ticket.place is Place.WAITING
        ticket.cancelled = True
        self.perform(self.pool.cancel(ticket, self.now))
        assert ticket.place is (Place.ENDED if waited else Place.RUNNING)

    @precondition(lambda self: self.in_phase(Phase.STOPPING))
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        self.dies(data.draw(st.sampled_from(self.in_phase(Phase.STOPPING))))

    @precondition(lambda self: self.live)
    @rule(
        data=st.data(),
        misfortune=st.sampled_from(["crash", "violation", "write_timeout", "frame_timeout", "start_failed", "doom"]),
    )
    def go_wrong(self, data: st.DataObject, misfortune: str) -> None:
        slot = data.draw(st.sampled_from(sorted(self.live)))
        match misfortune:
            case "crash":
                self.dies(slot)
            case "doom":
                self.pool.doom(slot)
            case reason:
                self.perform(self.pool.condemn(slot, Reason(reason), self.now))

    def dies(self, slot: int) -> None:
        del self.live[slot]
        unheard = self.pool.slots[slot].reason in (Reason.VIOLATION, Reason.WRITE_TIMEOUT, Reason.FRAME_TIMEOUT)
        for run in self.pool.slots[slot].runs.values():
            if not run.begun and (run.reason is not None or self.pool.draining or not unheard):
                self.returns(run.ticket)
        self.perform(self.pool.exited(slot, self.now))

    @precondition(lambda self: self.in_phase(Phase.READY))
    @rule(data=st.data(), memory=st.sampled_from([10, 60]))
    def measured(self, data: st.DataObject, memory: int) -> None:
        slot = data.draw(st.sampled_from(self.in_phase(Phase.READY)))
        self.perform(self.pool.measured(slot, memory, self.now))

    @precondition(lambda self: len(self.tickets) > 5 and not self.drained)
    @rule(least=st.integers(1, MOST_BRIDGES), more=st.integers(0, 2))
    def restart(self, least: int, more: int) -> None:
        self.limits = replace(self.limits, least=least, most=least + more)
        self.perform(self.pool.restart(self.limits, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 3.0, 12.0]))
    def wait(self, seconds: float) -> None:
        """As a timer does it: every wake-up on the way is taken, in order."""
        end = self.now + seconds
        for _ in range(100):
            if self.pool.wake_at > end:
                break
            self.now = max(self.now, self.pool.wake_at)
            self.perform(self.pool.due(self.now))
            assert self.pool.wake_at > self.now, "a wake-up that changes nothing: the loop would spin"
        else:
            raise AssertionError("the pool never sleeps")
        self.now = end

    @rule()
    def lose_the_channel(self) -> None:
        for ticket in self.tickets:
            ticket.stale = True
            if ticket.place is Place.WAITING:
                ticket.place = Place.WITHDRAWN
        self.perform(self.pool.withdraw(lambda ticket: ticket.stale, self.now))

    @rule()
    def give_up(self) -> None:
        was_unavailable = self.pool.unavailable
        self.perform(self.pool.give_up())
        assert not was_unavailable or not self.pool.waiting

    @precondition(lambda self: len(self.tickets) > 10)
    @rule(abort=st.booleans())
    def drain(self, abort: bool) -> None:
        self.drained = True
        self.perform(self.pool.abort(self.now) if abort else self.pool.drain(self.now))
        if abort:
            assert all(Step.KILL in steps for steps in self.live.values())

    # What always holds.

    @invariant()
    def every_ticket_is_in_one_place(self) -> None:
        if not hasattr(self, "pool"):
            return
        inside = list(self.pool.tickets())
        assert len({id(ticket) for ticket in inside}) == len(inside)
        waiting = {id(ticket) for ticket in self.pool.waiting}
        waiting |= {id(ticket) for slot in self.pool.slots for ticket in slot.pinned}
        assert waiting == self.in_place(Place.WAITING)
        running = {id(run.ticket) for slot in self.pool.slots for run in slot.runs.values()}
        assert running == self.in_place(Place.RUNNING)

    def in_place(self, place: Place) -> set[int]:
        return {id(ticket) for ticket in self.tickets if ticket.place is place}

    @invariant()
    def every_slot_is_in_order(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert {slot.number for slot in self.pool.slots if slot.phase is not Phase.EMPTY} == set(self.live)
        assert self.pool.empty == (not self.live)
        seats = [slot.seat for slot in self.pool.slots if slot.seat is not None]
        assert sorted(seats) == list(range(self.pool.limits.most)), "a seat is lost, or given twice"
        # Beside those with seats, one that is being made ready, and old ones that finish what they have.
        ready = [slot for slot in self.pool.slots if slot.phase is Phase.READY and slot.seat is None]
        assert all(slot.retiring for slot in ready)
        assert sum(slot.replaces is not None for slot in self.pool.slots) <= 1
        for slot in self.pool.slots:
            assert len(slot.runs) <= slot.concurrency + slot.ahead
            begun = [run.begun for run in slot.runs.values()]
            assert begun == [number < slot.concurrency for number in range(len(begun))], "one of those ahead has begun"
            assert all(request_id == run.ticket.request_id for request_id, run in slot.runs.items())
            if any(run.ticket.alone for run in slot.runs.values()):
                assert len(slot.runs) == 1
            if slot.phase in (Phase.EMPTY, Phase.STARTING):
                assert not slot.runs
            assert (slot.state == "busy") == (slot.phase is Phase.READY and bool(slot.runs))
            assert (slot.state == "idle") == (slot.phase is Phase.READY and not slot.runs)
            assert (slot.reason is not None) == (slot.phase is Phase.STOPPING)

    @invariant()
    def nothing_that_is_due_is_slept_over(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        due = [ticket.deadline for ticket in pool.waiting]
        due += [ticket.deadline for slot in pool.slots for ticket in slot.pinned]
        due += [session.used + self.sessions.limits.idle for session in self.sessions if not session.busy]
        for slot in pool.slots:
            match slot.phase:
                case Phase.STARTING | Phase.STOPPING:
                    due.append(slot.due)
                case Phase.READY:
                    due += [run.due for run in slot.runs.values()]
                    if slot.worn is None and not slot.retiring:
                        due.append(slot.expires)
                case Phase.EMPTY if self.comes_back(slot):
                    due.append(slot.due)
        assert pool.wake_at <= min(due, default=math.inf)

    def comes_back(self, slot: Slot[Booked]) -> bool:
        """Whether an empty slot starts by itself. In a lazy pool it does for work, unless others start for that."""
        pool = self.pool
        seated = [other.phase for other in pool.slots if other.seat is not None]
        up = seated.count(Phase.STARTING) + seated.count(Phase.READY)
        if self.drained or slot.seat is None:
            return False
        if pool.unavailable:
            return up == 0
        if pool.limits.eager:
            return up < pool.limits.least
        return bool(pool.waiting) and up == 0

    @invariant()
    def work_never_waits_for_nothing(self) -> None:
        """If the first in line fits somewhere it is there; if not, something is under way that will make room."""
        if not hasattr(self, "pool") or not self.pool.waiting:
            return
        first = self.pool.waiting[0]
        kept = [slot for slot in self.pool.slots if slot.runs and slot.pinned and slot.pinned[0].alone]
        assert not any(slot.accepts(first) for slot in self.pool.slots if slot not in kept)
        assert self.live or self.pool.wake_at < math.inf

    @invariant()
    def sessions_are_where_they_are_pinned(self) -> None:
        if not hasattr(self, "pool"):
            return
        busy: Counter[Session] = Counter()
        for slot in self.pool.slots:
            for ticket in [*slot.pinned, *(run.ticket for run in slot.runs.values() if run.ticket.claim is not None)]:
                assert ticket.session is not None
                assert ticket.session.slot == slot.number
                busy[ticket.session] += 1
            if slot.pinned and slot.phase is Phase.EMPTY:
                assert slot.seat is not None, "nobody will ever start it"
        for session in self.sessions:
            assert session.busy == busy[session]
            assert not session.moved or session.busy
        most = self.sessions.limits.most
        assert len(self.sessions) <= max(most, sum(bool(session.busy) for session in self.sessions))

    @invariant()
    def those_of_a_slot_go_on_when_it_has_room(self) -> None:
        """Nobody waits in a slot's line for nothing: it is full, or another has the turn, or it is on its way."""
        if not hasattr(self, "pool"):
            return
        for slot in self.pool.slots:
            if slot.pinned and slot.accepts(slot.pinned[0]):
                assert self.pool.waiting
                assert self.pool.waiting[0].alone
                assert slot.runs

    @invariant()
    def tickets_start_in_the_order_they_came(self) -> None:
        assert self.started == sorted(self.started)

    def teardown(self) -> None:
        """Drained, and every process dead, nothing is left and every ticket is accounted for."""
        if not hasattr(self, "pool"):
            return
        self.perform(self.pool.drain(self.now))
        for slot in sorted(self.live):
            self.dies(slot)
        assert self.pool.empty
        assert not self.live
        assert not list(self.pool.tickets())
        assert all(ticket.place in (Place.FINISHED, Place.ENDED, Place.WITHDRAWN) for ticket in self.tickets)
        self.perform(self.pool.due(self.now + 1000))
        assert not self.live
        assert self.pool.wake_at == math.inf


class SessionsInPoolMachine(PoolMachine):
    """The same with requests of sessions, mostly, on bridges that are up and take some ahead."""

    @initialize(
        most=st.integers(1, 2),
        most_sessions=st.integers(2, 4),
        wear=st.sampled_from([Wear(), Wear(requests=4)]),
        ahead=st.integers(1, 3),
    )
    def begin(self, most: int, most_sessions: int, wear: Wear, ahead: int) -> None:  # type: ignore[override]
        super().begin(
            least=most,
            more=0,
            spare=0,
            prewarm=True,
            eager=True,
            wear=wear,
            run_timeout=20.0,
            jitter=0.5,
            concurrency=1,
            most_sessions=most_sessions,
            idle=math.inf,
            ahead=ahead,
            most_ahead=ahead,
        )

    @rule(session=st.sampled_from("abcde"), lenient=st.booleans())
    def ask(self, session: str, lenient: bool) -> None:
        self.submit_in_session(session, "live", lenient, False, math.inf, 1, False, True)

    @rule(sessions=st.lists(st.sampled_from("abcde"), min_size=2, max_size=4))
    def ask_several(self, sessions: list[str]) -> None:
        for session in sessions:
            self.ask(session, False)


PoolMachine.TestCase.settings = settings(
    max_examples=5000 if SOAK else 200, stateful_step_count=100 if SOAK else 50, deadline=None
)
SessionsInPoolMachine.TestCase.settings = settings(PoolMachine.TestCase.settings, max_examples=2500 if SOAK else 80)
TestPool = PoolMachine.TestCase
TestSessionsInPool = SessionsInPoolMachine.TestCase
