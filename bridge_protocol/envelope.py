"""The envelope: the AMQP properties and headers around a request or a reply.

The body of a message is the frame's payload, byte for byte; everything a node needs for routing a message is
out here. Only the properties and headers named on this page are ever written: what a peer sends beyond them
is not copied to a reply, a retry or a dead letter (`CC` and `BCC` would route).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge_protocol.errors import Code
from bridge_protocol.messages import PROTOCOL_VERSION

CONTENT_TYPE = "application/json"
PERSISTENT = 2
RESULT = "result"
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

PROTOCOL = "protocol"
DEADLINE = "deadline"
SESSION = "session"
SESSION_EPOCH = "session-epoch"
ATTEMPT = "attempt"
TRACEPARENT = "traceparent"
NODE = "node"
REDELIVERED = "redelivered"

# Where a reply may be sent: an address the broker made for one client, or a queue named for replies.
# Anything else would let a requester write, with the node's rights, to a queue of somebody else.
_REPLY_TO = re.compile(
    r"amq\.rabbitmq\.reply-to\.[!-~]{1,230}|amq\.gen-[!-~]{1,230}|quaybridge\.reply\.[A-Za-z0-9_.-]{1,200}"
)
_MESSAGE_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The AMQP 0-9-1 basic properties quaybridge writes or reads. `priority` 0 … 255, `expiration` is only read."""

    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    content_type: str | None = CONTENT_TYPE
    content_encoding: str | None = None
    delivery_mode: int | None = PERSISTENT
    priority: int | None = None
    expiration: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


def request_properties(
    *,
    message_id: str | None,
    command: str | None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    deadline: int | None = None,
    attempt: int = 1,
    traceparent: str | None = None,
) -> Properties:
    """The envelope of a request. `deadline` in Unix milliseconds; `correlation_id` is the message id by default."""
    headers: dict[str, Any] = {PROTOCOL: PROTOCOL_VERSION}
    if deadline is not None:
        headers[DEADLINE] = deadline
    if attempt > 1:
        headers[ATTEMPT] = attempt
    if traceparent is not None:
        headers[TRACEPARENT] = traceparent
    return Properties(
        message_id=message_id,
        correlation_id=correlation_id or message_id,
        reply_to=reply_to,
        type=command,
        headers=headers,
    )


def reply_properties(
    *, correlation_id: str | None, code: Code | None, attempt: int, node: str, redelivered: bool
) -> Properties:
    """The envelope of a reply: `code` None is a result. Written by the node alone, so no bridge can forge one."""
    headers: dict[str, Any] = {PROTOCOL: PROTOCOL_VERSION, ATTEMPT: attempt, NODE: node}
    if redelivered:
        headers[REDELIVERED] = True
    return Properties(
        message_id=correlation_id,
        correlation_id=correlation_id,
        type=RESULT if code is None else code.value,
        headers=headers,
    )


def reply_to_problem(reply_to: str) -> str | None:
    """Why a reply may not be sent to `reply_to`, or None."""
    if _REPLY_TO.fullmatch(reply_to):
        return None
    return "reply_to must be a direct reply-to address, a server-named queue, or quaybridge.reply.<name>"


def message_id_problem(message_id: str | None) -> str | None:
    """Why `message_id` cannot name a request, or None. A request may have none."""
    if message_id is None or _MESSAGE_ID.fullmatch(message_id):
        return None
    return "message_id must be 1 … 128 printable ASCII characters without spaces"


def dead_letter_properties(
    request: Properties, *, code: Code, error: str, attempt: int, node: str, service: str, details: str, moment: str
) -> Properties:
    """The envelope of a dead letter: the request's own identity, and what became of it.

    `details` is JSON text, `moment` RFC 3339. Nothing is copied from the request but what is named here.
    """
    headers: dict[str, Any] = {
        PROTOCOL: PROTOCOL_VERSION,
        ATTEMPT: attempt,
        NODE: node,
        "service": service,
        "code": code.value,
        "error": error,
        "details": details,
        "time": moment,
    }
    return Properties(
        message_id=request.message_id,
        correlation_id=request.correlation_id,
        type=request.type,
        headers=headers,
    )
