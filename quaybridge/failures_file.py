"""The file of a batch's failures, before there are any: what it must not be, and what another batch left in it."""

from __future__ import annotations

import os
from pathlib import Path

from quaybridge.batch import BatchError


def check_failures(failures: Path, *, requests: int, replies: int, resume: bool) -> None:
    """Failures must not replace what is read or written besides, and the first may come late: so it is asked before.

    `requests` and `replies` are descriptors. Raises BatchError.
    """
    if not failures.exists():
        directory = failures.parent
        if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
            why = "may not be written to" if directory.is_dir() else "is no directory"
            raise BatchError(f"{failures}: {str(directory)!r} {why}: name another file with --failures")
        return
    if failures.is_dir() or not os.access(failures, os.W_OK):
        why = "is a directory" if failures.is_dir() else "may not be written to"
        raise BatchError(f"{failures} {why}: name another file with --failures")
    if not failures.is_file():
        if resume:
            raise BatchError(f"--resume needs the failures in a file, and {failures} is none")
        return
    there = failures.stat()
    for descriptor, what in ((requests, "requests come from"), (replies, "replies go to")):
        if os.path.samestat(there, os.fstat(descriptor)):
            raise BatchError(f"{failures} is where the {what}: name another file with --failures")


def clear_failures(failures: Path) -> None:
    """Leave none of another batch's. What is no file, such as /dev/null, is not for us to remove, nor is a link."""
    if failures.is_symlink() and failures.is_file():
        os.truncate(failures, 0)
    elif failures.is_file():
        failures.unlink()
