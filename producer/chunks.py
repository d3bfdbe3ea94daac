"""The chunks of a stream, as they come: in order, without a gap, and of one run only.

    message ─▶ of the run that is read ─▶ kept, from the next seq on ─▶ take
               of a newer one ──────────▶ it takes the place of the one before, from its first chunk on
               of an older one ─────────▶ dropped

A run is one try at the request on one bridge. Whoever was handed chunks of a run that another takes the place of must
know: `restarted` says so, and nothing of the new one is handed out before `restart`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from bridge_protocol.binary import restore
from bridge_protocol.control import WINDOW_BYTES, WINDOW_CHUNKS
from bridge_protocol.envelope import ATTEMPT, CHUNK_COUNT, CONTROL_QUEUE, RUN, SEQ
from bridge_protocol.errors import FrameError
from bridge_protocol.frames import FrameDecoder
from bridge_protocol.messages import Chunk, decode_message
from bridge_protocol.topology import CONTROL

# A quarter of the window: whoever reads on gives credit long before there is none left.
GRANT_CHUNKS = WINDOW_CHUNKS // 4
GRANT_BYTES = WINDOW_BYTES // 4
GRANT_EVERY = 1.0  # seconds, for one who takes his time


class Piece(NamedTuple):
    """One chunk, its size on the wire in bytes, and the run that it is of."""

    data: Any
    size: int
    run: str


class Grant(NamedTuple):
    """To be said to `queue`: of the run so many chunks were taken."""

    queue: str
    run: str
    chunks: int


class Chunks:
    """What came of one request's stream. `gap`: why it cannot go on, if it cannot."""

    def __init__(self) -> None:
        self.attempt = 0
        self.gap: str | None = None
        self.restarted = False
        self._run: str | None = None
        self._past: set[str] = set()
        self._pieces: deque[Piece] = deque()
        self._next = 0  # the seq that is to come
        self._handed = False  # some of this run was
        self._queue: str | None = None  # for credit
        self._taken = 0  # and done with
        self._granted = 0
        self._ungranted_bytes = 0
        self._granted_at = 0.0

    def __repr__(self) -> str:
        return f"<Chunks of run {self._run}: {self._next} came, {len(self._pieces)} wait>"

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def receive(self, headers: Mapping[str, Any], body: bytes | bytearray, now: float) -> Grant | None:
        """A message of chunks came; what is to be said at once, if anything."""
        if not self._enter(headers):
            return None
        queue = headers.get(CONTROL_QUEUE)
        news = isinstance(queue, str) and queue.startswith(f"{CONTROL}.") and queue != self._queue
        if news:
            self._queue = queue
        seq = headers.get(SEQ)
        if type(seq) is not int or seq < 0:
            self.gap = self.gap or "a message of chunks does not say which they are"
        else:
            self._read(seq, body)
        # What was said to the queue before may not have been heard.
        return self._grant(now) if news and self._taken else None

    def end(self, headers: Mapping[str, Any]) -> None:
        """The request succeeded, says a reply with these headers: it had so many chunks."""
        count = headers.get(CHUNK_COUNT)
        if type(count) is not int:
            return
        if not self._enter(headers):
            self.gap = self.gap or "its reply is that of an earlier run"
        elif count != self._next:
            self.gap = self.gap or f"it had {count} chunks, and {self._next} came"

    def anew(self) -> None:
        """What comes now is of a new request, in the place of the one before: its attempts count from 1 again."""
        self.attempt = 0

    def take(self, most: int) -> list[Piece]:
        """The next ones, at most so many."""
        pieces = [self._pieces.popleft() for _ in range(min(most, len(self._pieces)))]
        self._handed = self._handed or bool(pieces)
        return pieces

    def restart(self) -> None:
        """Whoever was handed chunks of another run knows that it is over."""
        self.restarted = False

    def done_with(self, run: str, count: int, size: int, now: float) -> Grant | None:
        """So many of a run, of `size` bytes in all, are used and gone; what credit to give now, if any."""
        if run != self._run:
            return None
        self._taken += count
        self._ungranted_bytes += size
        due = (
            self._taken - self._granted >= GRANT_CHUNKS
            or self._ungranted_bytes >= GRANT_BYTES
            or now - self._granted_at >= GRANT_EVERY
        )
        return self._grant(now) if due else None

    def _grant(self, now: float) -> Grant | None:
        self._granted = self._taken
        self._ungranted_bytes = 0
        self._granted_at = now
        if self._queue is None or self._run is None:
            return None
        return Grant(self._queue, self._run, self._taken)

    def _enter(self, headers: Mapping[str, Any]) -> bool:
        """Whether it is of the run that is read, from now on."""
        attempt, run = headers.get(ATTEMPT), headers.get(RUN)
        if type(attempt) is not int or not isinstance(run, str):
            return False
        if run == self._run:
            return True
        if attempt < self.attempt or run in self._past:
            return False
        if self._run is not None:
            self._past.add(self._run)
            self.restarted = self.restarted or self._handed
        self.attempt, self._run = attempt, run
        self.gap = None
        self._pieces.clear()
        self._next = self._taken = self._granted = self._ungranted_bytes = 0
        self._handed = False
        self._queue = None
        return True

    def _read(self, seq: int, body: bytes | bytearray) -> None:
        if self.gap is not None:
            return
        assert self._run is not None
        decoder = FrameDecoder()
        try:
            decoder.receive(bytes(body))
            while (payload := decoder.next()) is not None:
                if seq > self._next:
                    break
                said = decode_message(payload)
                if not isinstance(said, Chunk) or said.seq != seq:
                    self.gap = f"chunk {seq} is not what it says it is"
                    return
                if seq == self._next:
                    data = said.data if said.binary is None else restore(said.data, said.binary)
                    self._pieces.append(Piece(data, len(payload), self._run))
                    self._next += 1
                seq += 1
            else:
                decoder.receive_eof()
        except FrameError as error:
            self.gap = f"a message of chunks cannot be read: {error}"
        if seq > self._next:
            self.gap = f"chunk {self._next} is missing: the next one that came is {seq}"
