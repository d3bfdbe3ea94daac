"""What a bridge writes to stderr: always drained, logged line by line, its last lines kept for a crash's report."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable

LONGEST_LINE = 8 * 1024
LINES_PER_SECOND = 1000  # that are logged: a loop that writes lines must not take the node's time
PIECE = 8 * 1024  # bytes: how much is looked at before it is decided again whether to skip
TAIL_LINES = 50
TAIL_BYTES = 8 * 1024
# Python's faulthandler shows a thread's innermost call first. Of a deep stack that is what the tail must not lose.
STACK_LINES = 20

_STACK = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ .*\(most recent call first\):$")
_CALL = "  File "


class StderrLines:
    """Bytes in, in pieces of any size; whole lines out, as text that is safe in a log and on a terminal.

    `on_line` gets each line without its end. A line longer than LONGEST_LINE bytes is cut there and says how
    many bytes were left out; of more than `lines_per_second` only the count is given, with the next line that may be.
    The tail is the last lines in any case. Memory stays within that, and a flood costs little time, whatever comes.
    """

    def __init__(
        self,
        on_line: Callable[[str], None],
        *,
        lines_per_second: int = LINES_PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_line = on_line
        self._limit = self._left = lines_per_second
        self._clock = clock
        self._second = clock()
        self._left_out = 0
        self._line = bytearray()
        self._cut = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._calls: int | None = None  # of the stack that is being written

    def __repr__(self) -> str:
        return f"<StderrLines {len(self._line) + self._cut} bytes of a line, {len(self._tail)} lines kept>"

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        start = self._skip(data)
        for begin in range(start, len(data), PIECE):
            self._receive(data[begin : begin + PIECE])

    def _receive(self, data: bytes) -> None:
        start = self._skip(data)
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            self._finish()
            start = end + 1
        self._add(data[start:])

    def receive_eof(self) -> None:
        """The stream has ended: what remains is a line."""
        if self._line:
            self._finish()
        self._tell_left_out()

    def tail(self) -> list[str]:
        """The last lines, at most TAIL_LINES of them and TAIL_BYTES in all; the latest last.

        Of each stack that faulthandler wrote only the innermost STACK_LINES calls count.
        """
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
        if not self._deep_in_stack(line):
            self._tail.append(line)
        if not self._left:
            now = self._clock()
            if now - self._second < 1.0:
                self._left_out += 1
                return
            self._tell_left_out()
            self._second, self._left = now, self._limit
        self._left -= 1
        self._on_line(line)

    def _skip(self, data: bytes) -> int:
        """Where `data` is worth a look: at its last lines, which are for the tail, if nothing of it is logged."""
        if self._left or self._clock() - self._second >= 1.0 or data.count(b"\n") <= TAIL_LINES:
            return 0
        start = len(data)
        for _ in range(TAIL_LINES + 1):
            start = data.rindex(b"\n", 0, start)
        self._left_out += data.count(b"\n", 0, start + 1)
        self._line.clear()
        self._cut = 0
        self._calls = None
        return start + 1

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._on_line(f"… ({self._left_out:,} lines left out)")
            self._left_out = 0

    def _deep_in_stack(self, line: str) -> bool:
        if self._calls is not None and line.startswith(_CALL):
            self._calls += 1
            return self._calls > STACK_LINES
        self._calls = 0 if _STACK.match(line) else None
        return False


def printable(text: str) -> str:
    """`text` with nothing in it that could move a cursor, change a colour or begin a line of its own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
