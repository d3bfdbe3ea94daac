"""The run id: what the environment of every process that a node's bridges start says about where it came from.

    QUAYBRIDGE_RUN=<boot>:<namespace>:<pid>:<start>:<random>/<bridge>

Children inherit it, in whatever session or group they are, and whoever their parent is by now; so by it what a
bridge or a node left behind is found. `pid` and `start` (clock ticks, field 22 of /proc/<pid>/stat) name the
node's process, `boot` and `namespace` (the inode of its PID namespace) say where those numbers mean something,
`random` tells two nodes in one process apart, and `bridge` counts the bridges the node has started.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def own_run_id() -> str:
    """A new run id, without the bridge, for a node in this process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    # The program's name, in parentheses, may hold spaces and parentheses itself.
    start = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return f"{boot}:{namespace}:{os.getpid()}:{start}:{secrets.token_hex(8)}"
