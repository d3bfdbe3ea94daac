"""The fleet: how many bridges a pool has, in which slots, and when one is replaced.

A fleet of up to n bridges has n *seats*, and one slot more than that. A slot that holds a seat counts; its bridge
is told the seat's number. A bridge that is worn (it served enough, is old, or too large) keeps its seat until a
new one, in the slot without a seat, is ready to take it over: so capacity does not dip. Only one is replaced at a
time, so a pool never recycles at once.

What a method decides it adds to `actions`; when it is to be asked again it tells the alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import islice
from typing import Generic

from worker_node.core.actions import Action, Start, Stop
from worker_node.core.alarm import Alarm
from worker_node.core.breaker import Breaker
from worker_node.core.ladder import FIRST_STEP, NEXT_STEP, Step
from worker_node.core.limits import PoolLimits
from worker_node.core.reason import FAULTS, Reason
from worker_node.core.sessions import Sessions
from worker_node.core.slot import Event, Phase, Slot
from worker_node.core.ticket import T


class Fleet(Generic[T]):
    """The slots. `jitter` gives numbers in 0 … 1, so that slots that failed together do not come back together."""

    def __init__(self, limits: PoolLimits, jitter: Callable[[], float], sessions: Sessions, alarm: Alarm) -> None:
        self.limits = limits
        self.slots: list[Slot[T]] = []
        self.draining = False  # it starts no more bridges
        self._jitter = jitter
        self._sessions = sessions
        self._alarm = alarm
        self._breaker = Breaker(failures=limits.breaker_failures, window=limits.breaker_window)
        self._usual_concurrency = 1  # what the latest bridge said
        self._set_seats()

    def __repr__(self) -> str:
        return f"<Fleet {self}>"

    def __str__(self) -> str:
        """How many slots are in which state."""
        states = [slot.state for slot in self.slots if slot.seat is not None or slot.phase is not Phase.EMPTY]
        counted = [f"{states.count(state)} {state}" for state in ("starting", "idle", "busy", "stopping", "empty")]
        return ", ".join(text for text in counted if not text.startswith("0 "))

    @property
    def capacity(self) -> int:
        """See Pool.capacity."""
        up = ready = starting = 0
        for slot in self.slots:
            if slot.seat is not None and slot.phase is Phase.READY:
                ready += 1
                up += slot.concurrency
            elif slot.seat is not None and slot.phase is Phase.STARTING:
                starting += 1
        wanted = min(self.limits.most, max(self.limits.least, 2 * (ready + starting)))
        return up + max(0, wanted - ready) * self._usual_concurrency

    @property
    def ready(self) -> int:
        """How many slots hold a bridge that passed its handshake."""
        return sum(slot.phase is Phase.READY for slot in self.slots)

    @property
    def failing(self) -> bool:
        """Whether no bridge can be started, as far as is known: the latest start of every slot has failed."""
        seated = [slot for slot in self.slots if slot.seat is not None and slot.seat < self.limits.least]
        return all(slot.start_failed for slot in seated)

    @property
    def unavailable(self) -> bool:
        """Whether the breaker is open: bridges failed to start again and again, and there is none.

        From time to time one is started to see whether that is over.
        """
        return self._breaker.open and not self.ready

    @property
    def empty(self) -> bool:
        """Whether no process is left."""
        return all(slot.phase is Phase.EMPTY for slot in self.slots)

    # Starting and stopping.

    def start(self, slot: Slot[T], seat: int, now: float, actions: list[Action[T]]) -> bool:
        """Start a bridge in an empty slot, if it may start again already; whether it may."""
        if slot.due > now:
            self._alarm.watch(slot.due)
            return False
        slot.move(Event.START)
        slot.due = now + self.limits.start_timeout
        self._alarm.watch(slot.due)
        actions.append(Start(slot.number, seat))
        return True

    def start_for_work(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """Work waits for this empty slot, and for no other."""
        if slot.seat is not None and not self.draining and not self.unavailable:
            self.start(slot, slot.seat, now, actions)

    def stop(self, slot: Slot[T], reason: Reason, now: float, actions: list[Action[T]]) -> None:
        """Take the slot's bridge down, step by step."""
        slot.move(Event.STOP)
        slot.reason = reason
        self._step(slot, FIRST_STEP.get(reason, Step.ASK), now, actions)

    def kill(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """No more steps: whatever the slot's bridge is at, it goes now, for want of time."""
        if slot.phase is Phase.READY:
            self.stop(slot, Reason.DRAINED, now, actions)
        if slot.phase is Phase.STOPPING and slot.step is not Step.KILL:
            self._step(slot, Step.KILL, now, actions)

    def _step(self, slot: Slot[T], step: Step, now: float, actions: list[Action[T]]) -> None:
        slot.step = step
        slot.due = now + self.limits.stop_timeout if step in NEXT_STEP else math.inf
        self._alarm.watch(slot.due)
        actions.append(Stop(slot.number, step, slot.reason or Reason.DRAINED))

    def greeted(
        self, slot: Slot[T], concurrency: int, memory: int | None, now: float, actions: list[Action[T]]
    ) -> None:
        """The slot's bridge is ready, runs so many requests at once, and uses `memory` bytes, where that is limited."""
        slot.move(Event.READY)
        self._breaker.succeeded()
        slot.greeted = True
        slot.start_failed = False
        slot.concurrency = self._usual_concurrency = concurrency
        slot.idle_since = now
        self._set_wear(slot, now)
        slot.oversized = memory is not None and memory > min(slot.most_memory, self.limits.wear.memory_hard)
        if (old := slot.replaces) is not None:
            _hand_over(old, slot)  # the other goes when its last request is done
            self._retire(old, now, actions)

    def exited(self, slot: Slot[T], now: float) -> Reason:
        """The slot's process is dead; why. Its seat is filled again, at once or after a pause."""
        reason = slot.reason or Reason.CRASHED
        slot.move(Event.EXIT)
        slot.faults = slot.faults + 1 if reason in FAULTS else 0
        if not slot.greeted and reason in FAULTS:
            slot.start_failed = True
            self._breaker.failed(now)
        slot.due = now + self._restart_delay(slot.faults, worked=slot.greeted)
        slot.clear()
        self._alarm.watch(slot.due)
        for successor in self.slots:
            if successor.replaces is slot:
                _hand_over(slot, successor)  # it fills the seat now, and need not wait for anybody
        return reason

    def _restart_delay(self, faults: int, *, worked: bool) -> float:
        """Seconds before the next start: none for a first fault of a bridge that worked, then doubling."""
        doublings = faults - (2 if worked else 1)
        if doublings < 0:
            return 0.0
        longest = min(self.limits.restart_delay * 2.0 ** min(doublings, 32), self.limits.max_restart_delay)
        return longest * (0.5 + self._jitter() / 2)

    def restart(self, limits: PoolLimits, now: float, actions: list[Action[T]]) -> None:
        """See Pool.restart."""
        self.limits = limits
        self._breaker = Breaker(failures=limits.breaker_failures, window=limits.breaker_window)
        self._set_seats()
        for slot in self.slots:
            slot.start_failed = False
            if slot.phase is Phase.STARTING:
                slot.replaces = None
                self.stop(slot, Reason.REPLACED, now, actions)
            elif slot.phase is Phase.READY:
                slot.wear_out(Reason.REPLACED, now)
                if slot.seat is None:
                    self._retire(slot, now, actions)
            elif slot.phase is Phase.EMPTY:
                slot.due = now

    def due(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """Time passed for the slot's process."""
        if slot.phase is Phase.READY:
            self._wear_due(slot, now)
        elif slot.due > now:
            if slot.phase is not Phase.EMPTY:
                self._alarm.watch(slot.due)
        elif slot.phase is Phase.STARTING:
            self.stop(slot, Reason.START_TIMEOUT, now, actions)
        elif slot.phase is Phase.STOPPING and slot.step in NEXT_STEP:
            self._step(slot, NEXT_STEP[slot.step], now, actions)

    # How many bridges.

    def _set_seats(self) -> None:
        """Give the seats out anew: as many as `limits` say, and a slot without one for replacements."""
        limits = self.limits
        missing = set(range(limits.most))
        for slot in self.slots:
            if slot.seat is not None and slot.seat >= limits.most:
                slot.seat = None
            missing.discard(-1 if slot.seat is None else slot.seat)
        free = [slot for slot in self.slots if slot.seat is None and slot.phase is Phase.EMPTY]
        for seat in sorted(missing):
            if free:
                free.pop(0).seat = seat
            else:
                self.slots.append(Slot(len(self.slots), seat))
        if limits.prewarm and not any(slot.seat is None for slot in self.slots):
            self.slots.append(Slot(len(self.slots), None))

    def _seated(self, *phases: Phase) -> int:
        count = 0
        for slot in self.slots:
            if slot.seat is not None and slot.phase in phases:
                count += 1
        return count

    def fill(self, now: float, actions: list[Action[T]]) -> None:
        """Start what is to be there whether work waits or not: the least, the spare, and the breaker's probe."""
        if self.draining:
            return
        live = self._seated(Phase.STARTING, Phase.READY)
        if self.unavailable:
            missing = 1 - live
        else:
            limits = self.limits
            least = limits.least if limits.eager else 0
            busy = sum(slot.seat is not None and bool(slot.runs) for slot in self.slots)
            missing = min(max(least, busy + limits.spare if limits.eager else 0), limits.most) - live
        self._start_some(missing, now, actions)

    def grow(self, waiting: Collection[T], now: float, actions: list[Action[T]]) -> None:
        """Start one bridge for each ticket that has waited long enough, and that no starting bridge is for yet."""
        limits = self.limits
        if self.draining or self.unavailable:
            return
        live = self._seated(Phase.STARTING, Phase.READY)
        if live >= limits.most:
            return
        starting = self._seated(Phase.STARTING)
        wanted = 0
        for ticket in islice(waiting, starting, None):
            if live + wanted >= limits.most:
                break
            if live + wanted >= limits.least and ticket.since + limits.grow_after > now:
                self._alarm.watch(ticket.since + limits.grow_after)
                break
            wanted += 1
        self._start_some(wanted, now, actions)

    def _start_some(self, count: int, now: float, actions: list[Action[T]]) -> None:
        """Start so many, in the seats that may start again; watch for the others."""
        for slot in self.slots:
            if count <= 0:
                return
            if slot.seat is not None and slot.phase is Phase.EMPTY:
                count -= self.start(slot, slot.seat, now, actions)

    def shrink(self, now: float, actions: list[Action[T]]) -> None:
        """Stop bridges that were idle for long, down to the least, and the spare."""
        limits = self.limits
        if limits.shrink_after == math.inf or self.draining:
            return
        idle = [
            slot
            for slot in self.slots
            if slot.seat is not None
            and slot.state == "idle"
            and not slot.retiring
            and not self._sessions.count_on(slot.number)
        ]
        surplus = min(self._seated(Phase.STARTING, Phase.READY) - limits.least, len(idle) - limits.spare)
        for slot in sorted(idle, key=lambda slot: slot.idle_since)[: max(0, surplus)]:
            if slot.idle_since + limits.shrink_after <= now:
                self.stop(slot, Reason.SURPLUS, now, actions)
            else:
                self._alarm.watch(slot.idle_since + limits.shrink_after)

    # Replacing.

    def _set_wear(self, slot: Slot[T], now: float) -> None:
        """Draw how long a new bridge may last."""
        wear = self.limits.wear
        part = 1.0 - wear.jitter * self._jitter()
        slot.most_served = max(1.0, wear.requests * part)
        slot.expires = now + wear.age * part
        slot.longest_idle = wear.idle * part
        slot.most_memory = wear.memory * part
        self._alarm.watch(slot.expires)
        self._watch_idle(slot)

    def _watch_idle(self, slot: Slot[T]) -> None:
        if slot.served:
            self._alarm.watch(slot.idle_since + slot.longest_idle)
        self._alarm.watch(slot.idle_since + self.limits.shrink_after)

    def _wear_due(self, slot: Slot[T], now: float) -> None:
        if slot.worn is not None:
            return
        if slot.expires <= now:
            slot.wear_out(Reason.AGE, now)
            return
        self._alarm.watch(slot.expires)
        if not slot.runs and slot.served:
            if slot.idle_since + slot.longest_idle <= now:
                slot.wear_out(Reason.IDLE, now)
            else:
                self._alarm.watch(slot.idle_since + slot.longest_idle)

    def became_idle(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """The last request on the slot is done: its bridge goes, if it waited for that."""
        slot.idle_since = now
        slot.slow = False
        if slot.phase is Phase.READY:
            if slot.retiring or self.draining:
                self.stop(slot, slot.worn or Reason.DRAINED, now, actions)
                self.fill(now, actions)
            else:
                self._watch_idle(slot)

    def _retire(self, slot: Slot[T], now: float, actions: list[Action[T]]) -> None:
        """It takes no more, and stops as soon as nothing runs on it."""
        slot.retiring = True
        actions += slot.recall()
        if not slot.runs and slot.phase is Phase.READY:
            self.stop(slot, slot.worn or Reason.RECYCLED, now, actions)
            self.fill(now, actions)

    def replace(self, now: float, actions: list[Action[T]]) -> None:
        """Begin to replace a worn bridge, unless one is being replaced: first those that take no more."""
        worn = [
            slot
            for slot in self.slots
            if slot.worn
            and slot.phase is Phase.READY
            and slot.seat is not None
            and (slot.retiring or self._is_quiet(slot, now))
        ]
        if not worn or self.draining or any(slot.replaces for slot in self.slots):
            return
        slot = max(worn, key=lambda slot: slot.retiring)
        if not self.limits.prewarm:
            if not any(other.retiring or self._under_way(other) for other in self.slots):
                self._retire(slot, now, actions)
            return
        for free in self.slots:
            if free.seat is None and free.phase is Phase.EMPTY:
                assert slot.seat is not None
                if self.start(free, slot.seat, now, actions):
                    free.replaces = slot
                return

    def _is_quiet(self, slot: Slot[T], now: float) -> bool:
        """Whether a worn bridge's sessions are quiet, or have been waited for long enough."""
        limits = self.limits
        quiet = self._sessions.quiet_since(slot.number) + limits.session_quiet
        ripe = min(quiet, slot.worn_since + limits.session_patience)
        if ripe > now:
            self._alarm.watch(ripe)
        return ripe <= now

    def _under_way(self, slot: Slot[T]) -> bool:
        """Whether a slot with a seat is between two bridges."""
        if slot.seat is None or slot.phase is Phase.READY:
            return False
        return slot.phase is not Phase.EMPTY or (self.limits.eager and slot.seat < self.limits.least)


def _hand_over(old: Slot[T], new: Slot[T]) -> None:
    """The new one has the old one's seat now."""
    new.seat, old.seat = old.seat, None
    new.replaces = None
