"""The heartbeat of a worker: a file that is young while the node can serve, for a container's health check.

A file, since looking at one costs a check nothing: no port to open, and no Python to start every ten seconds. It is
touched from the event loop, so that a loop that hangs is noticed too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

INTERVAL = 5.0  # seconds; what looks at the file should allow for several
AWAITED = 0.2  # seconds between looks at a node that cannot serve yet, or any more: somebody waits for it

logger = logging.getLogger("quaybridge.heartbeat")


class Heartbeat:
    """Touches `file` every `interval` seconds if `healthy()`, from `start` to `stop`, on the running event loop.

    While it is not, it looks several times a second: the file is there as soon as it is true.

    A file that cannot be written is logged, once, and left: the check will say the rest.
    """

    def __init__(self, file: Path, healthy: Callable[[], bool], interval: float = INTERVAL) -> None:
        self.file = file
        self._healthy = healthy
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Heartbeat {self.file} {'stopped' if self._timer is None else 'beating'}>"

    def start(self) -> None:
        """Begin. A file left by a process that was killed is removed: it does not count."""
        self._remove()
        self._beat()

    def stop(self) -> None:
        """End, and remove the file."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._remove()

    def _beat(self) -> None:
        healthy = self._healthy()
        try:
            if healthy:
                self.file.touch()
        except OSError as error:
            logger.error("no heartbeat: %s cannot be written: %s", self.file, error.strerror)
            return
        pause = self._interval if healthy else min(self._interval, AWAITED)
        self._timer = asyncio.get_running_loop().call_later(pause, self._beat)

    def _remove(self) -> None:
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            logger.error("no heartbeat: %s cannot be removed: %s", self.file, error.strerror)
