"""The books of a chaos run, and the oracle that judges them. After Jepsen's total-queue checker.

    lost = confirmed − (replied ∪ dead ∪ expired ∪ cancelled ∪ parked)

A request whose publish was never confirmed is neither lost nor failed: nobody knows, and it may be answered.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def digest(value: object) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Kind(StrEnum):
    """What a request is made to end in."""

    WORKS = "works"  # its result
    REFUSES = "refuses"  # the bridge's own failure
    POISONS = "poisons"  # a dead letter, and the failure that says so
    HURRIES = "hurries"  # its result, or its deadline


RESULT, REFUSED, EXPIRED, CANCELLED = "result", "application_error", "deadline_exceeded", "cancelled"
# A failure of one of these says that its request is kept as a dead letter.
KEPT = frozenset({"bridge_crashed", "bridge_timeout", "protocol_violation"})


@dataclass(slots=True)
class Entry:
    """One request. `expected` is the digest of the result (or the text of the failure) that it must give."""

    kind: Kind
    expected: str
    sends: int = 0  # how often it was published
    confirmed: bool = False
    outcomes: list[str] = field(default_factory=list)  # the types of its replies
    bodies: list[str] = field(default_factory=list)  # their digests


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the books say. Ids, except for the counts."""

    lost: list[str]
    unexpected: list[str]
    wrong: list[str]  # with what was wrong
    duplicated: int
    recovered: int  # never confirmed, and answered

    @property
    def sound(self) -> bool:
        """Whether nothing is lost, foreign or false."""
        return not (self.lost or self.unexpected or self.wrong)


class Ledger:
    """Every request that was attempted, and all that became of it."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.dead: Counter[str] = Counter()
        self.parked: Counter[str] = Counter()
        self.foreign: list[str] = []
        self._unsettled: set[str] = set()  # confirmed, and without an outcome
        self.redelivered = 0  # replies that say that their request was
        self.retried = 0  # replies to a later attempt
        self.seen_again = 0  # replies given out twice by the broker: the same message, not a second one
        self.unknown = 0  # publishes that ended without a confirm

    def __repr__(self) -> str:
        return f"<Ledger {self.count('confirmed')} of {len(self.entries)} confirmed, {len(self._unsettled)} unsettled>"

    # What is written down.

    def attempted(self, message_id: str, kind: Kind, expected: str) -> None:
        """It is about to be published, for the first time or again."""
        self.entries.setdefault(message_id, Entry(kind, expected)).sends += 1

    def confirmed(self, message_id: str) -> None:
        """The broker has it."""
        self.entries[message_id].confirmed = True
        if not self._is_settled(message_id):
            self._unsettled.add(message_id)

    def unconfirmed(self, message_id: str) -> None:
        """Its publish ended in any other way: unknown, not failed."""
        self.unknown += 1

    def replied(
        self,
        message_id: str,
        outcome: str,
        said: str,
        body: str,
        *,
        again: bool = False,
        redelivered: bool = False,
        retried: bool = False,
    ) -> None:
        """A reply of type `outcome` came; `said` is the digest of its result or the text of its failure.

        `body` identifies the reply's own message, and `again` says whether the broker gave that out before;
        `redelivered` and `retried` are what the reply says of its request.
        """
        entry = self.entries.get(message_id)
        if entry is None:
            self.foreign.append(message_id)
            return
        if again and body in entry.bodies:
            self.seen_again += 1
            return
        self.redelivered += redelivered
        self.retried += retried
        self._unsettled.discard(message_id)
        entry.bodies.append(body)
        entry.outcomes.append(outcome if outcome not in (RESULT, REFUSED) or said == entry.expected else f"not {said}")

    def died(self, message_id: str) -> None:
        """It is among the dead letters."""
        self._unsettled.discard(message_id)
        self.dead[message_id] += 1

    def was_parked(self, message_id: str) -> None:
        """Its reply is among the undeliverable ones."""
        self._unsettled.discard(message_id)
        self.parked[message_id] += 1

    # What is read from it.

    def count(self, of: str) -> int:
        """How many requests are `confirmed`, or have an outcome of that type."""
        if of == "confirmed":
            return sum(entry.confirmed for entry in self.entries.values())
        return sum(of in entry.outcomes for entry in self.entries.values())

    @property
    def unsettled(self) -> frozenset[str]:
        """The confirmed requests without an outcome."""
        return frozenset(self._unsettled)

    def _is_settled(self, message_id: str) -> bool:
        return bool(self.entries[message_id].outcomes) or message_id in self.dead or message_id in self.parked

    def verdict(self) -> Verdict:
        """Judge. After the end, with the dead letters and the parked replies written down."""
        return Verdict(
            lost=sorted(self._unsettled),
            unexpected=self.foreign + [key for key in (*self.dead, *self.parked) if key not in self.entries],
            wrong=[
                f"{key}: {problem}" for key, entry in self.entries.items() if (problem := self._problem(key, entry))
            ],
            duplicated=sum(max(0, self._ends(key, entry) - 1) for key, entry in self.entries.items()),
            recovered=sum(not entry.confirmed and self._is_settled(key) for key, entry in self.entries.items()),
        )

    def _ends(self, message_id: str, entry: Entry) -> int:
        """How many times it ended. A dead letter and the failure that tells of it are one end."""
        kept = sum(outcome in KEPT for outcome in entry.outcomes)
        return len(entry.outcomes) - kept + max(kept, self.dead[message_id]) + self.parked[message_id]

    def _problem(self, message_id: str, entry: Entry) -> str | None:
        """What is false about a request's outcomes, or None."""
        allowed = {
            Kind.WORKS: {RESULT},
            Kind.REFUSES: {REFUSED},
            Kind.POISONS: set(),
            Kind.HURRIES: {RESULT, EXPIRED},
        }[entry.kind]
        for outcome in entry.outcomes:
            if outcome in KEPT:
                if message_id not in self.dead:
                    return f"the failure {outcome} says it is kept as a dead letter, and there is none"
            elif outcome not in allowed:
                return f"a request that {entry.kind} ended in {outcome}"
        return None

    # A journal: what a process that may be killed has written down, line by line.

    def read(self, lines: Iterable[str]) -> None:
        """Write down what a journal holds; see `line`. A last line that was cut off is not there."""
        for text in lines:
            if text.endswith("\n"):
                what, arguments, options = json.loads(text)
                getattr(self, what)(*arguments, **options)


def line(what: str, *arguments: Any, **options: Any) -> str:
    """One line of a journal: a call of a Ledger's method."""
    return json.dumps([what, arguments, options]) + "\n"
