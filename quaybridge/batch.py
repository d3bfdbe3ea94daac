"""A batch: a line of JSON in, its request's reply out, in order, however many there are.

    requests ─▶ Lines ─▶ Batch ──┬─▶ replies     {"line": 3, "result": …}
                                 └─▶ failures    {"line": 4, "code": "application_error", "error": "…", "args": {…}}

Every line that is not blank ends in one of the two files, and those before it did so earlier. So whatever ends a batch
half-way, it can be gone on with from the first line that is in neither: `Earlier` finds it, and cuts what was torn.
What was in flight then is sent again by whoever goes on: those requests may run twice.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_protocol import codec
from bridge_protocol.binary import encode_declared
from bridge_protocol.errors import BadRequest, CodedError, FrameError, PublishFailed, QuaybridgeError, TooLarge
from bridge_protocol.frames import DEFAULT_LIMIT
from producer.async_producer import AsyncProducer
from producer.flight import MOST_IN_FLIGHT_BYTES
from producer.reply import Reply
from producer.window import Window

BLOCK = 256 * 1024  # bytes read, and bytes gathered before they are written
PIECE = 4096  # bytes a pipe that is writable takes at once (PIPE_BUF)
TURN = 16  # lines that are written before more are sent
_RECORD = re.compile(rb'\{"line":(\d{1,18}),"')
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

    @property
    def gathered(self) -> bool:
        """Whether there is something to be written."""
        return bool(self._gathered)

    def add(self, record: dict[str, Any]) -> bool:
        """Gather one; whether it is time to write."""
        self._gathered += encode_declared(record)
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
    """How far a batch is. `answered`: the number of the last line that is in one of the files, or blank before one.

    `earlier`: how many of those that are counted are another batch's, which this one goes on with.
    """

    answered: int = 0
    succeeded: int = 0
    failed: int = 0
    broken: int = 0
    earlier: int = 0
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

    async def run(self, lines: Lines, earlier: Earlier | None = None) -> None:
        """Until every line is answered; those that were `earlier` are not sent again.

        Raises PublishFailed where the broker takes no requests: the rest is left for another time. Raises OSError for
        files that cannot be read or written, and BatchError for files that do not belong together.
        """
        feeding = asyncio.ensure_future(self._feed(lines, earlier))
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
            if earlier is not None:
                earlier.close()
            for place in self._places:
                if isinstance(place.end, asyncio.Future) and not place.end.cancel() and not place.end.cancelled():
                    place.end.exception()  # looked at, or asyncio complains that nobody did

    async def _feed(self, lines: Lines, earlier: Earlier | None) -> None:
        skipping = earlier
        async for line in lines:
            if line.text is not None and not line.text.strip():
                continue
            if skipping is not None:
                if skipping.take(line.number, self.tally):
                    self.tally.answered, self.tally.end = line.number, line.end
                    continue
                skipping.cut(line.number)
                skipping = None
            self._places.append(await self._begin(line))
            self._more.set()
        if skipping is not None:
            skipping.cut(None)

    async def _begin(self, line: Line) -> _Place:
        """Send it, when there is room: its time begins then."""
        size = 2 * len(line.text or b"")  # itself, and the request made of it
        if not self._window.try_enter(size):
            await self._window.enter(size)
        try:
            args = _arguments(line)
        except CodedError as error:
            return _Place(_quoted(line), error, True, size)
        try:
            handle = await self._producer.submit(
                self._service, self._command, args, timeout=self._timeout, idempotent=self._idempotent
            )
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
            if self._failures.gathered:
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


class Earlier:
    """What an earlier batch left in its two files, held against the input, line by line.

    `replies`: a descriptor of a file; what is written goes to its end from `cut` on. Raises BatchError for any other.
    """

    def __init__(self, replies: int, failures: Path) -> None:
        if not stat.S_ISREG(os.fstat(replies).st_mode):
            raise BatchError("--resume needs the replies in a file: write >> FILE, as this time, and not into a pipe")
        self._descriptor = replies
        self._failures_path = failures
        # The descriptor may be open for writing alone, and its name may lead elsewhere by now.
        self._replies = _Left(Path(f"/proc/self/fd/{replies}"), "the replies")
        self._failures = _Left(failures, str(failures)) if failures.exists() else None

    def take(self, line: int, tally: Tally) -> bool:
        """Whether this line, the next one that is not blank, was answered; if so, it is counted."""
        if self._replies.take(line) is not None:
            tally.succeeded += 1
        elif self._failures is not None and (record := self._failures.take(line)) is not None:
            broken = b',"broken":true' in record
            tally.broken += broken
            tally.failed += not broken
        else:
            return False
        tally.earlier += 1
        return True

    def cut(self, line: int | None) -> None:
        """Cut what is torn, and failures of yet another batch. `line`: the first that has no answer; None: all have.

        Raises BatchError where the files do not belong together, and leaves them as they are then.
        """
        beyond = self._replies.next
        if line is None and (beyond or (self._failures is not None and self._failures.next)):
            raise BatchError("--resume: more lines were answered before than the input has: is it another one?")
        if beyond is not None:
            raise BatchError(
                f"--resume: line {beyond} is in the replies, and line {line} is in neither file: is the input the one "
                "it was, and --failures too?"
            )
        os.ftruncate(self._descriptor, self._replies.end)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        if self._failures is not None:
            os.truncate(self._failures_path, self._failures.end)
        self.close()

    def close(self) -> None:
        """Close what was opened for reading."""
        self._replies.close()
        if self._failures is not None:
            self._failures.close()


class _Left:
    """A file's records, from the first: `next` is the line that the next one is about, `end` where those taken end."""

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._file = path.open("rb")
        self.end = 0
        self._look()

    def take(self, line: int) -> bytes | None:
        """The next record, if it is about that line."""
        if self.next != line:
            return None
        record = self._record
        self.end += len(record)
        self._look()
        return record

    def close(self) -> None:
        self._file.close()

    def _look(self) -> None:
        self._record = self._file.readline()
        self.next: int | None = None
        if self._record.endswith(b"\n"):  # or it is torn
            found = _RECORD.match(self._record)
            if found is None:
                self.close()
                quoted = repr(self._record[:80])
                raise BatchError(
                    f"--resume: {self._name} hold a line that no batch wrote: {quoted}: is it the right file?"
                )
            self.next = int(found[1])
