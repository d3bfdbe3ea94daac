"""A bridge's commands without its process: for tests, which answer a request where they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, closing
from typing import Any

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import DEFAULT_LIMIT, HEADER_SIZE
from bridge_protocol.messages import PING, PROTOCOL_VERSION, SHUTDOWN, Request, decode_request
from bridge_sdk.bridge import Bridge
from bridge_sdk.command import Command
from bridge_sdk.description import descriptions
from bridge_sdk.reply import chunk_frame, failure_frame, progress_frame, result_frame, unknown_command, unreadable_frame
from bridge_sdk.server import RUNNING


class InProcess:
    """Answers requests with the commands of `bridge`, one at a time. Not for several threads.

    `on_progress` is called with what a command says of its progress, as a frame's payload.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.on_progress: Callable[[bytes], None] = lambda payload: None
        self._bridge = bridge
        self._commands = bridge.commands()
        bridge.tell_progress(self)

    def __repr__(self) -> str:
        return f"<InProcess {self._bridge!r}>"

    async def answer(
        self, payload: bytes, limit: int = DEFAULT_LIMIT, *, on_chunk: Callable[[bytes], Awaitable[None]]
    ) -> bytes:
        """The reply to a request, as a frame's payload. `limit`: bytes of a payload.

        `on_chunk` is awaited with the payload of each chunk that the command yields before the reply. Whatever a
        command raises is its answer, but for what ends a process.
        """
        return (await self._frame(payload, limit, on_chunk))[HEADER_SIZE:]

    def send_progress(self, request: Request, data: Any) -> None:
        """See Server."""
        self.on_progress(progress_frame(request.id, data, DEFAULT_LIMIT)[HEADER_SIZE:])

    def forget(self) -> None:
        """All sessions are gone, as with the end of a process. No callback is called."""
        self._bridge.forget_sessions()

    async def _frame(self, payload: bytes, limit: int, on_chunk: Callable[[bytes], Awaitable[None]]) -> bytes:
        try:
            request = decode_request(payload)
        except FrameError as error:
            return unreadable_frame(error)
        if request.command == PING:
            streams = any(command.streams for command in self._commands.values())
            claims = {
                "protocol": PROTOCOL_VERSION,
                "stream": streams,
                "shutdown": True,
                "binary": True,
                "commands": sorted(self._commands),
                "descriptions": descriptions(self._commands, limit // 4),
            }
            return result_frame(request.id, {"status": "ok", "capabilities": claims}, limit)
        if request.command == SHUTDOWN:
            return result_frame(request.id, {"status": "ended"}, limit)
        command = self._commands.get(request.command)
        if command is None:
            return failure_frame(request.id, unknown_command(request.command, self._commands), limit)
        token = RUNNING.set(request)
        try:
            arguments = command.arguments(request)
            if command.streams:
                result = await self._stream(request, command, arguments, limit, on_chunk)
            elif command.asynchronous:
                result = await command.function(**arguments)
            else:
                result = command.function(**arguments)
            return result_frame(request.id, result, limit, binary=request.takes_binary)
        except Exception as error:  # noqa: BLE001  (whatever a command raises is its answer)
            return failure_frame(request.id, error, limit)
        finally:
            RUNNING.reset(token)

    async def _stream(
        self,
        request: Request,
        command: Command,
        arguments: Mapping[str, Any],
        limit: int,
        on_chunk: Callable[[bytes], Awaitable[None]],
    ) -> Any:
        """Tell what a generator yields; what it returns."""
        seq = 0

        async def tell(chunk: Any) -> None:
            frame = chunk_frame(request.id, seq, chunk, limit, binary=request.takes_binary)
            await on_chunk(frame[HEADER_SIZE:])

        if command.asynchronous:
            async with aclosing(command.function(**arguments)) as chunks:
                async for chunk in chunks:
                    await tell(chunk)
                    seq += 1
            return None
        with closing(command.function(**arguments)) as chunks:
            while True:
                try:
                    chunk = next(chunks)
                except StopIteration as end:
                    return end.value
                await tell(chunk)
                seq += 1
