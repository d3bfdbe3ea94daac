"""What the pool wants done, by whoever performs it, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from worker_node.core.ladder import Step
from worker_node.core.reason import Reason
from worker_node.core.ticket import T


@dataclass(frozen=True, slots=True)
class Start:
    """Start a bridge in the slot, and greet it. `seat` is the number it is told."""

    slot: int
    seat: int


@dataclass(slots=True)  # not frozen, which would double what making one takes
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
