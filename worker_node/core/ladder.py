"""The ladder a stopping bridge is taken down by: asked, then terminated, then killed."""

from __future__ import annotations

from enum import Enum
from typing import Final

from worker_node.core.reason import Reason


class Step(Enum):
    """A rung; each has `stop_timeout` seconds."""

    ASK = "ask"  # shutdown frame where claimed, end of its input
    TERMINATE = "terminate"  # SIGTERM to its process group
    KILL = "kill"  # SIGKILL to its process group


NEXT_STEP: Final = {Step.ASK: Step.TERMINATE, Step.TERMINATE: Step.KILL}
# The first step of a bridge that is stopped for cause. Any other is asked.
FIRST_STEP: Final = {
    Reason.START_FAILED: Step.KILL,
    Reason.START_TIMEOUT: Step.TERMINATE,
    Reason.RUN_TIMEOUT: Step.TERMINATE,
    Reason.DEADLINE: Step.TERMINATE,
    Reason.WRITE_TIMEOUT: Step.TERMINATE,
    Reason.FRAME_TIMEOUT: Step.TERMINATE,
    Reason.CANCELLED: Step.TERMINATE,
    Reason.READER_STALLED: Step.TERMINATE,
    Reason.VIOLATION: Step.KILL,
    Reason.MEMORY_HARD: Step.KILL,
}
