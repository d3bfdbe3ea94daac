"""Whether the kernel killed for want of memory: the only evidence by which a SIGKILL is called that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

WINDOW = 1.0  # seconds: a count at least this old is what a kill is told by

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OutOfMemoryKills:
    """Watches the kernel's own count: that of the node's control group, in which its bridges are, else the host's.

    The kernel counts before it kills (mm/oom_kill.c), so that the count is there when the death is seen. `look` about
    once a second; a kill in between is then told by `evidence`, to as many as there were kills.
    """

    def __init__(self, clock: Callable[[], float], files: Iterable[Path] | None = None) -> None:
        self._clock = clock
        candidates = _kernel_files() if files is None else files
        self._file = next((file for file in candidates if _count(file) is not None), None)
        self._before = self._latest = (clock(), self._read())
        self._told = 0

    def __repr__(self) -> str:
        return f"<OutOfMemoryKills {self._latest[1]} in {self._file}>"

    def look(self) -> None:
        """Note the count as it is now."""
        now = self._clock()
        if now - self._latest[0] >= WINDOW:
            self._before, self._latest = self._latest, (now, self._read())

    def evidence(self) -> str | None:
        """What says that a process which just died of SIGKILL was killed for want of memory; None: nothing does."""
        known = max(self._before[1], self._told)
        count = self._read()
        if count <= known:
            return None
        self._told = known + 1
        return f"oom_kill in {self._file} went from {self._before[1]} to {count}"

    def _read(self) -> int:
        return (_count(self._file) if self._file is not None else None) or 0


def _count(file: Path) -> int | None:
    try:
        found = _COUNT.search(file.read_text())
    except OSError:
        return None
    return int(found[1]) if found is not None else None


def _kernel_files() -> list[Path]:
    """Where the count may be found: the control group's first, version 2 or 1, then the host's."""
    files: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files.append(Path("/sys/fs/cgroup", path.lstrip("/"), "memory.events"))
        elif "memory" in controllers.split(","):
            files.append(Path("/sys/fs/cgroup/memory", path.lstrip("/"), "memory.oom_control"))
    return [*files, Path("/proc/vmstat")]
