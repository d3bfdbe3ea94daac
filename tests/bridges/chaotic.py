"""The bridge of the chaos runs: it gives what only its own work can give, refuses, or dies, as it is asked to."""

import hashlib
import os
import time
from collections.abc import Generator

from bridge_sdk import ApplicationError, Bridge

bridge = Bridge()
bridge.session_opened(lambda session: session.state.update(count=0))


@bridge.command
def works(number: int, text: str, seconds: float) -> dict[str, object]:
    time.sleep(seconds)
    return {"number": number, "text": text[::-1], "sha256": hashlib.sha256(text.encode()).hexdigest()}


@bridge.command
def refuses(number: int) -> None:
    raise ApplicationError(f"no {number}")


@bridge.command
def poisons(number: int) -> None:
    os._exit(66)


@bridge.command
def count() -> dict[str, int]:
    """One more, in a session."""
    bridge.session.state["count"] += 1
    return {"count": bridge.session.state["count"], "pid": os.getpid()}


@bridge.command
def climb(to: int) -> Generator[int, None, dict[str, int]]:
    """So many more, one by one."""
    for _ in range(to):
        yield count()["count"]
    return {"count": bridge.session.state["count"], "pid": os.getpid()}


@bridge.command
def numbers(to: int) -> Generator[int, None, int]:
    yield from range(to)
    return to


bridge.serve()
