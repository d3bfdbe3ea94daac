"""The pool: which bridge serves which ticket.

Everything that affects a slot or a waiting ticket lives here, and in the fleet (how many bridges there are, and when
one must go) and the pins (which slot serves which session) that it is made of. Events go in with `now` (seconds,
monotonic), a list of actions comes out, and the dispatcher performs them in order. The pool never does the work itself.

Assigning a ticket to an IDLE slot *is* the change to BUSY. A slot leaves STOPPING and gives up its tickets by one door
only, `exited`, when its process is dead and its work certainly over; the reason it was stopped for travels with each
ticket.

A ticket of a session waits in the line of the slot its session is pinned to, every other ticket in one line for all.
When both lines wait for one slot they take turns, as `session_share` says.

A bridge that runs one request at a time may claim to take some *ahead*: while requests are short a few more wait in
its pipe, unbegun, so that it need not wait for the node between two. They are begun in the order they were sent, so it
is known which one a bridge died of; the others are given to another. If the one before them takes long, or the bridge
is to go, they are recalled, and wait here again. What waits in the pipe of a bridge whose replies could not be read to
the end may have run: it is charged, as the neighbour of what the bridge was at. Requests of sessions wait so too, each
in the pipe of its own bridge, while no other request waits for a turn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic

from worker_node.core.actions import Action, Cancel, End, Send
from worker_node.core.alarm import Alarm
from worker_node.core.fleet import Fleet
from worker_node.core.limits import PoolLimits
from worker_node.core.pins import Pins
from worker_node.core.reason import UNHEARD, Reason
from worker_node.core.run import Run
from worker_node.core.sessions import SessionLimits, Sessions
from worker_node.core.slot import Phase, Slot
from worker_node.core.ticket import T


class Pool(Generic[T]):
    """The slots, and the tickets that wait for them, in order of arrival.

    `jitter` gives numbers in 0 … 1. `sessions` None: there are none, and no ticket has a claim.
    """

    def __init__(self, limits: PoolLimits, jitter: Callable[[], float], sessions: Sessions | None = None) -> None:
        if sessions is None:
            sessions = Sessions(SessionLimits(most=0), new_epoch=str)
        self._alarm = Alarm()
        self._fleet: Fleet[T] = Fleet(limits, jitter, sessions, self._alarm)
        self.slots = self._fleet.slots
        self._pins = Pins(sessions, self.slots, self._alarm)
        self.sessions = sessions
        self.waiting: deque[T] = deque()
        self.ahead = 0  # how many requests may wait in the pipe of a bridge that takes so many

    def __repr__(self) -> str:
        sessions = f", {len(self.sessions)} sessions" if len(self.sessions) else ""
        return f"<Pool {self._fleet}, {len(self.waiting) + len(self._pins)} waiting{sessions}>"

    @property
    def limits(self) -> PoolLimits:
        """Its numbers, as `restart` set them last."""
        return self._fleet.limits

    @property
    def wake_at(self) -> float:
        """Call `due` by then."""
        return self._alarm.at

    @property
    def draining(self) -> bool:
        """Whether it takes no more."""
        return self._fleet.draining

    @property
    def capacity(self) -> int:
        """How many requests to hold: what can run at once when every bridge is up that there is reason to start.

        Of a pool that can grow, twice as many as there are now: so that some wait, and it does.
        """
        return self._fleet.capacity

    @property
    def ready(self) -> int:
        """How many slots hold a bridge that passed its handshake."""
        return self._fleet.ready

    @property
    def failing(self) -> bool:
        """Whether no bridge can be started, as far as is known: the latest start of every slot has failed."""
        return self._fleet.failing

    @property
    def unavailable(self) -> bool:
        """Whether bridges failed to start again and again, and there is none. See Fleet.unavailable."""
        return self._fleet.unavailable

    @property
    def empty(self) -> bool:
        """Whether no process is left."""
        return self._fleet.empty

    def tickets(self) -> Iterator[T]:
        """Every ticket in the pool, running or waiting."""
        for slot in self.slots:
            for run in slot.runs.values():
                yield run.ticket
            yield from slot.pinned
        yield from self.waiting

    # What happened: each method returns what is to be done about it.

    def open(self, now: float) -> list[Action[T]]:
        """Begin: an eager pool starts its bridges at once."""
        actions: list[Action[T]] = []
        self._fleet.fill(now, actions)
        return actions

    def submit(self, ticket: T, now: float) -> list[Action[T]]:
        """A ticket came. While draining it is handed back."""
        if self.draining:
            return [End(ticket, Reason.DRAINED)]
        ticket.since = now
        self._alarm.watch(ticket.deadline)
        actions: list[Action[T]] = []
        if ticket.claim is not None:
            self._pins.pin(ticket, ticket.claim, now, actions)
            self._assign(now, actions)
            return actions
        self.waiting.append(ticket)
        if len(self.waiting) > 1:  # then there is no room for the first, let alone for this one
            self._fleet.grow(self.waiting, now, actions)
        else:
            self._assign(now, actions)
        return actions

    def greeted(
        self,
        number: int,
        *,
        concurrency: int,
        cancels: bool,
        now: float,
        ahead: int = 0,
        memory: int | None = None,
    ) -> list[Action[T]]:
        """The slot's bridge passed its handshake, and claims to take so many requests at once, and ahead.

        `memory`: what it uses already, in bytes, where that is limited.
        """
        slot = self.slots[number]
        actions: list[Action[T]] = []
        # Of several at once it is not known which is begun; and only one that cancels can be asked to give back.
        slot.ahead = ahead if concurrency == 1 and cancels else 0
        slot.cancels = cancels
        self._fleet.greeted(slot, concurrency, memory, now, actions)
        self._assign(now, actions)
        self._fleet.fill(now, actions)
        self._fleet.replace(now, actions)
        return actions

    def run(self, number: int, request_id: int) -> Run[T] | None:
        """The request of that id on the slot's bridge; None: the bridge answers what it was not asked."""
        return self.slots[number].runs.get(request_id)

    def finished(self, number: int, request_id: int, now: float, *, recycle: bool = False) -> list[Action[T]]:
        """The bridge gave the final reply to a request that `run` knows. `recycle`: it asks to be replaced."""
        slot = self.slots[number]
        ticket = slot.runs.pop(request_id).ticket
        slot.served += 1
        slot.faults = 0
        actions: list[Action[T]] = []
        self._pins.release(ticket, now, actions)
        if recycle:
            slot.retiring = True
            slot.wear_out(Reason.RECYCLED, now)
            actions += slot.recall()
        elif slot.served >= slot.most_served:
            slot.wear_out(Reason.REQUESTS, now)
        if slot.worn is not None:
            self._fleet.replace(now, actions)
        if not slot.runs:
            self._fleet.became_idle(slot, now, actions)
        elif slot.ahead:
            self._begin_next(slot, now)
        self._assign(now, actions)
        return actions

    def given_back(self, number: int, request_id: int, now: float) -> list[Action[T]]:
        """The bridge gave back a request that was recalled: it waits here again, or ends if it is late."""
        slot = self.slots[number]
        actions: list[Action[T]] = []
        run = slot.runs.pop(request_id)
        if run.begun:
            run.ticket.unbegin()
        if run.reason is not None or self.draining:
            self._pins.leave(run.ticket, actions)
            actions.append(End(run.ticket, run.reason or Reason.DRAINED))
        else:
            self._wait_again(slot, [run.ticket])
        if not slot.runs:
            self._fleet.became_idle(slot, now, actions)
        else:
            self._begin_next(slot, now)
        self._assign(now, actions)
        return actions

    def measured(self, number: int, memory: int, now: float) -> list[Action[T]]:
        """The slot's bridge and all that it started use `memory` bytes."""
        slot = self.slots[number]
        actions: list[Action[T]] = []
        if slot.phase is not Phase.READY or slot.oversized:
            return actions
        if memory > self.limits.wear.memory_hard:
            return self.condemn(number, Reason.MEMORY_HARD, now)
        if memory > slot.most_memory:
            slot.wear_out(Reason.MEMORY, now)
            self._fleet.replace(now, actions)
            self._assign(now, actions)
        return actions

    def doom(self, number: int) -> None:
        """The slot's bridge cannot go on, though its end is not here yet: it gets no more tickets."""
        self.slots[number].doomed = True

    def condemn(self, number: int, reason: Reason, now: float) -> list[Action[T]]:
        """The slot's bridge cannot go on. A bridge that is stopping already keeps its first reason."""
        slot = self.slots[number]
        actions: list[Action[T]] = []
        if slot.phase in (Phase.STARTING, Phase.READY):
            self._fleet.stop(slot, reason, now, actions)
            self._assign(now, actions)  # what waited for this one may have to start another
            self._fleet.fill(now, actions)
        return actions

    def exited(self, number: int, now: float, details: Mapping[str, Any] | None = None) -> list[Action[T]]:
        """The slot's process is dead: its tickets end, and its seat is filled again, at once or after a pause.

        Its sessions are gone; `details`, how the process ended, is kept for whoever asks for them. A lazy pool
        starts another only for work, or, if no bridge can be started, to see when that is over.
        """
        slot = self.slots[number]
        runs = slot.runs
        reason = self._fleet.exited(slot, now)
        actions: list[Action[T]] = []
        unbegun: list[T] = []
        for run in runs.values():
            if run.begun:
                actions.append(End(run.ticket, run.ended_with(reason), number))
            elif run.reason is not None or self.draining:
                actions.append(End(run.ticket, run.reason or Reason.DRAINED))
            elif reason in UNHEARD:
                actions.append(End(run.ticket, Reason.NEIGHBOUR, number))
            else:
                unbegun.append(run.ticket)
        self._wait_again(slot, unbegun)
        self._pins.lose(slot, reason, details or {}, now, actions)
        self._fleet.fill(now, actions)
        self._fleet.replace(now, actions)
        self._assign(now, actions)
        return actions

    def due(self, now: float) -> list[Action[T]]:
        """Time passed: whatever is late by `now` is acted on, and `wake_at` says when to ask again."""
        actions = self._end_waiting(lambda ticket: ticket.deadline <= now, Reason.DEADLINE)
        self._alarm.at = math.inf
        for ticket in self.waiting:
            self._alarm.watch(ticket.deadline)
        for slot in self.slots:
            if slot.phase is Phase.READY:
                self._runs_due(slot, now, actions)
            self._fleet.due(slot, now, actions)
        self._pins.due(now, actions)
        self._fleet.shrink(now, actions)
        self._fleet.fill(now, actions)
        self._fleet.replace(now, actions)
        self._assign(now, actions)
        return actions

    def withdraw(self, gone: Callable[[T], bool], now: float) -> list[Action[T]]:
        """Forget the waiting tickets of which `gone` holds: somebody else has them now."""
        actions: list[Action[T]] = []
        self._take(gone, actions)
        self._assign(now, actions)  # they may have held up those behind them
        return actions

    def moved(self, partition: int, now: float) -> list[Action[T]]:
        """Another node has the queue of that number: its sessions here end, those with a request when that is done."""
        actions: list[Action[T]] = []
        self._pins.moved(partition, actions)
        return actions

    def cancel(self, ticket: T, now: float, reason: Reason = Reason.CANCELLED) -> list[Action[T]]:
        """Nobody wants a ticket any more that is in the pool, for that `reason`: it ends, at once if it waits.

        Where it runs it has `cancel_timeout` to end by itself, and is told to if its bridge can be told; then its
        bridge is stopped.
        """
        actions = self._end_waiting(lambda waiting: waiting is ticket, reason)
        if actions:
            self._assign(now, actions)  # it may have held up those behind it
            return actions
        for slot in self.slots:
            run = slot.runs.get(ticket.request_id)
            if run is not None and run.ticket is ticket and run.reason is None:
                run.reason = reason
                run.due = min(run.due, now + self.limits.cancel_timeout)
                self._alarm.watch(run.due)
                if slot.phase is Phase.READY and slot.cancels and run.due > now:
                    actions.append(Cancel(slot.number, ticket.request_id))
        return actions

    def give_up(self) -> list[Action[T]]:
        """Hand back what waits, if no bridge can be started. Call it when no more tickets come."""
        return self._end_waiting(lambda _: True, Reason.START_FAILED) if self.unavailable else []

    def restart(self, limits: PoolLimits, now: float) -> list[Action[T]]:
        """Replace every bridge, one after the other, each by one that is ready; from now on `limits` hold.

        The breaker is closed: what failed to start may have been mended.
        """
        actions: list[Action[T]] = []
        self._fleet.restart(limits, now, actions)
        for slot in self.slots:
            if slot.phase is Phase.EMPTY and slot.seat is None:
                self._pins.lose(slot, Reason.SURPLUS, {}, now, actions)  # those that waited for it to start
        self._fleet.fill(now, actions)
        self._fleet.replace(now, actions)
        self._assign(now, actions)
        return actions

    def drain(self, now: float) -> list[Action[T]]:
        """Take no more: hand back what waits, let what runs finish, stop each bridge once it is idle."""
        self._fleet.draining = True
        actions = self._end_waiting(lambda _: True, Reason.DRAINED)
        for slot in self.slots:
            if slot.phase in (Phase.STARTING, Phase.READY) and not slot.runs:
                self._fleet.stop(slot, Reason.DRAINED, now, actions)
        return actions

    def abort(self, now: float) -> list[Action[T]]:
        """The time for draining is over: every bridge left is killed, and its requests handed back."""
        actions = self.drain(now)
        for slot in self.slots:
            self._fleet.kill(slot, now, actions)
        return actions

    def _take(self, gone: Callable[[T], bool], actions: list[Action[T]]) -> list[T]:
        """Take the waiting tickets of which `gone` holds out of their lines."""
        taken = [ticket for ticket in self.waiting if gone(ticket)]
        if taken:
            self.waiting = deque(ticket for ticket in self.waiting if not gone(ticket))
        return taken + self._pins.unpin(gone, actions)

    def _end_waiting(self, over: Callable[[T], bool], reason: Reason) -> list[Action[T]]:
        """The waiting tickets of which `over` holds end."""
        actions: list[Action[T]] = []
        ended = self._take(over, actions)
        actions += [End(ticket, reason) for ticket in ended]
        return actions

    # Assigning.

    def _assign(self, now: float, actions: list[Action[T]]) -> None:
        """Give waiting tickets to slots, first come first served.

        A ticket that fits nowhere (it must be alone) holds up those behind it, so that it gets its turn.
        """
        waiting = self.waiting
        if waiting:
            self._assign_pinned(now, actions, contested=True)
        while waiting:
            ticket = waiting[0]
            if ticket.deadline <= now:
                actions.append(End(waiting.popleft(), Reason.DEADLINE))
                continue
            slot = self._least_loaded(ticket, now)
            if slot is None:
                self._fleet.grow(waiting, now, actions)
                break
            waiting.popleft()
            self._send(slot, ticket, now, actions)
        self._assign_pinned(now, actions, contested=False)

    def _send(self, slot: Slot[T], ticket: T, now: float, actions: list[Action[T]]) -> None:
        limits = self._fleet.limits
        if len(slot.runs) < slot.concurrency:
            run = Run(ticket, now, min(now + limits.run_timeout, ticket.deadline))
            slot.slow = slot.slow or ticket.streams
            ticket.begin()
        else:
            run = Run(ticket, now, ticket.deadline, begun=False)
            self._alarm.watch(slot.running_since() + limits.recall_after)
        slot.runs[ticket.request_id] = run
        self._alarm.watch(run.due)
        actions.append(Send(slot.number, ticket))
        if limits.spare:
            self._fleet.fill(now, actions)

    def _assign_pinned(self, now: float, actions: list[Action[T]], *, contested: bool) -> None:
        """Give slots the tickets of their sessions; if others wait as well (`contested`), only in their turn."""
        for slot in self.slots:
            while slot.pinned:
                ticket = slot.pinned[0]
                if ticket.deadline <= now:
                    self._pins.leave(slot.pinned.popleft(), actions)
                    actions.append(End(ticket, Reason.DEADLINE))
                    continue
                if slot.phase is Phase.EMPTY:
                    self._fleet.start_for_work(slot, now, actions)
                # While others wait for a turn, nothing is put into its pipe that would be before them.
                ahead = 0 if self.waiting or self._takes_long(slot, now) else self.ahead
                if not slot.accepts(ticket, ahead) or (slot.runs and self.waiting and self.waiting[0].alone):
                    break  # one that must be alone waits for a slot to be empty
                if contested and not self._is_sessions_turn(slot):
                    break
                self._send(slot, slot.pinned.popleft(), now, actions)

    def _is_sessions_turn(self, slot: Slot[T]) -> bool:
        slot.turns += self.limits.session_share
        if slot.turns < 1.0:
            return False
        slot.turns -= 1.0
        return True

    def _least_loaded(self, ticket: T, now: float) -> Slot[T] | None:
        best: Slot[T] | None = None
        for slot in self.slots:
            if not slot.runs:
                if slot.accepts(ticket):
                    return slot
            elif best is None or len(slot.runs) < len(best.runs):
                # Its sessions wait for their turn: its pipe runs empty for that.
                ahead = 0 if slot.pinned or self._takes_long(slot, now) else self.ahead
                # One of theirs that must be alone waits for the slot to be empty.
                if slot.accepts(ticket, ahead) and not (slot.pinned and slot.pinned[0].alone):
                    best = slot
        return best

    # Ahead.

    def _begin_next(self, slot: Slot[T], now: float) -> None:
        """What ran is done: the first that waits in the pipe is begun, as far as can be told."""
        run = next(iter(slot.runs.values()))
        if run.begun:
            return
        run.begun = True
        run.started = now
        run.ticket.begin()
        slot.slow = False
        limits = self._fleet.limits
        if run.reason is None:
            run.due = min(now + limits.run_timeout, run.ticket.deadline)
        else:
            run.due = now + limits.cancel_timeout
        self._alarm.watch(run.due)
        if len(slot.runs) > 1:
            self._alarm.watch(now + limits.recall_after)

    def _takes_long(self, slot: Slot[T], now: float) -> bool:
        """Whether what runs has run for so long that nothing shall wait behind it."""
        return slot.ahead > 0 and slot.running_since() + self._fleet.limits.recall_after <= now

    def _wait_again(self, slot: Slot[T], tickets: list[T]) -> None:
        """Put tickets of the slot back in line, where they were."""
        for ticket in reversed(tickets):
            line = self.waiting if ticket.session is None else slot.pinned
            behind = 0
            while behind < len(line) and line[behind].since < ticket.since:
                behind += 1
            line.insert(behind, ticket)

    # Time.

    def _runs_due(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        for request_id, run in slot.runs.items():
            if run.due > now:
                self._alarm.watch(run.due)
            elif run.reason is None and slot.cancels:
                # A bridge that can cancel keeps its warm state; one that does not answer in time is stopped.
                run.reason = run.lateness
                run.due = now + self.limits.cancel_timeout
                self._alarm.watch(run.due)
                actions.append(Cancel(slot.number, request_id))
            else:
                run.reason = run.reason or run.lateness
                if run.begun:
                    self._fleet.stop(slot, run.reason, now, actions)
                    return
                run.due = math.inf  # it is not what the bridge is at: it is seen to when its turn comes
        if slot.ahead and len(slot.runs) > 1 and not slot.slow:
            if self._takes_long(slot, now):
                slot.slow = True
                actions += slot.recall()
            else:
                self._alarm.watch(slot.running_since() + self.limits.recall_after)
