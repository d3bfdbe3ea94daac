"""The bridge under test: a process started as a node starts it, and everything that is seen of it.

It keeps what a node would judge by: each reply, each event, bytes that are no frame, frames nobody asked for, how
much went to stderr, how it ended, and which processes it left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from itertools import count
from typing import Any, Self

import psutil

from bridge_protocol.errors import FrameError, escape
from bridge_protocol.frames import FrameDecoder, encode_frame
from bridge_protocol.handshake import Capabilities, handshake, read_capabilities
from bridge_protocol.messages import (
    CANCEL,
    HANDSHAKE_ID,
    SHUTDOWN,
    Chunk,
    Failure,
    Progress,
    Request,
    Result,
    decode_message,
    encode_request,
)
from quaybridge.conformance.report import Unmet
from quaybridge.exit_status import printable
from worker_node.core.noise import guess
from worker_node.environment import RUN, bridge_environment
from worker_node.run_id import own_run_id

QUOTE_SECONDS = 0.2  # after bytes that are no frame: read on for so long, and quote so much
QUOTE_BYTES = 64
LAST_WORDS = 2048  # bytes of stderr that are kept

MOMENT = "2024-05-01T12:00:00.000Z"  # the timestamp of every request: nothing depends on it

ONLY_FRAMES = (
    "write frames alone to stdout. Before anything else, keep a private copy of descriptor 1 for them and point 1 at "
    "stderr; a print or a library's output then does no harm"
)
ONE_REPLY = "answer each request with exactly one frame that has success true or false, and that request's id"
ANSWER = "answer every request with a frame, and flush it"
SURVIVE = "turn whatever goes wrong in a request into a reply with success false, and serve on"


@dataclass(slots=True, eq=False)
class Pending:
    """A request that was sent. `final` ends with its one final reply, or Unmet."""

    id: int
    final: asyncio.Future[Result | Failure]
    events: list[Progress | Chunk] = field(default_factory=list)


class Subject(asyncio.SubprocessProtocol):
    """One process of the bridge. Start it with `started`, and `close` it."""

    _transport: asyncio.SubprocessTransport

    def __init__(self, stdin: asyncio.WriteTransport, timeout: float) -> None:
        self.timeout = timeout  # seconds for each thing that is waited for
        self.capabilities = Capabilities()
        self.noise: str | None = None  # what stdout held beside frames
        self.unasked: list[str] = []  # frames nobody asked for
        self.stderr_bytes = 0
        self.killed = False  # so what it left behind is not its fault
        self._stdin = stdin
        self._stderr = b""
        self._more = asyncio.Event()  # came on stderr
        self._decoder = FrameDecoder()
        self._quote = b""
        self._broken: FrameError | None = None
        self.silent = True  # not a byte came on its stdout
        self._closed: Unmet | None = None  # its stdout, by a process that lives on
        self._pending: dict[int, Pending] = {}
        self._ids = count(1000)  # small ones: that large ones work is a check of its own
        self._answered: set[int] = set()
        self._goodbye: int | None = None  # the id of a shutdown
        self.run = f"{own_run_id()}/0"  # what descends from it has this in its environment
        loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = loop.create_future()
        self._told: asyncio.Future[None] = loop.create_future()  # it ended, and all it said was read

    @classmethod
    async def started(cls, command: Sequence[str], environment: Mapping[str, str], timeout: float) -> Self:
        """Start it. Raises OSError or ValueError if the program cannot be started."""
        loop = asyncio.get_running_loop()
        theirs, ours = os.pipe()  # asyncio's own would be a socket in Python 3.11
        stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, FileIO(ours, "wb"))
        subject = cls(stdin, timeout)
        try:
            await loop.subprocess_exec(
                lambda: subject,
                *command,
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=bridge_environment(os.environ, environment, 0, subject.run),
                start_new_session=True,
            )
        except BaseException:
            stdin.close()
            raise
        finally:
            os.close(theirs)
        return subject

    def __repr__(self) -> str:
        return f"<Subject {self._transport.get_pid()}, {len(self._pending)} pending>"

    # What is said to it.

    def write(self, data: bytes) -> None:
        """Write these bytes, whatever they are."""
        if not self._stdin.is_closing():
            self._stdin.write(data)

    def send(self, payload: bytes) -> None:
        """Write a frame."""
        self.write(encode_frame(payload))

    def expect(self, request_id: int) -> Pending:
        """Await the reply to a request that is written by other means than `ask`."""
        pending = self._pending[request_id] = Pending(request_id, asyncio.get_running_loop().create_future())
        if (trouble := self._trouble()) is not None:
            self._fail(trouble)
        return pending

    def ask(self, command: str, args: Mapping[str, Any], request_id: int | None = None) -> Pending:
        """Send a request."""
        pending = self.expect(request_id or next(self._ids))
        self.send(encode_request(Request(id=pending.id, command=command, args=args, timestamp=MOMENT)))
        return pending

    def cancel(self, args: Mapping[str, Any]) -> None:
        """Send a `cancel`, which has no reply of its own."""
        self.send(encode_request(Request(id=next(self._ids), command=CANCEL, args=args, timestamp=MOMENT)))

    def shut_down(self) -> None:
        """Send a `shutdown`. Whether it answers is its own affair."""
        self._goodbye = next(self._ids)
        self.send(encode_request(Request(id=self._goodbye, command=SHUTDOWN, args={}, timestamp=MOMENT)))

    async def reply(self, pending: Pending) -> Result | Failure:
        """The final reply, or a failure with id None. Raises Unmet for silence, and for whatever else comes instead."""
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.shield(pending.final)
        except TimeoutError:
            raise Unmet(f"no reply in {self.timeout:g} s", ANSWER) from None
        finally:
            self._pending.pop(pending.id, None)
            self._answered.add(pending.id)
            if pending.final.done() and not pending.final.cancelled():
                pending.final.exception()  # looked at

    async def call(self, command: str, args: Mapping[str, Any], request_id: int | None = None) -> Result | Failure:
        """Send a request, and its final reply. Raises Unmet, also if the bridge could not read it."""
        said = await self.reply(self.ask(command, args, request_id))
        if said.id is None:
            raise Unmet(f"it could not read a proper frame: {_error(said)}", "read every request of docs/wire.md")
        return said

    async def ping(self) -> None:
        """Whether it is well: raises Unmet unless a ping is answered with success."""
        said = await self.call("ping", {})
        if isinstance(said, Failure):
            raise Unmet(f"ping was refused: {shown(said.error)}", "answer ping with success, whatever its args")

    async def greet(self) -> None:
        """The handshake. Raises Unmet; `capabilities` are known afterwards."""
        pending = self.expect(HANDSHAKE_ID)
        self.send(encode_request(handshake("conformance-0", MOMENT)))
        said = await self.reply(pending)
        self._answered.discard(HANDSHAKE_ID)
        if isinstance(said, Failure):
            fix = "answer the first ping with success once the bridge can serve"
            raise Unmet(f"the handshake was refused: {shown(said.error)}", fix)
        try:
            self.capabilities = read_capabilities(said.result)
        except FrameError as error:
            raise Unmet(
                str(error), "correct what the handshake's result.capabilities claim, or leave them out"
            ) from None

    # Its end.

    def end_input(self) -> None:
        """Close its stdin."""
        self._stdin.close()

    def terminate(self) -> None:
        """SIGTERM to its process group."""
        self._signal(signal.SIGTERM)

    async def ended(self) -> bool:
        """Whether it ends within the timeout; whatever it said until then is read."""
        try:
            async with asyncio.timeout(self.timeout):
                await asyncio.shield(self._exited)
        except TimeoutError:
            return False
        with contextlib.suppress(TimeoutError):  # somebody else may hold its pipes open
            async with asyncio.timeout(QUOTE_SECONDS):
                await asyncio.shield(self._told)
        return True

    async def wrote_to_stderr(self, total: int) -> bool:
        """Whether it has written so many bytes there in all, within the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                while self.stderr_bytes < total and not self._told.done():
                    self._more.clear()
                    await self._more.wait()
        return self.stderr_bytes >= total

    @property
    def alive(self) -> bool:
        """Whether it runs, and can be asked for more."""
        return self._trouble() is None

    @property
    def running(self) -> bool:
        """Whether the process lives, well or not."""
        return not self._exited.done()

    @property
    def how_it_ended(self) -> str:
        """Such as "exit code 1; its last words: …"."""
        code = self._transport.get_returncode()
        how = f"signal {_signal_name(-code)}" if code is not None and code < 0 else f"exit code {code}"
        words = [line for line in self._stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return how + (f"; its last words: {shown(words[-1])}" if words else "")

    @property
    def signalled(self) -> bool:
        """Whether a signal ended it."""
        code = self._transport.get_returncode()
        return code is not None and code < 0

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or the negative number of the signal."""
        return self._transport.get_returncode()

    async def close(self) -> None:
        """End it, if it has not ended. What it started is left alone: see `descendants`."""
        self.killed = self.killed or self.running
        self._signal(signal.SIGKILL)
        self._fail(Unmet("it was stopped", ANSWER))
        self._stdin.close()
        await self._exited  # first: closing the transport would reap the process behind asyncio's back
        self._transport.close()

    # What it says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio: it runs."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Of asyncio: something came on stdout (1) or stderr (2)."""
        if fd == 2:
            self.stderr_bytes += len(data)
            self._stderr = (self._stderr + data)[-LAST_WORDS:]
            self._more.set()
            return
        self.silent = False
        if self._broken is not None:
            self._quote += data[: QUOTE_BYTES - len(self._quote)]
        else:
            try:
                self._decoder.receive(data)
                while (payload := self._decoder.next()) is not None:
                    self._heard(payload)
            except FrameError as error:
                self._broken = error
                self._quote = self._decoder.rest()[:QUOTE_BYTES] or error.preview
                asyncio.get_running_loop().call_later(QUOTE_SECONDS, self._tell_noise)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Of asyncio: one of its pipes ended."""
        if fd == 1 and self._broken is None:
            try:
                self._decoder.receive_eof()
            except FrameError as error:
                self._broken = error
                self._quote = error.preview
                self._tell_noise()
            else:
                asyncio.get_running_loop().call_later(QUOTE_SECONDS, self._tell_closed)

    def process_exited(self) -> None:
        """Of asyncio: the process is dead. What it said may not be read yet."""
        self._exited.set_result(None)
        asyncio.get_running_loop().call_later(QUOTE_SECONDS, self._tell_ended)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio: the process is dead, and its pipes are read to their ends."""
        self._tell_ended()
        self._more.set()
        if not self._told.done():
            self._told.set_result(None)

    def _heard(self, payload: bytes | bytearray) -> None:
        try:
            said = decode_message(payload)
        except FrameError as error:
            trouble = Unmet(f"a frame that is no reply: {error}", "see docs/wire.md for what a reply must hold")
            if self._pending:
                self._fail(trouble)
            else:
                self.unasked.append(trouble.reason)
            return
        if said.id is None:
            self._could_not_read(said)
        elif (pending := self._pending.get(said.id)) is None:
            self._unasked(said)
        elif isinstance(said, Result | Failure):
            self._answered.add(said.id)
            self._pending.pop(said.id)
            if not pending.final.done():
                pending.final.set_result(said)
        else:
            pending.events.append(said)

    def _could_not_read(self, said: Failure) -> None:
        if not self._pending:
            self.unasked.append(f"a failure with id null: {shown(said.error)}")
        for pending in self._pending.values():
            if not pending.final.done():
                pending.final.set_result(said)
        self._pending.clear()

    def _unasked(self, said: Result | Failure | Progress | Chunk) -> None:
        if said.id == self._goodbye:
            self._goodbye = None
            return
        kind = type(said).__name__.lower()
        if said.id in self._answered:
            self.unasked.append(f"a {kind} for id {said.id} after its final reply")
            return
        reason = f"a {kind} for id {said.id}, which it was not asked"
        if self._pending:
            asked = ", ".join(map(str, self._pending))
            self._fail(Unmet(f"{reason}; asked was {asked}", ONE_REPLY))
        else:
            self.unasked.append(reason)

    def _tell_noise(self) -> None:
        if self.noise is None and self._broken is not None:
            cause = guess(self._quote)
            said = f"stdout said {escape(self._quote, QUOTE_BYTES)}"
            self.noise = f"{self._broken.detail}; {said}" + (f", which {cause}" if cause else "")
            self._fail(_noisy())

    def _tell_closed(self) -> None:
        if not self._exited.done():
            self._closed = Unmet("it closed its stdout and lives on", "keep stdout open until the end")
            self._fail(self._closed)

    def _tell_ended(self) -> None:
        self._tell_noise()
        self._fail(Unmet(f"it ended: {self.how_it_ended}", SURVIVE))

    def _trouble(self) -> Unmet | None:
        if self.noise is not None:
            return _noisy()
        if self._exited.done():
            return Unmet(f"it ended: {self.how_it_ended}", SURVIVE)
        return self._closed

    def _fail(self, trouble: Unmet) -> None:
        for pending in self._pending.values():
            if not pending.final.done():
                pending.final.set_exception(trouble)
                pending.final.exception()  # looked at, whoever awaits it
        self._pending.clear()

    def _signal(self, number: signal.Signals) -> None:
        if self._exited.done():
            return  # and its process group's id may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), number)


def descendants(subjects: Iterable[Subject]) -> Iterator[psutil.Process]:
    """The processes that descend from these and live, in whatever session or group they are now."""
    runs = {subject.run for subject in subjects}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN) in runs:
                yield process


def shown(text: str, most: int = 200) -> str:
    """Somebody else's text, of `most` characters and harmless to a terminal."""
    return printable(text[:most]) + ("…" if len(text) > most else "")


def _error(said: Result | Failure) -> str:
    return shown(said.error) if isinstance(said, Failure) else ""


def _noisy() -> Unmet:
    return Unmet("bytes on stdout that are no frame", 'see "frames alone on stdout"')


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
