"""What the stories of the pool have in common: limits with round numbers, and tickets that can be named."""

from __future__ import annotations

from dataclasses import dataclass

from worker_node.core.limits import PoolLimits
from worker_node.core.ticket import Ticket

LIMITS = PoolLimits(
    least=2,
    most=2,
    eager=True,
    start_timeout=30,
    run_timeout=60,
    cancel_timeout=3,
    stop_timeout=5,
    restart_delay=0.5,
    max_restart_delay=8,
    recall_after=0.05,
)


@dataclass(slots=True, eq=False, kw_only=True)
class Numbered(Ticket):
    """A ticket that a story knows by its id."""

    def __repr__(self) -> str:
        return f"t{self.request_id}"
