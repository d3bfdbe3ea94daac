"""Replies: what a command returned or raised, as one frame. Whatever it was, there is a frame for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import encode_frame
from bridge_protocol.messages import (
    GIVEN_BACK,
    ErrorInfo,
    encode_chunk,
    encode_failure,
    encode_progress,
    encode_result,
    format_timestamp,
)
from bridge_sdk.errors import ApplicationError, ArgumentError, BadArguments, UnknownCommand

MAX_TEXT = 8 * 1024  # characters of a message, and of a traceback
CANCELLED = "cancelled"

# Raised by the SDK itself before the author's code ran: a traceback would show nothing but the SDK.
_WITHOUT_TRACEBACK = (ArgumentError, UnknownCommand)


def result_frame(request_id: int, result: Any, limit: int, *, binary: bool = False) -> bytes:
    """The reply that carries `result`, or one that says why it cannot be carried. `limit`: bytes of a payload.

    `binary`: whoever asked takes bytes.
    """
    try:
        return encode_frame(encode_result(request_id, result, timestamp=_now(), binary=binary), limit)
    except FrameError as error:
        return _refusal(request_id, "TooLarge", f"the result is too large: {error.detail}")
    except ValueError as error:
        return _refusal(request_id, "ResultError", f"the result is {_clean(str(error))}")
    except RecursionError:
        return _refusal(request_id, "ResultError", "the result is not JSON: it contains itself, or is too deep")


def chunk_frame(request_id: int, seq: int, data: Any, limit: int, *, binary: bool = False) -> bytes:
    """The event that carries a chunk. `binary` as for a result. Raises ValueError for what cannot be one."""
    return _event_frame(f"chunk {seq}", limit, lambda: encode_chunk(request_id, seq, data, binary=binary))


def progress_frame(request_id: int, data: Any, limit: int) -> bytes:
    """The event that says how far a request is. Raises ValueError for what cannot be said."""
    return _event_frame("its progress", limit, lambda: encode_progress(request_id, data))


def failure_frame(request_id: int, error: BaseException, limit: int) -> bytes:
    """The reply that tells of `error`, its details included if they can be told within `limit`."""
    message = _clean(_message(error))
    kind = _clean(type(error).__qualname__)
    info = ErrorInfo(
        type=kind,
        message=message,
        traceback=None if isinstance(error, _WITHOUT_TRACEBACK) else _traceback(error),
        retryable=isinstance(error, ApplicationError) and error.retryable,
        retry_after=error.retry_after if isinstance(error, ApplicationError) else None,
        bad_request=isinstance(error, BadArguments),
        details=error.details if isinstance(error, ApplicationError) else {},
    )
    text = f"{kind}: {message}" if message else kind
    try:
        return encode_frame(encode_failure(request_id, text, info=info, timestamp=_now()), limit)
    except (ValueError, FrameError) as problem:
        said = ErrorInfo(
            type=kind,
            message=message,
            traceback=info.traceback,
            retryable=info.retryable,
            bad_request=info.bad_request,
            details={"details_left_out": _clean(str(problem))},
        )
        return encode_frame(encode_failure(request_id, text, info=said, timestamp=_now()))


def cancelled_frame(request_id: int, cancelled: BaseException | None = None) -> bytes:
    """The one final reply of a request that was cancelled. `cancelled`: what was raised in it, if it ran: it tells
    where that was."""
    traceback = _traceback(cancelled) if cancelled is not None else None
    info = ErrorInfo(type="Cancelled", message="the request was cancelled", traceback=traceback)
    return encode_frame(encode_failure(request_id, CANCELLED, info=info, timestamp=_now()))


def given_back_frame(request_id: int) -> bytes:
    """The one final reply of a request that the node asked back, and that was not begun."""
    info = ErrorInfo(type=GIVEN_BACK, message="not begun")
    return encode_frame(encode_failure(request_id, GIVEN_BACK, info=info, timestamp=_now()))


def unreadable_frame(error: FrameError) -> bytes:
    """The reply to something that could not be read; it has no id to answer to."""
    info = ErrorInfo(type="FrameError", message=str(error), details={"kind": error.kind.value})
    return encode_frame(encode_failure(None, str(error), info=info, timestamp=_now()))


def unknown_command(command: str, known: Mapping[str, object]) -> UnknownCommand:
    """What to answer to a command nobody registered; lists at most 32 that were."""
    names = sorted(known)
    listed = ", ".join(names[:32]) + (f" and {len(names) - 32} more" if len(names) > 32 else "")
    return UnknownCommand(f"{command!r}; this bridge has: {listed or 'no commands'}")


def _event_frame(what: str, limit: int, encode: Callable[[], bytes]) -> bytes:
    try:
        return encode_frame(encode(), limit)
    except FrameError as error:
        raise ValueError(f"{what} is too large: {error.detail}") from None
    except ValueError as error:
        raise ValueError(f"{what} is {error}") from None
    except RecursionError:
        raise ValueError(f"{what} is not JSON: it contains itself, or is too deep") from None


def _refusal(request_id: int, kind: str, message: str) -> bytes:
    info = ErrorInfo(type=kind, message=message)
    return encode_frame(encode_failure(request_id, f"{kind}: {message}", info=info, timestamp=_now()))


def _now() -> str:
    return format_timestamp(time.time())


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (an exception's __str__ is the author's code, and may raise anything)
        return "(its message could not be made)"


def _traceback(error: BaseException) -> str:
    """The traceback from the author's code on; of a long one its end, which is nearest to the error."""
    import traceback  # only for failures: a bridge starts without it

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__package__") == __package__:
        frames = frames.tb_next
    text = _escape("".join(traceback.format_exception(type(error), error, frames)))
    return text if len(text) <= MAX_TEXT else "…" + text[-MAX_TEXT:]


def _clean(text: str) -> str:
    """`text`, bounded, and as UTF-8 can carry it."""
    text = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
    return _escape(text)


def _escape(text: str) -> str:
    """`text` with lone surrogates (undecodable file names, say) written out: JSON cannot carry them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
