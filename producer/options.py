"""The options of a request, each named once, for whoever takes or passes them on. Left out, they have their default."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Literal, TypedDict

from producer.progress import Progress

DEFAULT_TIMEOUT = 30.0  # seconds

Mode = Literal["strict", "prefer", "rebuild"]


class SessionCallOptions(TypedDict, total=False):
    """Of a call in a session.

    timeout: 30 s; in all, from asking to the reply. It travels as the request's deadline: what has not begun by then is
        not begun, and what runs then is stopped.
    idempotent: it may run twice without harm. If the connection is lost before it is confirmed, or before its reply
        came, it is published again, as it is and with the same message id, within its timeout.
    progress: called with what the bridge says of its progress, at most ten times a second, in the event loop's thread.
    """

    timeout: float
    idempotent: bool
    progress: Callable[[Progress], None] | None


class RequestOptions(TypedDict, total=False):
    """Of every request that awaits its reply, beside its timeout.

    idempotent: see SessionCallOptions.
    cancel_on_disconnect: it is cancelled, within seconds, when this producer's connection is gone, so that nobody works
        for it. Not with a `reply_queue`, which outlives the producer.
    priority: 0 … 9. From RabbitMQ 4.0 on what waits with 5 or more passes most of what has less, or none; from 4.3 on
        each passes all that has less, and none counts as 4.
    """

    idempotent: bool
    cancel_on_disconnect: bool
    priority: int | None


class SubmitOptions(RequestOptions, total=False):
    """Of a request that may be due later, at one of these: the broker holds it until then, to within a second.

    delay: seconds, at most 36 h.
    at: a datetime with a time zone, or seconds since 1970; at most 36 h from now.
    """

    delay: float | None
    at: datetime | float | None


class CallOptions(RequestOptions, total=False):
    """Of a call. For `timeout` and `progress` see SessionCallOptions."""

    timeout: float
    progress: Callable[[Progress], None] | None


class PublishOptions(TypedDict, total=False):
    """Of a request whose reply nobody awaits, beside its timeout: see SubmitOptions."""

    idempotent: bool
    priority: int | None
    delay: float | None
    at: datetime | float | None


class SessionStreamOptions(TypedDict, total=False):
    """Of a stream in a session. `timeout` (30 s) bounds the whole of it; `progress` as of a call.

    on_restart: called, with the number of the attempt, when the request is tried again after chunks were given
        out: what there was is to be thrown away. Without it StreamRestarted is raised then.
    """

    timeout: float
    on_restart: Callable[[int], None] | None
    progress: Callable[[Progress], None] | None


class StreamOptions(SessionStreamOptions, total=False):
    """Of a stream. For `cancel_on_disconnect` see RequestOptions."""

    cancel_on_disconnect: bool


def session_stream_options(options: SessionCallOptions) -> SessionStreamOptions:
    """Those of a session's call that its streams have too."""
    return _of_stream(options)


def stream_options(options: CallOptions) -> StreamOptions:
    """Those of a call that a stream has too."""
    found = _of_stream(options)
    if "cancel_on_disconnect" in options:
        found["cancel_on_disconnect"] = options["cancel_on_disconnect"]
    return found


def _of_stream(options: SessionCallOptions) -> StreamOptions:
    found: StreamOptions = {}
    if "timeout" in options:
        found["timeout"] = options["timeout"]
    if "progress" in options:
        found["progress"] = options["progress"]
    return found


class MapOptions(TypedDict, total=False):
    """Of a map, beside `on_error`, which decides what it gives.

    timeout, idempotent, priority: each request's own, see CallOptions.
    in_flight, in_flight_bytes: 100 requests, 64 MiB; under way at once or waiting to be given out.
    ordered: true; otherwise replies are given as they come.
    """

    in_flight: int
    in_flight_bytes: int
    timeout: float
    idempotent: bool
    priority: int | None
    ordered: bool


class SessionOptions(TypedDict, total=False):
    """Of a session.

    mode: what is done when its bridge is gone: "strict" (the default), "prefer" or "rebuild", see AsyncSession.
    journal: the commands that a rebuild sends again.
    max_waiting: 1,000; requests in line, until `submit` waits.
    max_journal, max_journal_bytes: 100 requests, 4 MiB; past them a lost session is not rebuilt.
    """

    mode: Mode
    journal: Collection[str]
    max_waiting: int
    max_journal: int
    max_journal_bytes: int
