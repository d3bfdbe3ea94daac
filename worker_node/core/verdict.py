"""The verdict on a request that left the pool without a reply that counts: its code, and the sentence that says why."""

from __future__ import annotations

from typing import Any, Final

from bridge_protocol.errors import Code
from bridge_protocol.messages import ErrorInfo, Failure
from worker_node.core.fate import Fault
from worker_node.core.limits import PoolLimits
from worker_node.core.reason import Reason

_CODES: Final = {
    Reason.CRASHED: Code.BRIDGE_CRASHED,
    Reason.NEIGHBOUR: Code.BRIDGE_CRASHED,
    Reason.MEMORY_HARD: Code.BRIDGE_CRASHED,
    Reason.VIOLATION: Code.PROTOCOL_VIOLATION,
    Reason.RUN_TIMEOUT: Code.BRIDGE_TIMEOUT,
    Reason.WRITE_TIMEOUT: Code.BRIDGE_TIMEOUT,
    Reason.FRAME_TIMEOUT: Code.BRIDGE_TIMEOUT,
    Reason.DEADLINE: Code.DEADLINE_EXCEEDED,
    Reason.CANCELLED: Code.CANCELLED,
    Reason.READER_STALLED: Code.READER_STALLED,
    Reason.START_FAILED: Code.BRIDGE_UNAVAILABLE,
    Reason.START_TIMEOUT: Code.BRIDGE_UNAVAILABLE,
}

# What is known of the bridge says more than the reason.
TOLD_BY_THE_BRIDGE: Final = frozenset({Reason.CRASHED, Reason.VIOLATION, Reason.WRITE_TIMEOUT, Reason.FRAME_TIMEOUT})


def fault_for(reason: Reason, limits: PoolLimits, *, ran: bool, details: dict[str, Any]) -> Fault:
    """The failure of a request that ended for `reason`. `ran`: it had begun."""
    return Fault(code=_CODES[reason], message=_message(reason, limits, ran=ran), details=details)


def application_error(failure: Failure) -> Fault:
    """The failure that the bridge itself answered: its own, or the request's."""
    info = failure.info or ErrorInfo()
    said = {name: text for name, text in (("type", info.type), ("traceback", info.traceback)) if text}
    return Fault(
        code=Code.BAD_REQUEST if info.bad_request else Code.APPLICATION_ERROR,
        message=failure.error,
        details={**said, **info.details},
        retryable=info.retryable,
        retry_after=info.retry_after,
    )


def _message(reason: Reason, limits: PoolLimits, *, ran: bool) -> str:
    match reason:
        case Reason.RUN_TIMEOUT:
            return f"no reply within the run timeout of {limits.run_timeout:g} s"
        case Reason.DEADLINE if ran:
            return "the deadline passed while it ran; it was stopped"
        case Reason.DEADLINE:
            return "the deadline passed before it could start; it was not run"
        case Reason.CANCELLED if ran:
            return "it was cancelled while it ran, and stopped"
        case Reason.CANCELLED:
            return "it was cancelled before it ran"
        case Reason.READER_STALLED:
            return "its chunks could not be delivered; it was stopped"
        case Reason.NEIGHBOUR:
            return "its bridge was stopped because of another request on it"
        case Reason.MEMORY_HARD:
            most = limits.wear.memory_hard
            return f"its bridge was killed: it used more memory than recycle.memory_hard allows, {most:,} bytes"
        case _:
            return f"its bridge is gone: {reason}"
