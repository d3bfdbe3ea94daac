"""A request that is ready to go: checked and encoded, from whatever thread, before anything is sent."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from bridge_protocol.envelope import SessionClaim, request_properties, session_id_problem
from bridge_protocol.errors import BadRequest, TooLarge
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import MAX_ID, RESERVED_COMMANDS, Request, encode_request, format_timestamp
from bridge_protocol.topology import EXCHANGE, partition_of, service_name_problem, session_key
from broker.contract import Message

SESSION_ID = "session_id"  # among the arguments: bridges find the session's id there


class PreparedRequest(NamedTuple):
    """A request's body, and what its envelope will say. `deadline` in Unix milliseconds.

    `idempotent`: it may be published again where it is not known what became of it. `session`: the one it belongs to;
    a reply of an epoch that is `outdated` is none of its own. `chunks`, `progress`: they are wanted, too.
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
    chunks: bool = False
    progress: bool = False

    def message(self, reply_to: str | None) -> Message:
        """What is published."""
        properties = request_properties(
            message_id=self.message_id,
            command=self.command,
            reply_to=reply_to,
            deadline=self.deadline,
            cancel_on_disconnect=self.cancel_on_disconnect,
            session=self.session,
            chunks=self.chunks,
            progress=self.progress,
        )
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
    chunks: bool = False,
    progress: bool = False,
) -> PreparedRequest:
    """Check and encode a request. `now` in seconds since 1970; `timeout` in seconds makes its deadline.

    Raises BadRequest and TooLarge. `args` is not looked at again.
    """
    if problem := service_name_problem(service):
        raise BadRequest(problem)
    if command in RESERVED_COMMANDS:
        raise BadRequest(f"the command {command!r} is the nodes' own")
    if args is not None and not isinstance(args, Mapping):
        raise BadRequest(f"args must be a mapping of names to values, not {type(args).__name__}")
    args = dict(args or {})
    if session is not None:
        if problem := session_problem(session):
            raise BadRequest(problem)
        if args.setdefault(SESSION_ID, session) != session:
            raise BadRequest("args.session_id names another session than the one that is asked")
    deadline = None if timeout is None else int((now + timeout) * 1000)
    # The id only has to differ from the others on one bridge; the message id is what nobody may guess.
    request = Request(
        id=random.getrandbits(MAX_ID.bit_length()) or 1,
        command=command,
        args=args,
        timestamp=format_timestamp(now),
        deadline=deadline,
    )
    message_id = secrets.token_hex(16)
    try:
        body = encode_request(request)
    except ValueError as error:
        raise BadRequest(str(error), message_id=message_id) from error
    if len(body) > DEFAULT_LIMIT:
        raise TooLarge(f"a request of {len(body):,} bytes, the limit is {DEFAULT_LIMIT:,}", message_id=message_id)
    return PreparedRequest(
        message_id=message_id,
        service=service,
        command=command,
        body=body,
        deadline=deadline,
        idempotent=idempotent,
        cancel_on_disconnect=cancel_on_disconnect,
        session=None if session is None else SessionClaim(id=session),
        chunks=chunks,
        progress=progress,
    )


def session_problem(session: object) -> str | None:
    """Why `session` cannot name a session, or None."""
    if not isinstance(session, str):
        return f"a session's id must be text, not {type(session).__name__}"
    return session_id_problem(session)


def check_timeout(timeout: float) -> None:
    """Raise BadRequest for a timeout that is not a positive, finite number of seconds."""
    if not 0 < timeout < math.inf:
        raise BadRequest(f"a timeout must be more than 0 seconds and finite, not {timeout}")
