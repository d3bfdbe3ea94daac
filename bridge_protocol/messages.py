"""Messages: what is said in frames between a node and a bridge. One encoder and one decoder, for everyone.

    node → bridge   Request       {"id", "command", "args", "timestamp"}
    bridge → node   Result        {"id", "success": true, "result", "timestamp"}
                    Failure       {"id", "success": false, "error", "error_info"?, "timestamp"}
                    Progress      {"id", "event": "progress", "data"}
                    Chunk         {"id", "event": "chunk", "seq", "data"}

Unknown fields are ignored, both ways. Timestamps of bridges are not looked at: some send numbers, some nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from bridge_protocol import codec
from bridge_protocol.binary import BINARY, TAKES_BINARY, encode_declared, restore_args
from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.fields import is_integer, is_number, wrong

PROTOCOL_VERSION = 1
HANDSHAKE_ID = 0
# JavaScript bridges lose integers above 2^53.
MAX_ID = 2**53 - 1
MAX_COMMAND_BYTES = 255

PING = "ping"
CANCEL = "cancel"
SHUTDOWN = "shutdown"
# Tells a bridge that a session, args.session_id, is over: as DSPex has it. A producer may send it too.
CLEANUP_SESSION = "cleanup_session"
# The type of a failure that gives an unbegun request back: the answer to a cancel with `"unbegun": true`.
GIVEN_BACK = "given_back"
# Only the node sends these, and only to bridges that claim them.
RESERVED_COMMANDS = frozenset({CANCEL, SHUTDOWN})


@dataclass(slots=True, kw_only=True)  # not frozen, which would double what making one takes
class Request:
    """One request. `id` 1 … 2^53−1 (0 is the handshake's), `deadline` in Unix milliseconds, `attempt` from 1.

    `binary`: the key of the objects in `args` that stand for bytes, where a message was read or is to be written so;
    None: there are none, but what `args` holds of bytes when it is encoded. `takes_binary`: there may be some in the
    result and in chunks.
    """

    id: int
    command: str
    args: Mapping[str, Any]
    timestamp: str = ""
    deadline: int | None = None
    traceparent: str | None = None
    attempt: int = 1
    binary: str | None = None
    takes_binary: bool = False

    def arguments(self) -> Mapping[str, Any]:
        """`args`, with bytes in the place of what stands for them. Raises FrameError, which says where."""
        return self.args if self.binary is None else restore_args(dict(self.args), self.binary)


@dataclass(slots=True, kw_only=True)  # not frozen, which would double what making one takes
class Result:
    """A final reply with success. `recycle`: the bridge asks to be replaced after it.

    `binary`: the key of the objects in `result` that stand for bytes.
    """

    id: int
    result: Any
    recycle: bool = False
    binary: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """What a bridge says of its own failure. `retry_after` in seconds.

    `bad_request`: it is the request that is wrong; nothing was run.
    """

    type: str = ""
    message: str = ""
    traceback: str | None = None
    retryable: bool = False
    retry_after: float | None = None
    bad_request: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A final reply without success. `id` None: the bridge could not read the frame it was sent."""

    id: int | None
    error: str
    info: ErrorInfo | None = None
    recycle: bool = False

    @property
    def given_back(self) -> bool:
        """Whether the bridge gives back a request that it had not begun."""
        return self.info is not None and self.info.type == GIVEN_BACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running request is; `data` is the bridge's own."""

    id: int
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of a streamed result; `seq` counts from 0. `binary`: the key of what stands for bytes in `data`."""

    id: int
    seq: int
    data: Any
    binary: str | None = None


def format_timestamp(seconds: float) -> str:
    """`seconds` since 1970 as RFC 3339 text, to the millisecond, in UTC."""
    return _to_the_millisecond(int(seconds * 1000))


@lru_cache(maxsize=4)
def _to_the_millisecond(moment: int) -> str:
    whole, milliseconds = divmod(moment, 1000)
    return f"{_to_the_second(whole)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def encode_request(request: Request) -> bytes:
    """The payload of a request. Raises ValueError if its args cannot be encoded or its parts break the rules.

    Bytes in its args are encoded too, unless it has a `binary` already.
    """
    if not HANDSHAKE_ID <= request.id <= MAX_ID:
        raise ValueError(f"a request's id must be 1 … 2^53−1, not {request.id}")
    if problem := command_problem(request.command):
        raise ValueError(problem)
    if request.deadline is not None and request.deadline < 0:
        raise ValueError(f"a deadline is Unix milliseconds, not {request.deadline}")
    if request.attempt < 1:
        raise ValueError(f"attempts are counted from 1, not {request.attempt}")
    body: dict[str, Any] = {"id": request.id, "command": request.command, "args": request.args}
    if request.timestamp:
        body["timestamp"] = request.timestamp
    if request.deadline is not None:
        body["deadline"] = request.deadline
    if request.traceparent is not None:
        body["traceparent"] = request.traceparent
    if request.attempt > 1:
        body["attempt"] = request.attempt
    if request.takes_binary:
        body[TAKES_BINARY] = True
    if request.binary is None:
        return _encode(body, binary=True)
    return codec.encode({**body, BINARY: request.binary})


def with_attempt(payload: bytes | bytearray, attempt: int) -> bytes:
    """`payload`, the body of a request without an attempt, with `attempt` put into it; the rest byte for byte."""
    return b'{"attempt":%d,%s' % (attempt, payload[1:])


def with_deadline(payload: bytes, deadline: int | None) -> bytes:
    """`payload`, the body of a request, with `deadline` (None: no deadline) in place of the one it has.

    As it is, byte for byte, if it has none or is no JSON object; else encoded anew.
    """
    try:
        body = codec.decode(payload)
    except FrameError:
        return payload
    if body.pop("deadline", None) is None:
        return payload
    return codec.encode(body if deadline is None else {**body, "deadline": deadline})


def decode_request(payload: bytes | bytearray) -> Request:
    """The request in `payload`. Raises FrameError."""
    return read_request(codec.decode(payload))


def read_request(body: dict[str, Any]) -> Request:
    """The request that a decoded `body` holds. Raises FrameError."""
    args = body.get("args", {})
    if args is None:
        args = {}
    if not isinstance(args, dict):
        raise wrong("args", "an object", args)
    command = body.get("command")
    if not isinstance(command, str):
        raise wrong("command", "text", command)
    if problem := command_problem(command):
        raise FrameError(FrameKind.BAD_ENVELOPE, problem)
    deadline = body.get("deadline")
    if deadline is not None and (not is_integer(deadline) or deadline < 0):
        raise wrong("deadline", "Unix milliseconds", deadline)
    attempt = body.get("attempt", 1)
    if not is_integer(attempt) or attempt < 1:
        raise wrong("attempt", "an integer from 1", attempt)
    timestamp = body.get("timestamp")
    traceparent = body.get("traceparent")
    if traceparent is not None and not isinstance(traceparent, str):
        raise wrong("traceparent", "text", traceparent)
    binary = body.get(BINARY)
    if binary is not None and not isinstance(binary, str):
        raise wrong(BINARY, "text", binary)
    return Request(
        id=_id(body),
        command=command,
        args=args,
        timestamp=timestamp if isinstance(timestamp, str) else "",
        deadline=deadline,
        traceparent=traceparent,
        attempt=attempt,
        binary=binary,
        takes_binary=body.get(TAKES_BINARY) is True,
    )


def encode_result(id: int, result: Any, *, timestamp: str = "", recycle: bool = False, binary: bool = False) -> bytes:
    """The payload of a final reply with success. Raises ValueError if `result` cannot be encoded.

    `binary`: whoever asked takes bytes in it.
    """
    body: dict[str, Any] = {"id": id, "success": True, "result": result}
    if recycle:
        body["recycle"] = True
    if timestamp:
        body["timestamp"] = timestamp
    return _encode(body, binary=binary)


def encode_failure(
    id: int | None, error: str, *, info: ErrorInfo | None = None, timestamp: str = "", recycle: bool = False
) -> bytes:
    """The payload of a final reply without success."""
    body: dict[str, Any] = {"id": id, "success": False, "error": error}
    if info is not None:
        said: dict[str, Any] = {"type": info.type, "message": info.message or error}
        if info.traceback is not None:
            said["traceback"] = info.traceback
        if info.retryable:
            said["retryable"] = True
        if info.retry_after is not None:
            said["retry_after"] = info.retry_after
        if info.bad_request:
            said["bad_request"] = True
        if info.details:
            said["details"] = info.details
        body["error_info"] = said
    if recycle:
        body["recycle"] = True
    if timestamp:
        body["timestamp"] = timestamp
    return codec.encode(body)


def encode_progress(id: int, data: Any) -> bytes:
    """The payload of a progress event."""
    return codec.encode({"id": id, "event": "progress", "data": data})


def encode_chunk(id: int, seq: int, data: Any, *, binary: bool = False) -> bytes:
    """The payload of a chunk event. `binary` as for a result."""
    return _encode({"id": id, "event": "chunk", "seq": seq, "data": data}, binary=binary)


def decode_message(payload: bytes | bytearray) -> Result | Failure | Progress | Chunk:
    """What a bridge said in `payload`. Raises FrameError."""
    return _read_message(codec.decode(payload))


def survey_message(payload: bytes | bytearray) -> Result | Failure | Progress | Chunk:
    """What a bridge said, for whoever passes it on as it is: long texts in a result, or an event, may be empty.

    Raises FrameError for whatever `decode_message` does.
    """
    body = codec.survey(payload)
    return _read_message(codec.decode(payload) if body.get("success") is False else body)


def _read_message(body: dict[str, Any]) -> Result | Failure | Progress | Chunk:
    success = body.get("success")
    if success is True:
        recycle = body.get("recycle") is True
        return Result(id=_id(body), result=body.get("result"), recycle=recycle, binary=_binary(body))
    if success is False:
        error = body.get("error")
        if not isinstance(error, str):
            raise wrong("error", "text", error)
        return Failure(
            id=None if body.get("id", 0) is None else _id(body),
            error=error,
            info=_error_info(body.get("error_info")),
            recycle=body.get("recycle") is True,
        )
    if success is not None:
        raise wrong("success", "true or false", success)
    event = body.get("event")
    if event == "progress":
        return Progress(id=_id(body), data=body.get("data"))
    if event == "chunk":
        seq = body.get("seq")
        if not is_integer(seq) or seq < 0:
            raise wrong("seq", "an integer from 0", seq)
        return Chunk(id=_id(body), seq=seq, data=body.get("data"), binary=_binary(body))
    raise FrameError(FrameKind.BAD_ENVELOPE, "a message needs 'success' or a known 'event'")


def without_binary(payload: bytes | bytearray) -> bytes:
    """`payload` without a `binary`, which is nothing but a field of its own where its bridge does not claim that."""
    body = codec.decode(payload)
    body.pop(BINARY, None)
    return codec.encode(body)


@lru_cache(maxsize=1024)
def command_problem(command: str) -> str | None:
    """Why `command` cannot be a command's name, or None. It travels in a short string of at most 255 bytes."""
    if not command:
        return "a command cannot be empty"
    if not command.isprintable():
        return "a command cannot hold control characters"
    if len(command.encode()) > MAX_COMMAND_BYTES:
        return f"a command has at most {MAX_COMMAND_BYTES} bytes"
    return None


def _encode(body: dict[str, Any], *, binary: bool) -> bytes:
    """`body` as JSON. `binary`: whoever reads it takes bytes; it says then how they are held."""
    try:
        return codec.encode(body)  # as nearly all are: without a hook, which costs more than the rest
    except ValueError:
        payload = encode_declared(body)
    if not binary:
        raise ValueError("not JSON: it holds bytes, and whoever asked does not say that they are taken")
    return payload


def _binary(body: dict[str, Any]) -> str | None:
    key = body.get(BINARY)
    return key if isinstance(key, str) else None


def _error_info(value: Any) -> ErrorInfo | None:
    """What `error_info` says, as far as its fields have the right types."""
    if not isinstance(value, dict):
        return None

    def text(key: str) -> str | None:
        found = value.get(key)
        return found if isinstance(found, str) else None

    retry_after = value.get("retry_after")
    details = value.get("details")
    return ErrorInfo(
        type=text("type") or "",
        message=text("message") or "",
        traceback=text("traceback"),
        retryable=value.get("retryable") is True,
        retry_after=float(retry_after) if is_number(retry_after) and retry_after >= 0 else None,
        bad_request=value.get("bad_request") is True,
        details=details if isinstance(details, dict) else {},
    )


def _id(body: dict[str, Any]) -> int:
    value = body.get("id")
    if not is_integer(value) or not HANDSHAKE_ID <= value <= MAX_ID:
        raise wrong("id", "an integer from 0 to 2^53−1", value)
    return value
