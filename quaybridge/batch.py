"""A batch: a line of JSON in, its request's reply out, in order, however many there are.

    requests ─▶ Lines ─▶ Batch ──┬─▶ replies     {"line": 3, "result": …}
                                 └─▶ failures    {"line": 4, "code": "application_error", "error": "…", "args": {…}}

Every line that is not blank ends in one of the two files, and those before it did so earlier. So whatever ends a batch
half-way, the last whole lines of both tell how far it came: `answered_before` reads that, and cuts what was torn. What
was in flight then is sent again by whoever goes on: those requests may run twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_protocol import codec
from bridge_protocol.errors import BadRequest, CodedError, FrameError, PublishFailed, QuaybridgeError, TooLarge
from bridge_protocol.frames import DEFAULT_LIMIT
from producer.async_producer import AsyncProducer
from producer.flight import MOST_IN_FLIGHT_BYTES
from producer.reply import Reply
from producer.window import Window

BLOCK = 256 * 1024  # bytes read, and bytes gathered before they are written
PIECE = 4096  # bytes a pipe that is writable takes at once (PIPE_BUF)
TURN = 16  # lines that are written before more are sent
LONGEST_QUOTE = 200  # characters of a broken line, in the failures


class BatchError(QuaybridgeError):
    """Raised when a batch cannot begin, or go on: its files are not what they should be."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input, from 1, without its end. `text` None: it is longer than any request. `end`: in bytes."""

    number: int
    text: bytes | None
    end: int


class Lines:
    """The lines of a descriptor, which may be a file, a pipe or a terminal; read as far as they are asked for."""

    def __init__(self, descriptor: int, *, limit: int = DEFAULT_LIMIT) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._waits = _waits(descriptor)
        self.size = None if self._waits else os.fstat(descriptor).st_size  # bytes in all, where that is known

    async def __aiter__(self) -> AsyncIterator[Line]:
        number = end = 0
        begun: list[bytes] = []  # of a line whose end was not read yet
        length = 0
        while block := await self._read():
            *whole, rest = block.split(b"\n")
            for text in whole:
                number += 1
                length += len(text)
                end += length + 1
                if length > self._limit:
                    yield Line(number, None, end)
                else:
                    yield Line(number, b"".join((*begun, text)) if begun else text, end)
                begun, length = [], 0
            length += len(rest)
            if length > self._limit:
                begun = []
            elif rest:
                begun.append(rest)
        if length:
            yield Line(number + 1, None if length > self._limit else b"".join(begun), end + length)

    async def _read(self) -> bytes:
        if self._waits:
            await _ready(self._descriptor, writing=False)
        return os.read(self._descriptor, BLOCK)


def _waits(descriptor: int) -> bool:
    """Whether reading and writing it may be held up by the other side: not for a file, nor for /dev/null."""
    mode = os.fstat(descriptor).st_mode
    return not stat.S_ISREG(mode) and not (stat.S_ISCHR(mode) and not os.isatty(descriptor))


async def _ready(descriptor: int, *, writing: bool) -> None:
    """Wait until the other side lets it be read or written."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    (loop.add_writer if writing else loop.add_reader)(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(descriptor)


class Records:
    """A file of records, gathered, and written in whole lines: an open descriptor, or a path that is made when used."""

    def __init__(self, descriptor: int | None = None, path: Path | None = None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._waits = descriptor is not None and _waits(descriptor)
        self._gathered = bytearray()

    def add(self, record: dict[str, Any]) -> bool:
        """Gather one; whether it is time to write."""
        self._gathered += codec.encode(record)
        self._gathered += b"\n"
        return len(self._gathered) >= BLOCK

    async def write(self) -> None:
        """Write what was gathered. Raises OSError."""
        if not self._gathered:
            return
        if self._descriptor is None:
            assert self._path is not None
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        rest = memoryview(bytes(self._gathered))
        self._gathered.clear()
        while rest:
            if self._waits:
                await _ready(self._descriptor, writing=True)
            rest = rest[os.write(self._descriptor, rest[:PIECE] if self._waits else rest) :]

    def close(self) -> None:
        """Close the file, if it was made here."""
        if self._path is not None and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(slots=True)
class Tally:
    """How far a batch is. `answered`: the number of the last line that is in one of the files."""

    answered: int = 0
    succeeded: int = 0
    failed: int = 0
    broken: int = 0
    end: int = 0  # bytes of the input up to there


@dataclass(slots=True, eq=False)
class _Place:
    """A line whose end is awaited, or known. `size`: of what is kept for it."""

    line: Line
    end: asyncio.Future[Reply] | CodedError
    broken: bool
    size: int


class Batch:
    """Sends each line of its input as a request's arguments, at most `in_flight` at once, and writes how they end."""

    def __init__(
        self,
        producer: AsyncProducer,
        service: str,
        command: str,
        *,
        replies: Records,
        failures: Records,
        tally: Tally,
        in_flight: int,
        timeout: float,
        idempotent: bool = False,
    ) -> None:
        self.tally = tally
        self._producer = producer
        self._service = service
        self._command = command
        self._replies = replies
        self._failures = failures
        self._timeout = timeout
        self._idempotent = idempotent
        self._window = Window(in_flight, MOST_IN_FLIGHT_BYTES)
        self._places: deque[_Place] = deque()
        self._more = asyncio.Event()  # another place, or the end of the input

    def __repr__(self) -> str:
        return f"<Batch for {self._service}: {len(self._places)} in flight, line {self.tally.answered} answered>"

    async def run(self, lines: Lines) -> None:
        """Until every line is answered.

        Raises PublishFailed where the broker takes no requests: the rest is left for another time. Raises OSError for
        files that cannot be read or written, and BatchError for an input that ends before what was answered before.
        """
        feeding = asyncio.ensure_future(self._feed(lines))
        feeding.add_done_callback(lambda _: self._more.set())
        try:
            while self._places or not feeding.done():
                if not self._places:
                    await self._write()
                    self._more.clear()
                    await self._more.wait()
                    continue
                place = self._places[0]
                if isinstance(place.end, asyncio.Future) and not place.end.done():
                    await self._write()
                    with suppress(CodedError):
                        await place.end
                await self._settle(place)
                self._places.popleft()
                self._window.leave(place.size)
                if place.line.number % TURN == 0:
                    await asyncio.sleep(0)  # many may have ended at once, and bridges wait for what is fed next
            feeding.result()
            await self._write()
        finally:
            feeding.cancel()
            with suppress(asyncio.CancelledError, OSError, QuaybridgeError):
                await feeding
            with suppress(OSError):
                await self._write()
            for place in self._places:
                if isinstance(place.end, asyncio.Future) and not place.end.cancel() and not place.end.cancelled():
                    place.end.exception()  # looked at, or asyncio complains that nobody did

    async def _feed(self, lines: Lines) -> None:
        before = self.tally.answered
        number = 0
        async for line in lines:
            number = line.number
            if number <= before:
                self.tally.end = line.end
            elif line.text is None or line.text.strip():
                place = await self._begin(line)
                self._places.append(place)
                self._more.set()
        if number < before:
            raise BatchError(f"line {before} was answered before, and the input has {number}: is it another one?")

    async def _begin(self, line: Line) -> _Place:
        """Send it, when there is room: its time begins then."""
        size = 2 * len(line.text or b"")  # itself, and the request made of it
        if not self._window.try_enter(size):
            await self._window.enter(size)
        try:
            args = _arguments(line)
        except CodedError as error:
            return _Place(_quoted(line), error, True, size)
        timeout = self._timeout
        try:
            request = self._producer.prepare(
                self._service, self._command, args, timeout=timeout, idempotent=self._idempotent
            )
            handle = self._producer.send_at_once(request, timeout) or await self._producer.send(request, timeout)
        except CodedError as error:
            return _Place(line, error, False, size)
        return _Place(line, handle.future, False, size)

    async def _settle(self, place: _Place) -> None:
        """Write how it ended, after all that ended before it."""
        tally, number = self.tally, place.line.number
        try:
            if isinstance(place.end, CodedError):
                raise place.end
            reply = place.end.result()
        except PublishFailed:
            await self._write()
            raise  # nothing is said of this line: it is the first to be sent another time
        except CodedError as error:
            await self._replies.write()
            full = self._failures.add(_failure(place, error))
            tally.broken += place.broken
            tally.failed += not place.broken
        else:
            await self._failures.write()
            full = self._replies.add({"line": number, "result": reply.result})
            tally.succeeded += 1
        tally.answered, tally.end = number, place.line.end
        if full:
            await self._write()

    async def _write(self) -> None:
        # At most one of them holds anything.
        await self._replies.write()
        await self._failures.write()


def _arguments(line: Line) -> dict[str, Any]:
    if line.text is None:
        raise TooLarge(f"the line is longer than a request may be, {DEFAULT_LIMIT:,} bytes")
    try:
        return codec.decode(line.text.strip())
    except FrameError as error:
        raise BadRequest(f"the line is not one JSON object: {error.kind}: {error.detail}") from None


def _quoted(line: Line) -> Line:
    """A broken line, without more of it than will be quoted."""
    text = line.text
    return Line(line.number, None if text is None else text[: LONGEST_QUOTE * 4], line.end)


def _failure(place: _Place, error: CodedError) -> dict[str, Any]:
    """Its record. What differs from one run to the next (ids, nodes) is left out: dead letters have it."""
    record: dict[str, Any] = {"line": place.line.number, "code": error.code.value, "error": error.message}
    text = place.line.text
    if place.broken:
        record["broken"] = True
        record["text"] = "" if text is None else text.decode(errors="replace")[:LONGEST_QUOTE]
        return record
    if error.details:
        record["details"] = dict(error.details)
    record["args"] = codec.decode((text or b"{}").strip())
    return record


# Going on.


def answered_before(replies: int, failures: Path) -> Tally:
    """What an earlier batch has left in the two files, cut to their last whole lines: go on after `answered`.

    `replies`: a descriptor of a file, written at its end from now on. Raises BatchError if it cannot be gone on with.
    """
    if not stat.S_ISREG(os.fstat(replies).st_mode):
        raise BatchError("--resume needs the replies in a file: write >> FILE, as this time, and not into a pipe")
    tally = Tally()
    appending = fcntl.fcntl(replies, fcntl.F_GETFL) & os.O_APPEND
    if not appending and not os.fstat(replies).st_size and failures.exists():
        raise BatchError(
            "--resume needs the replies as they were, and they are empty: append to them (>> FILE), or remove "
            f"{failures} to begin anew"
        )
    # The descriptor may be open for writing alone, and its name may lead elsewhere by now.
    with open(f"/proc/self/fd/{replies}", "rb") as reading:
        end, tally.answered, tally.succeeded = 0, 0, 0
        for line in reading:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            tally.succeeded += 1
            last = line
        if tally.succeeded:
            tally.answered = _number(last, "the replies")
    os.ftruncate(replies, end)
    os.lseek(replies, 0, os.SEEK_END)
    with suppress(FileNotFoundError), failures.open("r+b") as changing:
        end = 0
        for line in changing:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            number, broken = _number(line, str(failures)), b',"broken":true' in line
            tally.broken += broken
            tally.failed += not broken
            tally.answered = max(tally.answered, number)
        changing.truncate(end)
    return tally


def _number(line: bytes, where: str) -> int:
    try:
        number = codec.decode(line).get("line")
    except FrameError:
        number = None
    if not isinstance(number, int):
        raise BatchError(f"--resume: {where} hold a line that no batch wrote: {line[:80]!r}: is it the right file?")
    return number
