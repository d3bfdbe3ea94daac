"""The pool: which bridge serves which ticket, and when a bridge must go.

Everything that affects a slot or a waiting ticket lives here. Events go in with `now` (seconds, monotonic), a
list of actions comes out, and the dispatcher performs them in order. The pool never does the work itself.

    EMPTY ──start──▶ STARTING ──ready──▶ READY ──stop──▶ STOPPING
      ▲                 │  └───────stop────────────────────▲ │
      └──────exit───────┴───────────exit─────┴──────exit─────┘

A READY slot is IDLE or BUSY by whether a request runs on it: assigning a ticket *is* the change. A slot leaves
STOPPING and gives up its tickets by one door only, `exited`, when its process is dead and its work certainly
over; the reason it was stopped for travels with each ticket.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, Generic, TypeVar


class Phase(StrEnum):
    """What a slot's process is doing."""

    EMPTY = "empty"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Event(Enum):
    """What can happen to a slot."""

    START = "start"
    READY = "ready"
    STOP = "stop"
    EXIT = "exit"


TRANSITIONS: Final = {
    (Phase.EMPTY, Event.START): Phase.STARTING,
    (Phase.STARTING, Event.READY): Phase.READY,
    (Phase.STARTING, Event.STOP): Phase.STOPPING,
    (Phase.STARTING, Event.EXIT): Phase.EMPTY,
    (Phase.READY, Event.STOP): Phase.STOPPING,
    (Phase.READY, Event.EXIT): Phase.EMPTY,
    (Phase.STOPPING, Event.EXIT): Phase.EMPTY,
}


class Reason(StrEnum):
    """Why a bridge left its slot, or a ticket left the pool without a reply."""

    CRASHED = "crashed"  # the process ended by itself
    START_FAILED = "start_failed"  # it could not be started, or its handshake was refused
    START_TIMEOUT = "start_timeout"
    RUN_TIMEOUT = "run_timeout"
    DEADLINE = "deadline"  # the request's own deadline passed
    VIOLATION = "violation"  # what it wrote cannot be trusted
    NEIGHBOUR = "neighbour"  # the ticket's bridge had to go because of another request on it
    RECYCLED = "recycled"
    DRAINED = "drained"


class Step(Enum):
    """The ladder a stopping bridge is taken down by; each rung has `stop_timeout` seconds."""

    ASK = "ask"  # shutdown frame where claimed, end of its input
    TERMINATE = "terminate"  # SIGTERM to its process group
    KILL = "kill"  # SIGKILL to its process group


_NEXT_STEP: Final = {Step.ASK: Step.TERMINATE, Step.TERMINATE: Step.KILL}
_FIRST_STEP: Final = {
    Reason.START_FAILED: Step.KILL,
    Reason.START_TIMEOUT: Step.TERMINATE,
    Reason.RUN_TIMEOUT: Step.TERMINATE,
    Reason.DEADLINE: Step.TERMINATE,
    Reason.VIOLATION: Step.KILL,
    Reason.RECYCLED: Step.ASK,
    Reason.DRAINED: Step.ASK,
}
# A bridge that went for one of these did something wrong: its slot waits longer each time before the next one.
_FAULTS: Final = frozenset({Reason.CRASHED, Reason.START_FAILED, Reason.START_TIMEOUT, Reason.VIOLATION})


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A delivery waiting for or holding a slot. `deadline` on the pool's clock, infinite where there is none.

    `alone`: it may not share its bridge (a later attempt: it may be what killed the last one).
    """

    request_id: int
    deadline: float = math.inf
    alone: bool = False


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """The pool's numbers; times in seconds. See ServiceSettings."""

    bridges: int
    eager: bool
    start_timeout: float
    run_timeout: float
    cancel_timeout: float
    stop_timeout: float
    restart_delay: float
    max_restart_delay: float


@dataclass(frozen=True, slots=True)
class Start:
    """Start a bridge in the slot, and greet it."""

    slot: int


@dataclass(frozen=True, slots=True)
class Send(Generic[T]):
    """Write the ticket's request to the slot's bridge."""

    slot: int
    ticket: T


@dataclass(frozen=True, slots=True)
class Cancel:
    """Write a cancel frame for the request to the slot's bridge."""

    slot: int
    request_id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Take the slot's bridge one step down the ladder."""

    slot: int
    step: Step
    reason: Reason


@dataclass(frozen=True, slots=True)
class End(Generic[T]):
    """The ticket is out of the pool without a reply. `slot` None: it never ran. DRAINED, START_FAILED: hand it back."""

    ticket: T
    reason: Reason
    slot: int | None = None


Action = Start | Send[T] | Cancel | Stop | End[T]


@dataclass(slots=True)
class Run(Generic[T]):
    """A request on a bridge. `reason` is set once it is late: then a reply no longer counts."""

    ticket: T
    started: float
    due: float
    reason: Reason | None = None


@dataclass(slots=True, eq=False)
class Slot(Generic[T]):
    """A place that holds one bridge.

    `due`: when STARTING is over its time, STOPPING takes its next step, or EMPTY may start again.
    """

    number: int
    phase: Phase = Phase.EMPTY
    due: float = -math.inf
    runs: dict[int, Run[T]] = field(default_factory=dict)
    concurrency: int = 1
    cancels: bool = False
    retiring: bool = False  # takes no more: it asked to be replaced
    doomed: bool = False  # takes no more: it cannot go on, and its end is near
    reason: Reason | None = None
    step: Step | None = None
    greeted: bool = False
    start_failed: bool = False  # its latest bridge never passed its handshake
    faults: int = 0
    served: int = 0

    def accepts(self, ticket: T) -> bool:
        """Whether `ticket` may run here now."""
        runs = self.runs
        if self.phase is not Phase.READY or self.retiring or self.doomed or len(runs) >= self.concurrency:
            return False
        if not runs:
            return True
        if ticket.alone or ticket.request_id in runs:
            return False
        return not any(run.ticket.alone for run in runs.values())

    @property
    def state(self) -> str:
        """EMPTY, STARTING, IDLE, BUSY or STOPPING, in lower case."""
        if self.phase is Phase.READY:
            return "busy" if self.runs else "idle"
        return self.phase


class Pool(Generic[T]):
    """A fixed number of slots and the tickets that wait for them, in order of arrival.

    `jitter` gives numbers in 0 … 1, so that slots that failed together do not come back together.
    """

    def __init__(self, limits: PoolLimits, jitter: Callable[[], float]) -> None:
        self.limits = limits
        self.slots: list[Slot[T]] = [Slot(number) for number in range(limits.bridges)]
        self.waiting: deque[T] = deque()
        self.draining = False
        self.wake_at = math.inf  # call `due` by then
        self._jitter = jitter

    def __repr__(self) -> str:
        states = [slot.state for slot in self.slots]
        counted = [f"{states.count(state)} {state}" for state in ("starting", "idle", "busy", "stopping", "empty")]
        shown = ", ".join(text for text in counted if not text.startswith("0 "))
        return f"<Pool {shown}, {len(self.waiting)} waiting>"

    @property
    def capacity(self) -> int:
        """How many requests can run at once when every slot is up, as far as is known."""
        return sum(slot.concurrency for slot in self.slots)

    @property
    def ready(self) -> int:
        """How many slots hold a bridge that passed its handshake."""
        return sum(slot.phase is Phase.READY for slot in self.slots)

    @property
    def failing(self) -> bool:
        """Whether no bridge can be started: the latest start of every slot has failed."""
        return all(slot.start_failed for slot in self.slots)

    @property
    def empty(self) -> bool:
        """Whether no process is left."""
        return all(slot.phase is Phase.EMPTY for slot in self.slots)

    def tickets(self) -> Iterator[T]:
        """Every ticket in the pool, running or waiting."""
        for slot in self.slots:
            for run in slot.runs.values():
                yield run.ticket
        yield from self.waiting

    # What happened: each method returns what is to be done about it.

    def open(self, now: float) -> list[Action[T]]:
        """Begin: an eager pool starts all its bridges at once."""
        actions: list[Action[T]] = []
        if self.limits.eager:
            for slot in self.slots:
                self._start(slot, now, actions)
        return actions

    def submit(self, ticket: T, now: float) -> list[Action[T]]:
        """A ticket came. While draining it is handed back."""
        if self.draining:
            return [End(ticket, Reason.DRAINED)]
        self.waiting.append(ticket)
        self._watch(ticket.deadline)
        actions: list[Action[T]] = []
        self._assign(now, actions)
        return actions

    def greeted(self, number: int, *, concurrency: int, cancels: bool, now: float) -> list[Action[T]]:
        """The slot's bridge passed its handshake."""
        slot = self.slots[number]
        self._move(slot, Event.READY)
        slot.greeted = True
        slot.start_failed = False
        slot.concurrency = concurrency
        slot.cancels = cancels
        actions: list[Action[T]] = []
        self._assign(now, actions)
        return actions

    def run(self, number: int, request_id: int) -> Run[T] | None:
        """The request of that id on the slot's bridge; None: the bridge answers what it was not asked."""
        return self.slots[number].runs.get(request_id)

    def finished(self, number: int, request_id: int, now: float, *, recycle: bool = False) -> list[Action[T]]:
        """The bridge gave the final reply to a request that `run` knows. `recycle`: it asks to be replaced."""
        slot = self.slots[number]
        del slot.runs[request_id]
        slot.served += 1
        slot.faults = 0
        slot.retiring |= recycle
        actions: list[Action[T]] = []
        if slot.phase is Phase.READY and not slot.runs and (slot.retiring or self.draining):
            self._stop(slot, Reason.RECYCLED if slot.retiring else Reason.DRAINED, now, actions)
        self._assign(now, actions)
        return actions

    def doom(self, number: int) -> None:
        """The slot's bridge cannot go on, though its end is not here yet: it gets no more tickets."""
        self.slots[number].doomed = True

    def condemn(self, number: int, reason: Reason, now: float) -> list[Action[T]]:
        """The slot's bridge cannot go on. A bridge that is stopping already keeps its first reason."""
        slot = self.slots[number]
        actions: list[Action[T]] = []
        if slot.phase in (Phase.STARTING, Phase.READY):
            self._stop(slot, reason, now, actions)
            self._assign(now, actions)  # what waited for this one may have to start another
        return actions

    def exited(self, number: int, now: float) -> list[Action[T]]:
        """The slot's process is dead: its tickets end, and the slot starts again, at once or after a pause.

        A lazy pool's slot starts again only for work, or, if no bridge can be started, to see when that is over.
        """
        slot = self.slots[number]
        reason = slot.reason or Reason.CRASHED
        actions: list[Action[T]] = [
            End(run.ticket, run.reason or _shared_fate(reason), number) for run in slot.runs.values()
        ]
        self._move(slot, Event.EXIT)
        slot.faults = slot.faults + 1 if reason in _FAULTS else 0
        slot.start_failed |= not slot.greeted and reason in _FAULTS
        slot.runs = {}
        slot.retiring = slot.doomed = False
        slot.reason = slot.step = None
        slot.due = now + self._restart_delay(slot.faults, worked=slot.greeted)
        slot.greeted = False
        slot.served = 0
        self._watch(slot.due)
        self._refill(slot, now, actions)
        self._assign(now, actions)
        return actions

    def due(self, now: float) -> list[Action[T]]:
        """Time passed: whatever is late by `now` is acted on, and `wake_at` says when to ask again."""
        actions: list[Action[T]] = []
        self.wake_at = math.inf
        for slot in self.slots:
            self._due(slot, now, actions)
        self._assign(now, actions)
        for ticket in [ticket for ticket in self.waiting if ticket.deadline <= now]:
            self.waiting.remove(ticket)
            actions.append(End(ticket, Reason.DEADLINE))
        for ticket in self.waiting:
            self._watch(ticket.deadline)
        return actions

    def withdraw(self, gone: Callable[[T], bool]) -> None:
        """Forget the waiting tickets of which `gone` holds: somebody else has them now."""
        self.waiting = deque(ticket for ticket in self.waiting if not gone(ticket))

    def give_up(self) -> list[Action[T]]:
        """Hand back what waits, if no bridge can be started. Call it when no more tickets come."""
        actions: list[Action[T]] = []
        if self.failing:
            actions += [End(ticket, Reason.START_FAILED) for ticket in self.waiting]
            self.waiting.clear()
        return actions

    def drain(self, now: float) -> list[Action[T]]:
        """Take no more: hand back what waits, let what runs finish, stop each bridge once it is idle."""
        self.draining = True
        actions: list[Action[T]] = [End(ticket, Reason.DRAINED) for ticket in self.waiting]
        self.waiting.clear()
        for slot in self.slots:
            if slot.phase in (Phase.STARTING, Phase.READY) and not slot.runs:
                self._stop(slot, Reason.DRAINED, now, actions)
        return actions

    def abort(self, now: float) -> list[Action[T]]:
        """The time for draining is over: every bridge left is killed, and its requests handed back."""
        actions = self.drain(now)
        for slot in self.slots:
            if slot.phase is Phase.READY:
                self._stop(slot, Reason.DRAINED, now, actions)
            if slot.phase is Phase.STOPPING and slot.step is not Step.KILL:
                self._step(slot, Step.KILL, now, actions)
        return actions

    # How it is decided.

    def _move(self, slot: Slot[T], event: Event) -> None:
        slot.phase = TRANSITIONS[slot.phase, event]

    def _watch(self, moment: float) -> None:
        if moment < self.wake_at:
            self.wake_at = moment

    def _start(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        self._move(slot, Event.START)
        slot.due = now + self.limits.start_timeout
        self._watch(slot.due)
        actions.append(Start(slot.number))

    def _refill(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        if slot.due <= now and not self.draining and (self.limits.eager or self.failing):
            self._start(slot, now, actions)

    def _stop(self, slot: Slot[T], reason: Reason, now: float, actions: list[Action[T]]) -> None:
        self._move(slot, Event.STOP)
        slot.reason = reason
        self._step(slot, _FIRST_STEP[reason], now, actions)

    def _step(self, slot: Slot[T], step: Step, now: float, actions: list[Action[T]]) -> None:
        slot.step = step
        slot.due = now + self.limits.stop_timeout if step in _NEXT_STEP else math.inf
        self._watch(slot.due)
        actions.append(Stop(slot.number, step, slot.reason or Reason.DRAINED))

    def _due(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        if slot.phase is Phase.READY:
            self._runs_due(slot, now, actions)
        elif slot.due <= now:
            if slot.phase is Phase.STARTING:
                self._stop(slot, Reason.START_TIMEOUT, now, actions)
            elif slot.phase is Phase.STOPPING and slot.step in _NEXT_STEP:
                self._step(slot, _NEXT_STEP[slot.step], now, actions)
            elif slot.phase is Phase.EMPTY:
                self._refill(slot, now, actions)
        else:
            self._watch(slot.due)

    def _runs_due(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        for request_id, run in slot.runs.items():
            if run.due > now:
                self._watch(run.due)
            elif run.reason is None and slot.cancels:
                # A bridge that can cancel keeps its warm state; one that does not answer in time is stopped.
                run.reason = _lateness(run)
                run.due = now + self.limits.cancel_timeout
                self._watch(run.due)
                actions.append(Cancel(slot.number, request_id))
            else:
                run.reason = run.reason or _lateness(run)
                self._stop(slot, run.reason, now, actions)
                return

    def _assign(self, now: float, actions: list[Action[T]]) -> None:
        """Give waiting tickets to slots, first come first served.

        A ticket that fits nowhere (it must be alone) holds up those behind it, so that it gets its turn.
        """
        waiting = self.waiting
        while waiting:
            ticket = waiting[0]
            if ticket.deadline <= now:
                actions.append(End(waiting.popleft(), Reason.DEADLINE))
                continue
            slot = self._least_loaded(ticket)
            if slot is None:
                self._start_for_waiting(now, actions)
                return
            waiting.popleft()
            run = Run(ticket, now, min(now + self.limits.run_timeout, ticket.deadline))
            slot.runs[ticket.request_id] = run
            self._watch(run.due)
            actions.append(Send(slot.number, ticket))

    def _least_loaded(self, ticket: T) -> Slot[T] | None:
        best: Slot[T] | None = None
        for slot in self.slots:
            if slot.accepts(ticket) and (best is None or len(slot.runs) < len(best.runs)):
                if not slot.runs:
                    return slot
                best = slot
        return best

    def _start_for_waiting(self, now: float, actions: list[Action[T]]) -> None:
        """Start one bridge for each waiting ticket that no starting bridge is for yet."""
        starting = sum(slot.phase is Phase.STARTING for slot in self.slots)
        for slot in self.slots:
            if starting >= len(self.waiting):
                return
            if slot.phase is Phase.EMPTY and slot.due <= now:
                self._start(slot, now, actions)
                starting += 1

    def _restart_delay(self, faults: int, *, worked: bool) -> float:
        """Seconds before the next start: none for a first fault of a bridge that worked, then doubling."""
        doublings = faults - (2 if worked else 1)
        if doublings < 0:
            return 0.0
        longest = min(self.limits.restart_delay * 2.0 ** min(doublings, 32), self.limits.max_restart_delay)
        return longest * (0.5 + self._jitter() / 2)


def _lateness(run: Run[T]) -> Reason:
    return Reason.DEADLINE if run.due >= run.ticket.deadline else Reason.RUN_TIMEOUT


def _shared_fate(reason: Reason) -> Reason:
    """What a bridge's end means for a request on it that was not itself late."""
    return Reason.NEIGHBOUR if reason in (Reason.RUN_TIMEOUT, Reason.DEADLINE) else reason
