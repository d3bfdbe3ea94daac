"""What a checklist found: a row for each check, and whether the bridge conforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """What came of a check. Only FAILED and NOT_RUN keep a bridge from conforming."""

    PASSED = "pass"
    FAILED = "fail"
    NOT_CLAIMED = "not claimed"  # the bridge does not say that it can do this, or nothing shows whether it can
    NOT_RUN = "not run"  # what it builds on failed


class Unmet(Exception):
    """Raised when a bridge does not do what is expected: what was seen, and what its author can do about it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


class NotClaimed(Exception):
    """Raised when a check does not apply; the message says why, and how to have it made."""


class CannotStart(Exception):
    """Raised when there is nothing to check: no such program, or it ends or is silent before its handshake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check's outcome. `detail`: what was seen, or why it is not claimed; `fix`: only where it failed."""

    check: str
    title: str
    status: Status
    detail: str
    fix: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the whole checklist. `problem`: why nothing could be checked; then there are no rows."""

    command: Sequence[str]
    rows: Sequence[Row] = ()
    problem: str | None = None

    @property
    def conforms(self) -> bool:
        """Whether every check that applies passed."""
        return bool(self.rows) and all(row.status in (Status.PASSED, Status.NOT_CLAIMED) for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """One JSON object with all of it."""
        return {
            "command": list(self.command),
            "conforms": self.conforms,
            "problem": self.problem,
            "rows": [
                {
                    "check": row.check,
                    "title": row.title,
                    "status": row.status.value,
                    "detail": row.detail,
                    "fix": row.fix,
                    "seconds": round(row.seconds, 3),
                }
                for row in self.rows
            ],
        }
