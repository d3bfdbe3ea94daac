"""An SDK bridge that hangs, in Python or in C, cancelled or not."""

import contextlib
import ctypes
import threading
import time

from bridge_sdk import Bridge, Cancelled

bridge = Bridge()


@bridge.command
def hang_in_python() -> None:
    """Deaf to being cancelled."""
    while True:
        with contextlib.suppress(Cancelled):
            threading.Event().wait()


@bridge.command
def hang_in_c() -> None:
    """With the interpreter's lock: no Python runs any more, in no thread."""
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@bridge.command
def hang_deep(depth: int = 200) -> None:
    """At the end of a long way down."""
    if depth:
        hang_deep(depth - 1)
    else:
        hang_in_python()


@bridge.command
def wait_politely() -> None:
    """Until it is cancelled."""
    time.sleep(1000)


@bridge.command
def echo(text: str) -> str:
    """Give it back."""
    return text


bridge.serve()
