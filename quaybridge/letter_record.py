"""How a dead letter is shown: as an object for JSON, as a row of a table, and in full for a person."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bridge_protocol import codec
from bridge_protocol.dead_letter import DeadLetter
from bridge_protocol.errors import Code, FrameError, escape
from bridge_protocol.messages import format_timestamp
from quaybridge.exit_status import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROW = 100  # columns
LONGEST_BODY_SHOWN = 2048  # bytes of a request that is no JSON


def summary(letter: DeadLetter) -> dict[str, Any]:
    """What a list says of it; `bytes` and `sha256` are the request's."""
    # A bridge's own failure carries its own details, which may call anything an exit code.
    details = {} if letter.code == Code.APPLICATION_ERROR else letter.details
    return {
        "id": letter.id,
        "service": letter.service,
        "command": letter.command,
        "code": letter.code,
        "by_broker": letter.by_broker,
        "error": letter.error,
        "attempt": letter.attempt,
        "node": letter.node,
        "slot": letter.slot,
        "exit_code": details.get("exit_code"),
        "signal": details.get("signal"),
        "first_time": _time(letter.first_time),
        "time": _time(letter.time),
        "replays": letter.replays,
        "bytes": len(letter.body),
        "sha256": hashlib.sha256(letter.body).hexdigest(),
    }


def record(letter: DeadLetter) -> dict[str, Any]:
    """Everything: the summary, what is needed to send the request again, the details, and the request itself.

    The request is the text `body`, or `body_base64` where its bytes are no UTF-8.
    """
    said = {
        **summary(letter),
        "message_id": letter.message_id,
        "correlation_id": letter.correlation_id,
        "reply_to": letter.reply_to,
        "deadline": letter.deadline,
        "priority": letter.priority,
        "traceparent": letter.traceparent,
        "session": None if letter.session is None else letter.session.id,
        "session_epoch": None if letter.session is None else letter.session.epoch,
        "details": letter.details,
    }
    try:
        return {**said, "body": letter.body.decode()}
    except UnicodeDecodeError:
        return {**said, "body_base64": b64encode(letter.body).decode()}


def line(said: dict[str, Any]) -> bytes:
    """A summary or a record as one line of JSON, with its end."""
    return codec.encode(said) + b"\n"


def table(summaries: Iterable[dict[str, Any]], *, columns: int, header: bool = True) -> RenderableType:
    """Summaries as a table for a terminal of so many columns; further pages have no header.

    What other commands want, the id, is whole on any. Where it takes too much room there is no year and no command.
    """
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE, show_header=header, pad_edge=False, collapse_padding=True, expand=True)
    narrow = columns < NARROW
    made.add_column("id", width=32)
    made.add_column("time (UTC)", width=11 if narrow else 16, no_wrap=True)
    if not narrow:
        made.add_column("command", ratio=1, no_wrap=True)
    made.add_column("code", max_width=18)
    made.add_column("tries", width=5, justify="right")
    made.add_column("error", ratio=3, no_wrap=True)
    for said in summaries:
        tries = f"{said['attempt']}" + (f"+{said['replays']}" if said["replays"] else "")
        moment = (said["time"] or "")[:16].replace("T", " ")
        command = () if narrow else (said["command"] or "",)
        cells: Sequence[str] = (said["id"], moment[5 if narrow else 0 :], *command, said["code"], tries, said["error"])
        identity, *others = (Text(printable(cell), overflow="ellipsis") for cell in cells)
        identity.overflow = "fold"
        made.add_row(identity, *others)
    return made


def described(letter: DeadLetter) -> str:
    """Everything about it, for a person, in lines that no bridge or requester can forge."""
    said = record(letter)
    lines = [f"dead letter {said.pop('id')}"]
    stderr = letter.details.get("stderr")
    details = {name: value for name, value in letter.details.items() if name not in ("stderr", *said)}
    for name in ("details", "body", "body_base64"):
        said.pop(name, None)
    said |= {f"details.{name}": codec.encode(value).decode() for name, value in details.items()}
    for name, value in said.items():
        if value is not None and value is not False:
            lines.append(f"  {name}: {value}")
    if isinstance(stderr, list) and stderr:
        lines.append("  the bridge's last lines on stderr:")
        lines += [f"    {said_line}" for said_line in stderr]
    lines.append("  the request:")
    lines += [f"    {text}" for text in _request_lines(letter.body)]
    return "".join(printable(text) + "\n" for text in lines)


def _request_lines(body: bytes) -> list[str]:
    import json

    try:
        return json.dumps(codec.decode(body), indent=2, ensure_ascii=False).splitlines()
    except FrameError as error:
        return [f"({error.kind}: {error.detail})", escape(body, LONGEST_BODY_SHOWN)]


def _time(moment: float | None) -> str | None:
    return None if moment is None else format_timestamp(moment)
