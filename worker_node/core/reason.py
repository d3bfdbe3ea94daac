"""Why a bridge left its slot, or a ticket left the pool without a reply."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why a bridge left its slot, or a ticket left the pool without a reply."""

    CRASHED = "crashed"  # the process ended by itself
    START_FAILED = "start_failed"  # it could not be started, or its handshake was refused
    START_TIMEOUT = "start_timeout"
    RUN_TIMEOUT = "run_timeout"
    DEADLINE = "deadline"  # the request's own deadline passed
    WRITE_TIMEOUT = "write_timeout"  # it did not read what it was sent
    FRAME_TIMEOUT = "frame_timeout"  # it began a frame and did not end it
    VIOLATION = "violation"  # what it wrote cannot be trusted
    NEIGHBOUR = "neighbour"  # the ticket's bridge had to go because of another request on it
    MEMORY_HARD = "memory_hard"  # more memory than it may ever have
    DRAINED = "drained"
    READER_STALLED = "reader_stalled"  # whoever reads its chunks takes none
    CANCELLED = "cancelled"  # nobody wants the request any more
    SESSION_LOST = "session_lost"  # the ticket's epoch is gone
    REPEATED = "repeated"  # the ticket's request began in this epoch already, and has ended
    # Replaced without harm, between two requests:
    RECYCLED = "recycled"  # it asked for it
    REQUESTS = "requests"  # it served as many as it may
    AGE = "age"
    IDLE = "idle"  # it was idle for too long
    MEMORY = "memory"
    REPLACED = "replaced"  # by one with new settings
    SURPLUS = "surplus"  # fewer are needed


# Replaced between two requests, and no harm done.
HARMLESS: Final = frozenset(
    {
        Reason.RECYCLED,
        Reason.REQUESTS,
        Reason.AGE,
        Reason.IDLE,
        Reason.MEMORY,
        Reason.REPLACED,
        Reason.SURPLUS,
    }
)
# A bridge that went for one of these did something wrong: its slot waits longer each time before the next one.
FAULTS: Final = frozenset(
    {
        Reason.CRASHED,
        Reason.START_FAILED,
        Reason.START_TIMEOUT,
        Reason.WRITE_TIMEOUT,
        Reason.FRAME_TIMEOUT,
        Reason.VIOLATION,
    }
)
# What a bridge says after one of these is not read: which of its requests it has begun is not known.
UNHEARD: Final = frozenset({Reason.WRITE_TIMEOUT, Reason.FRAME_TIMEOUT, Reason.VIOLATION})
# What a bridge is stopped for because of one request: the others on it are its neighbours.
OF_ONE_REQUEST: Final = frozenset({Reason.RUN_TIMEOUT, Reason.DEADLINE, Reason.CANCELLED, Reason.READER_STALLED})
