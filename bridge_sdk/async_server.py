"""The server of bridges with asynchronous commands: an event loop that serves several requests at once.

Synchronous commands of such a bridge run on the loop, as any blocking call does, watched as everywhere else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from bridge_protocol.messages import Request
from bridge_sdk.command import Command
from bridge_sdk.reply import cancelled_frame, chunk_frame, failure_frame, result_frame
from bridge_sdk.server import RUNNING, Server


class AsyncServer(Server):
    """Serves up to `concurrency` asynchronous commands at once."""

    _loop: asyncio.AbstractEventLoop
    _finished: asyncio.Future[None]

    def serve(self) -> None:
        """Serve until the end; after a `shutdown` what is running is finished first."""
        self._tasks: dict[asyncio.Task[bytes], Request] = {}
        self._cancelled: set[asyncio.Task[bytes]] = set()
        self._reading = False
        self._exit: SystemExit | None = None
        asyncio.run(self._serve())
        if self._exit is not None:
            raise self._exit

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._finished = self._loop.create_future()
        self._watcher.start()
        self._pump()
        await self._finished
        self._read_on(False)

    def _on_readable(self) -> None:
        self._read()
        self._pump()

    def _pump(self) -> None:
        """Begin what may begin, and read on unless enough is waiting."""
        while not self._ended and len(self._tasks) < self._concurrency:
            item = self._inbox.next()
            if item is None:
                break
            self._settle(item)
        self._read_on(not self._ended and len(self._inbox) <= self._concurrency)
        if self._ended and not self._tasks:
            self._finish()

    def _read_on(self, wanted: bool) -> None:
        if wanted and not self._reading:
            self._loop.add_reader(self._stdio.source, self._on_readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._stdio.source)
        self._reading = wanted

    def _start(self, request: Request, command: Command) -> None:
        if not command.asynchronous:
            super()._start(request, command)
            return
        self._watcher.in_flight += 1
        self._open.add(request.id)
        if self._watcher.hung_up:
            self._hang_up()
            return
        task = self._loop.create_task(self._run_task(request, command))
        self._tasks[task] = request
        task.add_done_callback(self._on_done)

    async def _run_task(self, request: Request, command: Command) -> bytes:
        RUNNING.set(request)
        try:
            arguments = command.arguments(request)
            if command.streams:
                await self._stream_task(request, command, arguments)
                return result_frame(request.id, None, self._limit)
            result = await command.function(**arguments)
            return result_frame(request.id, result, self._limit, binary=request.takes_binary)
        except asyncio.CancelledError:
            raise
        except SystemExit as error:
            self._exit = error
            return b""
        except BaseException as error:  # noqa: BLE001  (whatever a command raises is its answer)
            return failure_frame(request.id, error, self._limit)

    async def _stream_task(self, request: Request, command: Command, arguments: Mapping[str, Any]) -> None:
        """Send what an asynchronous generator yields."""
        async with aclosing(command.function(**arguments)) as chunks:
            seq = 0
            async for chunk in chunks:
                frame = chunk_frame(request.id, seq, chunk, self._limit, binary=request.takes_binary)
                self.send_event(request, frame)
                seq += 1
                await asyncio.sleep(0)  # one that never waits must not keep the others, and a cancel, waiting

    def _on_done(self, task: asyncio.Task[bytes]) -> None:
        request = self._tasks.pop(task)
        self._watcher.in_flight -= 1
        if self._exit is not None:  # the process is ending: the others get no reply, as in any crash
            self._finish()
            return
        if not task.cancelled():
            frame = task.result()
        elif task in self._cancelled:
            frame = cancelled_frame(request.id)
        else:
            frame = failure_frame(request.id, asyncio.CancelledError("the command cancelled itself"), self._limit)
        self._send(frame, closes=request.id)
        self._cancelled.discard(task)
        self._pump()

    def _cancel(self, request_id: int) -> None:
        for task, request in self._tasks.items():
            if request.id == request_id:
                self._cancelled.add(task)
                # Not always called on the loop: while that is held up, it is the watcher that reads.
                self._loop.call_soon_threadsafe(task.cancel)
                return
        super()._cancel(request_id)

    def _ahead(self) -> int:
        return 0

    def _hang_up(self) -> None:
        if self._watcher.in_flight:
            os._exit(0)
        super()._hang_up()

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)
