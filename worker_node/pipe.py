"""The size of a pipe: how much of a frame goes through before the other side has to run.

A pipe holds 64 KiB. A frame that is larger goes through it in pieces, and each costs both sides a way through the
scheduler and the node its event loop. So a pipe that overflows is widened; those of bridges that get and give little
stay as they are.

Not to the 1 MiB that anybody may ask for: what all pipes of one user hold is bounded too, to 64 MiB by default
(pipe(7), /proc/sys/fs/pipe-user-pages-soft). Past that they cannot be widened, and new ones hold 8 KiB.
"""

from __future__ import annotations

import fcntl

USUAL_SIZE = 64 * 1024  # bytes
WIDE_SIZE = 256 * 1024  # bytes


def widen(descriptor: int) -> bool:
    """Have the pipe hold WIDE_SIZE, if it may; whether it does."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, WIDE_SIZE)
    except OSError:  # EPERM: this user's pipes hold too much already
        return False
    return True
