"""What comes back: a Reply for success, the exception that stands for its code otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge_protocol import codec
from bridge_protocol.envelope import ATTEMPT, NODE, REDELIVERED, RESULT
from bridge_protocol.errors import Code, CodedError, FrameError, FrameKind, exception_for
from broker.contract import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A request's success. `attempt` from 1; `redelivered`: the broker gave it out more than once."""

    result: Any
    message_id: str
    attempt: int = 1
    redelivered: bool = False
    node: str | None = None


def read_reply(delivery: Delivery, message_id: str) -> Reply | CodedError:
    """What a reply says. Raises FrameError if it is no reply at all."""
    properties = delivery.properties
    headers = properties.headers
    body = codec.decode(delivery.body)
    attempt = headers.get(ATTEMPT)
    node = headers.get(NODE)
    attempt = attempt if isinstance(attempt, int) else 1
    node = node if isinstance(node, str) else None
    if properties.type == RESULT:
        return Reply(
            result=body.get("result"),
            message_id=message_id,
            attempt=attempt,
            redelivered=headers.get(REDELIVERED) is True,
            node=node,
        )
    try:
        code = Code(properties.type or "")
    except ValueError:
        raise FrameError(FrameKind.BAD_ENVELOPE, f"a reply of type {properties.type!r:.40}") from None
    error = body.get("error")
    info = body.get("error_info")
    details: dict[str, Any] = {}
    if isinstance(info, dict):
        # An application's own failure is told whole: its type and traceback too.
        inner = info.get("details")
        details = {key: info[key] for key in ("type", "traceback") if code is Code.APPLICATION_ERROR and key in info}
        details |= inner if isinstance(inner, dict) else {}
    return exception_for(code)(
        error if isinstance(error, str) else code.value,
        message_id=message_id,
        attempt=attempt,
        node=node,
        details=details,
    )
