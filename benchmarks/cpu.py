"""CPU time and memory of processes, from /proc. CPU time is what a busy machine distorts least."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")  # seconds


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of those processes so far; of one that is gone, none. It counts in steps of 10 ms."""
    total = 0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        # The second field, the name in parentheses, may hold anything.
        fields = stat.rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * _TICK


def cpu_of_each(watched: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """CPU seconds so far, by name."""
    return {name: cpu_seconds(pids) for name, pids in watched.items()}


def tree(pid: int) -> tuple[int, ...]:
    """A process and all below it; nothing if it cannot be seen from here."""
    try:
        process = psutil.Process(pid)
        return (pid, *(child.pid for child in process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def resident(pid: int) -> int:
    """Bytes of memory a process has resident, what it shares with others included."""
    return int(psutil.Process(pid).memory_info().rss)
