"""The pool against everything at once: random events, and what must hold whatever came before.

The machine stands for the dispatcher: it performs what the pool asks for, and keeps its own books of who was
where. The normal run is short; QUAYBRIDGE_SOAK=1 makes it long.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from enum import Enum

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker_node.core.pool import Action, Cancel, End, Phase, Pool, PoolLimits, Reason, Send, Start, Step, Stop, Ticket

SOAK = os.environ.get("QUAYBRIDGE_SOAK") == "1"
MOST_BRIDGES = 3


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


class PoolMachine(RuleBasedStateMachine):
    """`live`: the slots whose process runs, as a dispatcher would know it from its start and its exit."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.tickets: list[Booked] = []
        self.live: dict[int, list[Step]] = {}
        self.started: list[int] = []  # the numbers of tickets in the order they began
        self.drained = False

    @initialize(
        bridges=st.integers(1, MOST_BRIDGES),
        eager=st.booleans(),
        run_timeout=st.sampled_from([2.0, 20.0]),
        jitter=st.sampled_from([0.0, 0.5, 1.0]),
        concurrency=st.integers(0, 3),
    )
    def begin(self, bridges: int, eager: bool, run_timeout: float, jitter: float, concurrency: int) -> None:
        limits = PoolLimits(
            bridges=bridges,
            eager=eager,
            start_timeout=10,
            run_timeout=run_timeout,
            cancel_timeout=1,
            stop_timeout=2,
            restart_delay=0.5,
            max_restart_delay=4,
        )
        self.pool: Pool[Booked] = Pool(limits, lambda: jitter)
        self.perform(self.pool.open(self.now))
        for slot in self.in_phase(Phase.STARTING):
            if concurrency:  # most stories begin when the bridges are up
                self.perform(self.pool.greeted(slot, concurrency=concurrency, cancels=True, now=self.now))

    # What a dispatcher does.

    def perform(self, actions: list[Action[Booked]]) -> None:
        for action in actions:
            match action:
                case Start(slot):
                    assert slot not in self.live, "a second process in one slot"
                    self.live[slot] = []
                case Send(slot, ticket):
                    assert self.live[slot] == [], "a request for a bridge that is being stopped"
                    assert ticket.place is Place.WAITING
                    assert ticket.deadline > self.now, "started too late"
                    ticket.place, ticket.slot = Place.RUNNING, slot
                    self.started.append(ticket.number)
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
                    if slot is None:
                        assert reason in (Reason.DEADLINE, Reason.DRAINED, Reason.START_FAILED)
                    if reason is Reason.DEADLINE:
                        assert ticket.deadline <= self.now
                    ticket.place = Place.ENDED

    def in_phase(self, phase: Phase) -> list[int]:
        return [slot.number for slot in self.pool.slots if slot.phase is phase]

    # What happens.

    @rule(
        request_id=st.integers(1, 4),
        alone=st.booleans(),
        patience=st.sampled_from([math.inf, 0.0, 1.0, 5.0]),
    )
    def submit(self, request_id: int, alone: bool, patience: float) -> None:
        ticket = Booked(request_id=request_id, deadline=self.now + patience, alone=alone, number=len(self.tickets))
        self.tickets.append(ticket)
        self.perform(self.pool.submit(ticket, self.now))

    @precondition(lambda self: self.in_phase(Phase.STARTING))
    @rule(data=st.data(), concurrency=st.integers(1, 3), cancels=st.booleans())
    def greeted(self, data: st.DataObject, concurrency: int, cancels: bool) -> None:
        slot = data.draw(st.sampled_from(self.in_phase(Phase.STARTING)))
        self.perform(self.pool.greeted(slot, concurrency=concurrency, cancels=cancels, now=self.now))

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

    @precondition(lambda self: self.in_phase(Phase.STOPPING))
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        self.dies(data.draw(st.sampled_from(self.in_phase(Phase.STOPPING))))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), misfortune=st.sampled_from(["crash", "violation", "start_failed", "doom"]))
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
        self.perform(self.pool.exited(slot, self.now))

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
        self.pool.withdraw(lambda ticket: ticket.stale)

    @rule()
    def give_up(self) -> None:
        was_failing = self.pool.failing
        self.perform(self.pool.give_up())
        assert not was_failing or not self.pool.waiting

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
        assert {id(ticket) for ticket in self.pool.waiting} == self.in_place(Place.WAITING)
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
        for slot in self.pool.slots:
            assert len(slot.runs) <= slot.concurrency
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
        for slot in pool.slots:
            match slot.phase:
                case Phase.STARTING | Phase.STOPPING:
                    due.append(slot.due)
                case Phase.READY:
                    due += [run.due for run in slot.runs.values()]
                case Phase.EMPTY if not self.drained and (pool.limits.eager or pool.waiting):
                    # It comes back by itself. In a lazy pool, for work, unless others are starting for that.
                    if pool.limits.eager or not self.in_phase(Phase.STARTING):
                        due.append(slot.due)
        assert pool.wake_at <= min(due, default=math.inf)

    @invariant()
    def work_never_waits_for_nothing(self) -> None:
        """If the first in line fits somewhere it is there; if not, something is under way that will make room."""
        if not hasattr(self, "pool") or not self.pool.waiting:
            return
        first = self.pool.waiting[0]
        assert not any(slot.accepts(first) for slot in self.pool.slots)
        assert self.live or self.pool.wake_at < math.inf

    @invariant()
    def tickets_start_in_the_order_they_came(self) -> None:
        assert self.started == sorted(self.started)

    def teardown(self) -> None:
        """Drained, and every process dead, nothing is left and every ticket is accounted for."""
        if not hasattr(self, "pool"):
            return
        self.perform(self.pool.drain(self.now))
        for slot in sorted(self.live):
            del self.live[slot]
            self.perform(self.pool.exited(slot, self.now))
        assert self.pool.empty
        assert not self.live
        assert not list(self.pool.tickets())
        assert all(ticket.place in (Place.FINISHED, Place.ENDED, Place.WITHDRAWN) for ticket in self.tickets)
        self.perform(self.pool.due(self.now + 1000))
        assert not self.live
        assert self.pool.wake_at == math.inf


PoolMachine.TestCase.settings = settings(
    max_examples=5000 if SOAK else 200, stateful_step_count=100 if SOAK else 50, deadline=None
)
TestPool = PoolMachine.TestCase
