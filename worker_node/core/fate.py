"""What a failure leads to: an answer, a dead letter, or another try. One decision, for every code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bridge_protocol.errors import Code
from bridge_protocol.topology import MAX_DELAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A request's failure. `retryable` and `retry_after` (seconds) are what the bridge itself asked for.

    A timeout is `retryable` where it is known that it was not the request that took the time, and a bad request where
    it was the store that could not be read.
    """

    code: Code
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    retryable: bool = False
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """See RetrySettings: `max_attempts` counts tries that began, delays are in seconds.

    `first_delay` is each code's own; a code that has none, or 0, is not tried again.
    """

    max_attempts: int
    first_delay: Mapping[Code, float]
    factor: float
    max_delay: float


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, as `attempt`, after `delay` whole seconds in the broker's delay queues."""

    delay: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over: the failure is sent where there is somebody to send it to, and kept if `dead_letter`."""

    dead_letter: bool


@dataclass(frozen=True, slots=True)
class HandBack:
    """It never ran, and another node can serve it: back to the queue."""


Fate = Retry | Ended | HandBack

# Kept as a dead letter when no try is left: an operator can do something about these.
_KEPT: Final = frozenset(
    {Code.BAD_REQUEST, Code.TOO_LARGE, Code.BRIDGE_CRASHED, Code.BRIDGE_TIMEOUT, Code.PROTOCOL_VIOLATION}
)


def decide(
    fault: Fault,
    *,
    attempt: int,
    policy: RetryPolicy,
    remaining: float,
    addressed: bool,
    jitter: float,
) -> Fate:
    """What becomes of a request whose try number `attempt` ended in `fault`.

    `remaining`: seconds until its deadline (infinite without one); a try that could not start by then is not
    scheduled, and the failure is the answer. `addressed`: whether there is somebody to send a failure to; one
    that has nobody is always kept. `jitter` in 0 … 1 spreads retries over the upper half of their delay.
    """
    if fault.code is Code.BRIDGE_UNAVAILABLE:
        return HandBack()
    if attempt < policy.max_attempts and is_retried(fault, policy):
        delay = _delay(fault, attempt, policy, jitter)
        if delay < remaining:
            return Retry(delay, attempt + 1)
    return Ended(dead_letter=fault.code in _KEPT or (not addressed and fault.code is not Code.CANCELLED))


def is_retried(fault: Fault, policy: RetryPolicy) -> bool:
    """Whether a failure of that kind is tried again, while there are tries left."""
    # An application's own failure is an answer, unless it says that another try may end otherwise.
    wanted = fault.retryable or fault.code is not Code.APPLICATION_ERROR
    return wanted and _first_delay(fault, policy) > 0


def _first_delay(fault: Fault, policy: RetryPolicy) -> float:
    delay = policy.first_delay.get(fault.code, 0.0)
    if not delay and fault.retryable and fault.code in (Code.BRIDGE_TIMEOUT, Code.BAD_REQUEST):
        # Not the request's doing: as if its bridge had crashed.
        return policy.first_delay.get(Code.BRIDGE_CRASHED, 0.0)
    return delay


def _delay(fault: Fault, attempt: int, policy: RetryPolicy, jitter: float) -> int:
    """Whole seconds, at least one: the broker's delay queues count in seconds."""
    seconds: float
    if fault.retry_after is not None:
        seconds = fault.retry_after  # not sooner: rounded up
    else:
        first = _first_delay(fault, policy)
        seconds = min(first * math.pow(policy.factor, attempt - 1), policy.max_delay)
        seconds = seconds * (0.5 + jitter / 2) - 0.5  # rounded
    return int(max(1, min(math.ceil(seconds), MAX_DELAY)))
