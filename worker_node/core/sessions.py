"""The sessions of one service on one node: which live bridge each is pinned to, and what became of those that ended.

A session is pinned to a slot when that slot first serves it, and gets an *epoch* then, which names that bridge's
incarnation: 128 random bits and the node's name. It ends with its bridge, or before that for one of the other
reasons; from then on its epoch is gone, for good. Why is remembered for the latest of them, so that whoever names a
gone epoch can be told.

Pure: time is `now`, in seconds on the pool's clock; epochs come from a function.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

REMEMBERED_REQUESTS = 8  # message ids, of each live session
REMEMBERED_ENDS = 10_000


class Ending(StrEnum):
    """Why a session ended. The value completes "the session is gone: …"."""

    CRASHED = "its bridge ended"
    RECYCLED = "its bridge was replaced"
    EVICTED = "it was the least recently used of too many"
    IDLE = "it was idle for too long"
    AGE = "it was as old as it may be"
    MOVED = "another node serves it now"
    CLOSED = "it was closed"
    NODE_LEFT = "its node left"
    UNKNOWN = "this node knows nothing of it"


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """A live session. `slot`: the number of the slot it is pinned to; `partition`: its queue's number.

    `busy`: how many of its requests wait or run here. `moved`: another node has its queue; it ends when not busy.
    """

    id: str
    epoch: str
    partition: int
    slot: int
    opened: float
    used: float
    busy: int = 0
    moved: bool = False
    begun: tuple[str, ...] = ()

    def begin(self, message_id: str) -> None:
        """A request of it begins to run."""
        self.begun = (*self.begun, message_id)[-REMEMBERED_REQUESTS:]

    def unbegin(self, message_id: str) -> None:
        """It did not begin after all."""
        self.begun = tuple(begun for begun in self.begun if begun != message_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Why a session is gone, and what else is known: how its bridge ended, if that was why."""

    ending: Ending
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How many sessions at most, and for how many seconds without a request (`idle`) and in all (`age`)."""

    most: int
    idle: float = math.inf
    age: float = math.inf


class Sessions:
    """The pin table. `new_epoch` makes an epoch that never was before."""

    def __init__(self, limits: SessionLimits, new_epoch: Callable[[], str]) -> None:
        self.limits = limits
        self.evicted = 0
        self._new_epoch = new_epoch
        self._live: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        self._by_age: OrderedDict[str, Session] = OrderedDict()  # by epoch, the oldest first
        self._by_slot: dict[int, dict[str, Session]] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Sessions {len(self._live)} live, {len(self._ended)} remembered>"

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._live.values())

    def get(self, id: str) -> Session | None:
        """The live session of that id."""
        return self._live.get(id)

    def on_slot(self, slot: int) -> list[Session]:
        """Those pinned to the slot."""
        return list(self._by_slot.get(slot, {}).values())

    def count_on(self, slot: int) -> int:
        """How many are pinned to the slot."""
        return len(self._by_slot.get(slot, ()))

    def quiet_since(self, slot: int) -> float:
        """Since when no session of the slot had a request; in the future (infinite) while one has."""
        return max(
            (math.inf if session.busy else session.used for session in self._by_slot.get(slot, {}).values()),
            default=-math.inf,
        )

    def open(self, id: str, *, partition: int, slot: int, now: float) -> Session:
        """Pin a session that is not live to a slot."""
        assert id not in self._live
        session = Session(id=id, epoch=self._new_epoch(), partition=partition, slot=slot, opened=now, used=now)
        self._live[id] = session
        self._by_age[session.epoch] = session
        self._by_slot.setdefault(slot, {})[id] = session
        return session

    def use(self, session: Session, now: float) -> None:
        """It has a request now: it is the most recently used."""
        session.used = now
        self._live.move_to_end(session.id)

    def end(self, session: Session, ending: Ending, details: Mapping[str, Any] | None = None) -> None:
        """It is over."""
        del self._live[session.id]
        del self._by_age[session.epoch]
        on_slot = self._by_slot[session.slot]
        del on_slot[session.id]
        if not on_slot:
            del self._by_slot[session.slot]
        self.evicted += ending is Ending.EVICTED
        self._ended[session.epoch] = Ended(ending=ending, details=details or {})
        if len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)

    def why(self, epoch: str) -> Ended:
        """Why the session of that epoch, which is not live, is gone; UNKNOWN also for an epoch that never was."""
        return self._ended.get(epoch, Ended(ending=Ending.UNKNOWN))

    def surplus(self) -> Session | None:
        """The least recently used that can make room for another; None if there is room, or all are busy."""
        if len(self._live) < self.limits.most:
            return None
        return next((session for session in self._live.values() if not session.busy), None)

    def expired(self, now: float) -> list[tuple[Session, Ending]]:
        """Those whose time is up and that have no request. They are still to be ended."""
        found: dict[str, tuple[Session, Ending]] = {}
        for session in self._live.values():
            if session.used + self.limits.idle > now:
                break
            if not session.busy:
                found[session.id] = session, Ending.IDLE
        for session in self._by_age.values():
            if session.opened + self.limits.age > now:
                break
            if not session.busy:
                found[session.id] = session, Ending.AGE
        return list(found.values())

    def expiry(self, session: Session) -> float:
        """When it expires, if it has no request until then."""
        return min(session.used + self.limits.idle, session.opened + self.limits.age)

    @property
    def next_expiry(self) -> float:
        """Nothing expires before this moment. A busy session is looked at again when it is not."""
        by_use = next((session.used for session in self._live.values() if not session.busy), math.inf)
        by_age = next((session.opened for session in self._by_age.values() if not session.busy), math.inf)
        return min(by_use + self.limits.idle, by_age + self.limits.age)
