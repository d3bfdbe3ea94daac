"""What a chaos run does: how much load, and how many of each fault."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Times in seconds. `seconds`: what the load is spread over, at least; faults that take longer stretch it.

    `work`: the shortest and longest run of a request. `mixed`: whether some refuse, hurry or poison.
    """

    requests: int
    node_kills: int = 0
    bridge_kills: int = 0
    broker_kills: int = 0
    closes: int = 0  # connections closed by an operator
    seconds: float = 0.0
    nodes: int = 3
    bridges: int = 2
    work: tuple[float, float] = (0.01, 0.03)
    in_flight: int = 100
    mixed: bool = True

    def planned(self) -> dict[str, int]:
        """The faults, by their names in a report."""
        return {
            NODE_KILLS: self.node_kills,
            BRIDGE_KILLS: self.bridge_kills,
            BROKER_KILLS: self.broker_kills,
            CLOSES: self.closes,
        }


NODE_KILLS, BRIDGE_KILLS, BROKER_KILLS, CLOSES = "node kills", "bridge kills", "broker kills", "connections closed"

SHORT = Plan(requests=5_000, node_kills=20, bridge_kills=20, broker_kills=2, closes=2, seconds=35)
LONG = Plan(requests=100_000, node_kills=300, bridge_kills=300, broker_kills=30, closes=30, seconds=1_200)
# The load of every day: nothing may be lost, and nothing done twice.
CALM = Plan(requests=10_000, work=(0.0, 0.0), in_flight=300, mixed=False)
# Enough to see that another version does the same.
GLIMPSE = Plan(requests=1_000, node_kills=3, bridge_kills=3, broker_kills=1, closes=1, seconds=6)
