"""A bridge that passes through failpoints, for tests only: see `broker.failpoints`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from bridge_protocol import codec
from bridge_protocol.errors import FrameError
from bridge_protocol.messages import HANDSHAKE_ID, RESERVED_COMMANDS
from broker.failpoints import Failpoints, Point
from worker_node.bridge_process import BridgeProcess


class FailingBridge(BridgeProcess):
    """Passes P5 to P8 with each request; where one says error, its process is killed at that moment.

    `options` are those of BridgeProcess.
    """

    def __init__(
        self,
        failpoints: Failpoints,
        command: Sequence[str],
        *,
        on_payload: Callable[[bytes | bytearray], None],
        **options: Any,
    ) -> None:
        self._failpoints = failpoints
        self._pass_on = on_payload
        super().__init__(command, on_payload=self._on_reply, **options)

    def send(self, payload: bytes | bytearray) -> None:
        """See BridgeProcess."""
        if not _is_of_a_request(payload):
            super().send(payload)
        elif not self._reached(Point.P5):
            super().send(payload)
            self._reached(Point.P6)
            asyncio.get_running_loop().call_soon(self._reached, Point.P7)

    def _on_reply(self, payload: bytes | bytearray) -> None:
        if not _is_of_a_request(payload) or not self._reached(Point.P8):
            self._pass_on(payload)

    def _reached(self, point: Point) -> bool:
        if not self._failpoints.reached(point):
            return False
        self.send_signal(signal.SIGKILL)
        return True


def _is_of_a_request(payload: bytes | bytearray) -> bool:
    """Whether it is a request or the reply to one: neither the handshake nor a word of the node's own."""
    try:
        message = codec.decode(payload)
    except FrameError:
        return False
    return message.get("id") not in (HANDSHAKE_ID, None) and message.get("command") not in RESERVED_COMMANDS
