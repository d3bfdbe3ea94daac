"""Stacks: where every thread of the bridge is, written to stderr when its node sends a signal.

A node does so before it kills a bridge that hangs. It is written by the signal's own handler, in C, so that it comes
even where the interpreter is stuck in a call that never returns.
"""

from __future__ import annotations

import faulthandler
import os
import signal

# The last of the real-time signals: SIGUSR1 and SIGUSR2 are left to the program and its libraries (a JVM has its own
# use for the latter).
SIGNAL = signal.SIGRTMAX


def answer_requests() -> dict[str, int]:
    """From now on write them on request; what the handshake says of it. They can be asked for of this process only."""
    faulthandler.register(SIGNAL, file=2, all_threads=True)
    return {"pid": os.getpid(), "signal": int(SIGNAL)}
