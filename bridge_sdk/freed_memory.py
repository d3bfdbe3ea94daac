"""What a bridge keeps of the memory that it frees, for its next request."""

from __future__ import annotations

from contextlib import suppress

SIGN = 32 * 1024 * 1024 - 64 * 1024  # bytes


def keep_freed_memory() -> None:
    """Have the C library keep freed memory, up to 64 MiB at the end of its heap; without effect on another than glibc.

    From 128 KiB on it would be given back after each request. To get it anew is slow: each page is a fault, which the
    kernel answers with zeros. Of 64 KiB that a bridge gives back as they came, this took most of its time.

    glibc takes the largest block that was freed, up to 32 MiB, for a sign of what a program needs, and keeps twice as
    much (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). So one is freed. Nobody writes to it: it never has pages.
    """
    with suppress(MemoryError):  # an address space that is limited to less
        bytes(SIGN)
