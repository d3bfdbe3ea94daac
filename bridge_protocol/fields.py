"""What the fields of a decoded message hold: whether it is what it should be, and the error where it is not."""

from __future__ import annotations

from typing import TypeGuard

from bridge_protocol.errors import FrameError, FrameKind


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an integer: true and false, which Python counts among them, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong(name: str, wanted: str, found: object) -> FrameError:
    """The error of a field that must be something else than what was `found`."""
    # The value itself is quoted only where it is short by nature: a payload is never repeated in an error.
    shown = f"{found!r:.40}" if isinstance(found, int | float | str | None) else type(found).__name__
    return FrameError(FrameKind.BAD_ENVELOPE, f"{name} must be {wanted}, not {shown}")
