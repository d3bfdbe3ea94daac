"""What a chaos run does: how much load, and how many of each fault."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Calls(Enum):
    """How the replies of calls come."""

    DIRECT = "direct"  # at most once: a call may end in an unknown outcome
    DURABLE = "durable"  # by a durable queue, and published again until they are answered: all are


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Times in seconds. `requests` in `seconds` is the rate of the load, which goes on while there are faults to come.

    `work`: the shortest and longest run of a request. `mixed`: whether some refuse, hurry or poison.
    `calls`: made through an AsyncProducer; else a requester that trusts in nothing but the broker has the books.
    """

    requests: int
    node_kills: int = 0
    bridge_kills: int = 0
    broker_kills: int = 0
    closes: int = 0  # connections closed by an operator
    seconds: float = 0.0
    nodes: int = 3
    bridges: int = 2
    work: tuple[float, float] = (0.01, 0.02)
    in_flight: int = 100
    mixed: bool = True
    calls: Calls | None = None

    def planned(self) -> dict[str, int]:
        """The faults, by their names in a report."""
        return {
            NODE_KILLS: self.node_kills,
            BRIDGE_KILLS: self.bridge_kills,
            BROKER_KILLS: self.broker_kills,
            CLOSES: self.closes,
        }


NODE_KILLS, BRIDGE_KILLS, BROKER_KILLS, CLOSES = "node kills", "bridge kills", "broker kills", "connections closed"

SHORT = Plan(requests=5_000, node_kills=20, bridge_kills=20, broker_kills=2, closes=2, seconds=20)
LONG = Plan(requests=100_000, node_kills=300, bridge_kills=300, broker_kills=30, closes=30, seconds=900)
# The load of every day: nothing may be lost, and nothing done twice.
CALM = Plan(requests=10_000, work=(0.0, 0.0), in_flight=300, mixed=False)
# Enough to see that another version does the same; of long runs, so that the few kills hit something.
GLIMPSE = Plan(requests=700, node_kills=4, bridge_kills=4, broker_kills=1, closes=1, seconds=7, work=(0.04, 0.06))
DIRECT = replace(GLIMPSE, calls=Calls.DIRECT, mixed=False)
DURABLE = replace(GLIMPSE, calls=Calls.DURABLE, mixed=False)
LONG_DIRECT = replace(LONG, calls=Calls.DIRECT, mixed=False)
LONG_DURABLE = replace(LONG, calls=Calls.DURABLE, mixed=False)
