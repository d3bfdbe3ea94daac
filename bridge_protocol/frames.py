"""Frames: a 4-byte big-endian length, then that many bytes of UTF-8 JSON. Erlang's `{packet, 4}`.

    decoder = FrameDecoder()
    decoder.receive(data)                       # bytes as they came, in pieces of any size
    while (payload := decoder.next()) is not None:
        ...                                     # one whole payload; None means "need more bytes"
    decoder.receive_eof()                       # raises if the stream ended inside a frame

    if (room := decoder.room) is not None:      # most of a large frame is missing: read it to where it belongs
        decoder.filled(os.readv(pipe, [room]))  # in the place of `receive`

Everything that decides where a frame ends lives here. The rules, in the order they are checked:

1. The length is checked as soon as its fourth byte is there, before a byte of the body is kept.
2. The payload's first byte must be `{`: checked as soon as it is there.
3. After an error nothing that follows can be trusted: the error stands, and every later call raises it.

Memory: one partly received frame (never over the limit) and the unread rest of the last `receive`.
"""

from __future__ import annotations

from bridge_protocol.errors import FrameError, FrameKind

HEADER_SIZE = 4
DEFAULT_LIMIT = 16 * 1024 * 1024
# Text at a frame boundary is caught by its length alone: the least byte that begins a line of text is a tab
# (0x09), and 0x09000000 is 150,994,944. A limit above this ceiling would let text pass for a length.
LIMIT_CEILING = 128 * 1024 * 1024
LARGE = 64 * 1024  # bytes that are missing of a frame: from here on they are better read to where they belong

_OPEN_BRACE = 0x7B


def encode_frame(payload: bytes | bytearray, limit: int = DEFAULT_LIMIT) -> bytes:
    """The frame that carries `payload`. Raises FrameError if it is empty or over `limit` bytes."""
    size = len(payload)
    if size == 0:
        raise FrameError(FrameKind.EMPTY_FRAME, "a payload cannot be empty")
    if size > limit:
        raise FrameError(FrameKind.FRAME_TOO_LARGE, f"{size:,} bytes, the limit is {limit:,}")
    return size.to_bytes(HEADER_SIZE, "big") + payload


class FrameDecoder:
    """Bytes in, payloads out.

    `limit` is the largest payload in bytes. A frame that arrives in one piece costs one copy; one that
    arrives in many is gathered in place, in a buffer of exactly its size, and handed out without a copy.
    """

    __slots__ = ("_body", "_chunk", "_error", "_filled", "_position", "limit")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        if not 1 <= limit <= LIMIT_CEILING:
            raise ValueError(f"frame limit must be 1 … {LIMIT_CEILING:,} bytes, not {limit:,}")
        self.limit = limit
        self._chunk = b""  # what was received and not looked at yet, from _position on
        self._position = 0
        self._body: bytearray | None = None  # the partly received frame, allocated at its full size
        self._filled = 0
        self._error: FrameError | None = None

    def __repr__(self) -> str:
        if self._error is not None:
            return f"<FrameDecoder broken: {self._error.kind}>"
        if self._body is not None:
            return f"<FrameDecoder {self._filled} of {len(self._body)} bytes>"
        return f"<FrameDecoder {len(self._chunk) - self._position} bytes waiting>"

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._body is not None or self._position < len(self._chunk)

    def begun(self) -> tuple[bytes, int | None]:
        """Of the frame that has begun: what came of its payload, and how many bytes are missing.

        Without a number what came is of the length: that is not whole itself.
        """
        if self._body is not None:
            return bytes(self._body[: self._filled]), len(self._body) - self._filled
        waiting = self._chunk[self._position :]
        if len(waiting) < HEADER_SIZE:
            return waiting, None
        return b"", int.from_bytes(waiting[:HEADER_SIZE], "big")

    @property
    def room(self) -> memoryview | None:
        """Where the rest of the frame that has begun belongs, if that is LARGE; else None.

        Whoever reads into it, from its start, says `filled`, and keeps no reference to it.
        """
        if self._body is None or len(self._body) - self._filled < LARGE:
            return None
        return memoryview(self._body)[self._filled :]

    def filled(self, size: int) -> None:
        """Take `size` bytes that were read into `room`: as `receive` does, without a copy."""
        self._filled += size

    def receive(self, data: bytes) -> None:
        """Take what was read. Call `next` until it gives None before the next `receive`."""
        self._raise_error()
        start = 0
        if self._body is not None:
            start = self._fill(self._body, data, 0)
            if start == len(data):
                return
        if self._position < len(self._chunk):
            data = self._chunk[self._position :] + data[start:]
            start = 0
        self._chunk = data
        self._position = start

    def next(self) -> bytes | bytearray | None:
        """The next whole payload, or None when more bytes are needed. Raises FrameError, once and for ever."""
        self._raise_error()
        body = self._body
        if body is not None:
            if self._filled < len(body):
                return None
            self._body = None
            return body
        chunk, start = self._chunk, self._position
        available = len(chunk) - start
        if available < HEADER_SIZE:
            return None
        size = int.from_bytes(chunk[start : start + HEADER_SIZE], "big")
        if size > self.limit:
            detail = f"a length of {size:,} bytes, the limit is {self.limit:,}"
            raise self._fail(FrameKind.FRAME_TOO_LARGE, detail, start)
        if size == 0:
            raise self._fail(FrameKind.EMPTY_FRAME, "a length of 0", start)
        if available == HEADER_SIZE:
            return None
        start += HEADER_SIZE
        if chunk[start] != _OPEN_BRACE:
            raise self._fail(FrameKind.BAD_START, "a payload must begin with '{'", start)
        end = start + size
        if end <= len(chunk):
            self._position = end
            return chunk[start:end]
        self._body = bytearray(size)
        self._filled = 0
        self._fill(self._body, chunk, start)
        self._chunk = b""
        self._position = 0
        return None

    def receive_eof(self) -> None:
        """Say that the stream has ended. Raises FrameError if it ended inside a frame."""
        self._raise_error()
        if self._body is not None:
            missing = len(self._body) - self._filled
            raise self._fail(FrameKind.TRUNCATED_BODY, f"the stream ended {missing:,} bytes short", 0)
        waiting = len(self._chunk) - self._position
        if waiting >= HEADER_SIZE:
            raise self._fail(FrameKind.TRUNCATED_BODY, "the stream ended after a length", self._position)
        if waiting:
            raise self._fail(
                FrameKind.TRUNCATED_HEADER,
                f"the stream ended after {waiting} of {HEADER_SIZE} length bytes",
                self._position,
            )

    def rest(self) -> bytes:
        """What was received and not decoded: for quoting what a broken stream said next."""
        return self._chunk[self._position :]

    def _fill(self, body: bytearray, data: bytes, start: int) -> int:
        """Put what belongs to the partly received frame in its place; give back where in `data` that ends."""
        end = min(len(data), start + len(body) - self._filled)
        filled = self._filled + end - start
        # Through a memoryview: assigning to a slice of a bytearray copies what it is given first.
        memoryview(body)[self._filled : filled] = memoryview(data)[start:end]
        self._filled = filled
        return end

    def _raise_error(self) -> None:
        if self._error is not None:
            # Without the old traceback, which would grow with each call and keep its frames' data alive.
            raise self._error.with_traceback(None)

    def _fail(self, kind: FrameKind, detail: str, position: int) -> FrameError:
        if self._body is not None:
            preview = bytes(self._body[: min(64, self._filled)])
            self._body = None
        else:
            preview = self._chunk[position : position + 64]
            self._position = position
        self._error = FrameError(kind, detail, preview)
        return self._error
