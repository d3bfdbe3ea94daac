"""A dead letter: a request that ended without success, kept with the reason. Nodes write them, people read them.

The body is the request's, byte for byte. The properties hold what is needed to send it again, the headers what
became of it. Not every letter is a node's: a request that was handed back too often (it ended its node, each time)
is put there by the broker itself, with the request's own properties and the broker's account of it. Of such a
letter only that account is believed: anything else in its headers may be its publisher's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from bridge_protocol import codec
from bridge_protocol.envelope import (
    ATTEMPT,
    DEADLINE,
    NODE,
    PROTOCOL,
    REPLAYS,
    TRACEPARENT,
    History,
    Properties,
    SessionClaim,
    message_id_problem,
    read_history,
    read_session,
    read_traceparent,
    reply_to_problem,
    request_properties,
    session_headers,
)
from bridge_protocol.errors import Code, FrameError
from bridge_protocol.messages import PROTOCOL_VERSION, command_problem, format_timestamp
from bridge_protocol.topology import REPLY_PREFIX, partition_of, session_key

LONGEST_ERROR = 2048  # characters
LONGEST_DETAILS = 16 * 1024  # bytes of JSON; all headers together have 32 KiB
UNKNOWN = "unknown"  # the code of a letter that says nothing about itself

SERVICE = "service"
CODE = "code"
ERROR = "error"
DETAILS = "details"
SLOT = "slot"
TIME = "time"
FIRST_TIME = "first-time"
PRIORITY = "priority"

# Why a broker dead-letters (rabbitmq.com/docs/dlx), which such a letter has as its code.
BROKER_REASONS: Mapping[str, str] = {
    "delivery_limit": "the broker gave it up: it came back unsettled too often, as what ends its node each time does",
    "rejected": "a node left it to the broker: it could not be published again as it is",
    "expired": "it had an expiration of its own, which passed before a node took it",
    "maxlen": "the queue was full",
}
# What the broker writes of it, what tells best first: 3.10 has no x-last-death, the embedded broker no x-death.
_LAST_DEATH, _DEATHS, _FIRST_DEATH = "x-last-death-reason", "x-death", "x-first-death-reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One dead letter. Times in seconds since 1970, `deadline` in Unix milliseconds; None: not known, or none.

    `code` is a Code, or (`by_broker`) one of BROKER_REASONS. `reply_to` is an address that outlives its requester,
    or None. `slot`, and `exit_code` or `signal` in `details`, tell of the bridge that failed.
    """

    body: bytes
    service: str
    code: str
    error: str
    by_broker: bool = False
    message_id: str | None = None
    correlation_id: str | None = None
    command: str | None = None
    reply_to: str | None = None
    attempt: int = 1
    node: str | None = None
    slot: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    first_time: float | None = None
    time: float | None = None
    replays: int = 0
    deadline: int | None = None
    priority: int | None = None
    traceparent: str | None = None
    session: SessionClaim | None = None

    @property
    def id(self) -> str:
        """What it is called by: its message id, or where it has none a part of its body's checksum."""
        return self.message_id or f"sha256:{hashlib.sha256(self.body).hexdigest()[:16]}"

    def properties(self) -> Properties:
        """Its envelope. What would not fit is cut: the error's end, the oldest lines of stderr, other details."""
        headers: dict[str, Any] = {
            PROTOCOL: PROTOCOL_VERSION,
            ATTEMPT: self.attempt,
            NODE: self.node,
            SERVICE: self.service,
            CODE: str(self.code),
            ERROR: self.error[:LONGEST_ERROR],
            DETAILS: _fitting(self.details).decode(),
            SLOT: self.slot,
            FIRST_TIME: _formatted(self.first_time),
            TIME: _formatted(self.time),
            REPLAYS: self.replays or None,
            DEADLINE: self.deadline,
            # Not the property: a letter of high priority would pass those that were there before it.
            PRIORITY: self.priority,
            TRACEPARENT: self.traceparent,
            **({} if self.session is None else session_headers(self.session)),
        }
        return Properties(
            message_id=self.message_id,
            correlation_id=self.correlation_id,
            reply_to=self.reply_to,
            type=self.command,
            headers={name: value for name, value in headers.items() if value is not None},
        )

    def replay_properties(self, *, deadline: int | None) -> Properties:
        """The envelope with which the request is sent again: the same request, and its first attempt.

        One of a session asks for the epoch it asked for, so that it never runs without the state it was meant for.
        """
        first_failed = None if self.first_time is None else int(self.first_time * 1000)
        properties = request_properties(
            message_id=self.message_id,
            correlation_id=self.correlation_id,
            command=self.command,
            reply_to=self.reply_to,
            deadline=deadline,
            traceparent=self.traceparent,
            history=History(first_failed=first_failed, replays=self.replays + 1),
            session=self.session,
        )
        return properties if self.session is not None else replace(properties, priority=self.priority)

    @property
    def routing_key(self) -> str:
        """Where it is sent again: to its service, or to the queue of its session."""
        if self.session is None:
            return self.service
        return session_key(self.service, partition_of(self.session.id))


def dead_letter(
    request: Properties,
    body: bytes | bytearray,
    *,
    service: str,
    code: Code,
    error: str,
    attempt: int,
    node: str,
    slot: int | None,
    details: Mapping[str, Any],
    now: float,
) -> DeadLetter:
    """What a node makes of a request that failed for good. `now` in seconds since 1970.

    Of the request's properties only what is named in DeadLetter is taken, and only what could be sent on.
    """
    history = read_history(request.headers, int(now * 1000))
    return DeadLetter(
        body=bytes(body),
        service=service,
        code=code.value,
        error=error,
        attempt=attempt,
        node=node,
        slot=slot,
        details=details,
        first_time=now if history.first_failed is None else history.first_failed / 1000,
        time=now,
        replays=history.replays,
        **_identity(request),
        priority=request.priority,
    )


def read_dead_letter(properties: Properties, body: bytes | bytearray, *, service: str) -> DeadLetter:
    """The letter in a message of `service`'s dead letters, whoever put it there. Never raises."""
    headers = properties.headers
    identity = _identity(properties)
    reason, died = _last_death(headers)
    if reason is not None:
        history = read_history(headers, None if died is None else int(died * 1000))
        return DeadLetter(
            body=bytes(body),
            service=service,
            code=reason,
            error=BROKER_REASONS.get(reason, f"the broker dead-lettered it: {reason}"),
            by_broker=True,
            attempt=_integer(headers.get(ATTEMPT), 1) or 1,
            first_time=died if history.first_failed is None else history.first_failed / 1000,
            time=died,
            replays=history.replays,
            priority=properties.priority,
            **identity,
        )
    return DeadLetter(
        body=bytes(body),
        service=service,
        code=_text(headers.get(CODE)) or UNKNOWN,
        error=_text(headers.get(ERROR)) or "",
        attempt=_integer(headers.get(ATTEMPT), 1) or 1,
        node=_text(headers.get(NODE)),
        slot=_integer(headers.get(SLOT), 0),
        details=_read_details(headers.get(DETAILS)),
        first_time=_read_time(headers.get(FIRST_TIME)),
        time=_read_time(headers.get(TIME)),
        replays=_integer(headers.get(REPLAYS), 0) or 0,
        priority=_integer(headers.get(PRIORITY), 0, 255),
        **identity,
    )


def _identity(properties: Properties) -> dict[str, Any]:
    """What a request is known by, and what belongs to it when it is sent again, as far as it can be sent."""
    type_, reply_to = properties.type, properties.reply_to
    durable = reply_to is not None and reply_to.startswith(REPLY_PREFIX) and not reply_to_problem(reply_to)
    return {
        "message_id": None if message_id_problem(properties.message_id) else properties.message_id,
        "correlation_id": None if message_id_problem(properties.correlation_id) else properties.correlation_id,
        "command": None if type_ is None or command_problem(type_) else type_,
        # A direct reply-to ends with the connection that waits for it.
        "reply_to": reply_to if durable else None,
        "deadline": _integer(properties.headers.get(DEADLINE), 0),
        "traceparent": read_traceparent(properties.headers),
        "session": read_session(properties.headers),
    }


def _fitting(details: Mapping[str, Any]) -> bytes:
    """`details` as JSON of at most LONGEST_DETAILS bytes: with the last lines of its stderr for which there is room."""
    encoded = codec.encode(details)
    if len(encoded) <= LONGEST_DETAILS:
        return encoded
    lines = details.get("stderr")
    if isinstance(lines, list):
        room = LONGEST_DETAILS - len(codec.encode({**details, "stderr": []}))
        kept: list[Any] = []
        for line in reversed(lines):
            room -= len(codec.encode(line)) + 1
            if room < 0:
                break
            kept.insert(0, line)
        if kept:
            return codec.encode({**details, "stderr": kept})
    return codec.encode({"omitted": f"{len(encoded):,} bytes of details"})


def _last_death(headers: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Why and when the broker dead-lettered it, the last time; None: it did not.

    The last: one that was tried again has expired in the delay queues before.
    """
    deaths = headers.get(_DEATHS)
    newest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    reasons = (headers.get(_LAST_DEATH), newest.get("reason"), headers.get(_FIRST_DEATH))
    reason = next((found for found in map(_text, reasons) if found), None)
    moment = newest.get("time")
    # AMQP's timestamps are UTC, and pika's datetimes say nothing of a zone.
    return reason, moment.replace(tzinfo=UTC).timestamp() if isinstance(moment, datetime) else None


def _read_details(text: object) -> Mapping[str, Any]:
    if not isinstance(text, str):
        return {}
    try:
        details = codec.decode(text.encode())
        codec.encode({DETAILS: {"": details}})  # no deeper than it can be shown
    except (FrameError, ValueError):
        return {"text": text}
    return details


def _read_time(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _formatted(moment: float | None) -> str | None:
    return None if moment is None else format_timestamp(moment)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object, least: int, most: int = 2**53) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None
