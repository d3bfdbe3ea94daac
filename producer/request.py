"""A request that is ready to go: checked and encoded, from whatever thread, before anything is sent."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Container, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, TypeGuard

from bridge_protocol.binary import encode_binary
from bridge_protocol.claim_check import ClaimCheck, with_claim
from bridge_protocol.envelope import SessionClaim, request_properties, session_id_problem
from bridge_protocol.errors import BadRequest, TooLarge
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import MAX_ID, RESERVED_COMMANDS, Request, encode_request, format_timestamp
from bridge_protocol.topology import (
    EXCHANGE,
    MAX_DELAY,
    MAX_PRIORITY,
    delay_route,
    partition_of,
    service_name_problem,
    session_key,
)
from broker.contract import Message

PAST = 1.0  # seconds: as exact as a delay is. A moment further back is a mistake
SESSION_ID = "session_id"  # among the arguments: bridges find the session's id there


class PreparedRequest(NamedTuple):
    """A request's body, and what its envelope will say. `deadline` in Unix milliseconds.

    `idempotent`: it may be published again where it is not known what became of it. `session`: the one it belongs to;
    a reply of an epoch that is `outdated` is none of its own. `cargo`: its arguments, not in the body, which are to go
    to the store before it is sent; `claim`: where they are then. `claims`: its reply's payload may be in the store.
    `due`: when it is to be delivered, in seconds since 1970; None: at once. `chunks`, `progress`: they are wanted, too.
    """

    message_id: str
    service: str
    command: str
    body: bytes
    deadline: int | None
    idempotent: bool
    cancel_on_disconnect: bool
    session: SessionClaim | None = None
    outdated: Container[str | None] = ()
    cargo: bytes | None = None
    claim: ClaimCheck | None = None
    claims: bool = False
    due: float | None = None
    priority: int | None = None
    chunks: bool = False
    progress: bool = False

    @property
    def size(self) -> int:
        """How many bytes it keeps until it is sent."""
        return len(self.body) + len(self.cargo or b"")

    def checked_in(self, claim: ClaimCheck) -> PreparedRequest:
        """The same, its cargo in the store by that claim."""
        return self._replace(body=with_claim(self.body, "args", claim), cargo=None, claim=claim)

    def wait(self, now: float) -> float:
        """Seconds until it is due. `now` in seconds since 1970."""
        return 0.0 if self.due is None else max(self.due - now, 0.0)

    def message(self, reply_to: str | None, now: float) -> Message:
        """What is published at `now`. A delay is rounded to whole seconds: those are what delay queues have."""
        properties = request_properties(
            message_id=self.message_id,
            command=self.command,
            reply_to=reply_to,
            deadline=self.deadline,
            cancel_on_disconnect=self.cancel_on_disconnect,
            session=self.session,
            claims=self.claims,
            priority=self.priority,
            chunks=self.chunks,
            progress=self.progress,
        )
        if self.due is not None and (seconds := round(self.wait(now))) > 0:
            exchange, key = delay_route(self.service, min(seconds, MAX_DELAY))
            return Message(exchange=exchange, routing_key=key, body=self.body, properties=properties)
        key = self.service
        if self.session is not None:
            key = session_key(self.service, partition_of(self.session.id))
        return Message(exchange=EXCHANGE, routing_key=key, body=self.body, properties=properties)


def prepare(
    service: str,
    command: str,
    args: Mapping[str, Any] | None,
    *,
    now: float,
    timeout: float | None,
    idempotent: bool = False,
    cancel_on_disconnect: bool = False,
    session: str | None = None,
    claim_threshold: int | None = None,
    delay: float | None = None,
    at: datetime | float | None = None,
    priority: int | None = None,
    chunks: bool = False,
    progress: bool = False,
) -> PreparedRequest:
    """Check and encode a request. `now` in seconds since 1970; `timeout`, in seconds from when it is due, makes its
    deadline.

    `claim_threshold`: there is a store, for arguments of more bytes than that.

    Raises BadRequest and TooLarge. `args` is not looked at again.
    """
    if problem := names_problem(service, command):
        raise BadRequest(problem)
    if type(args) is not dict and args is not None and not isinstance(args, Mapping):
        raise BadRequest(f"args must be a mapping of names to values, not {type(args).__name__}")
    args = dict(args or {})
    if session is not None:
        if problem := session_problem(session):
            raise BadRequest(problem)
        if args.setdefault(SESSION_ID, session) != session:
            raise BadRequest("args.session_id names another session than the one that is asked")
    due = None if delay is None and at is None else _due(delay, at, now)
    if priority is not None and (type(priority) is not int or not 0 <= priority <= MAX_PRIORITY):
        raise BadRequest(f"a priority must be a whole number, 0 … {MAX_PRIORITY}, not {priority!r:.40}")
    deadline = None if timeout is None else int(((now if due is None else due) + timeout) * 1000)
    # The id only has to differ from the others on one bridge; the message id is what nobody may guess.
    request = Request(
        id=random.getrandbits(MAX_ID.bit_length()) or 1,
        command=command,
        args=args,
        timestamp=format_timestamp(now),
        deadline=deadline,
        takes_binary=True,
    )
    message_id = secrets.token_hex(16)
    try:
        body = encode_request(request)
    except ValueError as error:
        raise BadRequest(str(error), message_id=message_id) from error
    if len(body) > DEFAULT_LIMIT:
        raise TooLarge(f"a request of {len(body):,} bytes, the limit is {DEFAULT_LIMIT:,}", message_id=message_id)
    cargo = None
    if claim_threshold is not None and len(body) > claim_threshold:
        encoded, binary = encode_binary(args)
        if len(encoded) > claim_threshold:
            cargo, body = encoded, encode_request(replace(request, args={}, binary=binary))
    return PreparedRequest(
        message_id=message_id,
        service=service,
        command=command,
        body=body,
        deadline=deadline,
        idempotent=idempotent,
        cancel_on_disconnect=cancel_on_disconnect,
        session=None if session is None else SessionClaim(id=session),
        cargo=cargo,
        claims=claim_threshold is not None,
        due=due,
        priority=priority,
        chunks=chunks,
        progress=progress,
    )


def names_problem(service: str, command: str) -> str | None:
    """Why no request can have this service and this command, or None; a command's form is `command_problem`'s."""
    if problem := service_name_problem(service):
        return problem
    return f"the command {command!r} is the nodes' own" if command in RESERVED_COMMANDS else None


def _due(delay: float | None, at: datetime | float | None, now: float) -> float | None:
    """When a request is due. Raises BadRequest, which says what to give instead."""
    if delay is not None and at is not None:
        raise BadRequest("give a delay or a moment (at), not both")
    if delay is not None:
        if not _is_number(delay) or not 0 <= delay <= MAX_DELAY:
            raise BadRequest(f"a delay must be 0 … {MAX_DELAY:,} seconds (36 h), not {delay!r:.40}")
        return now + delay if delay else None
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise BadRequest("at must have a time zone: datetime.now(UTC) + timedelta(hours=1), for example")
        moment = at.timestamp()
    elif _is_number(at):
        moment = float(at)
    else:
        raise BadRequest(f"at must be a datetime or seconds since 1970, not {at!r:.40}")
    if moment < now - PAST:
        raise BadRequest(f"at must not have passed, and that was {now - moment:,.0f} s ago")
    if moment > now + MAX_DELAY:
        hint = "; are those milliseconds?" if moment > 10 * now else ""
        raise BadRequest(f"at must be at most {MAX_DELAY:,} s (36 h) from now, not {moment - now:,.0f} s{hint}")
    return moment


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def session_problem(session: object) -> str | None:
    """Why `session` cannot name a session, or None."""
    if not isinstance(session, str):
        return f"a session's id must be text, not {type(session).__name__}"
    return session_id_problem(session)


def check_timeout(timeout: float) -> None:
    """Raise BadRequest for a timeout that is not a positive, finite number of seconds."""
    if not 0 < timeout < math.inf:
        raise BadRequest(f"a timeout must be more than 0 seconds and finite, not {timeout}")
