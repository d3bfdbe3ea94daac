"""A bridge without a process: its commands run in the test's own, on the event loop of the service under test.

To its node it is as any bridge: it is greeted, written to, and reports its end. So what becomes of a failure, a retry
or a dead letter is decided by the same code as ever.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import FrameDecoder
from bridge_protocol.messages import SHUTDOWN, decode_request
from bridge_sdk.in_process import InProcess
from quaybridge.testing.script import Script
from quaybridge.testing.scripted_bridge import GARBAGE, request_in, scripted_error
from worker_node.bridge_process import BridgeExit, BridgeProcess, Garbage


class MockBridge(BridgeProcess):
    """Serves `bridge`, as its script says. Of `options`, those of BridgeProcess, only the callbacks matter."""

    def __init__(
        self,
        script: Script,
        bridge: InProcess,
        command: Sequence[str],
        *,
        on_payload: Callable[[bytes | bytearray], None],
        on_doomed: Callable[[], None],
        on_garbage: Callable[[Garbage], None],
        on_exit: Callable[[BridgeExit], None],
        frame_limit: int,
        **options: Any,
    ) -> None:
        # Not super().__init__: that is what starts a process.
        self._loop = asyncio.get_running_loop()
        self._script = script
        self._bridge = bridge
        self._on_payload = on_payload
        self._on_doomed = on_doomed
        self._on_garbage = on_garbage
        self._on_exit = on_exit
        self._frame_limit = frame_limit
        self._started = self._loop.time()
        self._tasks: set[asyncio.Task[None]] = set()
        self._line = asyncio.Lock()  # one request at a time, as in a process
        self._flowing = asyncio.Event()  # whether the node reads
        self._flowing.set()
        bridge.on_progress = self._reply
        self._ended = False
        self._hangs = False
        self.pid = 0

    def __repr__(self) -> str:
        return f"<MockBridge {'ended' if self._ended else 'up'}>"

    @property
    def unread(self) -> int:
        """It reads at once."""
        return 0

    def send(self, payload: bytes | bytearray) -> None:
        """See BridgeProcess."""
        if self._ended or self._hangs:
            return
        request = request_in(payload)
        failure = None if request is None else self._script.next(request.id, request.command)
        if request is None or failure is None:
            self._begin(bytes(payload), 0.0)
            return
        match failure.kind:
            case "crash":
                self.send_signal(signal.SIGKILL)
            case "hang":
                self._hangs = True
            case "garbage":
                self._loop.call_soon(self._speak_garbage)
            case "slow":
                self._begin(bytes(payload), failure.seconds)
            case "error":
                self._loop.call_soon(self._reply, scripted_error(request, failure))

    def hold(self, held: bool) -> None:
        """See BridgeProcess."""
        (self._flowing.clear if held else self._flowing.set)()

    def end_input(self) -> None:
        """A process ends when its stdin does, unless it hangs."""
        if not self._hangs:
            self._end(code=0)

    def send_signal(self, number: signal.Signals) -> None:
        """Every signal ends it; one that hangs, as a stopped process, only SIGKILL."""
        if not self._hangs or number == signal.SIGKILL:
            self._end(signal=number)

    def ask_stacks(self, pid: int, number: int) -> None:
        """It has none of its own."""

    def look(self) -> None:
        """It has no memory of its own."""

    def note_memory(self, size: int) -> None:
        """It has no memory of its own."""

    def _begin(self, payload: bytes, delay: float) -> None:
        task = self._loop.create_task(self._serve(payload, delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, payload: bytes, delay: float) -> None:
        if delay:
            await asyncio.sleep(delay)
        async with self._line:
            answer = await self._bridge.answer(payload, self._frame_limit, on_chunk=self._on_chunk)
        await self._flowing.wait()
        self._reply(answer)
        if decode_request(payload).command == SHUTDOWN:
            self._end(code=0)

    async def _on_chunk(self, payload: bytes) -> None:
        await self._flowing.wait()
        self._reply(payload)

    def _reply(self, payload: bytes) -> None:
        if not self._ended:
            self._on_payload(payload)

    def _speak_garbage(self) -> None:
        if self._ended:
            return
        self._on_doomed()
        decoder = FrameDecoder(self._frame_limit)
        try:
            decoder.receive(GARBAGE)
            decoder.next()
        except FrameError as error:
            self._on_garbage(Garbage(error=error, said=GARBAGE))

    def _end(self, *, code: int | None = None, signal: int | None = None) -> None:
        """It is dead from now on, and says so in the loop's next turn, as the kernel would."""
        if self._ended:
            return
        self._ended = True
        for task in self._tasks:
            task.cancel()
        self._bridge.forget()
        ended = BridgeExit(
            code=code, signal=signal, memory_peak=None, uptime=self.uptime, in_frame=False, left_group=False, stderr=()
        )
        self._loop.call_soon(self._on_doomed)
        self._loop.call_soon(self._on_exit, ended)
