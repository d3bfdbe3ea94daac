"""A process as the kernel tells of it: one small read, cheap enough for once a second."""

from __future__ import annotations


def resident(pid: int) -> int | None:
    """The resident size of a process now, in bytes; None where it cannot be told (it is gone, or dead)."""
    return _status(pid, b"VmRSS:")


def peak_resident(pid: int) -> int | None:
    """The largest resident size it ever had, in bytes; None where it cannot be told."""
    return _status(pid, b"VmHWM:")


def _status(pid: int, key: bytes) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as source:
            status = source.read(8192)
    except OSError:
        return None
    _, found, after = status.partition(key)
    return int(after.split(maxsplit=1)[0]) * 1024 if found else None
