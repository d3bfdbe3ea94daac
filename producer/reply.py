"""What comes back: a Reply for success, the exception that stands for its code otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bridge_protocol.envelope import ATTEMPT, NODE, REDELIVERED, RESULT
from bridge_protocol.errors import Code, FrameError, FrameKind, RequestFailed, exception_for
from bridge_protocol.messages import Failure, Result, decode_message
from broker.contract import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A request's success. `attempt` from 1; `redelivered`: the broker gave it out more than once."""

    result: Any
    message_id: str
    attempt: int = 1
    redelivered: bool = False
    node: str | None = None


def read_reply(delivery: Delivery, message_id: str) -> Reply | RequestFailed:
    """What a reply says. Raises FrameError if it is no reply at all."""
    properties = delivery.properties
    headers = properties.headers
    attempt = headers.get(ATTEMPT)
    node = headers.get(NODE)
    attempt = attempt if type(attempt) is int and attempt > 0 else 1
    node = node if isinstance(node, str) else None
    said = decode_message(delivery.body)
    if properties.type == RESULT and isinstance(said, Result):
        return Reply(
            result=said.result,
            message_id=message_id,
            attempt=attempt,
            redelivered=headers.get(REDELIVERED) is True,
            node=node,
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
    return failed(said.error, message_id=message_id, attempt=attempt, node=node, details=details)


def _exceptions() -> Iterator[tuple[str, type[RequestFailed]]]:
    for code in Code:
        exception = exception_for(code)
        if issubclass(exception, RequestFailed):
            yield code.value, exception


_FAILURES = dict(_exceptions())  # by the type of a reply
