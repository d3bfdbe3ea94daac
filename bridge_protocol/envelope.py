"""The envelope: the AMQP properties and headers around a request or a reply.

The body of a message is the frame's payload, byte for byte; everything a node needs for routing a message is
out here. Only the properties and headers named on this page are ever written: what a peer sends beyond them
is not copied to a reply, a retry or a dead letter (`CC` and `BCC` would route).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeGuard

from bridge_protocol.claim_check import CLAIM
from bridge_protocol.errors import Code
from bridge_protocol.fields import is_integer
from bridge_protocol.messages import PROTOCOL_VERSION

CONTENT_TYPE = "application/json"
FRAMES = "application/octet-stream"  # frames, one after the other
PERSISTENT = 2
RESULT = "result"
# The types of what a running request says before its reply: see docs/wire.md, 2.10.
CHUNKS = "chunks"
PROGRESS = "progress"
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

PROTOCOL = "protocol"
DEADLINE = "deadline"
SESSION = "session"
SESSION_EPOCH = "session-epoch"
SESSION_MODE = "session-mode"
PREFER = "prefer"  # a session-mode; without one a session is strict
FRESH = "fresh"
ATTEMPT = "attempt"
TRACEPARENT = "traceparent"
FIRST_FAILED = "first-failed"
REPLAYS = "replays"
NODE = "node"
REDELIVERED = "redelivered"
CANCEL_ON_DISCONNECT = "cancel-on-disconnect"
CLAIMS = "claims"  # of a request: whoever made it can fetch a reply's payload from the store
# Of a request: that its chunks, its progress are wanted. Of what is said of its run: the run, by an id of its own.
WANTS_CHUNKS = "stream"
WANTS_PROGRESS = "progress"
RUN = "run"
SEQ = "seq"  # of the first chunk in a message
CONTROL_QUEUE = "control-queue"  # where the reader's credit goes
CHUNK_COUNT = "chunks"  # how many chunks the run had, in its reply
MAX_SESSION_BYTES = 256

# Where a reply may be sent: an address the broker made for one client, or a queue named for replies.
# Anything else would let a requester write, with the node's rights, to a queue of somebody else.
_REPLY_TO = re.compile(
    r"amq\.rabbitmq\.reply-to\.[!-~]{1,230}|amq\.gen-[!-~]{1,230}|quaybridge\.reply\.[A-Za-z0-9_.-]{1,200}"
)
_MESSAGE_ID = re.compile(r"[!-~]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EPOCH = re.compile(r"[!-~]{1,256}")
_TRACEPARENT = re.compile(r"[!-~]{1,128}")  # W3C's has 55
# A moment before 1973 in milliseconds is one that was given in seconds.
_LEAST_MOMENT, _MOST_MOMENT = 10**11, 10**14
_MOST_REPLAYS = 1_000_000


@dataclass(slots=True, kw_only=True)  # not frozen, which would double what making one takes
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


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What became of a request so far: when it first failed, in Unix milliseconds, and how often it was replayed."""

    first_failed: int | None = None
    replays: int = 0


NO_HISTORY = History()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClaim:
    """What a request says of its session. `epoch`: of the live bridge it means; None: any, or a new one.

    `lenient` (the session-mode `prefer`): if that is gone, any will do.
    """

    id: str
    epoch: str | None = None
    lenient: bool = False


def request_properties(
    *,
    message_id: str | None,
    command: str | None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    deadline: int | None = None,
    attempt: int = 1,
    traceparent: str | None = None,
    history: History = NO_HISTORY,
    cancel_on_disconnect: bool = False,
    session: SessionClaim | None = None,
    claims: bool = False,
    priority: int | None = None,
    chunks: bool = False,
    progress: bool = False,
) -> Properties:
    """The envelope of a request. `deadline` in Unix milliseconds; `correlation_id` is the message id by default.

    `cancel_on_disconnect`: it is cancelled once nobody is left at its reply address. `claims`: its reply may hold a
    claim check in the place of its result. `chunks`, `progress`: they are wanted there, too.
    """
    headers: dict[str, Any] = {PROTOCOL: PROTOCOL_VERSION}
    if deadline is not None:
        headers[DEADLINE] = deadline
    if attempt > 1:
        headers[ATTEMPT] = attempt
    if traceparent is not None:
        headers[TRACEPARENT] = traceparent
    if history.first_failed is not None:
        headers[FIRST_FAILED] = history.first_failed
    if history.replays:
        headers[REPLAYS] = history.replays
    if cancel_on_disconnect:
        headers[CANCEL_ON_DISCONNECT] = True
    if claims:
        headers[CLAIMS] = True
    if session is not None:
        headers |= session_headers(session)
    if chunks:
        headers[WANTS_CHUNKS] = True
    if progress:
        headers[WANTS_PROGRESS] = True
    return Properties(
        message_id=message_id,
        correlation_id=correlation_id or message_id,
        reply_to=reply_to,
        type=command,
        priority=priority,
        headers=headers,
    )


def reply_properties(
    *,
    correlation_id: str | None,
    code: Code | None,
    attempt: int,
    node: str,
    redelivered: bool,
    epoch: str | None = None,
    fresh: bool = False,
    claim: bool = False,
    run: str | None = None,
    chunks: int = 0,
) -> Properties:
    """The envelope of a reply: `code` None is a result. Written by the node alone, so no bridge can forge one.

    `epoch`: of the session that it ran in; `fresh`: that was not the one it asked for. `claim`: its body holds a claim
    check in the place of its result. `run`: of a request whose chunks are wanted; it had so many `chunks`.
    """
    headers: dict[str, Any] = {PROTOCOL: PROTOCOL_VERSION, ATTEMPT: attempt, NODE: node}
    if redelivered:
        headers[REDELIVERED] = True
    if epoch is not None:
        headers[SESSION_EPOCH] = epoch
    if fresh:
        headers[FRESH] = True
    if claim:
        headers[CLAIM] = True
    if run is not None:
        headers[RUN] = run
        headers[CHUNK_COUNT] = chunks
    return Properties(
        message_id=correlation_id,
        correlation_id=correlation_id,
        type=RESULT if code is None else code.value,
        headers=headers,
    )


def event_properties(
    *,
    kind: str,
    correlation_id: str | None,
    attempt: int,
    node: str,
    run: str,
    number: int,
    seq: int | None = None,
    control_queue: str | None = None,
) -> Properties:
    """The envelope of `CHUNKS` or `PROGRESS` of a request that runs. `number`: of the message, among those of the run.

    `seq` of the first chunk in it. `control_queue`: where credit goes from now on.
    """
    headers: dict[str, Any] = {PROTOCOL: PROTOCOL_VERSION, ATTEMPT: attempt, NODE: node, RUN: run}
    if seq is not None:
        headers[SEQ] = seq
    if control_queue is not None:
        headers[CONTROL_QUEUE] = control_queue
    return Properties(
        # Not the request's, so that one that is returned is told from all others.
        message_id=f"{run}.{number}",
        correlation_id=correlation_id,
        type=kind,
        content_type=FRAMES if kind == CHUNKS else CONTENT_TYPE,
        delivery_mode=1,
        headers=headers,
    )


@lru_cache(maxsize=1024)
def reply_to_problem(reply_to: str) -> str | None:
    """Why a reply may not be sent to `reply_to`, or None."""
    if _REPLY_TO.fullmatch(reply_to):
        return None
    return "reply_to must be a direct reply-to address, a server-named queue, or quaybridge.reply.<name>"


def session_id_problem(session: str) -> str | None:
    """Why `session` cannot name a session, or None."""
    try:
        size = len(session.encode())
    except UnicodeEncodeError:
        return "a session's id must be text that UTF-8 can carry"
    if not 1 <= size <= MAX_SESSION_BYTES:
        return f"a session's id must have 1 … {MAX_SESSION_BYTES} bytes, not {size}"
    if _CONTROL.search(session):
        return "a session's id cannot hold control characters"
    return None


def epoch_problem(epoch: str) -> str | None:
    """Why `epoch` cannot be one, or None."""
    return None if _EPOCH.fullmatch(epoch) else "session-epoch must be what a reply said it is"


def read_session(headers: Mapping[str, Any]) -> SessionClaim | None:
    """What a request's headers say of its session; None if they name none that could be."""
    session, epoch = headers.get(SESSION), headers.get(SESSION_EPOCH)
    if not isinstance(session, str) or session_id_problem(session):
        return None
    known = isinstance(epoch, str) and not epoch_problem(epoch)
    return SessionClaim(id=session, epoch=epoch if known else None, lenient=headers.get(SESSION_MODE) == PREFER)


def session_headers(claim: SessionClaim) -> dict[str, Any]:
    """The headers that say it."""
    headers: dict[str, Any] = {SESSION: claim.id}
    if claim.epoch is not None:
        headers[SESSION_EPOCH] = claim.epoch
    if claim.lenient:
        headers[SESSION_MODE] = PREFER
    return headers


def epoch_node(epoch: str) -> str:
    """The node whose epoch that is; empty if it names none."""
    return epoch.partition("@")[2]


def message_id_problem(message_id: str | None) -> str | None:
    """Why `message_id` cannot name a request, or None. A request may have none."""
    if message_id is None or _MESSAGE_ID.fullmatch(message_id):
        return None
    return "message_id must be 1 … 128 printable ASCII characters without spaces"


def read_history(headers: Mapping[str, Any], now: int | None) -> History:
    """The history in a request's headers. Nodes write it, but anyone can: what makes no sense counts as none.

    `now` in Unix milliseconds: nothing has failed later than that.
    """
    first_failed, replays = headers.get(FIRST_FAILED), headers.get(REPLAYS)
    return History(
        first_failed=first_failed if _is_moment(first_failed, now) else None,
        replays=min(replays, _MOST_REPLAYS) if is_integer(replays) and replays > 0 else 0,
    )


def read_traceparent(headers: Mapping[str, Any]) -> str | None:
    """The traceparent in a message's headers; None if it has none that could be sent on."""
    traceparent = headers.get(TRACEPARENT)
    return traceparent if isinstance(traceparent, str) and _TRACEPARENT.fullmatch(traceparent) else None


def _is_moment(value: object, now: int | None) -> TypeGuard[int]:
    return is_integer(value) and _LEAST_MOMENT <= value <= (_MOST_MOMENT if now is None else now)
