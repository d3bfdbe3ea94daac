"""The pins: tickets of sessions, each in the line of the slot that its session is pinned to (see core.sessions).

What a method decides it adds to `actions`; when a session expires it tells the alarm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic

from worker_node.core.actions import Action, End, Forget
from worker_node.core.alarm import Alarm
from worker_node.core.reason import HARMLESS, Reason
from worker_node.core.sessions import Ending, Session, Sessions
from worker_node.core.slot import Phase, Slot
from worker_node.core.ticket import Claim, T


class Pins(Generic[T]):
    """The sessions of a pool, and what waits for them in its `slots`."""

    def __init__(self, sessions: Sessions, slots: list[Slot[T]], alarm: Alarm) -> None:
        self._sessions = sessions
        self._slots = slots
        self._alarm = alarm

    def __repr__(self) -> str:
        return f"<Pins {len(self)} waiting, {self._sessions!r}>"

    def __len__(self) -> int:
        """How many tickets wait."""
        return sum(len(slot.pinned) for slot in self._slots)

    def pin(self, ticket: T, claim: Claim, now: float, actions: list[Action[T]]) -> None:
        """Put a ticket into the line of its session's slot; or end it, if there is no such session any more."""
        sessions = self._sessions
        session = sessions.get(claim.session)
        if claim.epoch is not None and (session is None or session.epoch != claim.epoch):
            if not claim.lenient:
                actions.append(End(ticket, Reason.SESSION_LOST))
                return
            ticket.fresh = True
        if session is None:
            while (surplus := sessions.surplus()) is not None:
                self._end(surplus, Ending.EVICTED, actions)
            slot = self._slot_for_session()
            session = sessions.open(claim.session, partition=claim.partition, slot=slot.number, now=now)
        elif claim.message_id is not None and claim.message_id in session.begun:
            actions.append(End(ticket, Reason.REPEATED))
            return
        ticket.session = session
        session.busy += 1
        session.moved = False  # its queue is here
        sessions.use(session, now)
        self._slots[session.slot].pinned.append(ticket)

    def unpin(self, gone: Callable[[T], bool], actions: list[Action[T]]) -> list[T]:
        """Take the tickets of which `gone` holds out of their lines; which they are."""
        taken: list[T] = []
        for slot in self._slots:
            for ticket in [ticket for ticket in slot.pinned if gone(ticket)]:
                slot.pinned.remove(ticket)
                self.leave(ticket, actions)
                taken.append(ticket)
        return taken

    def leave(self, ticket: T, actions: list[Action[T]]) -> None:
        """It does not run in its session, if it has one."""
        session, ticket.session = ticket.session, None
        if session is not None:
            self._less_busy(session, actions)

    def release(self, ticket: T, now: float, actions: list[Action[T]]) -> None:
        """It has run. Its session, if it has one, lives on; or not."""
        session = ticket.session
        if session is None:
            return
        if self._sessions.get(session.id) is session:
            self._sessions.use(session, now)
            if ticket.claim is not None and ticket.claim.closes:
                self._sessions.end(session, Ending.CLOSED)  # its bridge was told by that request
        self._less_busy(session, actions)

    def moved(self, partition: int, actions: list[Action[T]]) -> None:
        """Another node has the queue of that number: its sessions here end, those with a request when that is done."""
        for session in [session for session in self._sessions if session.partition == partition]:
            if session.busy:
                session.moved = True
            else:
                self._end(session, Ending.MOVED, actions)

    def lose(
        self, slot: Slot[T], reason: Reason, details: Mapping[str, Any], now: float, actions: list[Action[T]]
    ) -> None:
        """The slot's bridge is gone, and its sessions with it. What waits for them is pinned anew, or ends."""
        if reason is Reason.DRAINED:
            ending = Ending.NODE_LEFT
        else:
            ending = Ending.RECYCLED if reason in HARMLESS else Ending.CRASHED
        for session in self._sessions.on_slot(slot.number):
            self._sessions.end(session, ending, details if ending is Ending.CRASHED else None)
        waiting, slot.pinned = slot.pinned, deque()
        for ticket in waiting:
            self.leave(ticket, actions)
            assert ticket.claim is not None
            self.pin(ticket, ticket.claim, now, actions)

    def due(self, now: float, actions: list[Action[T]]) -> None:
        """Time passed: sessions expire."""
        for slot in self._slots:
            for ticket in slot.pinned:
                self._alarm.watch(ticket.deadline)
        for session, ending in self._sessions.expired(now):
            self._end(session, ending, actions)
        self._alarm.watch(self._sessions.next_expiry)

    def _slot_for_session(self) -> Slot[T]:
        """The slot with the fewest sessions, of those that will last; of equals one that is ready, and least busy."""

        def rank(slot: Slot[T]) -> tuple[bool, int, bool, int, int]:
            unsuitable = slot.leaving or slot.start_failed or slot.faults > 0
            ready = slot.phase is Phase.READY
            return unsuitable, self._sessions.count_on(slot.number), not ready, len(slot.runs), slot.number

        return min((slot for slot in self._slots if slot.seat is not None), key=rank)

    def _less_busy(self, session: Session, actions: list[Action[T]]) -> None:
        """It has one request fewer. If that was what it was kept for, it ends; if not, it may expire now."""
        sessions = self._sessions
        session.busy -= 1
        if session.busy or sessions.get(session.id) is not session:
            return
        if session.moved:
            self._end(session, Ending.MOVED, actions)
        elif len(sessions) > sessions.limits.most and (surplus := sessions.surplus()) is not None:
            self._end(surplus, Ending.EVICTED, actions)  # all were busy when one too many came
        else:
            self._alarm.watch(sessions.expiry(session))

    def _end(self, session: Session, ending: Ending, actions: list[Action[T]]) -> None:
        """It ends though its bridge lives on."""
        self._sessions.end(session, ending)
        if self._slots[session.slot].phase is Phase.READY:
            actions.append(Forget(session.slot, session.id))
