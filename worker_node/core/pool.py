"""The pool: which bridge serves which ticket, how many bridges there are, and when a bridge must go.

Everything that affects a slot or a waiting ticket lives here. Events go in with `now` (seconds, monotonic), a
list of actions comes out, and the dispatcher performs them in order. The pool never does the work itself.

    EMPTY ──start──▶ STARTING ──ready──▶ READY ──stop──▶ STOPPING
      ▲                 │  └───────stop────────────────────▲ │
      └──────exit───────┴───────────exit─────┴──────exit─────┘

A READY slot is IDLE or BUSY by whether a request runs on it: assigning a ticket *is* the change. A slot leaves
STOPPING and gives up its tickets by one door only, `exited`, when its process is dead and its work certainly
over; the reason it was stopped for travels with each ticket.

A pool of up to n bridges has n *seats*, and one slot more than that. A slot that holds a seat counts; its bridge
is told the seat's number. A bridge that is worn (it served enough, is old, or too large) keeps its seat until a
new one, in the slot without a seat, is ready to take it over: so capacity does not dip. Only one is replaced at a
time, so a pool never recycles at once.

A ticket of a session waits in the line of the slot its session is pinned to (see core.sessions), every other ticket in
one line for all. When both lines wait for one slot they take turns, as `session_share` says.

A bridge that runs one request at a time may claim to take some *ahead*: while requests are short a few more wait in
its pipe, unbegun, so that it need not wait for the node between two. They are begun in the order they were sent, so it
is known which one a bridge died of; the others are given to another. If the one before them takes long, or the bridge
is to go, they are recalled, and wait here again. What waits in the pipe of a bridge whose replies could not be read to
the end may have run: it is charged, as the neighbour of what the bridge was at. Requests of sessions wait so too, each
in the pipe of its own bridge, while no other request waits for a turn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from worker_node.core.breaker import Breaker
from worker_node.core.sessions import Ending, Session, Sessions


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
    WRITE_TIMEOUT = "write_timeout"  # it did not read what it was sent
    FRAME_TIMEOUT = "frame_timeout"  # it began a frame and did not end it
    VIOLATION = "violation"  # what it wrote cannot be trusted
    NEIGHBOUR = "neighbour"  # the ticket's bridge had to go because of another request on it
    MEMORY_HARD = "memory_hard"  # more memory than it may ever have
    DRAINED = "drained"
    READER_STALLED = "reader_stalled"  # whoever reads its chunks takes none
    CANCELLED = "cancelled"  # nobody wants the request any more
    SESSION_LOST = "session_lost"  # the ticket's epoch is gone
    REPEATED = "repeated"  # the ticket's request began in this epoch already, and has ended
    # Replaced without harm, between two requests:
    RECYCLED = "recycled"  # it asked for it
    REQUESTS = "requests"  # it served as many as it may
    AGE = "age"
    IDLE = "idle"  # it was idle for too long
    MEMORY = "memory"
    REPLACED = "replaced"  # by one with new settings
    SURPLUS = "surplus"  # fewer are needed


class Step(Enum):
    """The ladder a stopping bridge is taken down by; each rung has `stop_timeout` seconds."""

    ASK = "ask"  # shutdown frame where claimed, end of its input
    TERMINATE = "terminate"  # SIGTERM to its process group
    KILL = "kill"  # SIGKILL to its process group


_NEXT_STEP: Final = {Step.ASK: Step.TERMINATE, Step.TERMINATE: Step.KILL}
# What a bridge says after one of these is not read: which of its requests it has begun is not known.
_UNHEARD: Final = frozenset({Reason.WRITE_TIMEOUT, Reason.FRAME_TIMEOUT, Reason.VIOLATION})
# The first step of a bridge that is stopped for cause. Any other is asked.
_FIRST_STEP: Final = {
    Reason.START_FAILED: Step.KILL,
    Reason.START_TIMEOUT: Step.TERMINATE,
    Reason.RUN_TIMEOUT: Step.TERMINATE,
    Reason.DEADLINE: Step.TERMINATE,
    Reason.WRITE_TIMEOUT: Step.TERMINATE,
    Reason.FRAME_TIMEOUT: Step.TERMINATE,
    Reason.CANCELLED: Step.TERMINATE,
    Reason.READER_STALLED: Step.TERMINATE,
    Reason.VIOLATION: Step.KILL,
    Reason.MEMORY_HARD: Step.KILL,
}
# A bridge that went for one of these did something wrong: its slot waits longer each time before the next one.
_FAULTS: Final = frozenset(
    {
        Reason.CRASHED,
        Reason.START_FAILED,
        Reason.START_TIMEOUT,
        Reason.WRITE_TIMEOUT,
        Reason.FRAME_TIMEOUT,
        Reason.VIOLATION,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a request says of its session. `epoch` None: any will do, and a new one if there is none.

    `message_id`: by which it is known if it comes again; None: it is not. `lenient`: if its epoch is gone it may run
    in a new one. `closes`: its end is the end of the session.
    """

    session: str
    partition: int
    message_id: str | None
    epoch: str | None = None
    lenient: bool = False
    closes: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A delivery waiting for or holding a slot. `deadline` on the pool's clock, infinite where there is none.

    `alone`: it may not share its bridge (a later attempt: it may be what killed the last one). `light`: it is small
    enough to wait in a bridge's pipe. `streams`: its bridge may be held up for its reader, so nothing waits behind it
    there. Set by the pool: `since`, when it came; `session`, the one it belongs to;
    `fresh`, that this is not the one it asked for.
    """

    request_id: int
    deadline: float = math.inf
    alone: bool = False
    light: bool = False
    streams: bool = False
    claim: Claim | None = None
    since: float = 0.0
    session: Session | None = None
    fresh: bool = False


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wear:
    """When a bridge is replaced: after so many requests, seconds of age, seconds without work, bytes of memory.

    Infinite: never. Of each of these a bridge gets up to `jitter` (a fraction) less, so that bridges that began
    together do not go together; but `memory_hard`, over which it is killed even with a request on it, is exact.
    """

    requests: float = math.inf
    age: float = math.inf
    idle: float = math.inf
    memory: float = math.inf
    memory_hard: float = math.inf
    jitter: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """The pool's numbers; times in seconds. See ServiceSettings.

    Between `least` and `most` bridges: one more when a ticket has waited for `grow_after`, one fewer when one was
    idle for `shrink_after`; `spare` of them are kept idle as far as `most` allows. `prewarm`: see the module's
    docstring; without it a worn bridge stops first, one at a time. `recall_after`: how long a request may run before
    those behind it in the pipe are recalled.

    Of the turns of a slot that both kinds of ticket wait for, those of sessions get `session_share`. A worn bridge is
    replaced when its sessions have had no request for `session_quiet`, and after `session_patience` in any case.
    """

    least: int
    most: int
    eager: bool
    start_timeout: float
    run_timeout: float
    cancel_timeout: float
    stop_timeout: float
    restart_delay: float
    max_restart_delay: float
    grow_after: float = 0.0
    shrink_after: float = math.inf
    spare: int = 0
    prewarm: bool = False
    wear: Wear = Wear()
    breaker_failures: int = 5
    breaker_window: float = 60.0
    recall_after: float = 0.05
    session_share: float = 0.5
    session_quiet: float = 10.0
    session_patience: float = 300.0


@dataclass(frozen=True, slots=True)
class Start:
    """Start a bridge in the slot, and greet it. `seat` is the number it is told."""

    slot: int
    seat: int


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
class Recall:
    """Ask the slot's bridge to give the request back, if it has not begun it."""

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


@dataclass(frozen=True, slots=True)
class Forget:
    """Tell the slot's bridge, which lives on, that a session is over."""

    slot: int
    session: str


Action = Start | Send[T] | Cancel | Recall | Stop | End[T] | Forget


@dataclass(slots=True)
class Run(Generic[T]):
    """A request on a bridge. `reason` is set once it is late or cancelled.

    A reply to a late one no longer counts; of a cancelled one, a result still does: it was first. `begun`: it does not
    wait in the bridge's pipe behind another; `started` is when that was so. `recalled`: it may be given back.
    """

    ticket: T
    started: float
    due: float
    reason: Reason | None = None
    begun: bool = True
    recalled: bool = False


@dataclass(slots=True, eq=False)
class Slot(Generic[T]):
    """A place that holds one bridge.

    `seat`: the number its bridge is known by, None for a slot that does not count. `due`: when STARTING is over
    its time, STOPPING takes its next step, or EMPTY may start again.
    """

    number: int
    seat: int | None
    phase: Phase = Phase.EMPTY
    due: float = -math.inf
    runs: dict[int, Run[T]] = field(default_factory=dict)
    concurrency: int = 1
    ahead: int = 0  # how many more it takes that wait in its pipe
    slow: bool = False  # what runs takes long: nothing waits behind it
    cancels: bool = False
    pinned: deque[T] = field(default_factory=deque)  # tickets of its sessions that wait
    turns: float = 0.0  # of its turns, how much of one its sessions are owed
    worn: Reason | None = None  # it is to be replaced, and serves until then
    worn_since: float = 0.0
    retiring: bool = False  # takes no more: it goes when its last request is done
    doomed: bool = False  # takes no more: it cannot go on, and its end is near
    replaces: Slot[T] | None = None  # whose seat it takes over when it is ready
    reason: Reason | None = None
    step: Step | None = None
    greeted: bool = False
    start_failed: bool = False  # its latest bridge never passed its handshake
    faults: int = 0
    served: int = 0
    idle_since: float = 0.0
    most_served: float = math.inf
    expires: float = math.inf
    longest_idle: float = math.inf
    most_memory: float = math.inf
    oversized: bool = False  # it was born over its memory limit, which is a mistake in the settings, and no leak

    def accepts(self, ticket: T, ahead: int = 0) -> bool:
        """Whether `ticket` may run here now; or wait in the pipe, of those that do at most `ahead`."""
        runs = self.runs
        if self.phase is not Phase.READY or self.retiring or self.doomed:
            return False
        if not runs:
            return True
        room = self.concurrency if self.slow or not ticket.light else self.concurrency + min(ahead, self.ahead)
        if len(runs) >= room or (len(runs) >= self.concurrency and self.served + len(runs) >= self.most_served):
            return False
        if ticket.alone or ticket.request_id in runs:
            return False
        return not any(run.ticket.alone for run in runs.values())

    @property
    def at_work(self) -> dict[int, Run[T]]:
        """The requests that are begun, as far as can be told."""
        return {request_id: run for request_id, run in self.runs.items() if run.begun}

    @property
    def state(self) -> str:
        """EMPTY, STARTING, IDLE, BUSY or STOPPING, in lower case."""
        if self.phase is Phase.READY:
            return "busy" if self.runs else "idle"
        return self.phase


class Pool(Generic[T]):
    """The slots, and the tickets that wait for them, in order of arrival.

    `jitter` gives numbers in 0 … 1, so that slots that failed together do not come back together.
    """

    def __init__(self, limits: PoolLimits, jitter: Callable[[], float], sessions: Sessions | None = None) -> None:
        self.limits = limits
        self.sessions = sessions
        self.slots: list[Slot[T]] = []
        self.waiting: deque[T] = deque()
        self.draining = False
        self.wake_at = math.inf  # call `due` by then
        self.ahead = 0  # how many requests may wait in the pipe of a bridge that takes so many
        self._jitter = jitter
        self._breaker = Breaker(failures=limits.breaker_failures, window=limits.breaker_window)
        self._usual_concurrency = 1  # what the latest bridge said
        self._worn = False  # whether some slot may be
        self._pinned = 0  # how many tickets wait in the lines of slots
        self._set_seats()

    def __repr__(self) -> str:
        states = [slot.state for slot in self.slots if slot.seat is not None or slot.phase is not Phase.EMPTY]
        counted = [f"{states.count(state)} {state}" for state in ("starting", "idle", "busy", "stopping", "empty")]
        shown = ", ".join(text for text in counted if not text.startswith("0 "))
        sessions = f", {len(self.sessions)} sessions" if self.sessions is not None else ""
        return f"<Pool {shown}, {len(self.waiting) + self._pinned} waiting{sessions}>"

    @property
    def capacity(self) -> int:
        """How many requests to hold: what can run at once when every bridge is up that there is reason to start.

        Of a pool that can grow, twice as many as there are now: so that some wait, and it does.
        """
        up = ready = starting = 0
        for slot in self.slots:
            if slot.seat is not None and slot.phase is Phase.READY:
                ready += 1
                up += slot.concurrency
            elif slot.seat is not None and slot.phase is Phase.STARTING:
                starting += 1
        wanted = min(self.limits.most, max(self.limits.least, 2 * (ready + starting)))
        return up + max(0, wanted - ready) * self._usual_concurrency

    @property
    def ready(self) -> int:
        """How many slots hold a bridge that passed its handshake."""
        return sum(slot.phase is Phase.READY for slot in self.slots)

    @property
    def failing(self) -> bool:
        """Whether no bridge can be started, as far as is known: the latest start of every slot has failed."""
        seated = [slot for slot in self.slots if slot.seat is not None and slot.seat < self.limits.least]
        return all(slot.start_failed for slot in seated)

    @property
    def unavailable(self) -> bool:
        """Whether the breaker is open: bridges failed to start again and again, and there is none.

        From time to time one is started to see whether that is over.
        """
        return self._breaker.open and not self.ready

    @property
    def empty(self) -> bool:
        """Whether no process is left."""
        return all(slot.phase is Phase.EMPTY for slot in self.slots)

    def tickets(self) -> Iterator[T]:
        """Every ticket in the pool, running or waiting."""
        for slot in self.slots:
            for run in slot.runs.values():
                yield run.ticket
            yield from slot.pinned
        yield from self.waiting

    # What happened: each method returns what is to be done about it.

    def open(self, now: float) -> list[Action[T]]:
        """Begin: an eager pool starts its bridges at once."""
        actions: list[Action[T]] = []
        self._fill(now, actions)
        return actions

    def submit(self, ticket: T, now: float) -> list[Action[T]]:
        """A ticket came. While draining it is handed back."""
        if self.draining:
            return [End(ticket, Reason.DRAINED)]
        ticket.since = now
        self._watch(ticket.deadline)
        actions: list[Action[T]] = []
        if ticket.claim is not None:
            self._pin(ticket, ticket.claim, now, actions)
            self._assign(now, actions)
            return actions
        self.waiting.append(ticket)
        if len(self.waiting) > 1:  # then there is no room for the first, let alone for this one
            self._grow(now, actions)
        else:
            self._assign(now, actions)
        return actions

    def greeted(
        self,
        number: int,
        *,
        concurrency: int,
        cancels: bool,
        now: float,
        ahead: int = 0,
        memory: int | None = None,
    ) -> list[Action[T]]:
        """The slot's bridge passed its handshake, and claims to take so many requests at once, and ahead.

        `memory`: what it uses already, in bytes, where that is limited.
        """
        slot = self.slots[number]
        actions: list[Action[T]] = []
        self._move(slot, Event.READY)
        self._breaker.succeeded()
        slot.greeted = True
        slot.start_failed = False
        slot.concurrency = self._usual_concurrency = concurrency
        # Of several at once it is not known which is begun; and only one that cancels can be asked to give back.
        slot.ahead = ahead if concurrency == 1 and cancels else 0
        slot.cancels = cancels
        slot.idle_since = now
        self._set_wear(slot, now)
        slot.oversized = memory is not None and memory > min(slot.most_memory, self.limits.wear.memory_hard)
        if slot.replaces is not None:
            self._take_over(slot, now, actions)
        self._assign(now, actions)
        self._fill(now, actions)
        self._replace(now, actions)
        return actions

    def run(self, number: int, request_id: int) -> Run[T] | None:
        """The request of that id on the slot's bridge; None: the bridge answers what it was not asked."""
        return self.slots[number].runs.get(request_id)

    def finished(self, number: int, request_id: int, now: float, *, recycle: bool = False) -> list[Action[T]]:
        """The bridge gave the final reply to a request that `run` knows. `recycle`: it asks to be replaced."""
        slot = self.slots[number]
        ticket = slot.runs.pop(request_id).ticket
        slot.served += 1
        slot.faults = 0
        actions: list[Action[T]] = []
        if ticket.session is not None:
            self._release(ticket, ticket.session, now, actions)
        if recycle:
            slot.retiring = True
            self._wear_out(slot, Reason.RECYCLED, now)
            self._recall(slot, actions)
        elif slot.served >= slot.most_served:
            self._wear_out(slot, Reason.REQUESTS, now)
        if self._worn:
            self._replace(now, actions)
        if not slot.runs:
            self._became_idle(slot, now, actions)
        elif slot.ahead:
            self._begin_next(slot, now)
        self._assign(now, actions)
        return actions

    def given_back(self, number: int, request_id: int, now: float) -> list[Action[T]]:
        """The bridge gave back a request that was recalled: it waits here again, or ends if it is late."""
        slot = self.slots[number]
        actions: list[Action[T]] = []
        run = slot.runs.pop(request_id)
        if run.begun and run.ticket.session is not None and (name := _message_id(run.ticket)) is not None:
            run.ticket.session.unbegin(name)
        if run.reason is not None or self.draining:
            self._leave_session(run.ticket, actions)
            actions.append(End(run.ticket, run.reason or Reason.DRAINED))
        else:
            self._wait_again(slot, [run.ticket])
        if not slot.runs:
            self._became_idle(slot, now, actions)
        else:
            self._begin_next(slot, now)
        self._assign(now, actions)
        return actions

    def measured(self, number: int, memory: int, now: float) -> list[Action[T]]:
        """The slot's bridge and all that it started use `memory` bytes."""
        slot = self.slots[number]
        actions: list[Action[T]] = []
        if slot.phase is not Phase.READY or slot.oversized:
            return actions
        if memory > self.limits.wear.memory_hard:
            return self.condemn(number, Reason.MEMORY_HARD, now)
        if memory > slot.most_memory:
            self._wear_out(slot, Reason.MEMORY, now)
            self._replace(now, actions)
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
            self._fill(now, actions)
        return actions

    def exited(self, number: int, now: float, details: Mapping[str, Any] | None = None) -> list[Action[T]]:
        """The slot's process is dead: its tickets end, and its seat is filled again, at once or after a pause.

        Its sessions are gone; `details`, how the process ended, is kept for whoever asks for them. A lazy pool
        starts another only for work, or, if no bridge can be started, to see when that is over.
        """
        slot = self.slots[number]
        reason = slot.reason or Reason.CRASHED
        actions: list[Action[T]] = []
        unbegun: list[T] = []
        for run in slot.runs.values():
            if run.begun:
                actions.append(End(run.ticket, run.reason or _shared_fate(reason), number))
            elif run.reason is not None or self.draining:
                actions.append(End(run.ticket, run.reason or Reason.DRAINED))
            elif reason in _UNHEARD:
                actions.append(End(run.ticket, Reason.NEIGHBOUR, number))
            else:
                unbegun.append(run.ticket)
        self._wait_again(slot, unbegun)
        self._move(slot, Event.EXIT)
        slot.faults = slot.faults + 1 if reason in _FAULTS else 0
        if not slot.greeted and reason in _FAULTS:
            slot.start_failed = True
            self._breaker.failed(now)
        slot.runs = {}
        slot.retiring = slot.doomed = slot.oversized = slot.slow = False
        slot.reason = slot.step = slot.worn = slot.replaces = None
        slot.due = now + self._restart_delay(slot.faults, worked=slot.greeted)
        slot.greeted = False
        slot.served = 0
        self._watch(slot.due)
        for successor in self.slots:
            if successor.replaces is slot:
                self._hand_over(slot, successor)  # it fills the seat now, and need not wait for anybody
        self._end_sessions(slot, reason, details or {}, now, actions)
        self._fill(now, actions)
        self._replace(now, actions)
        self._assign(now, actions)
        return actions

    def due(self, now: float) -> list[Action[T]]:
        """Time passed: whatever is late by `now` is acted on, and `wake_at` says when to ask again."""
        actions: list[Action[T]] = []
        for slot in self.slots:
            for ticket in [ticket for ticket in slot.pinned if ticket.deadline <= now]:
                self._unpin(slot, ticket, actions)
                actions.append(End(ticket, Reason.DEADLINE))
        self.wake_at = math.inf
        for slot in self.slots:
            self._due(slot, now, actions)
        self._sessions_due(now, actions)
        self._shrink(now, actions)
        self._fill(now, actions)
        self._replace(now, actions)
        self._assign(now, actions)
        for ticket in [ticket for ticket in self.waiting if ticket.deadline <= now]:
            self.waiting.remove(ticket)
            actions.append(End(ticket, Reason.DEADLINE))
        for ticket in self.waiting:
            self._watch(ticket.deadline)
        return actions

    def withdraw(self, gone: Callable[[T], bool], now: float) -> list[Action[T]]:
        """Forget the waiting tickets of which `gone` holds: somebody else has them now."""
        actions: list[Action[T]] = []
        self.waiting = deque(ticket for ticket in self.waiting if not gone(ticket))
        for slot in self.slots:
            for ticket in [ticket for ticket in slot.pinned if gone(ticket)]:
                self._unpin(slot, ticket, actions)
        self._assign(now, actions)  # they may have held up those behind them
        return actions

    def moved(self, partition: int, now: float) -> list[Action[T]]:
        """Another node has the queue of that number: its sessions here end, those with a request when that is done."""
        actions: list[Action[T]] = []
        if self.sessions is None:
            return actions
        for session in [session for session in self.sessions if session.partition == partition]:
            if session.busy:
                session.moved = True
            else:
                self._end_session(session, Ending.MOVED, actions)
        return actions

    def cancel(self, ticket: T, now: float, reason: Reason = Reason.CANCELLED) -> list[Action[T]]:
        """Nobody wants a ticket any more that is in the pool, for that `reason`: it ends, at once if it waits.

        Where it runs it has `cancel_timeout` to end by itself, and is told to if its bridge can be told; then its
        bridge is stopped.
        """
        actions: list[Action[T]] = []
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            actions.append(End(ticket, reason))
            self._assign(now, actions)  # it may have held up those behind it
            return actions
        for slot in self.slots:
            if ticket in slot.pinned:
                self._unpin(slot, ticket, actions)
                actions.append(End(ticket, reason))
                self._assign(now, actions)  # as above
                return actions
            run = slot.runs.get(ticket.request_id)
            if run is not None and run.ticket is ticket and run.reason is None:
                run.reason = reason
                run.due = min(run.due, now + self.limits.cancel_timeout)
                self._watch(run.due)
                if slot.phase is Phase.READY and slot.cancels and run.due > now:
                    actions.append(Cancel(slot.number, ticket.request_id))
        return actions

    def give_up(self) -> list[Action[T]]:
        """Hand back what waits, if no bridge can be started. Call it when no more tickets come."""
        actions: list[Action[T]] = []
        if self.unavailable:
            actions += self._let_go(Reason.START_FAILED)
        return actions

    def restart(self, limits: PoolLimits, now: float) -> list[Action[T]]:
        """Replace every bridge, one after the other, each by one that is ready; from now on `limits` hold.

        The breaker is closed: what failed to start may have been mended.
        """
        actions: list[Action[T]] = []
        self.limits = limits
        self._breaker = Breaker(failures=limits.breaker_failures, window=limits.breaker_window)
        self._set_seats()
        for slot in self.slots:
            slot.start_failed = False
            if slot.phase is Phase.STARTING:
                slot.replaces = None
                self._stop(slot, Reason.REPLACED, now, actions)
            elif slot.phase is Phase.READY:
                self._wear_out(slot, Reason.REPLACED, now)
                if slot.seat is None:
                    self._retire(slot, now, actions)
            elif slot.phase is Phase.EMPTY:
                slot.due = now
                if slot.seat is None:
                    self._end_sessions(slot, Reason.SURPLUS, {}, now, actions)  # those that waited for it to start
        self._fill(now, actions)
        self._replace(now, actions)
        self._assign(now, actions)
        return actions

    def drain(self, now: float) -> list[Action[T]]:
        """Take no more: hand back what waits, let what runs finish, stop each bridge once it is idle."""
        self.draining = True
        actions = self._let_go(Reason.DRAINED)
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

    def _let_go(self, reason: Reason) -> list[Action[T]]:
        """Everything that waits leaves the pool."""
        actions: list[Action[T]] = [End(ticket, reason) for ticket in self.waiting]
        self.waiting.clear()
        for slot in self.slots:
            for ticket in list(slot.pinned):
                self._unpin(slot, ticket, actions)
                actions.append(End(ticket, reason))
        return actions

    # Starting and stopping.

    def _move(self, slot: Slot[T], event: Event) -> None:
        slot.phase = TRANSITIONS[slot.phase, event]

    def _watch(self, moment: float) -> None:
        if moment < self.wake_at:
            self.wake_at = moment

    def _start(self, slot: Slot[T], seat: int, now: float, actions: list[Action[T]]) -> None:
        self._move(slot, Event.START)
        slot.due = now + self.limits.start_timeout
        self._watch(slot.due)
        actions.append(Start(slot.number, seat))

    def _stop(self, slot: Slot[T], reason: Reason, now: float, actions: list[Action[T]]) -> None:
        self._move(slot, Event.STOP)
        slot.reason = reason
        self._step(slot, _FIRST_STEP.get(reason, Step.ASK), now, actions)

    def _step(self, slot: Slot[T], step: Step, now: float, actions: list[Action[T]]) -> None:
        slot.step = step
        slot.due = now + self.limits.stop_timeout if step in _NEXT_STEP else math.inf
        self._watch(slot.due)
        actions.append(Stop(slot.number, step, slot.reason or Reason.DRAINED))

    def _restart_delay(self, faults: int, *, worked: bool) -> float:
        """Seconds before the next start: none for a first fault of a bridge that worked, then doubling."""
        doublings = faults - (2 if worked else 1)
        if doublings < 0:
            return 0.0
        longest = min(self.limits.restart_delay * 2.0 ** min(doublings, 32), self.limits.max_restart_delay)
        return longest * (0.5 + self._jitter() / 2)

    # How many bridges.

    def _set_seats(self) -> None:
        """Give the seats out anew: as many as `limits` say, and a slot without one for replacements."""
        limits = self.limits
        missing = set(range(limits.most))
        for slot in self.slots:
            if slot.seat is not None and slot.seat >= limits.most:
                slot.seat = None
            missing.discard(-1 if slot.seat is None else slot.seat)
        free = [slot for slot in self.slots if slot.seat is None and slot.phase is Phase.EMPTY]
        for seat in sorted(missing):
            if free:
                free.pop(0).seat = seat
            else:
                self.slots.append(Slot(len(self.slots), seat))
        if limits.prewarm and not any(slot.seat is None for slot in self.slots):
            self.slots.append(Slot(len(self.slots), None))

    def _seated(self, *phases: Phase) -> int:
        count = 0
        for slot in self.slots:
            if slot.seat is not None and slot.phase in phases:
                count += 1
        return count

    def _fill(self, now: float, actions: list[Action[T]]) -> None:
        """Start what is to be there whether work waits or not: the least, the spare, and the breaker's probe."""
        if self.draining:
            return
        live = self._seated(Phase.STARTING, Phase.READY)
        if self.unavailable:
            missing = 1 - live
        else:
            limits = self.limits
            least = limits.least if limits.eager else 0
            busy = sum(slot.seat is not None and bool(slot.runs) for slot in self.slots)
            missing = min(max(least, busy + limits.spare if limits.eager else 0), limits.most) - live
        self._start_some(missing, now, actions)

    def _grow(self, now: float, actions: list[Action[T]]) -> None:
        """Start one bridge for each ticket that has waited long enough, and that no starting bridge is for yet."""
        limits = self.limits
        if self.draining or self.unavailable:
            return
        starting = self._seated(Phase.STARTING)
        live = starting + self._seated(Phase.READY)
        if live >= limits.most:
            return
        wanted = 0
        for ticket in islice(self.waiting, starting, None):
            if live + wanted >= limits.most:
                break
            if live + wanted >= limits.least and ticket.since + limits.grow_after > now:
                self._watch(ticket.since + limits.grow_after)
                break
            wanted += 1
        self._start_some(wanted, now, actions)

    def _start_some(self, count: int, now: float, actions: list[Action[T]]) -> None:
        """Start so many, in the seats that may start again; watch for the others."""
        for slot in self.slots:
            if count <= 0:
                return
            if slot.seat is not None and slot.phase is Phase.EMPTY:
                if slot.due <= now:
                    self._start(slot, slot.seat, now, actions)
                    count -= 1
                else:
                    self._watch(slot.due)

    def _shrink(self, now: float, actions: list[Action[T]]) -> None:
        """Stop bridges that were idle for long, down to the least, and the spare."""
        limits = self.limits
        if limits.shrink_after == math.inf or self.draining:
            return
        idle = [
            slot
            for slot in self.slots
            if slot.seat is not None and slot.state == "idle" and not slot.retiring and not self._has_sessions(slot)
        ]
        surplus = min(self._seated(Phase.STARTING, Phase.READY) - limits.least, len(idle) - limits.spare)
        for slot in sorted(idle, key=lambda slot: slot.idle_since)[: max(0, surplus)]:
            if slot.idle_since + limits.shrink_after <= now:
                self._stop(slot, Reason.SURPLUS, now, actions)
            else:
                self._watch(slot.idle_since + limits.shrink_after)

    # Replacing.

    def _set_wear(self, slot: Slot[T], now: float) -> None:
        """Draw how long a new bridge may last."""
        wear = self.limits.wear
        part = 1.0 - wear.jitter * self._jitter()
        slot.most_served = max(1.0, wear.requests * part)
        slot.expires = now + wear.age * part
        slot.longest_idle = wear.idle * part
        slot.most_memory = wear.memory * part
        self._watch(slot.expires)
        self._watch_idle(slot)

    def _watch_idle(self, slot: Slot[T]) -> None:
        if slot.served:
            self._watch(slot.idle_since + slot.longest_idle)
        self._watch(slot.idle_since + self.limits.shrink_after)

    def _wear_out(self, slot: Slot[T], reason: Reason, now: float) -> None:
        if slot.worn is None:
            slot.worn = reason
            slot.worn_since = now
        self._worn = True

    def _became_idle(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        slot.idle_since = now
        slot.slow = False
        if slot.phase is Phase.READY:
            if slot.retiring or self.draining:
                self._stop(slot, slot.worn or Reason.DRAINED, now, actions)
                self._fill(now, actions)
            else:
                self._watch_idle(slot)

    def _retire(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """It takes no more, and stops as soon as nothing runs on it."""
        slot.retiring = True
        self._recall(slot, actions)
        if not slot.runs and slot.phase is Phase.READY:
            self._stop(slot, slot.worn or Reason.RECYCLED, now, actions)
            self._fill(now, actions)

    def _replace(self, now: float, actions: list[Action[T]]) -> None:
        """Begin to replace a worn bridge, unless one is being replaced: first those that take no more."""
        worn = [slot for slot in self.slots if slot.worn and slot.phase is Phase.READY and slot.seat is not None]
        self._worn = bool(worn)
        worn = [slot for slot in worn if slot.retiring or self._may_be_replaced(slot, now)]
        if not worn or self.draining or any(slot.replaces for slot in self.slots):
            return
        slot = max(worn, key=lambda slot: slot.retiring)
        if not self.limits.prewarm:
            if not any(other.retiring or self._under_way(other, now) for other in self.slots):
                self._retire(slot, now, actions)
            return
        for free in self.slots:
            if free.seat is None and free.phase is Phase.EMPTY:
                if free.due <= now:
                    free.replaces = slot
                    assert slot.seat is not None
                    self._start(free, slot.seat, now, actions)
                else:
                    self._watch(free.due)
                return

    def _under_way(self, slot: Slot[T], now: float) -> bool:
        """Whether a slot with a seat is between two bridges."""
        if slot.seat is None or slot.phase is Phase.READY:
            return False
        return slot.phase is not Phase.EMPTY or (self.limits.eager and slot.seat < self.limits.least)

    def _take_over(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """The replacement is ready: the other gives up its seat, and goes when its last request is done."""
        old = slot.replaces
        assert old is not None
        self._hand_over(old, slot)
        self._retire(old, now, actions)

    def _hand_over(self, old: Slot[T], new: Slot[T]) -> None:
        new.seat, old.seat = old.seat, None
        new.replaces = None

    # Sessions.

    def _pin(self, ticket: T, claim: Claim, now: float, actions: list[Action[T]]) -> None:
        """Put a ticket into the line of its session's slot; or end it, if there is no such session any more."""
        sessions = self.sessions
        assert sessions is not None
        session = sessions.get(claim.session)
        if claim.epoch is not None and (session is None or session.epoch != claim.epoch):
            if not claim.lenient:
                actions.append(End(ticket, Reason.SESSION_LOST))
                return
            ticket.fresh = True
        if session is None:
            while (surplus := sessions.surplus()) is not None:
                self._end_session(surplus, Ending.EVICTED, actions)
            slot = self._slot_for_session()
            session = sessions.open(claim.session, partition=claim.partition, slot=slot.number, now=now)
        elif claim.message_id is not None and claim.message_id in session.begun:
            actions.append(End(ticket, Reason.REPEATED))
            return
        ticket.session = session
        session.busy += 1
        session.moved = False  # its queue is here
        sessions.use(session, now)
        self.slots[session.slot].pinned.append(ticket)
        self._pinned += 1

    def _slot_for_session(self) -> Slot[T]:
        """The slot with the fewest sessions, of those that will last; of equals one that is ready, and least busy."""
        sessions = self.sessions
        assert sessions is not None

        def rank(slot: Slot[T]) -> tuple[bool, int, bool, int, int]:
            leaving = slot.retiring or slot.doomed or slot.worn is not None or slot.phase is Phase.STOPPING
            ready = slot.phase is Phase.READY
            unsuitable = leaving or slot.start_failed or slot.faults > 0
            return unsuitable, sessions.count_on(slot.number), not ready, len(slot.runs), slot.number

        return min((slot for slot in self.slots if slot.seat is not None), key=rank)

    def _unpin(self, slot: Slot[T], ticket: T, actions: list[Action[T]]) -> None:
        """Take a ticket out of its line."""
        slot.pinned.remove(ticket)
        self._pinned -= 1
        self._leave_session(ticket, actions)

    def _leave_session(self, ticket: T, actions: list[Action[T]]) -> None:
        """It does not run in its session, if it has one."""
        session, ticket.session = ticket.session, None
        if session is not None:
            self._less_busy(session, actions)

    def _less_busy(self, session: Session, actions: list[Action[T]]) -> None:
        """It has one request fewer. If that was what it was kept for, it ends; if not, it may expire now."""
        sessions = self.sessions
        assert sessions is not None
        session.busy -= 1
        if session.busy or sessions.get(session.id) is not session:
            return
        if session.moved:
            self._end_session(session, Ending.MOVED, actions)
        elif len(sessions) > sessions.limits.most and (surplus := sessions.surplus()) is not None:
            self._end_session(surplus, Ending.EVICTED, actions)  # all were busy when one too many came
        else:
            self._watch(sessions.expiry(session))

    def _release(self, ticket: T, session: Session, now: float, actions: list[Action[T]]) -> None:
        """A request of a session has ended, and the session lives on; or not."""
        sessions = self.sessions
        assert sessions is not None
        if sessions.get(session.id) is session:
            sessions.use(session, now)
            if ticket.claim is not None and ticket.claim.closes:
                sessions.end(session, Ending.CLOSED)  # its bridge was told by that request
        self._less_busy(session, actions)

    def _end_session(self, session: Session, ending: Ending, actions: list[Action[T]]) -> None:
        """It ends though its bridge lives on."""
        assert self.sessions is not None
        self.sessions.end(session, ending)
        if self.slots[session.slot].phase is Phase.READY:
            actions.append(Forget(session.slot, session.id))

    def _end_sessions(
        self, slot: Slot[T], reason: Reason, details: Mapping[str, Any], now: float, actions: list[Action[T]]
    ) -> None:
        """The slot's bridge is gone, and its sessions with it. What waits for them is pinned anew, or ends."""
        if self.sessions is None:
            return
        ending = _ENDINGS.get(reason, Ending.CRASHED)
        for session in self.sessions.on_slot(slot.number):
            self.sessions.end(session, ending, details if ending is Ending.CRASHED else None)
        for ticket in list(slot.pinned):
            self._unpin(slot, ticket, actions)
            assert ticket.claim is not None
            self._pin(ticket, ticket.claim, now, actions)

    def _sessions_due(self, now: float, actions: list[Action[T]]) -> None:
        if self.sessions is None:
            return
        for slot in self.slots:
            for ticket in slot.pinned:
                self._watch(ticket.deadline)
        for session, ending in self.sessions.expired(now):
            self._end_session(session, ending, actions)
        self._watch(self.sessions.next_expiry)

    def _has_sessions(self, slot: Slot[T]) -> bool:
        return self.sessions is not None and bool(self.sessions.count_on(slot.number))

    def _may_be_replaced(self, slot: Slot[T], now: float) -> bool:
        """Whether a worn bridge's sessions are quiet, or have been waited for long enough."""
        if self.sessions is None or not self._has_sessions(slot):
            return True
        limits = self.limits
        ripe = min(
            self.sessions.quiet_since(slot.number) + limits.session_quiet, slot.worn_since + limits.session_patience
        )
        if ripe > now:
            self._watch(ripe)
        return ripe <= now

    # Time.

    def _due(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        if slot.phase is Phase.READY:
            self._runs_due(slot, now, actions)
            if slot.phase is Phase.READY:
                self._wear_due(slot, now)
        elif slot.due <= now:
            if slot.phase is Phase.STARTING:
                self._stop(slot, Reason.START_TIMEOUT, now, actions)
            elif slot.phase is Phase.STOPPING and slot.step in _NEXT_STEP:
                self._step(slot, _NEXT_STEP[slot.step], now, actions)
        elif slot.phase is not Phase.EMPTY:
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
                if run.begun:
                    self._stop(slot, run.reason, now, actions)
                    return
                run.due = math.inf  # it is not what the bridge is at: it is seen to when its turn comes
        if slot.ahead and len(slot.runs) > 1:
            self._recall_due(slot, now, actions)

    # Ahead.

    def _begin_next(self, slot: Slot[T], now: float) -> None:
        """What ran is done: the first that waits in the pipe is begun, as far as can be told."""
        run = next(iter(slot.runs.values()))
        if run.begun:
            return
        run.begun = True
        run.started = now
        _note_begun(run.ticket)
        slot.slow = False
        if run.reason is None:
            run.due = min(now + self.limits.run_timeout, run.ticket.deadline)
        else:
            run.due = now + self.limits.cancel_timeout
        self._watch(run.due)
        if len(slot.runs) > 1:
            self._watch(now + self.limits.recall_after)

    def _takes_long(self, slot: Slot[T], now: float) -> bool:
        """Whether what runs has run for so long that nothing shall wait behind it."""
        return (
            bool(slot.ahead and slot.runs) and next(iter(slot.runs.values())).started + self.limits.recall_after <= now
        )

    def _recall_due(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """If what runs takes long, nothing shall wait behind it."""
        if slot.slow:
            return
        ripe = next(iter(slot.runs.values())).started + self.limits.recall_after
        if ripe > now:
            self._watch(ripe)
            return
        slot.slow = True
        self._recall(slot, actions)

    def _recall(self, slot: Slot[T], actions: list[Action[T]]) -> None:
        """Ask for what waits in its pipe, once."""
        for request_id, run in slot.runs.items():
            if not run.begun and not run.recalled and run.reason is None:
                run.recalled = True
                actions.append(Recall(slot.number, request_id))

    def _wait_again(self, slot: Slot[T], tickets: list[T]) -> None:
        """Put tickets of the slot back in line, where they were."""
        for ticket in reversed(tickets):
            line = self.waiting if ticket.session is None else slot.pinned
            behind = 0
            while behind < len(line) and line[behind].since < ticket.since:
                behind += 1
            line.insert(behind, ticket)
            self._pinned += line is slot.pinned

    def _wear_due(self, slot: Slot[T], now: float) -> None:
        if slot.worn is not None:
            return
        if slot.expires <= now:
            self._wear_out(slot, Reason.AGE, now)
            return
        self._watch(slot.expires)
        if not slot.runs and slot.served:
            if slot.idle_since + slot.longest_idle <= now:
                self._wear_out(slot, Reason.IDLE, now)
            else:
                self._watch(slot.idle_since + slot.longest_idle)

    # Assigning.

    def _assign(self, now: float, actions: list[Action[T]]) -> None:
        """Give waiting tickets to slots, first come first served.

        A ticket that fits nowhere (it must be alone) holds up those behind it, so that it gets its turn.
        """
        waiting = self.waiting
        if self._pinned:
            self._assign_pinned(now, actions, contested=bool(waiting))
        while waiting:
            ticket = waiting[0]
            if ticket.deadline <= now:
                actions.append(End(waiting.popleft(), Reason.DEADLINE))
                continue
            slot = self._least_loaded(ticket, now)
            if slot is None:
                self._grow(now, actions)
                break
            waiting.popleft()
            self._send(slot, ticket, now, actions)
        if self._pinned:
            self._assign_pinned(now, actions, contested=False)

    def _send(self, slot: Slot[T], ticket: T, now: float, actions: list[Action[T]]) -> None:
        if len(slot.runs) < slot.concurrency:
            run = Run(ticket, now, min(now + self.limits.run_timeout, ticket.deadline))
            slot.slow = slot.slow or ticket.streams
            _note_begun(ticket)
        else:
            run = Run(ticket, now, ticket.deadline, begun=False)
            self._watch(next(iter(slot.runs.values())).started + self.limits.recall_after)
        slot.runs[ticket.request_id] = run
        self._watch(run.due)
        actions.append(Send(slot.number, ticket))
        if self.limits.spare:
            self._fill(now, actions)

    def _assign_pinned(self, now: float, actions: list[Action[T]], *, contested: bool) -> None:
        """Give slots the tickets of their sessions; if others wait as well (`contested`), only in their turn."""
        for slot in self.slots:
            while slot.pinned:
                ticket = slot.pinned[0]
                if ticket.deadline <= now:
                    self._unpin(slot, ticket, actions)
                    actions.append(End(ticket, Reason.DEADLINE))
                    continue
                if slot.phase is Phase.EMPTY:
                    self._start_for_pinned(slot, now, actions)
                # While others wait for a turn, nothing is put into its pipe that would be before them.
                ahead = 0 if self.waiting or self._takes_long(slot, now) else self.ahead
                if not slot.accepts(ticket, ahead) or (slot.runs and self.waiting and self.waiting[0].alone):
                    break  # one that must be alone waits for a slot to be empty
                if contested and not self._is_sessions_turn(slot):
                    break
                slot.pinned.popleft()
                self._pinned -= 1
                self._send(slot, ticket, now, actions)

    def _start_for_pinned(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        if slot.seat is None or self.draining or self.unavailable:
            return
        if slot.due <= now:
            self._start(slot, slot.seat, now, actions)
        else:
            self._watch(slot.due)

    def _is_sessions_turn(self, slot: Slot[T]) -> bool:
        slot.turns += self.limits.session_share
        if slot.turns < 1.0:
            return False
        slot.turns -= 1.0
        return True

    def _least_loaded(self, ticket: T, now: float) -> Slot[T] | None:
        best: Slot[T] | None = None
        for slot in self.slots:
            # Its sessions wait for their turn: its pipe runs empty for that.
            ahead = 0 if slot.pinned or self._takes_long(slot, now) else self.ahead
            if (best is None or len(slot.runs) < len(best.runs)) and slot.accepts(ticket, ahead):
                if not slot.runs:
                    return slot
                if slot.pinned and slot.pinned[0].alone:
                    continue  # that waits for the slot to be empty
                best = slot
        return best


_ENDINGS: Final = {
    Reason.DRAINED: Ending.NODE_LEFT,
    **dict.fromkeys(
        (
            Reason.RECYCLED,
            Reason.REQUESTS,
            Reason.AGE,
            Reason.IDLE,
            Reason.MEMORY,
            Reason.REPLACED,
            Reason.SURPLUS,
        ),
        Ending.RECYCLED,
    ),
}


def _message_id(ticket: Ticket) -> str | None:
    return None if ticket.claim is None else ticket.claim.message_id


def _note_begun(ticket: Ticket) -> None:
    """Its session remembers what began in it."""
    if ticket.session is not None and (name := _message_id(ticket)) is not None:
        ticket.session.begin(name)


def _lateness(run: Run[T]) -> Reason:
    return Reason.DEADLINE if run.due >= run.ticket.deadline else Reason.RUN_TIMEOUT


def _shared_fate(reason: Reason) -> Reason:
    """What a bridge's end means for a request on it that was not itself late or cancelled."""
    late = (Reason.RUN_TIMEOUT, Reason.DEADLINE, Reason.CANCELLED, Reason.READER_STALLED)
    return Reason.NEIGHBOUR if reason in late else reason
