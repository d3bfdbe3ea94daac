"""The numbers of a pool: how many bridges, how long they may take, and when one is replaced."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
