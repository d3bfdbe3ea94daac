"""What comes back: a Reply for success, the exception that stands for its code otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bridge_protocol import codec
from bridge_protocol.binary import restore
from bridge_protocol.claim_check import CLAIM, ClaimCheck, read_claim, restored
from bridge_protocol.envelope import ATTEMPT, FRESH, NODE, REDELIVERED, RESULT, SESSION_EPOCH
from bridge_protocol.errors import (
    BadRequest,
    Code,
    FrameError,
    FrameKind,
    ProtocolViolation,
    RequestFailed,
    exception_for,
)
from bridge_protocol.frames import LIMIT_CEILING
from bridge_protocol.messages import Failure, Result, decode_message
from broker.contract import Delivery
from broker.store import Store, check_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A request's success. `attempt` from 1; `redelivered`: the broker gave it out more than once.

    `session_epoch`: names the live bridge that it ran in, for a request of a session; `fresh`: that is not the one that
    the session had before, so what that had in memory is gone. `position`: which of a map's arguments it answers, from
    0, where they end in any order.
    """

    result: Any
    message_id: str
    attempt: int = 1
    redelivered: bool = False
    node: str | None = None
    session_epoch: str | None = None
    fresh: bool = False
    position: int | None = None


def read_reply(delivery: Delivery, message_id: str) -> Reply | RequestFailed:
    """What a reply says. Raises FrameError if it is no reply at all."""
    properties = delivery.properties
    headers = properties.headers
    attempt = headers.get(ATTEMPT)
    node = headers.get(NODE)
    attempt = attempt if type(attempt) is int and attempt > 0 else 1
    node = node if isinstance(node, str) else None
    epoch = epoch_of(delivery)
    said = decode_message(delivery.body)
    if properties.type == RESULT and isinstance(said, Result):
        try:
            result = said.result if said.binary is None else restore(said.result, said.binary)
        except FrameError as error:
            text = f"its result cannot be read: {error.detail}"
            unreadable = ProtocolViolation(text, message_id=message_id, attempt=attempt, node=node)
            unreadable.session_epoch = epoch
            return unreadable
        return Reply(
            result=result,
            message_id=message_id,
            attempt=attempt,
            redelivered=headers.get(REDELIVERED) is True,
            node=node,
            session_epoch=epoch,
            fresh=headers.get(FRESH) is True,
        )
    failed = _FAILURES.get(properties.type or "")
    if failed is None or not isinstance(said, Failure):
        detail = f"a reply of type {properties.type!r:.40} that holds a {type(said).__name__}"
        raise FrameError(FrameKind.BAD_ENVELOPE, detail)
    details: dict[str, Any] = {}
    if said.info is not None:
        details |= said.info.details
        if failed.code is Code.APPLICATION_ERROR:
            # An application's own failure is told whole: its type and traceback too.
            own = {"type": said.info.type, "traceback": said.info.traceback}
            details |= {key: text for key, text in own.items() if text}
    failure = failed(said.error, message_id=message_id, attempt=attempt, node=node, details=details)
    failure.session_epoch = epoch
    return failure


def claim_of(delivery: Delivery) -> ClaimCheck | None:
    """Where its result is, if that is in a store. Raises FrameError."""
    if delivery.properties.headers.get(CLAIM) is not True:
        return None  # a "claim" in its body is a bridge's own, and means nothing
    return read_claim(codec.decode(delivery.body), "result")


def claim_restored(store: Store | None, delivery: Delivery, claim: ClaimCheck) -> Delivery:
    """The delivery with its result, from the store. Raises BadRequest, which names the claim."""
    try:
        content = check_out(store, claim, limit=LIMIT_CEILING)
    except OSError as error:
        raise BadRequest(f"claim {claim.reference} cannot be fetched: {error.strerror or error}") from error
    return replace(delivery, body=restored(delivery.body, "result", content))


def epoch_of(delivery: Delivery) -> str | None:
    """The epoch that a reply names, if it names one."""
    epoch = delivery.properties.headers.get(SESSION_EPOCH)
    return epoch if isinstance(epoch, str) else None


def _exceptions() -> Iterator[tuple[str, type[RequestFailed]]]:
    for code in Code:
        exception = exception_for(code)
        if issubclass(exception, RequestFailed):
            yield code.value, exception


_FAILURES = dict(_exceptions())  # by the type of a reply
