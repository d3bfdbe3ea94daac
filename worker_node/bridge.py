"""A bridge of a service: its process, and what is known of it beyond the pool's own facts."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge_protocol.handshake import Capabilities
from bridge_protocol.messages import CLEANUP_SESSION
from worker_node.bridge_process import BridgeProcess
from worker_node.core.fate import Fault
from worker_node.core.ladder import Step
from worker_node.outlet import Outlet

MOST_UNANSWERED = 1024  # ends of sessions that a bridge was told of and has not answered: then it is told of no more


@dataclass(slots=True, eq=False)
class Bridge:
    """A slot's process. `seat`: the number it is known by."""

    slot: int
    seat: int
    process: BridgeProcess
    run: str  # the id by which the reaper finds what it leaves behind
    capabilities: Capabilities = field(default_factory=Capabilities)
    trouble: Fault | None = None  # why it was condemned, for the requests that go down with it
    taken_down: dict[Step, float] = field(default_factory=dict)  # when it was taken to each rung of the ladder
    held_by: set[Outlet] = field(default_factory=set)  # those without credit, for which it is not read
    told: set[int] = field(default_factory=set)  # ids of what the node asked for itself, and got no answer to yet

    @property
    def knows_sessions(self) -> bool:
        """Whether it wants to be told when a session is over."""
        return CLEANUP_SESSION in self.capabilities.commands

    def hold(self, outlet: Outlet, held: bool) -> None:
        """An outlet has no credit, or has some again: it is read while none is without."""
        (self.held_by.add if held else self.held_by.discard)(outlet)
        self.process.hold(bool(self.held_by))
