"""What can go wrong, by code; and the exception that stands for each code.

The tree, one class a code:

    QuaybridgeError
    ├── FrameError                    bytes that are no frame, or no message
    ├── RequestFailed                 the request ended without success
    │   ├── BadRequest                bad_request
    │   ├── TooLarge                  too_large
    │   ├── DeadlineExceeded          deadline_exceeded
    │   ├── Cancelled                 cancelled
    │   ├── ApplicationError          application_error
    │   ├── BridgeCrashed             bridge_crashed
    │   ├── BridgeTimeout             bridge_timeout
    │   ├── ProtocolViolation         protocol_violation
    │   ├── BridgeUnavailable         bridge_unavailable
    │   ├── SessionLost               session_lost
    │   └── ReaderStalled             reader_stalled
    ├── PublishFailed                 the request never reached a queue
    │   ├── UnknownService            unknown_service
    │   ├── Refused                   refused
    │   ├── Blocked                   blocked
    │   └── BrokerUnavailable         broker_unavailable
    ├── OutcomeUnknown                outcome_unknown: it may have run, or may still run
    ├── BadResult                     the request succeeded, and its result is not what its Api says
    └── StreamError                   the chunks that came do not make one stream
        ├── StreamGap                 some are missing
        └── StreamRestarted           another run began when some had been handed out
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar


class Code(StrEnum):
    """Every way a request can end without success. The value is what travels on the wire."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    UNKNOWN_SERVICE = "unknown_service"
    REFUSED = "refused"
    BLOCKED = "blocked"
    BROKER_UNAVAILABLE = "broker_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    APPLICATION_ERROR = "application_error"
    BRIDGE_CRASHED = "bridge_crashed"
    BRIDGE_TIMEOUT = "bridge_timeout"
    PROTOCOL_VIOLATION = "protocol_violation"
    BRIDGE_UNAVAILABLE = "bridge_unavailable"
    SESSION_LOST = "session_lost"
    READER_STALLED = "reader_stalled"
    OUTCOME_UNKNOWN = "outcome_unknown"


class QuaybridgeError(Exception):
    """Root of everything quaybridge raises on purpose."""


class FrameKind(StrEnum):
    """What is wrong with bytes that should have been frames holding messages."""

    TRUNCATED_HEADER = "truncated_header"
    TRUNCATED_BODY = "truncated_body"
    EMPTY_FRAME = "empty_frame"
    FRAME_TOO_LARGE = "frame_too_large"
    BAD_START = "bad_start"
    BAD_UTF8 = "bad_utf8"
    BAD_JSON = "bad_json"
    TOO_DEEP = "too_deep"
    BAD_ENVELOPE = "bad_envelope"


class FrameError(QuaybridgeError):
    """Raised when bytes are not a frame, or a frame's payload is not a message.

    `kind` says which rule was broken, `preview` holds the first bytes of the offence (at most 64).
    """

    def __init__(self, kind: FrameKind, detail: str, preview: bytes = b"") -> None:
        preview = preview[:64]
        super().__init__(kind, detail, preview)
        self.kind = kind
        self.detail = detail
        self.preview = preview

    def __str__(self) -> str:
        quoted = f": {escape(self.preview)}" if self.preview else ""
        return f"{self.kind}: {self.detail}{quoted}"


class CodedError(QuaybridgeError):
    """A failure with a code. Raised only as one of its subclasses, one for each code.

    `message_id` names the request, `attempt` the try that failed (0: not known), `node` the node that
    reported it, `details` what else the reply said (exit code, signal, stderr, a bridge's own details). `position`:
    which of a map's arguments it is about, from 0, where they end in any order.
    """

    code: ClassVar[Code]
    position: int | None = None

    def __init__(
        self,
        message: str,
        *,
        message_id: str | None = None,
        attempt: int = 0,
        node: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.message_id = message_id
        self.attempt = attempt
        self.node = node
        self.details: Mapping[str, Any] = details or {}


class RequestFailed(CodedError):
    """Raised when a request ended without success: the codes a reply can carry.

    `session_epoch`: of the session that it ran in, or that it asked for.
    """

    session_epoch: str | None = None


class PublishFailed(CodedError):
    """Raised when a request never reached a queue: nothing ran, and nothing will."""


class BadRequest(RequestFailed):
    """Raised when a request breaks the rules: undecodable, wrong types, reserved command, bad header."""

    code = Code.BAD_REQUEST


class TooLarge(RequestFailed):
    """Raised when a request or its reply is over the size limit."""

    code = Code.TOO_LARGE


class DeadlineExceeded(RequestFailed):
    """Raised when the deadline passed before the work started, or while it ran."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(RequestFailed):
    """Raised when the producer cancelled the request."""

    code = Code.CANCELLED


class ApplicationError(RequestFailed):
    """Raised when the bridge itself answered `success: false`; `details` holds its type and traceback."""

    code = Code.APPLICATION_ERROR


class BridgeCrashed(RequestFailed):
    """Raised when the bridge process ended in mid-request; `details` holds exit code or signal."""

    code = Code.BRIDGE_CRASHED


class BridgeTimeout(RequestFailed):
    """Raised when the bridge gave no reply within the run timeout and was killed."""

    code = Code.BRIDGE_TIMEOUT


class ProtocolViolation(RequestFailed):
    """Raised when the bridge wrote bytes that are no frame, or a reply nobody asked for."""

    code = Code.PROTOCOL_VIOLATION


class BridgeUnavailable(RequestFailed):
    """Raised when the pool cannot start bridges."""

    code = Code.BRIDGE_UNAVAILABLE


class SessionLost(RequestFailed):
    """Raised when the session's live bridge is gone; `details` says why."""

    code = Code.SESSION_LOST


class ReaderStalled(RequestFailed):
    """Raised when the consumer of a stream gave no credit in time and the work was cancelled."""

    code = Code.READER_STALLED


class UnknownService(PublishFailed):
    """Raised when no queue exists for the service: no node that serves it was ever started here."""

    code = Code.UNKNOWN_SERVICE


class Refused(PublishFailed):
    """Raised when the broker refused the message (a full queue)."""

    code = Code.REFUSED


class Blocked(PublishFailed):
    """Raised when a memory or disk alarm at the broker outlasted the timeout; nothing was sent."""

    code = Code.BLOCKED


class BrokerUnavailable(PublishFailed):
    """Raised when there was no connection to a broker in time; nothing was sent."""

    code = Code.BROKER_UNAVAILABLE


class OutcomeUnknown(CodedError):
    """Raised when the connection was lost after sending: the request may have run, or may still run."""

    code = Code.OUTCOME_UNKNOWN


class BadResult(QuaybridgeError):
    """Raised when a result, or a chunk, is not what the Api says that the caller has bound.

    Not a failure of the request, which has run. `message_id` names it, where it is known.
    """

    def __init__(self, message: str, *, message_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.message_id = message_id


class StreamError(QuaybridgeError):
    """Raised when the chunks that came do not make one stream, as one of its subclasses.

    Not a failure of the request, which it may outlive. `message_id` names that.
    """

    def __init__(self, message: str, *, message_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.message_id = message_id


class StreamGap(StreamError):
    """Raised when chunks of a stream are missing: a connection was lost, or the broker dropped them."""


class StreamRestarted(StreamError):
    """Raised when a request that streams is tried again, and chunks of the run before were handed out already."""


_BY_CODE: dict[Code, type[CodedError]] = {
    cls.code: cls
    for cls in (
        BadRequest,
        TooLarge,
        UnknownService,
        Refused,
        Blocked,
        BrokerUnavailable,
        DeadlineExceeded,
        Cancelled,
        ApplicationError,
        BridgeCrashed,
        BridgeTimeout,
        ProtocolViolation,
        BridgeUnavailable,
        SessionLost,
        ReaderStalled,
        OutcomeUnknown,
    )
}


def exception_for(code: Code) -> type[CodedError]:
    """The exception class that stands for `code`."""
    return _BY_CODE[code]


def escape(data: bytes, limit: int = 64) -> str:
    """The first `limit` bytes of `data` as printable ASCII in quotes, safe for a terminal and a log."""
    text = data[:limit].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f'"{text}"' + ("…" if len(data) > limit else "")
