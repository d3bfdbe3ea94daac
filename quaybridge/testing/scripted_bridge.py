"""A bridge that a script has fail: a real process, to which it is really done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from bridge_protocol.errors import FrameError
from bridge_protocol.messages import (
    HANDSHAKE_ID,
    PING,
    RESERVED_COMMANDS,
    ErrorInfo,
    Request,
    decode_request,
    encode_failure,
)
from quaybridge.testing.script import Failure, Script
from worker_node.bridge_process import BridgeProcess

GARBAGE = b"Garbage, as scripted: this is no frame.\n"


class ScriptedBridge(BridgeProcess):
    """Asks the script about each request it is sent. `options` are those of BridgeProcess."""

    def __init__(
        self,
        script: Script,
        command: Sequence[str],
        *,
        on_payload: Callable[[bytes | bytearray], None],
        **options: Any,
    ) -> None:
        self._script = script
        self._answer = on_payload
        super().__init__(command, on_payload=on_payload, **options)

    def send(self, payload: bytes | bytearray) -> None:
        """See BridgeProcess."""
        request = request_in(payload)
        failure = None if request is None else self._script.next(request.id, request.command)
        if request is None or failure is None:
            super().send(payload)
            return
        loop = asyncio.get_running_loop()
        match failure.kind:
            case "crash":
                super().send(payload)
                self.send_signal(signal.SIGKILL)
            case "hang":
                self.send_signal(signal.SIGSTOP)
                super().send(payload)
            case "garbage":
                loop.call_soon(self._receive, GARBAGE)
            case "slow":
                loop.call_later(failure.seconds, super().send, payload)
            case "error":
                loop.call_soon(self._answer, scripted_error(request, failure))


def request_in(payload: bytes | bytearray) -> Request | None:
    """The request that a producer sent, if it is one: neither a ping nor a word of the node's own."""
    try:
        request = decode_request(payload)
    except FrameError:
        return None
    if request.id == HANDSHAKE_ID or request.command == PING or request.command in RESERVED_COMMANDS:
        return None
    return request


def scripted_error(request: Request, failure: Failure) -> bytes:
    """The reply of a bridge that fails with what the script says."""
    info = ErrorInfo(type="Scripted", message=failure.message, retryable=failure.retryable)
    return encode_failure(request.id, f"Scripted: {failure.message}", info=info)
