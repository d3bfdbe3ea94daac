"""A bridge whose sessions count upwards, in memory: what is lost with it can be told."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

from bridge_sdk import Bridge
from bridge_sdk.session import Session

bridge = Bridge()
closed: deque[str] = deque(maxlen=1000)


@bridge.session_opened
def opened(session: Session) -> None:
    session.state["count"] = 0


@bridge.session_closed
def over(session: Session) -> None:
    closed.append(session.id)


@bridge.command
def count(seconds: float = 0.0) -> dict[str, Any]:
    """One more."""
    time.sleep(seconds)
    bridge.session.state["count"] += 1
    return {"count": bridge.session.state["count"], "pid": os.getpid()}


@bridge.command
def climb(to: int, pause: float = 0.0, deaths: int = 0, note: str = "") -> Generator[int, None, int]:
    """So many more, one by one. Dies half-way until `deaths` of them are written down in the file `note`."""
    state = bridge.session.state
    for step in range(to):
        if deaths and step == to // 2 and (not (path := Path(note)).exists() or path.stat().st_size < deaths):
            with path.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        state["count"] += 1
        bridge.progress(step + 1, to)
        yield state["count"]
        time.sleep(pause)
    return int(state["count"])


@bridge.command
def start_at(number: int) -> int:
    """Where to count from."""
    bridge.session.state["count"] = number
    return number


@bridge.command
def crash(attempts: int = 1) -> str:
    """Die, but not at a later attempt than this."""
    if bridge.request.attempt <= attempts:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@bridge.command
def plain(seconds: float = 0.0) -> int:
    """Needs no session."""
    time.sleep(seconds)
    return os.getpid()


@bridge.command
def ended() -> list[str]:
    """The sessions that are over, the latest of them."""
    return list(closed)


if __name__ == "__main__":
    bridge.serve()
