"""The frame log of one service, for finding out what its bridges are told and what they say. Off by default.

One line a frame: time, direction (`>` to the bridge, `<` from it), slot, size, id, command or kind of reply. Arguments
and results only where that is wanted, and never what is named like a secret. The files have a hard limit in size. A
disk that is full or gone ends the log, with one line in the node's own, and nothing else.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge_protocol import codec
from bridge_protocol.errors import FrameError
from bridge_protocol.messages import format_timestamp
from worker_node.settings import DebugSettings
from worker_node.stderr import printable

REDACTED = "[redacted]"
LARGEST_SHOWN = 1024 * 1024  # bytes of a payload; of a larger one only the size is told

_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|api.?key|access.?key|private.?key|auth(?!or)|authori|bearer|cookie|^pwd$|^dsn$",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")

logger = logging.getLogger("quaybridge.node")


class FrameLog:
    """Appends to `<directory>/<name>.frames.log`, and keeps the files before it as `.1`, `.2`, …

    `clock` is the time of day in seconds since 1970.
    """

    def __init__(self, settings: DebugSettings, name: str, *, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._path = Path(settings.directory or ".", f"{name}.frames.log")
        self._clock = clock
        self._file = -1
        self._size = 0
        self._broken = False

    def __repr__(self) -> str:
        return f"<FrameLog {self._path}, {self._size:,} bytes>"

    def sent(self, slot: int, payload: bytes | bytearray) -> None:
        """A frame is on its way to the slot's bridge."""
        self._write(">", slot, payload)

    def received(self, slot: int, payload: bytes | bytearray) -> None:
        """A frame came from the slot's bridge."""
        self._write("<", slot, payload)

    def close(self) -> None:
        """Nothing more is written until the next frame."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, direction: str, slot: int, payload: bytes | bytearray) -> None:
        if self._broken:
            return
        said = self._told(payload)
        line = f"{format_timestamp(self._clock())} {direction} [{slot}] {len(payload):,} bytes {said}\n".encode()
        try:
            self._append(line)
        except OSError as error:
            self._broken = True
            self.close()
            logger.warning("%s: no frames are written from now on: %s", self._path, error.strerror)

    def _append(self, line: bytes) -> None:
        if self._file < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        if self._size and self._size + len(line) > self._settings.max_bytes:
            self.close()
            for number in range(self._settings.files - 1, 0, -1):
                older, newer = self._numbered(number), self._numbered(number - 1)
                if newer.exists():
                    newer.replace(older)
            if self._settings.files == 1:
                self._path.unlink()
            self._open()
        self._size += os.write(self._file, line[: self._settings.max_bytes])

    def _open(self) -> None:
        # Nobody else's business, even without secrets.
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self._size = os.fstat(self._file).st_size

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _told(self, payload: bytes | bytearray) -> str:
        if len(payload) > LARGEST_SHOWN:
            return "(too large to be looked into)"
        try:
            body = codec.decode(payload)
        except FrameError as error:
            return f"({error.kind})"  # what it says is told by the failure
        if "command" in body:
            kind, value = body["command"], body.get("args")
        elif "event" in body:
            kind, value = body["event"], body.get("data")
        elif body.get("success") is True:
            kind, value = "success", body.get("result")
        else:
            kind, value = "failure", {"error": body.get("error"), "error_info": body.get("error_info")}
        said = printable(f"id={body.get('id')} {str(kind)[:256]}"[:300])
        return f"{said} {self._shown(value)}" if self._settings.args else said

    def _shown(self, value: Any) -> str:
        text = codec.encode({"": without_secrets(value)})[4:-1]
        limit = self._settings.arg_bytes
        cut = f" … ({len(text) - limit:,} bytes more)" if len(text) > limit else ""
        return printable(text[:limit].decode("utf-8", "ignore")) + cut


def without_secrets(value: Any) -> Any:
    """`value` with what is named like a secret replaced, and without the user and password of a URL."""
    if isinstance(value, dict):
        return {
            key: REDACTED if _SECRET.search(key) and not _harmless(key, item) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if isinstance(value, str):
        return _CREDENTIALS.sub(REDACTED, value)
    return value


def _harmless(key: str, value: Any) -> bool:
    """Whether `value` keeps nothing from anybody: there is none, it is a switch, or it counts a model's tokens."""
    return isinstance(value, bool | None) or (isinstance(value, int | float) and key.lower().endswith("tokens"))
