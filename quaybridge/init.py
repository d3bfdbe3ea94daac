"""What a container's first process has to do, for a worker that is one: pass signals on, and reap orphans.

The kernel gives every process whose parent is gone to process 1, which must wait for it, or it stays as a zombie
and keeps its number. A node cannot do that beside its own bridges: waiting for just any child would take away the
exit status of one it still has to tell apart. So process 1 becomes two: this, and the node as its child.

    docker stop ──SIGTERM──▶ 1: init ──SIGTERM──▶ node ──▶ bridges ──▶ what they start, and leave
                                ▲◀────exit status──┘                                       │
                                └──────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import os
import signal

# What is sent to a process in order to tell it something. The rest are faults of its own, or cannot be caught.
_PASSED_ON = frozenset(
    (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)


def become_init() -> bool:
    """Fork, if this is process 1: the child returns, with True; the parent never does, and exits as the child does.

    To be called before there are threads, or an event loop. A node that was killed by signal n gives 128 + n.
    """
    if os.getpid() != 1:
        return False
    waited_for = _PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    node = os.fork()
    if node == 0:
        # A Ctrl-C goes to every process of the terminal's group: the node gets it from here, once.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return True
    while True:
        number = signal.sigwait(waited_for)
        if number in _PASSED_ON:
            os.kill(node, number)  # it is not reaped yet, so it is still there
        elif (status := _reap(node)) is not None:
            os._exit(status)


def _reap(node: int) -> int | None:
    """Wait for all that have ended; the exit status of the node if it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == node:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if pid == 0:
            return None
