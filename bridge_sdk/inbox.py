"""The inbox: what a bridge was sent and has not begun. Bytes in, requests out, in the order they came.

A `cancel` is no request: it withdraws one that waits here, or is handed to whoever runs the others.
"""

from __future__ import annotations

from collections import deque

from bridge_protocol.errors import FrameError
from bridge_protocol.frames import LIMIT_CEILING, FrameDecoder
from bridge_protocol.messages import CANCEL, Request, decode_request

# A cancel for an id that has not come is remembered; one that crossed its reply on the way would be for ever.
MAX_REMEMBERED = 1024


class Inbox:
    """Requests that wait, errors found between them, and cancels that came before their request.

    `broken` is set once the bytes stop being frames: nothing after that is read. `limit` (bytes of a payload) is any
    there can be: the node keeps its own, and what it sends is not refused here.
    """

    def __init__(self, limit: int = LIMIT_CEILING) -> None:
        self._decoder = FrameDecoder(limit)
        self._waiting: deque[Request | FrameError] = deque()
        self._remembered: dict[int, None] = {}
        self._given_back: list[int] = []
        self.broken: FrameError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Inbox {len(self._waiting)} waiting, {len(self._remembered)} cancels remembered>"

    @property
    def room(self) -> memoryview | None:
        """Where the rest of a large request belongs. Whoever reads into it says `filled`, and receives nothing else."""
        return self._decoder.room

    def filled(self, size: int) -> None:
        """So many bytes were read into `room`."""
        self._decoder.filled(size)

    def receive(self, data: bytes) -> list[int]:
        """Take what was read; the ids cancelled by it, each to be settled with `withdraw` or by who runs it.

        A cancel for what is not begun yet is settled here: see `given_back`.
        """
        cancelled: list[int] = []
        try:
            self._decoder.receive(data)
            while (payload := self._decoder.next()) is not None:
                try:
                    request = decode_request(payload)
                except FrameError as error:
                    self._waiting.append(error)
                    continue
                if request.command != CANCEL:
                    self._waiting.append(request)
                elif type(wanted := request.args.get("id")) is int:
                    if request.args.get("unbegun") is not True:
                        cancelled.append(wanted)
                    elif self._take_out(wanted):
                        self._given_back.append(wanted)
        except FrameError as error:
            if self.broken is None:
                self.broken = error
                self._waiting.append(error)
        return cancelled

    def next(self) -> Request | FrameError | None:
        """The next request, or what was wrong with it; None when nothing waits."""
        return self._waiting.popleft() if self._waiting else None

    def given_back(self) -> list[int]:
        """The ids of requests that were taken out unbegun since the last time; the caller must give them back."""
        found, self._given_back = self._given_back, []
        return found

    def withdraw(self, request_id: int) -> bool:
        """Take a waiting request out; the caller must answer it. False: there is none, and the id is remembered."""
        if self._take_out(request_id):
            return True
        self._remembered[request_id] = None
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return False

    def _take_out(self, request_id: int) -> bool:
        for item in self._waiting:
            if isinstance(item, Request) and item.id == request_id:
                self._waiting.remove(item)
                return True
        return False

    def was_cancelled(self, request_id: int) -> bool:
        """Whether a cancel came before this request did; asked once, when it is its turn."""
        if not self._remembered or request_id not in self._remembered:
            return False
        del self._remembered[request_id]
        return True
