"""Who may come in: whether a message from the request queue is a request a bridge should see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge_protocol import codec, messages
from bridge_protocol.claim_check import ClaimCheck, read_claim
from bridge_protocol.envelope import (
    ATTEMPT,
    CONTENT_TYPE,
    DEADLINE,
    PREFER,
    PROTOCOL,
    REPLAYS,
    SESSION,
    SESSION_EPOCH,
    SESSION_MODE,
    Properties,
    SessionClaim,
    epoch_problem,
    message_id_problem,
    read_history,
    reply_to_problem,
    session_id_problem,
)
from bridge_protocol.errors import Code, FrameError
from bridge_protocol.topology import partition_of
from worker_node.core.fate import Fault

# A deadline before 1973 in milliseconds is one that was given in seconds.
_LEAST_DEADLINE = 10**11
_MOST_DEADLINE = 10**14


# Message id, attempt, replays. A producer may use a message id twice: only with an equal body is it one request.
Identity = tuple[str, int, int]


@dataclass(slots=True, kw_only=True)  # not frozen, which would double what making one takes
class Admitted:
    """A request that may run: `deadline` in Unix milliseconds, `attempt` from 1 to the most there can be.

    `timestamp` is when its producer says it made it, empty if it does not. `session`: what it says of its own.
    `claim`: where its arguments are; what comes of them is to be judged once more. `binary`: there are bytes in them.
    """

    request_id: int
    command: str
    deadline: int | None
    attempt: int
    timestamp: str
    session: SessionClaim | None = None
    claim: ClaimCheck | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A message that never runs. `request_id` where it could be read: the failure is addressed by it."""

    fault: Fault
    request_id: int | None = None


def reply_address(properties: Properties) -> str | None:
    """Where replies to this message go; None: nowhere, or nowhere they may go."""
    if properties.reply_to is None or reply_to_problem(properties.reply_to):
        return None
    return properties.reply_to


def admit(
    body: bytes | bytearray, properties: Properties, *, limit: int, max_attempts: int, partition: int | None = None
) -> Admitted | Refused:
    """Judge one message by its body and its envelope; `limit` is the largest body in bytes.

    `partition`: of the session queue it came by; None: it came by the plain one.
    """
    if len(body) > limit:
        return Refused(
            fault=Fault(code=Code.TOO_LARGE, message=f"a request of {len(body):,} bytes, the limit is {limit:,}")
        )
    try:
        decoded = codec.survey(body)
        request = messages.read_request(decoded)
        claim = read_claim(decoded, "args")
    except FrameError as error:
        return _refused(str(error))
    problem = _body_problem(decoded, request) or _envelope_problem(request, properties)
    problem = problem or _session_problem(request, properties, partition)
    if problem is not None:
        return _refused(problem, request.id)
    headers = properties.headers
    return Admitted(
        request_id=request.id,
        command=request.command,
        deadline=headers.get(DEADLINE, request.deadline),
        attempt=attempt_of(headers, max_attempts),
        timestamp=request.timestamp,
        session=None if partition is None else _read_session(headers),
        claim=claim,
        binary=request.binary is not None,
    )


def _refused(problem: str, request_id: int | None = None) -> Refused:
    return Refused(fault=Fault(code=Code.BAD_REQUEST, message=problem), request_id=request_id)


def _body_problem(decoded: Mapping[str, Any], request: messages.Request) -> str | None:
    if request.id == messages.HANDSHAKE_ID:
        return "id 0 is the handshake's: a request's id is 1 … 2^53−1"
    if request.command in messages.RESERVED_COMMANDS:
        return f"the command {request.command!r} is the node's own: only it may send that to a bridge"
    if "attempt" in decoded:
        return "'attempt' in the body is written by the node alone"
    return None


def _envelope_problem(request: messages.Request, properties: Properties) -> str | None:
    headers = properties.headers
    if properties.content_type not in (None, CONTENT_TYPE):
        return f"content_type must be {CONTENT_TYPE}, not {properties.content_type!r:.80}"
    if properties.content_encoding not in (None, "", "utf-8", "identity"):
        return f"content_encoding {properties.content_encoding!r:.80} is not understood: send plain JSON"
    if properties.type is not None and properties.type != request.command:
        return f"the type property says {properties.type!r:.80}, the command is {request.command!r:.80}"
    if properties.reply_to is not None and (problem := reply_to_problem(properties.reply_to)):
        return problem
    message_id, correlation_id = properties.message_id, properties.correlation_id
    if problem := message_id_problem(message_id):
        return problem
    if correlation_id != message_id and (problem := message_id_problem(correlation_id)):
        return problem
    version = headers.get(PROTOCOL, messages.PROTOCOL_VERSION)
    if version != messages.PROTOCOL_VERSION or isinstance(version, bool):
        return f"protocol {_shown(version)} is not spoken here: this node speaks {messages.PROTOCOL_VERSION}"
    deadline = headers.get(DEADLINE, request.deadline)
    if deadline is not None or DEADLINE in headers:  # a header that cannot be read is None
        if not isinstance(deadline, int) or isinstance(deadline, bool):
            return f"the deadline must be Unix milliseconds, not {_shown(deadline)}"
        if not _LEAST_DEADLINE <= deadline <= _MOST_DEADLINE:
            return f"the deadline must be Unix milliseconds, and {deadline} is not a time of this age: seconds?"
    return None


def _session_problem(request: messages.Request, properties: Properties, partition: int | None) -> str | None:
    headers = properties.headers
    if SESSION in headers and request.args.get("session_id", headers[SESSION]) != headers[SESSION]:
        return "the session header and args.session_id disagree"
    if partition is None:
        if SESSION in headers:
            return "a request of a session goes to the queue of its session, and not to its service's"
        return None
    session = headers.get(SESSION)
    if not isinstance(session, str):
        return f"the session header must be a session's id, as text, not {_shown(session)}"
    if problem := session_id_problem(session):
        return problem
    if (right := partition_of(session)) != partition:
        return f"that session's requests go to partition {right}, and not to {partition}"
    if SESSION_EPOCH in headers:
        epoch = headers[SESSION_EPOCH]
        if not isinstance(epoch, str):
            return f"session-epoch must be text, not {_shown(epoch)}"
        if problem := epoch_problem(epoch):
            return problem
    if headers.get(SESSION_MODE, PREFER) != PREFER:
        return f"session-mode must be {PREFER!r}, or left out: a session is strict then"
    if properties.priority is not None:
        return "a request of a session has no priority: it would overtake its own kind"
    return None


def _read_session(headers: Mapping[str, Any]) -> SessionClaim:
    return SessionClaim(id=headers[SESSION], epoch=headers.get(SESSION_EPOCH), lenient=SESSION_MODE in headers)


def _shown(value: object) -> str:
    """A header's value for a message; of what may be large or deep, its type."""
    return f"{value!r:.40}" if isinstance(value, str | bytes | int | float | None) else type(value).__name__


def identity_of(properties: Properties, attempt: int) -> Identity | None:
    """What tells it from every other request, its own retries and replays included; None: nothing does."""
    message_id, headers = properties.message_id, properties.headers
    if message_id is None:
        return None
    return message_id, attempt, read_history(headers, None).replays if REPLAYS in headers else 0


def attempt_of(headers: Mapping[str, Any], most: int) -> int:
    """Which try this is. The header is written by nodes, but anyone can: nonsense counts as the last try."""
    attempt = headers.get(ATTEMPT, 1)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or attempt < 1:
        return most
    return min(attempt, most)
