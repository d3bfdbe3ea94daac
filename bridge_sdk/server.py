"""The server of synchronous commands: the main thread reads a request, runs it, writes its reply, reads on."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from contextvars import ContextVar
from typing import Any

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import DEFAULT_LIMIT, LIMIT_CEILING
from bridge_protocol.messages import HANDSHAKE_ID, PING, PROTOCOL_VERSION, SHUTDOWN, Request
from bridge_sdk.command import Command
from bridge_sdk.errors import Cancelled
from bridge_sdk.inbox import Inbox
from bridge_sdk.reply import (
    cancelled_frame,
    chunk_frame,
    failure_frame,
    given_back_frame,
    progress_frame,
    result_frame,
    unknown_command,
    unreadable_frame,
)
from bridge_sdk.stacks import answer_requests
from bridge_sdk.stdio import Stdio
from bridge_sdk.watcher import READ_SIZE, Watcher

AHEAD = 16  # requests that may wait in the pipe while one runs
STALE = 0.025  # seconds after the latest read: those that wait may have been cancelled by now, or asked back

RUNNING: ContextVar[Request] = ContextVar("quaybridge_request")


class Server:
    """Serves `commands` on `stdio` until the other end hangs up or sends `shutdown`."""

    def __init__(self, commands: Mapping[str, Command], stdio: Stdio, concurrency: int) -> None:
        self._commands = commands
        self._stdio = stdio
        self._concurrency = concurrency
        self._limit = DEFAULT_LIMIT
        self._inbox = Inbox()
        # A node keeps to what is claimed, so that at most this many requests wait beside the one that runs.
        self._watcher = Watcher(stdio.source, self._receive, lambda: len(self._inbox) < concurrency + AHEAD)
        self._stacks = answer_requests()
        self._ended = False
        self._read_at = 0.0
        self._writing = threading.Lock()  # a command may say how far it is in any thread, and the watcher answers too
        self._described: list[dict[str, Any]] | None = None
        self._open: set[int] = set()  # requests that may still say something

    def serve(self) -> None:
        """Serve until the end. SystemExit passes: a command that exits ends the bridge."""
        self._watcher.start()
        while not self._ended:
            if len(self._inbox) and time.monotonic() - self._read_at > STALE:
                self._read_what_came()
            elif (item := self._inbox.next()) is None:
                self._read()
            else:
                self._settle(item)

    def _read_what_came(self) -> None:
        """Read what the watcher has not: several short commands do not wake it, and one that holds the GIL stops it."""
        self._read_at = time.monotonic()
        if select.select([self._stdio.source], [], [], 0)[0]:
            self._read()

    def _read(self) -> None:
        room = self._inbox.room
        if room is None:
            data = os.read(self._stdio.source, READ_SIZE)
            size = len(data)
        else:
            data = b""
            size = os.readv(self._stdio.source, (room,))
            self._inbox.filled(size)
        self._read_at = time.monotonic()
        if size:
            self._receive(data)
        else:
            self._hang_up()

    def _receive(self, data: bytes) -> None:
        """Take what was read, and settle the cancels among it.

        Called by the main thread, or by the watcher while the main thread is in a command: then it is the
        watcher that answers, and only what was waiting.
        """
        for request_id in self._inbox.receive(data):
            self._cancel(request_id)
        for request_id in self._inbox.given_back():
            self._send(given_back_frame(request_id))

    def _cancel(self, request_id: int) -> None:
        if not self._watcher.interrupt(request_id) and self._inbox.withdraw(request_id):
            self._send(cancelled_frame(request_id))

    def _settle(self, item: Request | FrameError) -> None:
        """Answer a request, or what came in the place of one."""
        if isinstance(item, FrameError):
            self._send(unreadable_frame(item))
            if item is self._inbox.broken:
                raise SystemExit(f"standard input holds no frames: {item}")
        elif self._inbox.was_cancelled(item.id):
            self._send(cancelled_frame(item.id))
        else:
            command = self._commands.get(item.command)
            if command is None:
                self._send(self._answer_builtin(item))
            else:
                self._start(item, command)

    def _start(self, request: Request, command: Command) -> None:
        """Run a command, here and now."""
        token = RUNNING.set(request)
        self._open.add(request.id)
        if self._watcher.begin(request):
            frame = self._run(request, command)
            self._watcher.end()
            self._send(frame, closes=request.id)
        else:
            self._hang_up()
        RUNNING.reset(token)

    def _run(self, request: Request, command: Command) -> bytes:
        try:
            arguments = command.arguments(request)
            if command.streams:
                arguments = {"request": request, "command": command, "arguments": arguments}
                result = self._watcher.call(request, self._stream, arguments)
            else:
                result = self._watcher.call(request, command.function, arguments)
            return result_frame(request.id, result, self._limit, binary=request.takes_binary)
        except Cancelled as cancelled:
            return cancelled_frame(request.id, cancelled)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001  (whatever a command raises is its answer)
            return failure_frame(request.id, error, self._limit)

    def _stream(self, request: Request, command: Command, arguments: Mapping[str, Any]) -> Any:
        """Send what a generator yields; what it returns. Cancelled is raised in it, or between two chunks."""
        with closing(command.function(**arguments)) as chunks:
            seq = 0
            while True:
                try:
                    chunk = next(chunks)
                except StopIteration as end:
                    return end.value
                frame = chunk_frame(request.id, seq, chunk, self._limit, binary=request.takes_binary)
                self.send_event(request, frame)
                seq += 1

    def send_progress(self, request: Request, data: Any) -> None:
        """Say how far a request is, in any thread; nothing of one that is over. Raises ValueError, and Cancelled."""
        self.send_event(request, progress_frame(request.id, data, self._limit))

    def send_event(self, request: Request, frame: bytes) -> None:
        """Send what comes before the reply, whole: it is not interrupted. Raises Cancelled after it."""
        self._watcher.shielded(lambda: self._send(frame, only_if_open=request.id))

    def _answer_builtin(self, request: Request) -> bytes:
        if request.command == PING:
            if request.id == HANDSHAKE_ID:
                self._take_limit(request.args.get("frame_limit"))
                return self._pong(request, {})
            return self._pong(request, {"descriptions": self._descriptions()})
        if request.command == SHUTDOWN:
            self._ended = True
            return result_frame(request.id, {"status": "ended"}, self._limit)
        return failure_frame(request.id, unknown_command(request.command, self._commands), self._limit)

    def _pong(self, request: Request, more: Mapping[str, Any]) -> bytes:
        result = {"status": "ok", "capabilities": {**self._capabilities(), **more}}
        return result_frame(request.id, result, self._limit)

    def _take_limit(self, limit: Any) -> None:
        """A node whose limit is not the default says so; a larger reply would be answered with a kill."""
        if type(limit) is int and 1 <= limit <= LIMIT_CEILING:
            self._limit = limit

    def _capabilities(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL_VERSION,
            "concurrency": self._concurrency,
            "ahead": self._ahead(),
            "cancel": True,
            "stream": any(command.streams for command in self._commands.values()),
            "shutdown": True,
            "binary": True,
            "commands": sorted(self._commands),
            "stacks": self._stacks,
        }

    def _descriptions(self) -> list[dict[str, Any]]:
        if self._described is None:
            from bridge_sdk.description import descriptions  # 2 ms: for a person who asks, and not for each start

            self._described = descriptions(self._commands, self._limit // 4)
        return self._described

    def _ahead(self) -> int:
        """Synchronous commands run in the order they come; a concurrency that was asked for says the same itself."""
        return AHEAD if self._concurrency == 1 else 0

    def _send(self, frame: bytes, *, closes: int | None = None, only_if_open: int | None = None) -> None:
        """Write a frame, in one piece. `closes`: that request says nothing after it."""
        try:
            with self._writing:
                if only_if_open is not None and only_if_open not in self._open:
                    return
                self._open.discard(closes or 0)
                written = os.write(self._stdio.sink, frame)
                if written < len(frame):
                    rest = memoryview(frame)[written:]
                    while rest:
                        rest = rest[os.write(self._stdio.sink, rest) :]
        except BrokenPipeError:  # nobody listens: the same as the end of standard input
            self._hang_up()

    def _hang_up(self) -> None:
        """The other end is gone."""
        self._ended = True
