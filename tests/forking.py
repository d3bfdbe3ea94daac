"""A forked process: what it finds, told through a pipe. It ends without the cleaning up that is its parent's."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from select import select

PATIENCE = 30.0  # seconds


def forked(work: Callable[[], str]) -> str:
    """What `work` returns in a child of this process, or its traceback; the child is killed if it takes too long."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of what is tested here: other threads are not there in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            said = work()
        except BaseException:  # noqa: BLE001 (told to the parent)
            said = traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = b""
    try:
        while select([reading], [], [], PATIENCE)[0] and (piece := os.read(reading, 65536)):
            said += piece
    finally:
        os.close(reading)
        os.kill(child, 9)  # it has said what it had to say, or never will
        os.waitpid(child, 0)
    return said.decode()
