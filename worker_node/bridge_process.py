"""One bridge subprocess: its pipes, its life and its death. It decides nothing; it reports.

stdin and stdout carry frames; stderr is never merged into stdout, and always drained. All three are raw
non-blocking descriptors on the event loop: one read and one write a frame, and no task.

With `protocol_fd` frames have a private pair of pipes instead, whose descriptors the bridge is told by a variable of
its environment. Its stdin is empty then, and what it writes to stdout is treated as stderr is.

Death is the end of the process (a pidfd), never the end of a pipe: a grandchild can hold a pipe open. What the
process wrote before it died still counts, so its last frames are reported before its exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from bridge_protocol.errors import FrameError, escape
from bridge_protocol.frames import HEADER_SIZE, FrameDecoder
from worker_node.core.noise import guess, guess_unfinished
from worker_node.environment import PROTOCOL_FDS
from worker_node.pipe import USUAL_SIZE, widen
from worker_node.process_status import peak_resident
from worker_node.stderr import StderrLines

READ_SIZE = 256 * 1024
MOST_PIECES = 1024  # in one write: IOV_MAX of Linux
# After bytes that are no frame: read on for so long, and keep so much of it.
QUOTE_SECONDS = 0.2
QUOTE_BYTES = 4096
# After a pipe's end: so long it has to end as well, which tells more than that it lives on without the pipe.
CLOSED_SECONDS = 1.0
UNKNOWN_CODE = 255  # in the place of an exit code that nobody knows, as asyncio has it
HELD_UP = 1.0  # seconds: a timer that is later than this says that the node itself was stopped, or too busy


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeExit:
    """How a bridge ended. `code` the exit code, or `signal` the signal that killed it; never both."""

    code: int | None
    signal: int | None
    memory_peak: int | None  # bytes: the most that it, or what it started, was seen to use; None: not seen
    uptime: float  # seconds
    in_frame: bool  # it had begun a frame and not ended it
    left_group: bool  # it left processes in its group, which were killed
    stderr: tuple[str, ...]  # its last lines

    def __str__(self) -> str:
        how = f"exit code {self.code}" if self.signal is None else f"signal {self.signal_name}"
        return how + (", in the middle of a frame" if self.in_frame else "")

    @property
    def signal_name(self) -> str | None:
        """The signal's name, such as SIGSEGV, or its number where it has none."""
        if self.signal is None:
            return None
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return str(self.signal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Bytes from a bridge that are no frame: `said`, the first of them, at most QUOTE_BYTES."""

    error: FrameError
    said: bytes

    def __str__(self) -> str:
        guessed = guess(self.said)
        return f"{self.error.kind}: {self.error.detail}: {escape(self.said)}" + (f" {guessed}" if guessed else "")

    def quoted(self, limit: int) -> str:
        """The first `limit` bytes, escaped."""
        return escape(self.said, limit)


class Direction(Enum):
    """Whose frame it is."""

    TO_BRIDGE = "to_bridge"
    FROM_BRIDGE = "from_bridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A frame that began and did not end in its time: `to_bridge`, which did not read it, or from it."""

    direction: Direction
    text: str

    def __str__(self) -> str:
        return self.text


class BridgeProcess:
    """A running bridge. Reports through its callbacks, each called on the event loop:

    `on_payload(payload)` for each whole frame; `on_stalled(Stall)` when it has read nothing for `write_timeout` seconds
    while something waits for it, or a frame of its own is not whole `frame_timeout` seconds after its first byte, and
    again each time that much more has passed; `on_doomed()` at most once, as soon as it is plain that the bridge cannot
    go on, so that it is sent nothing more; a moment later, when more can be told, `on_garbage(Garbage)` or
    `on_closed(name)` (its stdin or stdout, closed by a process that lives on), or neither; `on_exit(BridgeExit)` once,
    last, when the process is dead and its descriptors are closed. After garbage nothing is read as frames.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: str | None,
        frame_limit: int,
        write_timeout: float,
        frame_timeout: float,
        protocol_fd: bool,
        on_payload: Callable[[bytes | bytearray], None],
        on_stalled: Callable[[Stall], None],
        on_doomed: Callable[[], None],
        on_garbage: Callable[[Garbage], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[BridgeExit], None],
        on_stderr: Callable[[str], None],
    ) -> None:
        """Start it. Raises OSError or ValueError if the program cannot be started; nothing is left then."""
        self._loop = asyncio.get_running_loop()
        self._on_payload = on_payload
        self._on_stalled = on_stalled
        self._on_doomed = on_doomed
        self._on_garbage = on_garbage
        self._on_closed = on_closed
        self._on_exit = on_exit
        self._decoder = FrameDecoder(frame_limit)
        self._stderr = StderrLines(on_stderr)
        self._write_timeout = write_timeout
        self._frame_timeout = frame_timeout
        self._unwritten: deque[bytes | bytearray | memoryview] = deque()  # of a frame the length and the payload
        self._writing = False  # the pipe is full, and the loop tells when it takes more
        self._write_late: asyncio.TimerHandle | None = None  # while a frame waits to be read
        self._read_at = 0.0  # when the bridge last read some of what waits
        self._frame_late: asyncio.TimerHandle | None = None  # while a frame has begun and not ended
        self._narrow: set[int] = set()  # pipes that never overflowed
        self._held = False  # its frames are not read for now
        self._left = False  # since it was held: some may have been read, and not reported
        self._broken: FrameError | None = None
        self._quote = bytearray()
        self._closed = ""
        self._verdict: asyncio.TimerHandle | None = None  # since it is doomed
        self._told = False  # why it is doomed
        self._started = self._loop.time()
        # Linux counts what the forking process held as the new one's peak, until that exceeds it.
        self._inherited_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._seen_peak = 0
        self._names = ("descriptor for requests", "descriptor for replies") if protocol_fd else ("stdin", "stdout")
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
                ends = os.pipe()
                reader.callback(os.close, ends[0])
                writer.callback(os.close, ends[1])
                return ends

            their_stdin, self._stdin = pipe(theirs, ours)
            self._stdout, their_stdout = pipe(ours, theirs)
            self._errors, their_errors = pipe(ours, theirs)
            # A session, and so a process group, of its own: a signal to the group reaches its children, and a
            # Ctrl-C at the node's terminal does not reach it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if protocol_fd else their_stdin,
                stdout=their_errors if protocol_fd else their_stdout,
                stderr=their_errors,
                env={**environment, PROTOCOL_FDS: f"{their_stdin},{their_stdout}"} if protocol_fd else environment,
                cwd=directory,
                start_new_session=True,
                pass_fds=(their_stdin, their_stdout) if protocol_fd else (),
            )
            self.pid = self._process.pid
            try:
                self._exit = os.pidfd_open(self.pid)
            except OSError:  # too many open files
                self.send_signal(signal.SIGKILL)
                self._process.wait()
                raise
            ours.pop_all()
        for descriptor in (self._stdin, self._stdout, self._errors):
            os.set_blocking(descriptor, False)
        self._narrow |= {self._stdin, self._stdout}
        self._reading = {self._stdout: self._read_stdout, self._errors: self._read_stderr}
        for descriptor, reader in self._reading.items():
            self._loop.add_reader(descriptor, reader)
        self._loop.add_reader(self._exit, self._exited)

    def __repr__(self) -> str:
        return f"<BridgeProcess {self.pid} up {self.uptime:.0f} s>"

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return self._loop.time() - self._started

    @property
    def unread(self) -> int:
        """How many frames the bridge has not read whole."""
        return (len(self._unwritten) + 1) // 2

    def send(self, payload: bytes | bytearray) -> None:
        """Write `payload` as a frame at the end of this turn of the loop, as far as the pipe takes it, then the rest.

        What is sent in one turn leaves in one piece.
        """
        if self._stdin < 0:
            return
        if not self._unwritten:
            self._loop.call_soon(self._begin_writing)
        self._unwritten += (len(payload).to_bytes(HEADER_SIZE, "big"), payload)

    def end_input(self) -> None:
        """Close its stdin, after what was sent in this turn: by the protocol it must exit now."""
        self._begin_writing()
        if self._stdin >= 0:
            if self._writing:
                self._loop.remove_writer(self._stdin)
                self._writing = False
            os.close(self._stdin)
            self._stdin = -1
            self._unwritten.clear()
            self._time_write()

    def hold(self, held: bool) -> None:
        """Report no more frames, and read none, until told otherwise: then it is held up as soon as its pipe is full.

        Without effect once it is dead: what it wrote before that is reported.
        """
        if held is self._held or self._process.returncode is not None:
            return
        self._held = held
        if self._stdout not in self._reading:
            return
        if held:
            self._left = True
            self._loop.remove_reader(self._stdout)
            if self._frame_late is not None:
                self._frame_late.cancel()
                self._frame_late = None
        else:
            self._loop.add_reader(self._stdout, self._read_stdout)
            self._loop.call_soon(self._report_left)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to its whole process group."""
        # Not reaped before _exited has run, so its process id, and its group's, cannot be another's yet.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def ask_stacks(self, pid: int, number: int) -> None:
        """Send the signal that has the process `pid` write its stacks to stderr, if that is one of this bridge's."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                if os.getpgid(pid) == self.pid:
                    os.kill(pid, number)

    def look(self) -> None:
        """Note what memory it has used at most by now: when it is dead that can no longer be told."""
        if self._process.returncode is None:
            self.note_memory(peak_resident(self.pid) or 0)

    def note_memory(self, size: int) -> None:
        """It was seen to use `size` bytes, with all that it started."""
        self._seen_peak = max(self._seen_peak, size)

    def _time_write(self) -> None:
        """Something was read, or began to wait, or nothing waits any more."""
        self._read_at = self._loop.time()
        if not self._unwritten and self._write_late is not None:
            self._write_late.cancel()
            self._write_late = None
        elif self._unwritten and self._write_late is None:
            self._write_late = self._loop.call_later(self._write_timeout, self._not_read)

    def _not_read(self) -> None:
        self._write_late = None
        # Not a timer for each piece that is read: this one looks again, that much later.
        left = self._read_at + self._write_timeout - self._loop.time()
        if left > 0.001:
            self._write_late = self._loop.call_later(left, self._not_read)
            return
        self._time_write()
        waiting = len(self._unwritten[0]) + (len(self._unwritten[1]) if len(self._unwritten) % 2 == 0 else 0)
        said = (
            f"it does not read: {waiting:,} bytes of a frame still wait to be read from its {self._names[0]} "
            f"after the write timeout of {self._write_timeout:g} s"
        )
        self._on_stalled(Stall(direction=Direction.TO_BRIDGE, text=said))

    def _time_frame(self, *, ended: bool) -> None:
        """After a read: whether a frame `ended` in it, and whether one is begun now, which then began in it."""
        begun = self._decoder.in_frame
        if self._frame_late is not None and (ended or not begun):
            self._frame_late.cancel()
            self._frame_late = None
        if begun and self._frame_late is None:
            due = self._loop.time() + self._frame_timeout
            self._frame_late = self._loop.call_at(due, self._not_whole, due)

    def _not_whole(self, due: float) -> None:
        self._frame_late = None
        self._time_frame(ended=False)
        if self._loop.time() - due > HELD_UP:
            return  # nobody read: the bridge may have been waiting for that
        came, missing = self._decoder.begun()
        how_far = (
            f"{len(came)} of the {HEADER_SIZE} bytes of its length"
            if missing is None
            else f"{len(came):,} of its {len(came) + missing:,} bytes"
        )
        quoted = f": {escape(came)}" if came else ""
        guessed = guess_unfinished(came, missing)
        said = f"half a frame, {how_far}, after the frame timeout of {self._frame_timeout:g} s{quoted}"
        self._on_stalled(Stall(direction=Direction.FROM_BRIDGE, text=said + (f" {guessed}" if guessed else "")))

    def _begin_writing(self) -> None:
        """Write what is new, if nothing older waits for the pipe; and from then on as soon as that takes more."""
        if self._unwritten and not self._writing:
            self._write()
            if self._unwritten and self._widen(self._stdin):
                self._write()
            if self._unwritten:
                self._writing = True
                self._loop.add_writer(self._stdin, self._write_on)
                self._time_write()

    def _write_on(self) -> None:
        self._write()
        if self._writing and not self._unwritten:
            self._writing = False
            self._loop.remove_writer(self._stdin)
        self._time_write()

    def _write(self) -> None:
        try:
            written = os.writev(self._stdin, tuple(islice(self._unwritten, MOST_PIECES)))
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._closed_stdin()
            return
        while written:
            first = self._unwritten[0]
            if written < len(first):
                self._unwritten[0] = memoryview(first)[written:]
                break
            written -= len(first)
            self._unwritten.popleft()

    def _read_stdout(self) -> None:
        if self._left:
            self._report_left()
            if self._held:
                return
        if (room := self._decoder.room) is not None:
            self._read_into(room)
            return
        data = self._read(self._stdout)
        if data is not None:
            self._widen_if_full(len(data))
            self._receive(data)

    def _read_into(self, room: memoryview) -> None:
        """Read the rest of a large frame, or some of it, to where it belongs."""
        try:
            size = os.readv(self._stdout, (room,))
        except BlockingIOError:
            return
        if size:
            self._widen_if_full(size)
            self._decoder.filled(size)
            self._report()
        else:
            self._stop_reading(self._stdout)
            self._receive(b"")

    def _receive(self, data: bytes) -> None:
        """Take what its stdout gave; empty: the end of that."""
        if self._broken is not None:
            self._quote += data[: QUOTE_BYTES - len(self._quote)]
            return
        if not data:
            self._doom(self._names[1])
            return
        self._report(data)

    def _report_left(self) -> None:
        if self._left and not self._held and self._stdout in self._reading:
            self._left = False
            if self._broken is None:
                self._report()

    def _report(self, data: bytes = b"") -> None:
        """Report the frames that are whole, with what was read; those that are left if it is held meanwhile stay."""
        ended = False
        try:
            if data:
                self._decoder.receive(data)
            while not self._held and (payload := self._decoder.next()) is not None:
                ended = True
                self._on_payload(payload)
        except FrameError as error:
            self._broken = error
            self._quote += self._decoder.rest()[:QUOTE_BYTES]
            self._doom()
        else:
            if not self._held and (self._frame_late is not None or self._decoder.in_frame):
                self._time_frame(ended=ended)

    def _closed_stdin(self) -> None:
        self._unwritten.clear()
        self.end_input()
        self._doom(self._names[0])

    def _doom(self, closed: str = "") -> None:
        """It cannot go on. Its end, or what else it says, may tell why: that has a moment to come."""
        self._closed = self._closed or closed
        if self._frame_late is not None:
            self._frame_late.cancel()
        if self._verdict is None:
            self._verdict = self._loop.call_later(CLOSED_SECONDS if closed else QUOTE_SECONDS, self._tell)
            self._on_doomed()

    def _widen(self, descriptor: int) -> bool:
        """Widen a pipe that overflows; whether it is wider now than it was."""
        if descriptor not in self._narrow:
            return False
        self._narrow.discard(descriptor)
        return widen(descriptor)

    def _widen_if_full(self, size: int) -> None:
        """So much was in its stdout."""
        if size >= USUAL_SIZE:
            self._widen(self._stdout)

    def _read_stderr(self) -> None:
        data = self._read(self._errors)
        if data:
            self._stderr.receive(data)

    def _read(self, descriptor: int) -> bytes | None:
        """What there is to read; empty at the end of the stream, which is read no more; None: nothing now."""
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return None
        if not data:
            self._stop_reading(descriptor)
        return data

    def _stop_reading(self, descriptor: int) -> None:
        if self._reading.pop(descriptor, None) is not None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)

    def _tell(self) -> None:
        """Say why it is doomed, once; an end in mid-stream is told by `on_exit`."""
        if self._told:
            return
        if self._broken is not None:
            self._told = True
            self._on_garbage(Garbage(error=self._broken, said=bytes(self._quote)))
        elif self._process.returncode is None:
            self._told = True
            self._on_closed(self._closed)

    def _exited(self) -> None:
        # The process is dead but not reaped: its group's id is still its own, so this reaches only what is left.
        self.send_signal(signal.SIGKILL)
        code, peak = _reap(self.pid)
        self._process.returncode = code
        self._held = False
        left_group = _group_exists(self.pid)
        self._loop.remove_reader(self._exit)
        os.close(self._exit)
        self._unwritten.clear()
        self.end_input()
        # It gets no more requests, even if its last replies are only found now.
        self._doom()
        for descriptor, read_on in tuple(self._reading.items()):
            # What is in the pipe by now is all that counts; whoever else holds its other end may keep writing.
            for _ in range(64):
                if descriptor not in self._reading:
                    break
                read_on()
            self._stop_reading(descriptor)
        self._stderr.receive_eof()
        self._tell()
        if self._verdict is not None:
            self._verdict.cancel()
        if self._frame_late is not None:  # begun by the last that was read
            self._frame_late.cancel()
        if peak <= self._inherited_peak:
            peak = 0
        self._on_exit(
            BridgeExit(
                code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                memory_peak=max(peak * 1024, self._seen_peak) or None,
                uptime=self.uptime,
                in_frame=self._broken is None and self._decoder.in_frame,
                left_group=left_group,
                stderr=tuple(self._stderr.tail()),
            )
        )


def _reap(pid: int) -> tuple[int, int]:
    """The exit code (negative: the signal) of a process that is dead, and the most KiB that were resident of it."""
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:  # something else in this process waits for just any child, and has it
        return UNKNOWN_CODE, 0
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss


def _group_exists(group: int) -> bool:
    """Whether the group of a process that was reaped has other members, which may be dying."""
    try:
        os.killpg(group, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
