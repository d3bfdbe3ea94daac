"""The dispatcher of one service: brings its deliveries, its pool and its bridges together.

    Delivery ─▶ admit ─▶ Pool ─▶ actions ─▶ BridgeProcess ─▶ payload ─▶ Settlement ─▶ reply, then ack

The pool decides, this performs. It runs on the node's event loop, in callbacks; nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bridge_protocol import messages
from bridge_protocol.claim_check import ClaimCheck, restored
from bridge_protocol.envelope import (
    CANCEL_ON_DISCONNECT,
    WANTS_CHUNKS,
    WANTS_PROGRESS,
    Properties,
    epoch_node,
    read_history,
)
from bridge_protocol.errors import BadRequest, Code, FrameError, FrameKind
from bridge_protocol.frames import LIMIT_CEILING
from broker.contract import Delivery
from broker.link import Link
from broker.store import Store, check_out
from worker_node.bridge_process import BridgeExit, BridgeProcess, Direction, Garbage, Stall
from worker_node.core.actions import Action, Cancel, End, Forget, Recall, Send, Start, Stop
from worker_node.core.admission import Identity, Refused, admit, attempt_of, identity_of, reply_address
from worker_node.core.answered import Answered
from worker_node.core.fate import Fault, is_retried
from worker_node.core.ladder import Step
from worker_node.core.lookahead import Lookahead
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.sessions import Ending, Sessions
from worker_node.core.skew import Skew
from worker_node.core.slot import Phase
from worker_node.core.ticket import Claim, Ticket
from worker_node.core.tombstones import Tombstones
from worker_node.core.verdict import TOLD_BY_THE_BRIDGE, application_error, fault_for
from worker_node.environment import bridge_environment
from worker_node.frame_log import FrameLog
from worker_node.launch import Launcher
from worker_node.memory import MemoryWatch, tree_memory
from worker_node.out_of_memory import OutOfMemoryKills
from worker_node.outlet import Outlet
from worker_node.process_status import resident
from worker_node.reaper import Reaper
from worker_node.rules import pool_limits, retry_policy, session_limits
from worker_node.settings import ServiceSettings
from worker_node.settlement import Case, Settlement
from worker_node.stderr import printable

# Requests ahead, their recalls and cancels fit the pipe, so that none of them waits for the bridge to read. It has 16
# pages of 4 KiB, and a write that does not fit into what is left of the last one begins another (pipe(7), pipe_write).
MOST_AHEAD = 16
LIGHT = 2000  # bytes of a request that may wait in a bridge's pipe: two to a page
LONGEST_QUOTE = 1024  # bytes of what was no frame, in a failure's details
MOST_UNANSWERED = 1024  # ends of sessions that a bridge was told of and has not answered: then it is told of no more

logger = logging.getLogger("quaybridge.node")
bridge_logger = logging.getLogger("quaybridge.bridge")


@dataclass(slots=True, eq=False, kw_only=True)
class Work(Ticket):
    """A delivery on its way through the node, and what joined it: the same request, delivered again meanwhile.

    `identity` None: what comes again is not known again. `payload`: what the bridge is given, if that is not the
    delivery's body. `outlet`: of what its run says before the reply, where that is wanted; `chunks`: how many the run
    has sent, in any case.
    """

    delivery: Delivery
    command: str
    attempt: int
    identity: Identity | None = None
    joined: tuple[Delivery, ...] = ()
    payload: bytes | None = None
    outlet: Outlet | None = None
    chunks: int = 0

    @property
    def requester(self) -> Properties:
        """The envelope of whoever asked last."""
        return (self.joined[-1] if self.joined else self.delivery).properties

    @property
    def stale(self) -> bool:
        """Whether all of it will come again, here or elsewhere."""
        return self.delivery.stale and all(delivery.stale for delivery in self.joined)


@dataclass(slots=True, eq=False)
class Bridge:
    """A slot's process, and what is known of it beyond the pool's own facts. `seat`: the number it is known by."""

    slot: int
    seat: int
    process: BridgeProcess
    run: str  # the id by which the reaper finds what it leaves behind
    capabilities: messages.Capabilities = field(default_factory=messages.Capabilities)
    trouble: Fault | None = None  # why it was condemned, for the requests that go down with it
    taken_down: dict[Step, float] = field(default_factory=dict)  # when it was taken to each rung of the ladder
    held_by: set[Outlet] = field(default_factory=set)  # those without credit, for which it is not read
    told: set[int] = field(default_factory=set)  # ids of what the node asked for itself, and got no answer to yet


class Dispatcher:
    """One service on one node.

    `on_change` is called whenever `ready`, `pool.unavailable` or `pool.empty` may have changed.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        node: str,
        link: Link,
        launcher: Launcher,
        reaper: Reaper,
        publish_timeout: float,
        stall_timeout: float,
        control_queue: Callable[[], str | None],
        on_change: Callable[[], None],
        out_of_memory: OutOfMemoryKills,
        store: Store | None = None,
        claim_threshold: int = 0,
        spawn: Callable[..., BridgeProcess] = BridgeProcess,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.lookahead = Lookahead()
        self.tombstones = Tombstones(settings.tombstones)
        self._node = node
        self._launcher = launcher
        self._reaper = reaper
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._link = link
        self._publish_timeout = publish_timeout
        self._control_queue = control_queue
        self._outlets: dict[str, Outlet] = {}  # of what runs, by the id of the run
        self._spawn = spawn
        self._out_of_memory = out_of_memory
        self._frames = self._frame_log()
        self.sessions = self._new_sessions()
        self.pool: Pool[Work] = Pool(pool_limits(settings), jitter, self.sessions)
        self.settlement = Settlement(
            link,
            node=node,
            service=settings.name,
            policy=retry_policy(settings),
            publish_timeout=publish_timeout,
            stall_timeout=stall_timeout,
            wall=wall,
            jitter=jitter,
            store=store,
            claim_threshold=claim_threshold,
        )
        self._store = store
        self._fetching: dict[asyncio.Task[None], Work] = {}  # whose arguments are on their way from the store
        self.answered = Answered()
        self._bound_answered()
        self._known: dict[Identity, Work] = {}  # what is in the pool, by what tells it from all others
        self._left = asyncio.Event()  # something is in the pool no more
        self._skew = Skew()
        self._bridges: dict[int, Bridge] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.start_trouble: str | None = None  # why the latest bridge could not start
        self._memory: MemoryWatch | None = None
        self._oversize_told = False

    def __repr__(self) -> str:
        return f"<Dispatcher {self.name}: {self.pool!r}>"

    @property
    def ready(self) -> bool:
        """Whether requests can run: a bridge passed its handshake, or one is started when work comes."""
        return self.pool.ready > 0 or not (self.pool.limits.eager or self.pool.unavailable)

    @property
    def held(self) -> int:
        """How many deliveries this node holds unacknowledged."""
        running = ((work.delivery, *work.joined) for work in (*self.pool.tickets(), *self._fetching.values()))
        return sum(not delivery.stale for deliveries in running for delivery in deliveries) + self.settlement.held

    # The life of the service.

    def open(self) -> None:
        """Start the bridges that start with the node."""
        self._watch_memory()
        self._perform(self.pool.open(self._loop.time()))

    def reload(self, settings: ServiceSettings) -> None:
        """Replace every bridge by one with these settings, one after the other; no request fails for it."""
        self.settings = settings
        self.settlement.policy = retry_policy(settings)
        self.tombstones.most = settings.tombstones
        if self.sessions is not None:
            self.sessions.limits = session_limits(settings)
        self._bound_answered()
        self._oversize_told = False
        if self._frames is not None:
            self._frames.close()
        self._frames = self._frame_log()
        self._watch_memory()
        self._perform(self.pool.restart(pool_limits(settings), self._loop.time()))

    def drain(self) -> None:
        """Take no more requests; finish those that run, hand back those that wait."""
        self._perform(self.pool.drain(self._loop.time()))

    def abort(self) -> None:
        """Kill every bridge, and hand back what ran on it."""
        for task, work in self._fetching.items():
            task.cancel()
            self._fail(work, Reason.DRAINED, None)
        self._fetching.clear()
        self._perform(self.pool.abort(self._loop.time()))

    def give_up(self) -> None:
        """Hand back what waits if no bridge can be started. Call it when nothing more is taken."""
        self._perform(self.pool.give_up())

    def close(self) -> None:
        """No process is left, and nothing more will happen."""
        if self._memory is not None:
            self._memory.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._frames is not None:
            self._frames.close()

    def forget(self) -> None:
        """The channel is gone: what waits came by it, and will come again."""
        running = {run.ticket for slot in self.pool.slots for run in slot.runs.values()}
        for work in self.pool.tickets():
            if work.stale and work not in running:
                self._leave(work)
        self._perform(self.pool.withdraw(lambda work: work.stale, self._loop.time()))
        self.settlement.forget()

    async def wait_idle(self) -> None:
        """Wait until nothing runs or waits here, and all that came to its end is acknowledged or let go."""
        while self._fetching or any(True for _ in self.pool.tickets()):
            self._left.clear()
            await self._left.wait()
        await self.settlement.wait_idle()

    def bridges(self) -> Iterable[Bridge]:
        """The processes of this service, for whoever wants to look."""
        return self._bridges.values()

    def look(self) -> None:
        """Note what the bridges use. About once a second."""
        for bridge in self._bridges.values():
            bridge.process.look()

    def states(self) -> Iterable[str]:
        """What every slot is doing, a line each."""
        now = self._loop.time()
        if self.sessions is not None:
            yield f"{self.name}: {len(self.sessions)} sessions, {self.sessions.evicted} evicted so far"
        for slot in self.pool.slots:
            bridge = self._bridges.get(slot.number)
            seat = bridge.seat if bridge is not None else slot.seat
            if seat is None:
                continue
            line = f"{self.name}[{seat}] {slot.state}"
            if bridge is not None:
                memory = resident(bridge.process.pid)
                line += f": bridge {bridge.process.pid}, up {bridge.process.uptime:.1f} s, {slot.served} served"
                line += f", {_megabytes(memory)}" if memory is not None else ""
            for request_id, run in slot.runs.items():
                work = run.ticket
                name = work.delivery.properties.message_id or str(request_id)
                again = f" (attempt {work.attempt})" if work.attempt > 1 else ""
                late = f", late ({run.reason})" if run.reason is not None else ""
                line += f"; {printable(work.command)} {printable(name)}{again} for {now - run.started:.1f} s{late}"
            if slot.reason is not None:
                line += f"; going: {slot.reason}"
            elif slot.worn is not None:
                line += f"; to be replaced: {slot.worn}"
            yield line

    def _frame_log(self) -> FrameLog | None:
        debug = self.settings.debug
        return FrameLog(debug, f"{self._node}.{self.name}", clock=self._wall) if debug.directory is not None else None

    # What nobody wants any more.

    def cancel(self, message_id: str) -> None:
        """The producer cancelled a request: it ends here, or when it comes."""
        self.tombstones.lay(message_id, self._loop.time())
        self._abandon(lambda work: work.delivery.properties.message_id == message_id)

    def grant(self, run: str, chunks: int) -> None:
        """The reader of that run has taken so many of its chunks, all in all."""
        if (outlet := self._outlets.get(run)) is not None:
            outlet.grant(chunks)

    def readdress(self) -> None:
        """This node has another control queue."""
        for outlet in list(self._outlets.values()):
            outlet.readdress()

    def watched(self) -> Iterable[str]:
        """The reply addresses of requests that shall end with their requester."""
        return (address for work in self.pool.tickets() if (address := _watched_address(work)) is not None)

    def requester_gone(self, address: str) -> None:
        """Nobody is left at `address`: what shall end with its requester ends."""
        self._abandon(lambda work: _watched_address(work) == address)

    def _abandon(self, unwanted: Callable[[Work], bool]) -> None:
        for work in [work for work in self.pool.tickets() if unwanted(work)]:
            self._perform(self.pool.cancel(work, self._loop.time()))
            if work.outlet is not None:
                work.outlet.shut()

    def look_ahead(self) -> int:
        """Look how long requests run; how many to take beyond those that can run at once. About once a second."""
        self.pool.ahead = self.lookahead.piped(MOST_AHEAD) if self.settings.pipelining else 0
        return self.lookahead.wanted(self.pool.capacity)

    # What comes in.

    def knows(self, delivery: Delivery) -> bool:
        """Whether it will not run anew: it is in the pool already, or was answered just now.

        Its body is not decoded for that: it may be what the last node died of.
        """
        properties = delivery.properties
        identity = identity_of(properties, attempt_of(properties.headers, self.settings.retry.max_attempts))
        if identity is None:
            return False
        answer = self.answered.find(identity, delivery.body, self._loop.time())
        return answer is not None or self._same(identity, delivery) is not None

    def moved(self, partition: int) -> None:
        """Another node has the sessions of that partition now."""
        self._perform(self.pool.moved(partition, self._loop.time()))

    def on_delivery(self, delivery: Delivery, partition: int | None = None) -> None:
        """A message came from the request queue, or from that of a partition's sessions."""
        verdict = admit(
            delivery.body,
            delivery.properties,
            limit=self.settings.frame_limit,
            max_attempts=self.settings.retry.max_attempts,
            partition=partition,
        )
        if isinstance(verdict, Refused):
            case = Case(delivery=delivery, attempt=1, request_id=verdict.request_id, command="", remaining=math.inf)
            self.settlement.fail(case, verdict.fault)
            return
        now, wall = self._loop.time(), self._wall()
        if (ahead := self._skew.seen(verdict.timestamp, wall=wall, now=now)) is not None:
            logger.warning(
                "%s: request %s was made %.1f s in the future: its producer's clock or this node's is wrong, and "
                "deadlines with it",
                *(self.name, delivery.properties.message_id or verdict.request_id, ahead),
            )
        streams = delivery.properties.headers.get(WANTS_CHUNKS) is True
        work = Work(
            request_id=verdict.request_id,
            deadline=math.inf if verdict.deadline is None else now + verdict.deadline / 1000 - wall,
            alone=verdict.attempt > 1,
            light=len(delivery.body) <= LIGHT and not streams,
            streams=streams,
            delivery=delivery,
            command=verdict.command,
            attempt=verdict.attempt,
        )
        if (session := verdict.session) is not None and partition is not None:
            work.claim = Claim(
                session=session.id,
                partition=partition,
                message_id=_known_as(delivery),
                epoch=session.epoch,
                lenient=session.lenient,
                closes=verdict.command == messages.CLEANUP_SESSION,
            )
        identity = identity_of(delivery.properties, verdict.attempt)
        if identity is not None:
            if (running := self._same(identity, delivery)) is not None:
                running.joined += (delivery,)
                self.settlement.counts.joined += 1
                return
            if (payload := self.answered.find(identity, delivery.body, now)) is not None:
                self.settlement.repeat(self._case(work, None), payload)
                return
        if delivery.properties.message_id in self.tombstones and not _replayed(delivery):
            self._fail(work, Reason.CANCELLED, None)
            return
        if identity is not None and identity not in self._known:
            self._known[identity] = work
            work.identity = identity
        if verdict.claim is None:
            self._perform(self.pool.submit(work, now))
            return
        task = self._loop.create_task(self._fetch(work, verdict.claim, partition))
        self._fetching[task] = work

    async def _fetch(self, work: Work, claim: ClaimCheck, partition: int | None) -> None:
        """Put the arguments of a request back in their place, from the store, and let it in."""
        fault: Fault | None = None
        try:
            content = await asyncio.to_thread(check_out, self._store, claim, limit=self.settings.frame_limit)
        except BadRequest as error:
            fault = Fault(code=Code.BAD_REQUEST, message=error.message)
        else:
            work.payload = restored(work.delivery.body, "args", content)
            work.light = len(work.payload) <= LIGHT
            verdict = admit(
                work.payload,
                work.delivery.properties,
                limit=self.settings.frame_limit,
                max_attempts=self.settings.retry.max_attempts,
                partition=partition,
            )
            if isinstance(verdict, Refused):
                fault = verdict.fault
        task = asyncio.current_task()
        assert task is not None
        del self._fetching[task]
        if work.stale:
            self._leave(work)
        elif fault is not None:
            self._leave(work)
            self.settlement.fail(self._case(work, None), fault)
        elif work.delivery.properties.message_id in self.tombstones and not _replayed(work.delivery):
            self._fail(work, Reason.CANCELLED, None)
        else:
            self._perform(self.pool.submit(work, self._loop.time()))

    def _bound_answered(self) -> None:
        bounds = self.settings.answered
        self.answered.bound(count=bounds.count, bytes=bounds.bytes, age=bounds.age)

    def _same(self, identity: Identity, delivery: Delivery) -> Work | None:
        """The same request, if it is in the pool: under the same name, and with the same body."""
        work = self._known.get(identity)
        return work if work is not None and work.delivery.body == delivery.body else None

    def _leave(self, work: Work) -> None:
        """It is in the pool no more."""
        if work.identity is not None:
            self._known.pop(work.identity, None)
        self._close_outlet(work)
        self._left.set()

    def _on_payload(self, bridge: Bridge, payload: bytes | bytearray) -> None:
        slot = bridge.slot
        phase = self.pool.slots[slot].phase
        if self._frames is not None:
            self._frames.received(bridge.seat, payload)
        if bridge.trouble is not None:
            return
        try:
            message = messages.decode_message(payload)
            if phase is Phase.STARTING:
                self._greeted(bridge, message)
                return
        except FrameError as error:
            if phase is Phase.STARTING:
                self._start_failed(bridge, f"it answered its handshake with what is no reply: {error}")
            else:
                self._violation(bridge, str(error))
            return
        if message.id is None:
            self._violation(bridge, f"it could not read the frame it was sent: {message.error[:200]!r}")
            return
        run = self.pool.run(slot, message.id)
        if run is None:
            if message.id in bridge.told and isinstance(message, messages.Result | messages.Failure):
                bridge.told.discard(message.id)
                return
            if phase is Phase.STOPPING:
                return  # it was asked to go, and says so in its own way
            self._violation(bridge, f"it answered id {message.id}, which it was not asked")
            return
        now = self._loop.time()
        if run.recalled and isinstance(message, messages.Failure) and message.given_back:
            self._perform(self.pool.given_back(slot, message.id, now))
            return
        if not run.begun and run.reason is None:
            self._violation(bridge, f"it began id {message.id} before it answered the one before, and claims 'ahead'")
            return
        if isinstance(message, messages.Progress | messages.Chunk):
            self._on_event(bridge, run.ticket, message, payload)
            return
        actions = self.pool.finished(slot, message.id, now, recycle=message.recycle)
        work = run.ticket
        # The next request goes to the bridge before the reply to this one goes out: it works meanwhile.
        self._perform(actions)
        self.lookahead.ran(now - run.started)
        # A cancelled request that came to its result all the same was first.
        reason = run.reason
        if reason is Reason.CANCELLED and isinstance(message, messages.Result) and not _lacks_chunks(work):
            reason = None
        if reason is not None:
            self._fail(work, reason, bridge if run.begun else None, message)
            return
        self._leave(work)
        if isinstance(message, messages.Result):
            self.settlement.succeed(self._case(work, slot), payload)
            if work.identity is not None:
                self.answered.keep(work.identity, work.delivery.body, payload, now)
        else:
            self.settlement.fail(self._case(work, slot), application_error(message), payload)

    def _on_event(
        self, bridge: Bridge, work: Work, event: messages.Progress | messages.Chunk, payload: bytes | bytearray
    ) -> None:
        if isinstance(event, messages.Chunk):
            if event.seq != work.chunks:
                self._violation(bridge, f"it sent chunk {event.seq} of id {event.id}, and {work.chunks} was the next")
                return
            work.chunks += 1
            if work.outlet is not None:
                work.outlet.chunk(payload)
        elif work.outlet is not None:
            work.outlet.progress(payload)

    def _open_outlet(self, bridge: Bridge, work: Work) -> None:
        """A run begins: an outlet for what it says before its reply, if that is wanted."""
        self._close_outlet(work)  # of a run that was given to another bridge unbegun
        work.outlet = None
        work.chunks = 0
        headers = work.delivery.properties.headers
        chunks, progress = headers.get(WANTS_CHUNKS) is True, headers.get(WANTS_PROGRESS) is True
        if not (chunks or progress) or reply_address(work.requester) is None:
            return
        outlet: Outlet

        def hold(held: bool) -> None:
            (bridge.held_by.add if held else bridge.held_by.discard)(outlet)
            bridge.process.hold(bool(bridge.held_by))

        outlet = work.outlet = Outlet(
            self._link,
            node=self._node,
            attempt=work.attempt,
            chunks=chunks,
            progress=progress,
            delay=self.settings.stream.delay,
            reader_timeout=self.settings.stream.reader_timeout,
            publish_timeout=self._publish_timeout,
            requester=lambda: work.requester,
            control_queue=self._control_queue,
            on_hold=hold,
            on_stalled=lambda why: self._on_reader_stalled(work, why),
        )
        self._outlets[outlet.run] = outlet

    def _close_outlet(self, work: Work) -> None:
        """A run is over: what it said before its reply goes out."""
        if work.outlet is not None:
            work.outlet.end()
            self._outlets.pop(work.outlet.run, None)

    def _on_reader_stalled(self, work: Work, why: str) -> None:
        name = work.delivery.properties.message_id or str(work.request_id)
        logger.warning("%s: request %s is stopped: %s", self.name, printable(name), why)
        self._perform(self.pool.cancel(work, self._loop.time(), Reason.READER_STALLED))

    def _greeted(self, bridge: Bridge, message: messages.Result | messages.Failure | object) -> None:
        if not isinstance(message, messages.Result) or message.id != messages.HANDSHAKE_ID:
            said = repr(message.error[:200]) if isinstance(message, messages.Failure) else type(message).__name__
            self._start_failed(bridge, f"it answered its handshake with {said}")
            return
        bridge.capabilities = messages.read_capabilities(message.result)
        memory = None if self._memory is None else tree_memory([bridge.process.pid]).get(bridge.process.pid)
        self._perform(
            self.pool.greeted(
                bridge.slot,
                concurrency=bridge.capabilities.concurrency,
                cancels=bridge.capabilities.cancel,
                ahead=bridge.capabilities.ahead,
                now=self._loop.time(),
                memory=memory,
            )
        )
        if self.pool.slots[bridge.slot].oversized and not self._oversize_told:
            self._oversize_told = True
            logger.error(
                "%s: a new bridge uses %d MiB before its first request, more than its limit in services.%s.recycle: "
                "such bridges are not replaced for their memory; raise the limit",
                *(self.name, (memory or 0) // 2**20, self.name),
            )
        logger.info("%s[%d]: bridge %d is ready", self.name, bridge.seat, bridge.process.pid)
        self._on_change()

    def _on_garbage(self, bridge: Bridge, garbage: Garbage) -> None:
        length = int.from_bytes(garbage.error.preview[:4], "big")
        details = {"stdout": garbage.quoted(LONGEST_QUOTE)}
        if self.pool.slots[bridge.slot].phase is Phase.STARTING:
            self._start_failed(bridge, f"it wrote what is no frame: {garbage}")
        elif garbage.error.kind is FrameKind.FRAME_TOO_LARGE and length <= LIMIT_CEILING:
            # Of several requests any may be the one; tried again, each alone, only that one ends here again.
            alone = len(self.pool.slots[bridge.slot].at_work) == 1
            code = Code.TOO_LARGE if alone else Code.PROTOCOL_VIOLATION
            self._violation(bridge, f"a reply is over the limit: {garbage.error.detail}", code)
        else:
            self._violation(bridge, f"it wrote what is no frame: {garbage}", details=details)

    def _on_stalled(self, bridge: Bridge, stall: Stall) -> None:
        slot = self.pool.slots[bridge.slot]
        unread = stall.direction is Direction.TO_BRIDGE
        if unread and bridge.process.unread < len(slot.runs) + len(bridge.told):
            return  # it is at work on one that it did read, and that has its own run timeout
        reason = Reason.WRITE_TIMEOUT if unread else Reason.FRAME_TIMEOUT
        if slot.phase is Phase.STARTING:
            self._start_failed(bridge, str(stall))
        elif slot.phase is Phase.READY:
            # What was not read did not run. Of several requests that half a frame may be the answer to, each is
            # tried again, alone, so that only the one that it was ends here again.
            fault = Fault(
                code=Code.BRIDGE_TIMEOUT,
                message=str(stall),
                details={"timeout": reason.value},
                retryable=unread or len(slot.at_work) > 1,
            )
            self._condemn(bridge, fault, reason)

    def _on_closed(self, bridge: Bridge, name: str) -> None:
        match self.pool.slots[bridge.slot].phase:
            case Phase.STARTING:
                self._start_failed(bridge, f"it closed its {name} and lives on")
            case Phase.READY:
                self._violation(bridge, f"it closed its {name} and lives on")

    def _on_exit(self, bridge: Bridge, ended: BridgeExit) -> None:
        slot = bridge.slot
        who = f"{self.name}[{bridge.seat}]: bridge {bridge.process.pid}"
        self._reaper.clear(bridge.run, who, left=ended.left_group)
        before = self.pool.slots[slot]
        killed = ended.signal == signal.SIGKILL and Step.KILL not in bridge.taken_down
        evidence = self._out_of_memory.evidence() if killed else None
        how = str(ended) + (f", for want of memory: {evidence}" if evidence is not None else "")
        if before.phase is Phase.STARTING:
            self._start_failed(bridge, f"it ended before its handshake was done: {how}", ended)
        served = before.served
        trouble = bridge.trouble or Fault(code=Code.BRIDGE_CRASHED, message=f"the bridge ended in mid-request: {how}")
        bridge.trouble = replace(
            trouble,
            details={
                **trouble.details,
                "exit_code": ended.code,
                "signal": ended.signal_name,
                "oom": evidence is not None,
                "pid": bridge.process.pid,
                "slot": bridge.seat,
                "uptime": round(ended.uptime, 3),
                "served": served,
                "memory_peak": ended.memory_peak,
                "stderr": list(ended.stderr),
            },
        )
        self._log_end(bridge, ended, how)
        self._perform(self.pool.exited(slot, self._loop.time(), bridge.trouble.details))
        if self._bridges.get(slot) is bridge:
            del self._bridges[slot]
        self._on_change()

    def _watch_memory(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        recycle = self.settings.recycle
        if recycle.memory is not None or recycle.memory_hard is not None:
            self._memory = MemoryWatch(
                lambda: {bridge.slot: bridge.process.pid for bridge in self._bridges.values()},
                self._on_measured,
                recycle.memory_interval,
            )

    def _on_measured(self, slot: int, memory: int) -> None:
        self._bridges[slot].process.note_memory(memory)
        self._perform(self.pool.measured(slot, memory, self._loop.time()))

    # What goes out.

    def _perform(self, actions: list[Action[Work]]) -> None:
        waiting = deque(actions)
        while waiting:
            match waiting.popleft():
                case Send(slot, work):
                    waiting += self._send(self._bridges[slot], work)
                case End(work, reason, slot):
                    waiting += self._end(work, reason, None if slot is None else self._bridges[slot])
                case Forget(slot, session):
                    self._tell_session_end(self._bridges[slot], session)
                case Start(slot, seat):
                    waiting += self._start(slot, seat)
                case Stop(slot, step, reason):
                    self._stop(self._bridges[slot], step, reason)
                case Recall(slot, request_id):
                    self._say(self._bridges[slot], messages.CANCEL, {"id": request_id, "unbegun": True})
                case Cancel(slot, request_id):
                    bridge = self._bridges[slot]
                    self._shut_outlet(slot, request_id)
                    self._say(bridge, messages.CANCEL, {"id": request_id})
                    # Half of the time it has to answer is left for the stacks of one that does not.
                    self._loop.call_later(self.settings.stop_timeout / 2, self._ask_stacks, bridge, request_id)
        if self.pool.wake_at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self.pool.wake_at
            self._timer = self._loop.call_at(self._timer_at, self._due)

    def _shut_outlet(self, slot: int, request_id: int) -> None:
        """Whatever the run says now is dropped, and read: the bridge must not be held when it is told to end."""
        run = self.pool.run(slot, request_id)
        if run is not None and run.ticket.outlet is not None:
            run.ticket.outlet.shut()

    def _due(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        # The loop's clock may fire a timer a tick early.
        self._perform(self.pool.due(max(self._loop.time(), self.pool.wake_at)))

    def _send(self, bridge: Bridge, work: Work) -> list[Action[Work]]:
        """Send the request to the bridge; what the pool wants done if it was not the bridge that it concerns."""
        if work.claim is not None and work.claim.closes and not _knows_sessions(bridge):
            return self._close_session(bridge.slot, work)
        self._open_outlet(bridge, work)
        body = work.payload or work.delivery.body
        self._write(bridge, body if work.attempt == 1 else messages.with_attempt(body, work.attempt))
        return []

    def _close_session(self, slot: int, work: Work) -> list[Action[Work]]:
        """End a session of which its bridge keeps nothing: the node answers in the bridge's place."""
        actions = self.pool.finished(slot, work.request_id, self._loop.time())
        moment = messages.format_timestamp(self._wall())
        self._leave(work)
        self.settlement.succeed(
            self._case(work, slot), messages.encode_result(work.request_id, {"status": "closed"}, timestamp=moment)
        )
        return actions

    def _tell_session_end(self, bridge: Bridge, session: str) -> None:
        if _knows_sessions(bridge) and len(bridge.told) < MOST_UNANSWERED:
            bridge.told.add(self._say(bridge, messages.CLEANUP_SESSION, {"session_id": session}))

    def _write(self, bridge: Bridge, payload: bytes | bytearray) -> None:
        if self._frames is not None:
            self._frames.sent(bridge.seat, payload)
        bridge.process.send(payload)

    def _say(self, bridge: Bridge, command: str, args: dict[str, Any]) -> int:
        """Send a frame of the node's own; its id."""
        request = messages.Request(
            id=random.randint(1, messages.MAX_ID),  # noqa: S311 - an id has to differ, not to be secret
            command=command,
            args=args,
            timestamp=messages.format_timestamp(self._wall()),
        )
        self._write(bridge, messages.encode_request(request))
        return request.id

    def _ask_stacks(self, bridge: Bridge, request_id: int) -> None:
        """Have a bridge that answers no cancel say where it hangs, before it is killed for that."""
        stacks = bridge.capabilities.stacks
        if stacks is not None and self._bridges.get(bridge.slot) is bridge and self.pool.run(bridge.slot, request_id):
            bridge.process.ask_stacks(stacks.pid, stacks.signal)

    def _start(self, slot: int, seat: int) -> list[Action[Work]]:
        """Start a bridge in the slot and greet it; what the pool wants done if that fails at once."""
        settings = self.settings
        run = self._reaper.new_bridge()
        environment = bridge_environment(os.environ, settings.environment, seat, run)
        bridge: Bridge
        try:
            process = self._spawn(
                self._launcher.command(settings.command, settings.limits, environment, settings.directory),
                environment=environment,
                directory=settings.directory,
                frame_limit=settings.frame_limit,
                write_timeout=settings.write_timeout,
                frame_timeout=settings.frame_timeout,
                protocol_fd=settings.protocol_fd,
                on_payload=lambda payload: self._on_payload(bridge, payload),
                on_stalled=lambda stall: self._on_stalled(bridge, stall),
                on_doomed=lambda: self.pool.doom(slot),
                on_garbage=lambda garbage: self._on_garbage(bridge, garbage),
                on_closed=lambda name: self._on_closed(bridge, name),
                on_exit=lambda ended: self._on_exit(bridge, ended),
                on_stderr=lambda line: self._log_stderr(bridge, line),
            )
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.strerror:
                # Of a directory that is not there the error names that, not the program.
                message = f"{error.filename or settings.command[0]}: {error.strerror}"
            else:
                message = f"{settings.command[0]}: {error}"
            self._note_start_failure(seat, message)
            return self.pool.exited(slot, self._loop.time())
        bridge = self._bridges[slot] = Bridge(slot, seat, process, run)
        moment = messages.format_timestamp(self._wall())
        greeting = messages.handshake(f"{self._node}-{seat}", moment, frame_limit=settings.frame_limit)
        self._write(bridge, messages.encode_request(greeting))
        return []

    def _stop(self, bridge: Bridge, step: Step, reason: Reason) -> None:
        process = bridge.process
        if step is Step.ASK and (why := _REPLACED_FOR.get(reason)) is not None:
            logger.info("%s[%d]: bridge %d is replaced: %s", self.name, bridge.seat, process.pid, why)
        if reason is Reason.MEMORY_HARD and step is Step.KILL:
            logger.warning("%s[%d]: bridge %d is killed: over recycle.memory_hard", self.name, bridge.seat, process.pid)
        if reason is Reason.START_TIMEOUT and step is Step.TERMINATE:
            within = f"within the start timeout of {self.settings.start_timeout:g} s"
            self._note_start_failure(bridge.seat, f"no answer to its handshake {within}")
        logger.debug("%s[%d]: bridge %d: %s (%s)", self.name, bridge.seat, process.pid, step.value, reason)
        bridge.taken_down[step] = self._loop.time()
        for request_id in list(self.pool.slots[bridge.slot].runs):
            self._shut_outlet(bridge.slot, request_id)
        process.look()
        match step:
            case Step.ASK:
                if bridge.capabilities.shutdown:
                    self._say(bridge, messages.SHUTDOWN, {})
                process.end_input()
            case Step.TERMINATE:
                process.send_signal(signal.SIGTERM)
            case Step.KILL:
                process.send_signal(signal.SIGKILL)

    def _violation(
        self,
        bridge: Bridge,
        message: str,
        code: Code = Code.PROTOCOL_VIOLATION,
        details: dict[str, Any] | None = None,
    ) -> None:
        self._condemn(bridge, Fault(code=code, message=message, details=details or {}), Reason.VIOLATION)

    def _condemn(self, bridge: Bridge, fault: Fault, reason: Reason) -> None:
        if bridge.trouble is None:
            bridge.trouble = fault
            did = "broke the protocol" if reason is Reason.VIOLATION else "stalled"
            pid = bridge.process.pid
            logger.warning("%s[%d]: bridge %d %s: %s", self.name, bridge.seat, pid, did, fault.message)
            self._perform(self.pool.condemn(bridge.slot, reason, self._loop.time()))

    def _start_failed(self, bridge: Bridge, message: str, ended: BridgeExit | None = None) -> None:
        if bridge.trouble is None:
            bridge.trouble = Fault(code=Code.BRIDGE_UNAVAILABLE, message=message)
            last = f"; its last words: {ended.stderr[-1]}" if ended is not None and ended.stderr else ""
            self._note_start_failure(bridge.seat, message + last)
            if ended is None:
                self._perform(self.pool.condemn(bridge.slot, Reason.START_FAILED, self._loop.time()))

    def _note_start_failure(self, seat: int, message: str) -> None:
        self.start_trouble = message
        logger.warning("%s[%d]: the bridge did not start: %s", self.name, seat, message)
        self._loop.call_soon(self._on_change)

    def _log_end(self, bridge: Bridge, ended: BridgeExit, how: str) -> None:
        """One line for each end: a warning where it is the bridge's own doing and not told yet."""
        slot = self.pool.slots[bridge.slot]
        rungs = bridge.taken_down
        story = ""
        level = logging.DEBUG
        if slot.phase is Phase.READY:
            story, level = "ended by itself", logging.WARNING
        elif slot.reason is Reason.RUN_TIMEOUT:
            story, level = f"gave no reply within the run timeout of {self.settings.run_timeout:g} s", logging.WARNING
        elif slot.reason is Reason.DEADLINE:
            story, level = "gave no reply before a request's deadline", logging.WARNING
        elif slot.reason is not None:
            story = f"went: {slot.reason}"
        if Step.TERMINATE in rungs and Step.KILL in rungs and ended.signal == signal.SIGKILL:
            waited = rungs[Step.KILL] - rungs[Step.TERMINATE]
            story, level = f"{story}; it ignored SIGTERM for {waited:.1f} s and was killed", logging.WARNING
        facts = f"{how} after {ended.uptime:.1f} s, {slot.served} served"
        facts += f", memory peak {_megabytes(ended.memory_peak)}" if ended.memory_peak is not None else ""
        facts += f"; its last words: {ended.stderr[-1]}" if ended.stderr else ""
        if story:
            logger.log(level, "%s[%d]: bridge %d %s: %s", self.name, bridge.seat, bridge.process.pid, story, facts)

    def _end(self, work: Work, reason: Reason, bridge: Bridge | None) -> list[Action[Work]]:
        """A request left the pool without a reply. In a session it may be tried again, at once."""
        if bridge is None or not self._is_tried_again(work, reason, bridge):
            self._fail(work, reason, bridge)
            return []
        self._close_outlet(work)
        again = Work(
            request_id=work.request_id,
            deadline=work.deadline,
            alone=True,
            streams=work.streams,
            claim=work.claim,
            delivery=work.delivery,
            command=work.command,
            attempt=work.attempt + 1,
            identity=work.identity,
            joined=work.joined,
            payload=work.payload,
        )
        if work.identity is not None:
            self._known[work.identity] = again
        self.settlement.counts.retried += 1
        logger.info("%s: a request of a session is tried again at once, in a new one: %s", self.name, reason)
        return self.pool.submit(again, self._loop.time())

    def _is_tried_again(self, work: Work, reason: Reason, bridge: Bridge) -> bool:
        """Whether it may run anew in a new session: it asked for no state that is gone now, or does without."""
        claim = work.claim
        if claim is None or (claim.epoch is not None and not claim.lenient) or reason is Reason.DRAINED:
            return False
        fault = bridge.trouble if reason in TOLD_BY_THE_BRIDGE else None
        fault = fault or fault_for(reason, self.pool.limits, ran=True, details={})
        return work.attempt < self.settings.retry.max_attempts and is_retried(fault, self.settlement.policy)

    def _fail(
        self, work: Work, reason: Reason, bridge: Bridge | None, said: messages.Result | messages.Failure | None = None
    ) -> None:
        """A request left the pool without a reply that counts. `said`: one that came too late."""
        self._leave(work)
        if reason is Reason.DRAINED:
            self.settlement.hand_back(self._case(work, None))
            return
        trouble = bridge.trouble if bridge is not None else None
        details = dict(trouble.details) if trouble is not None else {}
        if reason is Reason.RUN_TIMEOUT:
            details["timeout"] = reason.value
        if reason is Reason.READER_STALLED and work.outlet is not None:
            details["why"] = work.outlet.trouble
        if isinstance(said, messages.Failure) and said.info is not None and said.info.traceback:
            details["traceback"] = said.info.traceback  # where it was when it was cancelled
        if reason in (Reason.SESSION_LOST, Reason.REPEATED):
            fault = self._session_lost(work, reason)
        elif trouble is not None and reason in TOLD_BY_THE_BRIDGE:
            fault = trouble
        else:
            fault = fault_for(reason, self.pool.limits, ran=bridge is not None, details=details)
        self.settlement.fail(self._case(work, None if bridge is None else bridge.slot), fault)

    def _session_lost(self, work: Work, reason: Reason) -> Fault:
        claim, sessions = work.claim, self.sessions
        assert claim is not None
        assert sessions is not None
        if reason is Reason.REPEATED:
            text = "the request came again; it ran in this session already, and its answer is not kept"
            return Fault(code=Code.SESSION_LOST, message=text, details={"ending": "repeated"})
        epoch = claim.epoch or ""
        ended = sessions.why(epoch)
        why, details = str(ended.ending), dict(ended.details)
        if ended.ending is Ending.UNKNOWN and (node := epoch_node(epoch)) != self._node:
            why = f"it was on the node {node}; {self._node} serves it now" if node else "no node has such an epoch"
            details["node"] = node
        details["ending"] = ended.ending.name.lower()
        return Fault(code=Code.SESSION_LOST, message=f"the session is gone: {why}", details=details)

    def _case(self, work: Work, slot: int | None) -> Case:
        return Case(
            delivery=work.delivery,
            attempt=work.attempt,
            request_id=work.request_id,
            command=work.command,
            remaining=work.deadline - self._loop.time(),
            slot=slot,
            joined=work.joined,
            epoch=self._epoch(work),
            fresh=work.fresh,
            delayed=work.claim is None,
            run=work.outlet.run if work.outlet is not None and work.outlet.chunks else None,
            chunks=work.chunks,
        )

    def _epoch(self, work: Work) -> str | None:
        """The epoch that a request ran in; of one that did not run here, that which it asked for."""
        claim = work.claim
        if claim is None or self.sessions is None:
            return None
        if work.session is not None:
            return work.session.epoch
        session = self.sessions.get(claim.session)
        if session is not None and claim.message_id in session.begun:
            return session.epoch  # it came again
        return claim.epoch

    def _new_sessions(self) -> Sessions | None:
        if not self.settings.sessions.enabled:
            return None
        return Sessions(session_limits(self.settings), lambda: f"{secrets.token_hex(16)}@{self._node}")

    def _log_stderr(self, bridge: Bridge, line: str) -> None:
        runs = self.pool.slots[bridge.slot].at_work
        ids = (
            ",".join(run.ticket.delivery.properties.message_id or str(request_id) for request_id, run in runs.items())
            or "-"
        )
        bridge_logger.info("%s[%d] %s: %s", self.name, bridge.seat, ids, line)


def _lacks_chunks(work: Work) -> bool:
    """Whether chunks that were wanted were dropped, so that its result would be that of another stream."""
    return work.outlet is not None and work.outlet.dropped


def _knows_sessions(bridge: Bridge) -> bool:
    """Whether the bridge wants to be told when a session is over."""
    return messages.CLEANUP_SESSION in bridge.capabilities.commands


_REPLACED_FOR = {
    Reason.RECYCLED: "it asked for it",
    Reason.REQUESTS: "it served as many requests as it may",
    Reason.AGE: "it is as old as it may be",
    Reason.IDLE: "it was idle for as long as it may be",
    Reason.MEMORY: "it uses more memory than it may",
    Reason.REPLACED: "by one with new settings",
    Reason.SURPLUS: "by none, for fewer are needed",
}


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


def _known_as(delivery: Delivery) -> str | None:
    """By what its session knows a request if it comes again. An operator's replay is meant to run again."""
    properties = delivery.properties
    replays = read_history(properties.headers, None).replays
    return f"{properties.message_id} {replays}" if replays and properties.message_id else properties.message_id


def _replayed(delivery: Delivery) -> bool:
    """Whether an operator had it tried again, and so knows better than whoever cancelled it once."""
    return read_history(delivery.properties.headers, None).replays > 0


def _watched_address(work: Work) -> str | None:
    """Where its requester is, if it shall end with them: where they asked last, who may have had to ask again."""
    properties = work.requester
    return reply_address(properties) if properties.headers.get(CANCEL_ON_DISCONNECT) is True else None
