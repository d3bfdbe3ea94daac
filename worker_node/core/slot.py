"""A slot: a place that holds one bridge, and what its process is doing.

    EMPTY ──start──▶ STARTING ──ready──▶ READY ──stop──▶ STOPPING
      ▲                 │  └───────stop────────────────────▲ │
      └──────exit───────┴───────────exit─────┴──────exit─────┘

A READY slot is IDLE or BUSY by whether a request runs on it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, Generic

from worker_node.core.actions import Recall
from worker_node.core.ladder import Step
from worker_node.core.reason import Reason
from worker_node.core.run import Run
from worker_node.core.ticket import T


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

_READY: Final = Phase.READY  # Python 3.11 makes a call of each look at an enum's member


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

    def move(self, event: Event) -> None:
        """It happened. Raises KeyError for what cannot happen now."""
        self.phase = TRANSITIONS[self.phase, event]

    def accepts(self, ticket: T, ahead: int = 0) -> bool:
        """Whether `ticket` may run here now; or wait in the pipe, of those that do at most `ahead`."""
        runs = self.runs
        if self.phase is not _READY or self.retiring or self.doomed:
            return False
        if not runs:
            return True
        room = self.concurrency if self.slow or not ticket.light else self.concurrency + min(ahead, self.ahead)
        if len(runs) >= room or (len(runs) >= self.concurrency and self.served + len(runs) >= self.most_served):
            return False
        if ticket.alone or ticket.request_id in runs:
            return False
        return not next(iter(runs.values())).ticket.alone  # one that is has no other beside it

    def running_since(self) -> float:
        """Since when the first of its requests runs; infinite: it has none."""
        return next(iter(self.runs.values())).started if self.runs else math.inf

    def recall(self) -> Iterator[Recall]:
        """Ask for what waits in its pipe, once."""
        for request_id, run in self.runs.items():
            if not run.begun and not run.recalled and run.reason is None:
                run.recalled = True
                yield Recall(self.number, request_id)

    def wear_out(self, reason: Reason, now: float) -> None:
        """It is to be replaced; the first reason counts."""
        if self.worn is None:
            self.worn = reason
            self.worn_since = now

    def clear(self) -> None:
        """Its process is dead: forget what was true of that alone."""
        self.runs = {}
        self.retiring = self.doomed = self.oversized = self.slow = self.greeted = False
        self.reason = self.step = self.worn = self.replaces = None
        self.served = 0

    @property
    def at_work(self) -> dict[int, Run[T]]:
        """The requests that are begun, as far as can be told."""
        return {request_id: run for request_id, run in self.runs.items() if run.begun}

    @property
    def leaving(self) -> bool:
        """Whether its bridge will not last."""
        return self.retiring or self.doomed or self.worn is not None or self.phase is Phase.STOPPING

    @property
    def state(self) -> str:
        """EMPTY, STARTING, IDLE, BUSY or STOPPING, in lower case."""
        if self.phase is Phase.READY:
            return "busy" if self.runs else "idle"
        return self.phase
