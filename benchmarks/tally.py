"""The tally: how much workers have done, for systems whose clients are never told."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path

_NUMBER = struct.Struct("=Q")


class Tally:
    """A directory with a file for each process that counts; made when it first does."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._own: mmap.mmap | None = None
        self._count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """One more is done, by this process."""
        with self._lock:
            if self._own is None:
                path = self._directory / str(os.getpid())
                path.write_bytes(bytes(_NUMBER.size))
                with path.open("r+b") as file:
                    self._own = mmap.mmap(file.fileno(), _NUMBER.size)
            self._count += 1
            _NUMBER.pack_into(self._own, 0, self._count)

    def total(self) -> int:
        """How much is done, by all."""
        return sum(_NUMBER.unpack(path.read_bytes())[0] for path in self._directory.iterdir() if path.stat().st_size)
