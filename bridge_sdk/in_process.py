"""A bridge's commands without its process: for tests, which answer a request where they are."""

from __future__ import annotations

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import DEFAULT_LIMIT, HEADER_SIZE
from bridge_protocol.messages import PING, PROTOCOL_VERSION, SHUTDOWN, decode_request
from bridge_sdk.bridge import Bridge
from bridge_sdk.reply import failure_frame, result_frame, unknown_command, unreadable_frame
from bridge_sdk.server import RUNNING


class InProcess:
    """Answers requests with the commands of `bridge`. Not for several threads."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._commands = bridge.commands()

    def __repr__(self) -> str:
        return f"<InProcess {self._bridge!r}>"

    async def answer(self, payload: bytes, limit: int = DEFAULT_LIMIT) -> bytes | None:
        """The reply to a request, as a frame's payload; None where none is due. `limit`: bytes of a payload.

        Whatever a command raises is its answer, but for what ends a process.
        """
        frame = await self._frame(payload, limit)
        return None if frame is None else frame[HEADER_SIZE:]

    def forget(self) -> None:
        """All sessions are gone, as with the end of a process. No callback is called."""
        self._bridge.forget_sessions()

    async def _frame(self, payload: bytes, limit: int) -> bytes | None:
        try:
            request = decode_request(payload)
        except FrameError as error:
            return unreadable_frame(error)
        if request.command == PING:
            claims = {"protocol": PROTOCOL_VERSION, "shutdown": True, "commands": sorted(self._commands)}
            return result_frame(request.id, {"status": "ok", "capabilities": claims}, limit)
        if request.command == SHUTDOWN:
            return result_frame(request.id, {"status": "ended"}, limit)
        command = self._commands.get(request.command)
        if command is None:
            return failure_frame(request.id, unknown_command(request.command, self._commands), limit)
        token = RUNNING.set(request)
        try:
            result = command.function(**command.parameters.bind(request.args))
            return result_frame(request.id, await result if command.asynchronous else result, limit)
        except Exception as error:  # noqa: BLE001  (whatever a command raises is its answer)
            return failure_frame(request.id, error, limit)
        finally:
            RUNNING.reset(token)
