"""A process as the kernel tells of it: one small read, cheap enough for once a second."""

from __future__ import annotations

KIBIBYTE = 1024


def resident(pid: int) -> int | None:
    """The resident size of a process now, in bytes; None where it cannot be told (it is gone, or dead)."""
    return _bytes(f"/proc/{pid}/status", b"VmRSS:")


def peak_resident(pid: int) -> int | None:
    """The largest resident size it ever had, in bytes; None where it cannot be told."""
    return _bytes(f"/proc/{pid}/status", b"VmHWM:")


def proportional(pid: int) -> int | None:
    """Its part of what is resident, in bytes, with what it shares divided by those who do; None: it cannot be told.

    Nor can it of the process of another user.
    """
    return _bytes(f"/proc/{pid}/smaps_rollup", b"\nPss:")


def parent(pid: int) -> int | None:
    """The process that started it, or took it in; None: it is gone."""
    return _number(f"/proc/{pid}/status", b"PPid:")


def _bytes(path: str, key: bytes) -> int | None:
    size = _number(path, key)
    return None if size is None else size * KIBIBYTE


def _number(path: str, key: bytes) -> int | None:
    """The number after `key` in a file of /proc."""
    try:
        with open(path, "rb", buffering=0) as source:
            status = source.read(8192)
    except OSError:
        return None
    _, found, after = status.partition(key)
    return int(after.split(maxsplit=1)[0]) if found else None
