"""What a bridge writes to stderr: always drained, logged line by line, its last lines kept for a crash's report."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

LONGEST_LINE = 8 * 1024
TAIL_LINES = 50
TAIL_BYTES = 8 * 1024


class StderrLines:
    """Bytes in, in pieces of any size; whole lines out, as text that is safe in a log and on a terminal.

    `on_line` gets each line without its end. A line longer than LONGEST_LINE bytes is cut there and says how
    many bytes were left out; memory stays within that and the tail, whatever comes.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._line = bytearray()
        self._cut = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def __repr__(self) -> str:
        return f"<StderrLines {len(self._line) + self._cut} bytes of a line, {len(self._tail)} lines kept>"

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            self._finish()
            start = end + 1
        self._add(data[start:])

    def receive_eof(self) -> None:
        """The stream has ended: what remains is a line."""
        if self._line:
            self._finish()

    def tail(self) -> list[str]:
        """The last lines, at most TAIL_LINES of them and TAIL_BYTES in all; the latest last."""
        kept: list[str] = []
        room = TAIL_BYTES
        for line in reversed(self._tail):
            size = len(line.encode()) + 1
            if size > room:
                if not kept:  # one long line says more than none
                    kept.append(line.encode()[: room - 1].decode(errors="ignore"))
                break
            room -= size
            kept.append(line)
        return kept[::-1]

    def _add(self, part: bytes) -> None:
        room = LONGEST_LINE - len(self._line)
        self._line += part[:room]
        self._cut += max(0, len(part) - room)

    def _finish(self) -> None:
        line = printable(self._line.rstrip(b"\r").decode("utf-8", "backslashreplace"))
        if self._cut:
            line += f" … ({self._cut:,} bytes more)"
        self._line.clear()
        self._cut = 0
        self._tail.append(line)
        self._on_line(line)


def printable(text: str) -> str:
    """`text` with nothing in it that could move a cursor, change a colour or begin a line of its own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
