"""A flight: what a map has under way, bounded by count and by bytes, and whose end is given out next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, Literal, TypeVar

from bridge_protocol.errors import CodedError
from producer.reply import Reply

MOST_IN_FLIGHT = 100
MOST_IN_FLIGHT_BYTES = 64 * 1024 * 1024

OnError = Literal["raise", "return"]
F = TypeVar("F")


class Flight(Generic[F]):
    """At most `count` futures of requests that have `size` bytes together; one larger than that flies alone.

    Raises ValueError for bounds and an `on_error` that cannot be.
    """

    def __init__(self, count: int, size: int, on_error: OnError) -> None:
        if count < 1:
            raise ValueError(f"in_flight must be at least 1, not {count}")
        if size < 1:
            raise ValueError(f"in_flight_bytes must be at least 1, not {size}")
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error must be 'raise' or 'return', not {on_error!r}")
        self._count = count
        self._size = size
        self._used = 0
        self._places: dict[F, tuple[int, int]] = {}  # position and size, in the order of the requests

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[F]:
        return iter(self._places)

    @property
    def full(self) -> bool:
        """Whether no further request may join, however small."""
        return len(self._places) >= self._count

    def fits(self, size: int) -> bool:
        """Whether a request of `size` bytes may join."""
        return not self._places or (not self.full and self._used + size <= self._size)

    def join(self, future: F, position: int, size: int) -> None:
        """A request that fits is on its way."""
        self._places[future] = position, size
        self._used += size

    def first(self) -> F:
        """The one that joined first."""
        return next(iter(self._places))

    def leave(self, future: F) -> int:
        """It has ended, and that is given out; its position."""
        position, size = self._places.pop(future)
        self._used -= size
        return position


def at_position(end: Reply | CodedError, position: int) -> Reply | CodedError:
    """`end`, which says what it answers."""
    if isinstance(end, Reply):
        return replace(end, position=position)
    end.position = position
    return end
