"""A request on a bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from worker_node.core.reason import OF_ONE_REQUEST, Reason
from worker_node.core.ticket import T


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

    @property
    def lateness(self) -> Reason:
        """What it is that makes it late, when it is."""
        return Reason.DEADLINE if self.due >= self.ticket.deadline else Reason.RUN_TIMEOUT

    def ended_with(self, reason: Reason) -> Reason:
        """What its bridge's end for `reason` means for it: its own reason, if it was late or cancelled itself."""
        return self.reason or (Reason.NEIGHBOUR if reason in OF_ONE_REQUEST else reason)
