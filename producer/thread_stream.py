"""A stream for any thread."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from bridge_protocol.errors import BrokerUnavailable
from producer.chunks import GRANT_EVERY, Piece
from producer.loop_thread import Run
from producer.reply import Reply
from producer.stream import AsyncStream


class Stream:
    """A stream for any thread: AsyncStream, on its producer's loop. Made by Producer.stream; iterated by one thread.

    `on_restart` is called in the event loop's thread, before the iteration goes on with the new run's first chunk.
    """

    def __init__(self, run: Run, inner: AsyncStream) -> None:
        self._run = run
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner).replace("AsyncStream", "Stream", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def message_id(self) -> str:
        """The request's."""
        return self._inner.message_id

    @property
    def reply(self) -> Reply | None:
        """The Reply, once the last chunk has been taken."""
        return self._inner.reply

    def __iter__(self) -> Iterator[Any]:
        self._inner.enter()
        return self._items()

    def close(self) -> None:
        """Leave: if the request has not ended, have it cancelled."""
        with suppress(BrokerUnavailable):  # the producer is closed, and told the nodes
            self._run(self._inner.aclose())

    def _items(self) -> Generator[Any, None, None]:
        try:
            used: _Used | None = None
            while pieces := self._run(self._take(used)):
                used = _Used(pieces[0].run)
                since = time.monotonic()
                for piece in pieces:
                    yield piece.data
                    used.chunks += 1
                    used.bytes += piece.size
                    if time.monotonic() - since >= GRANT_EVERY:  # one who takes his time must not seem to take none
                        self._run(self._done_with(used))
                        used = _Used(piece.run)
                        since = time.monotonic()
        finally:
            self.close()

    async def _take(self, used: _Used | None) -> list[Piece]:
        if used is not None:
            await self._done_with(used)
        return await self._inner.take()

    async def _done_with(self, used: _Used) -> None:
        self._inner.done_with(used.run, used.chunks, used.bytes)


@dataclass(slots=True)
class _Used:
    """So many chunks of a run, and their size."""

    run: str
    chunks: int = 0
    bytes: int = 0
