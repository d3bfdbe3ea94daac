"""The other end of a bridge's pipes, for tests that look at one frame after the other."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge_protocol.frames import FrameDecoder, encode_frame
from bridge_protocol.handshake import handshake
from bridge_protocol.messages import Chunk, Failure, Progress, Request, Result, decode_message, encode_request

PATIENCE = 20  # seconds until a test gives up waiting
MARKED = {"QUAYBRIDGE_BRIDGE": "1"}


class Client:
    """A bridge process, started; `close` it. Its stderr goes to the file `errors`, its stdin is a pipe or a socket."""

    def __init__(
        self,
        command: list[str],
        errors: Path,
        *,
        environment: Mapping[str, str] = MARKED,
        sockets: bool = False,
    ) -> None:
        self.errors = errors
        with errors.open("wb") as stderr:
            if sockets:
                theirs, ours = socket.socketpair()
                stdin, self._source = theirs.fileno(), ours.detach()
            else:
                stdin, self._source = os.pipe()
            self.process = subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=os.environ | environment
            )
            if sockets:
                theirs.close()
            else:
                os.close(stdin)
        assert self.process.stdout is not None
        self._sink = self.process.stdout.fileno()
        self._decoder = FrameDecoder()
        self._ids = iter(range(1, 1_000_000))

    def shake_hands(self) -> Any:
        self.write(encode_frame(encode_request(handshake("test-0"))))
        reply = self.receive()
        assert isinstance(reply, Result), reply
        return reply.result

    def send(self, command: str, /, **args: Any) -> int:
        """Send a request; its id."""
        request_id = next(self._ids)
        self.write(frame(request_id, command, args))
        return request_id

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._source, data) :]

    def receive(self) -> Result | Failure:
        """The next thing it says, which must be a final reply."""
        message = self.said()
        assert isinstance(message, Result | Failure), message
        return message

    def said(self) -> Result | Failure | Progress | Chunk:
        """The next thing it says."""
        while (payload := self._decoder.next()) is None:
            assert select.select([self._sink], [], [], PATIENCE)[0], "no reply"
            data = os.read(self._sink, 65536)
            assert data, f"the bridge is gone: {self.process.wait(PATIENCE)}, {self.stderr()}"
            self._decoder.receive(data)
        return decode_message(payload)

    def call(self, command: str, /, **args: Any) -> Any:
        """The result of a request; its failure fails the test."""
        request_id = self.send(command, **args)
        reply = self.receive()
        assert isinstance(reply, Result), reply
        assert reply.id == request_id
        return reply.result

    def fail(self, command: str, /, **args: Any) -> Failure:
        """The failure of a request."""
        request_id = self.send(command, **args)
        reply = self.receive()
        assert isinstance(reply, Failure), reply
        assert reply.id == request_id
        return reply

    def hang_up(self) -> None:
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def wait(self) -> int:
        """Its exit code, once nothing but frames came from it until the end."""
        code = self.process.wait(PATIENCE)
        while data := os.read(self._sink, 65536):
            self._decoder.receive(data)
        assert self._decoder.next() is None
        self._decoder.receive_eof()
        return code

    def stderr(self) -> str:
        return self.errors.read_text(errors="replace")

    def wait_for_stderr(self, text: str) -> None:
        """Wait until the bridge has written `text` to stderr."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.stderr():
            assert time.monotonic() < deadline, self.stderr()
            select.select([], [], [], 0.005)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()
        assert self.process.stdout is not None
        self.process.stdout.close()


def frame(request_id: int, command: str, args: Mapping[str, Any]) -> bytes:
    return encode_frame(encode_request(Request(id=request_id, command=command, args=args)))
