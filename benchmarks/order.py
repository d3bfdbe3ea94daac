"""An order: what one client process does and measures; and the measure it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client does. Sent to it as JSON.

    `kind`: closed (calls, `in_flight` at a time), one_way (the same for what has no replies: by the tally), lone (one
    call at a time), publish (confirmed, `in_flight` at a time), each for `seconds` after `warm` seconds unmeasured;
    all (a call for each of `arguments`, `in_flight` at a time, once), fill (publish `depth` requests), standing (keep
    `depth` requests waiting while they are consumed).

    An argument is text of `size` bytes, or what `arguments` has, in turn. `watched`: process ids by name, whose CPU
    time is told.
    """

    kind: Literal["closed", "one_way", "lone", "publish", "all", "fill", "standing", "start"]
    system: str = ""
    url: str = ""
    command: str = "echo"
    size: int = 200
    arguments: tuple[Any, ...] = ()
    in_flight: int = 256
    seconds: float = 4.0
    warm: float = 2.5
    depth: int = 0
    bridges: int = 8
    watched: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def argument(self) -> Any:
        """What is sent where all requests are alike."""
        return self.arguments[0] if self.arguments else "x" * self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What one client found: `rate` per second; `p50` and `p99` in milliseconds; `cpu` in µs per request, by name."""

    rate: float
    count: int
    p50: float | None = None
    p99: float | None = None
    cpu: dict[str, float] = field(default_factory=dict)
