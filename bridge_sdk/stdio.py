"""Standard input and output: claimed for frames, and pointed elsewhere for everybody else.

    before   0 requests in          1 replies out
    after    0 /dev/null            1 the same as 2, stderr
             source: a private copy of 0, sink: a private copy of 1; no program the bridge starts inherits them

A node may offer a private pair of descriptors instead (QUAYBRIDGE_PROTOCOL_FDS, "7,8"). Then that is what is
claimed, and standard input and output are left as they are: the node reads no frames there.

From then on `print`, a C library's `puts` and the output of child processes land on stderr, where they do no
harm: not one byte that is no frame can reach the node. Descriptors belong to the process, so this happens once
in its life, and what was claimed is kept here.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from dataclasses import dataclass

MARK = "QUAYBRIDGE_BRIDGE"
ENDS_WITH = "QUAYBRIDGE_ENDS_WITH"
PROTOCOL_FDS = "QUAYBRIDGE_PROTOCOL_FDS"

_PR_SET_PDEATHSIG = 1
_claimed: Stdio | None = None


@dataclass(frozen=True, slots=True)
class Stdio:
    """The private descriptors: requests are read from `source`, replies written to `sink`."""

    source: int
    sink: int


def claim_if_marked() -> None:
    """Claim, and end with the parent, if a node says that this process is a bridge.

    The mark is taken out of the environment: the programs a bridge starts are no bridges.
    """
    ends_with = os.environ.pop(ENDS_WITH, "")
    if os.environ.pop(MARK, "") == "1":
        claim()
        if ends_with != str(os.getppid()):
            _end_with_parent()


def claim() -> Stdio:
    """Claim descriptors 0 and 1, or those that are offered. Does it once: later calls return the same.

    Raises ValueError outside the main thread, or if what is offered is no pair of open descriptors.

    From here on the process is a bridge: it ignores SIGINT (and so do the programs it starts), because Ctrl-C at a
    terminal belongs to the node, which then stops its bridges in order. SIGTERM keeps its default: the process ends
    at once.
    """
    global _claimed
    if _claimed is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        offered = os.environ.pop(PROTOCOL_FDS, "")
        _claimed = _offered(offered) if offered else _standard()
        os.register_at_fork(after_in_child=_forget)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout = _like_stderr(sys.stdout)
    return _claimed


def _like_stderr(stdout: io.TextIOWrapper) -> io.TextIOWrapper:
    """Descriptor 1 as text: by the line, and never failing on what its encoding lacks.

    What was printed before and is still in the buffer goes to stderr too.
    """
    if not stdout.seekable():
        stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        return stdout
    # It was a file, and `reconfigure` would ask what is a pipe or a terminal by now how far it is: OSError.
    stdout.flush()
    return open(1, "w", buffering=1, encoding=stdout.encoding, errors="backslashreplace", closefd=False)


def _standard() -> Stdio:
    null = os.open(os.devnull, os.O_RDWR)  # takes the place of stderr if that is closed
    taken = Stdio(source=os.dup(0), sink=os.dup(1))  # os.dup: not inheritable
    os.dup2(null, 0)
    os.dup2(2, 1)
    if null == 2:
        os.set_inheritable(null, True)
    else:
        os.close(null)
    return taken


def _offered(pair: str) -> Stdio:
    try:
        source, sink = map(int, pair.split(","))
        for descriptor in (source, sink):
            os.set_inheritable(descriptor, False)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"{PROTOCOL_FDS}={pair!r} names no two open descriptors ({error}): does a program between the node and "
            "this one close those it inherits?"
        ) from None
    return Stdio(source=source, sink=sink)


def _forget() -> None:
    """In a forked child: its copies lead nowhere, so that it can neither answer nor keep the pipes open."""
    if _claimed is not None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, _claimed.source, inheritable=False)
        os.dup2(null, _claimed.sink, inheritable=False)
        os.close(null)


def _end_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends: the case where EOF is not enough.

    (A bridge notices EOF in a thread; C code that keeps the interpreter's lock keeps that thread from running.)
    """
    import ctypes  # 3 ms and 0.3 MB: not for bridges that no node started, or that end with it already

    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), nothing, nothing, nothing) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # prctl(2): nothing is sent for a parent that was gone before the call.
    if os.getppid() != parent:
        os._exit(1)
