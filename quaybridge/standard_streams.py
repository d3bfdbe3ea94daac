"""The three standard streams, whatever a shell made of them: closed, full, or in a locale that knows no `…`.

- One that is closed is opened, or the next socket would take its number and be written to in its place. What then reads
  stdin or writes stdout fails, as it should; stderr is silent.
- What the locale cannot encode is escaped.
- stdout that takes no more raises OutputLost, which is told apart from every other OSError.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Reading and writing the wrong way round: EBADF. A closed stderr has nobody to be told.
_IN_PLACE_OF = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}


class OutputLost(OSError):
    """Raised when stdout cannot be written. A reader that went away (EPIPE) is another matter, and not told of."""

    def explain(self) -> None:
        """Say so on stderr, and keep the end of the process from trying once more."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        sys.stderr.write(f"stdout cannot be written: {self.strerror}: what was done is done, and its output is lost\n")


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except (BrokenPipeError, BlockingIOError):
            raise
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from None


def prepare_streams() -> None:
    """For a program's start, before it opens anything."""
    for descriptor, flags in _IN_PLACE_OF.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # takes the lowest number there is: this one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "wb", closefd=False)), line_buffering=True)
    errors = sys.stderr
    assert isinstance(errors, io.TextIOWrapper)
    errors.reconfigure(errors="backslashreplace")
    sys.stdout = _output(sys.stdout)


def _output(before: TextIO | None) -> TextIO:
    raw = _Output(1, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else None,
        errors="backslashreplace",
        line_buffering=raw.isatty(),
    )
