"""What a failure leads to: an answer, a dead letter, or another try. One decision, for every code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from bridge_protocol.errors import Code
from bridge_protocol.topology import MAX_DELAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A request's failure. `retryable` and `retry_after` (seconds) are what the bridge itself asked for.

    A timeout is `retryable` where it is known that it was not the request that took the time.
    """

    code: Code
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    retryable: bool = False
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """See RetrySettings: `max_attempts` counts tries that began, delays are in seconds."""

    max_attempts: int
    first_delay: float
    factor: float
    max_delay: float
    on_timeout: bool


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
    if attempt < policy.max_attempts and _retried(fault, policy):
        delay = _delay(fault, attempt, policy, jitter)
        if delay < remaining:
            return Retry(delay, attempt + 1)
    return Ended(dead_letter=fault.code in _KEPT or (not addressed and fault.code is not Code.CANCELLED))


def _retried(fault: Fault, policy: RetryPolicy) -> bool:
    match fault.code:
        case Code.BRIDGE_CRASHED | Code.PROTOCOL_VIOLATION:
            return True
        case Code.BRIDGE_TIMEOUT:
            return policy.on_timeout or fault.retryable
        case Code.APPLICATION_ERROR:
            return fault.retryable
        case _:
            return False


def _delay(fault: Fault, attempt: int, policy: RetryPolicy, jitter: float) -> int:
    """Whole seconds, at least one: the broker's delay queues count in seconds."""
    seconds: float
    if fault.retry_after is not None:
        seconds = fault.retry_after  # not sooner: rounded up
    else:
        seconds = min(policy.first_delay * math.pow(policy.factor, attempt - 1), policy.max_delay)
        seconds = seconds * (0.5 + jitter / 2) - 0.5  # rounded
    return int(max(1, min(math.ceil(seconds), MAX_DELAY)))
