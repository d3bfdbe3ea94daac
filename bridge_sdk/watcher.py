"""The watcher: what keeps an eye on standard input while the main thread is busy with a synchronous command.

Requests are read and run by the main thread itself, so that one costs no hop between threads. A small thread
watches beside it, for two things only:

- The other end hung up: the process ends at once, busy or not.
- A request that has run for a while is cancelled: the thread reads frames on behalf of the main thread, and a
  cancel raises Cancelled there, by a signal, so that sleeping and waiting are interrupted too.

How it avoids a wake-up for every request: when nothing runs it is *parked*, waiting for the hang-up alone. The
first request after that wakes it, and then it looks every 50 ms until nothing has run for a second. Only a request
that it finds running twice makes it read.

Who may read: the main thread while no request runs; the watcher, holding the lock, while one does. `end` takes
the lock, so neither meets the other, and no signal is sent once a request has ended.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from bridge_protocol.messages import Request
from bridge_sdk.errors import Cancelled

READ_SIZE = 64 * 1024
PERIOD = 50  # milliseconds
PATIENCE = 20  # periods without a request before it parks

# Ignored by default and used by nobody, which is why Go's runtime interrupts its threads with it as well
# (golang/proposal 24543, "non-cooperative preemption").
SIGNAL = signal.SIGURG

_HANGUP = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP


class Watcher:
    """Watches `source`. Made and used in the main thread; `in_flight` counts what runs beside `begin` and `end`.

    `receive` is called with what was read while a request runs, in the watcher's thread, with the lock held;
    `has_room` says whether it may be.
    """

    def __init__(self, source: int, receive: Callable[[bytes], None], has_room: Callable[[], bool]) -> None:
        self._source = source
        self._receive = receive
        self._has_room = has_room
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._main = threading.get_ident()
        self._parked = True
        self._running: Request | None = None
        self._cancelled: Request | None = None  # the last one that was cancelled while it ran
        self._interruptible: Request | None = None  # the one whose function is on the main thread's stack
        self.in_flight = 0
        self.hung_up = False

    def start(self) -> None:
        """Start watching. Raises ValueError outside the main thread: only there can signals be handled."""
        signal.signal(SIGNAL, self._on_signal)
        threading.Thread(target=self._watch, name="bridge-watcher", daemon=True).start()

    def begin(self, request: Request) -> bool:
        """Say that `request` runs from now until `end`. False: the other end has hung up, so do not begin."""
        with self._lock:
            self._running = request
            parked = self._parked
            self._parked = False
        if parked:
            os.eventfd_write(self._wake, 1)
        return not self.hung_up

    def end(self) -> None:
        """Say that no request runs."""
        with self._lock:
            self._running = None

    def call(self, request: Request, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call `function`, between `begin` and `end`. Raises what it raises, or Cancelled: in here, or not at all."""
        try:
            self._interruptible = request
            if self._cancelled is request:
                raise Cancelled
            return function(**arguments)
        finally:
            self._interruptible = None

    def shielded(self, function: Callable[[], None]) -> None:
        """Call `function`, which must not be left half-way, within or without `call`; Cancelled is raised after it.

        In any thread: only the main thread is interrupted, and so shielded.
        """
        request = self._interruptible
        if request is None or threading.get_ident() != self._main:
            function()
            return
        self._interruptible = None
        function()
        self._interruptible = request
        if self._cancelled is request:
            self._interruptible = None  # once
            raise Cancelled

    def interrupt(self, request_id: int) -> bool:
        """Raise Cancelled in the request, if it runs; whether it does. Called by `receive`."""
        running = self._running
        if running is None or running.id != request_id:
            return False
        if self._cancelled is not running:
            self._cancelled = running
            signal.pthread_kill(self._main, SIGNAL)
        return True

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """In the main thread, between two of its steps: it may already be past the function."""
        if self._interruptible is not None and self._interruptible is self._cancelled:
            self._interruptible = None  # so that it is raised once, even where `call` is about to return
            raise Cancelled

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._source, select.POLLRDHUP)
        seen: Request | None = None
        quiet = 0
        while True:
            for descriptor, events in poll.poll(None if self._parked else PERIOD):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif events & _HANGUP:
                    return self._hang_up()
                else:
                    self._read_beside(seen)
            with self._lock:
                running = self._running
                quiet = 0 if running is not None else quiet + 1
                if quiet > PATIENCE:
                    quiet = 0
                    self._parked = True
            reads = running is not None and running is seen and self._has_room()
            poll.modify(self._source, select.POLLRDHUP | (select.POLLIN if reads else 0))
            seen = running

    def _hang_up(self) -> None:
        with self._lock:
            self.hung_up = True
            if self._running is not None or self.in_flight:
                os._exit(0)
        # Otherwise the main thread is about to read the end itself, and `serve` returns.

    def _read_beside(self, seen: Request | None) -> None:
        """Read what poll saw, unless the main thread has ended that request and may have read it instead."""
        with self._lock:
            if seen is not None and self._running is seen:
                data = os.read(self._source, READ_SIZE)
                if not data:
                    os._exit(0)
                self._receive(data)
