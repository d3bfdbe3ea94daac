"""The dispatcher of one service: brings its deliveries, its pool and its bridges together.

    Delivery ─▶ Gate ─▶ Pool ─▶ actions ─▶ Bridges ─▶ message ─▶ Outcomes ─▶ Settlement ─▶ reply, then ack

The pool decides, this performs. It runs on the node's event loop, in callbacks; nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable

from bridge_protocol import messages
from bridge_protocol.errors import Code
from broker.contract import Delivery
from broker.link import Link
from broker.store import Store
from worker_node.bridge import Bridge
from worker_node.bridge_process import BridgeProcess
from worker_node.bridges import Bridges, Said
from worker_node.core.actions import Action, Cancel, End, Forget, Recall, Send, Start, Stop
from worker_node.core.fate import Fault
from worker_node.core.lookahead import Lookahead
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.sessions import Sessions
from worker_node.core.slot import Phase
from worker_node.core.tombstones import Tombstones
from worker_node.gate import Gate
from worker_node.launch import Launcher
from worker_node.out_of_memory import OutOfMemoryKills
from worker_node.outcomes import Outcomes
from worker_node.outlets import Outlets
from worker_node.reaper import Reaper
from worker_node.rules import pool_limits, retry_policy, session_limits
from worker_node.settings import ServiceSettings
from worker_node.settlement import Settlement
from worker_node.stderr import printable
from worker_node.work import Work

# Requests ahead, their recalls and cancels fit the pipe, so that none of them waits for the bridge to read. It has 16
# pages of 4 KiB, and a write that does not fit into what is left of the last one begins another (pipe(7), pipe_write).
MOST_AHEAD = 16

logger = logging.getLogger("quaybridge.node")


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
        self.sessions = Sessions(session_limits(settings), lambda: f"{secrets.token_hex(16)}@{node}")
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
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._outcomes = Outcomes(self.pool, self.settlement, node=node)
        self._gate = Gate(
            settings,
            settlement=self.settlement,
            outcomes=self._outcomes,
            tombstones=self.tombstones,
            store=store,
            wall=wall,
            submit=lambda work: self._perform(self.pool.submit(work, self._loop.time())),
        )
        self._outlets = Outlets(
            link,
            node=node,
            publish_timeout=publish_timeout,
            control_queue=control_queue,
            on_stalled=self._on_reader_stalled,
        )
        self._bridges = Bridges(
            settings,
            self.pool,
            node=node,
            launcher=launcher,
            reaper=reaper,
            out_of_memory=out_of_memory,
            spawn=spawn,
            wall=wall,
            perform=self._perform,
            on_message=self._on_message,
            on_change=on_change,
        )
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __repr__(self) -> str:
        return f"<Dispatcher {self.name}: {self.pool!r}>"

    @property
    def ready(self) -> bool:
        """Whether requests can run: a bridge passed its handshake, or one is started when work comes."""
        return self.pool.ready > 0 or not (self.pool.limits.eager or self.pool.unavailable)

    @property
    def start_trouble(self) -> str | None:
        """Why the latest bridge could not start."""
        return self._bridges.start_trouble

    @property
    def held(self) -> int:
        """How many deliveries of its request queue this node holds unacknowledged; those of session queues apart."""
        works = (work for work in (*self.pool.tickets(), *self._gate.fetching) if work.claim is None)
        running = ((work.delivery, *work.joined) for work in works)
        return sum(not delivery.stale for deliveries in running for delivery in deliveries) + self.settlement.held

    # The life of the service.

    def open(self) -> None:
        """Start the bridges that start with the node."""
        self._perform(self.pool.open(self._loop.time()))

    def reload(self, settings: ServiceSettings) -> None:
        """Replace every bridge by one with these settings, one after the other; no request fails for it."""
        self.settings = settings
        self.settlement.policy = retry_policy(settings)
        self.tombstones.most = settings.tombstones
        self.sessions.limits = session_limits(settings)
        self._gate.reload(settings)
        self._bridges.reload(settings)
        self._perform(self.pool.restart(pool_limits(settings), self._loop.time()))

    def drain(self) -> None:
        """Take no more requests; finish those that run, hand back those that wait."""
        self._perform(self.pool.drain(self._loop.time()))

    def abort(self) -> None:
        """Kill every bridge, and hand back what ran on it."""
        self._gate.abort()
        self.settlement.abort()
        self._perform(self.pool.abort(self._loop.time()))

    def give_up(self) -> None:
        """Hand back what waits if no bridge can be started. Call it when nothing more is taken."""
        self._perform(self.pool.give_up())

    def close(self) -> None:
        """No process is left, and nothing more will happen."""
        self._bridges.close()
        if self._timer is not None:
            self._timer.cancel()

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
        while self._gate.fetching or any(True for _ in self.pool.tickets()):
            await self._gate.wait_leaving()
        await self.settlement.wait_idle()

    def bridges(self) -> Iterable[Bridge]:
        """The processes of this service, for whoever wants to look."""
        return self._bridges

    def look(self) -> None:
        """Note what the bridges use. About once a second."""
        self._bridges.look()

    def look_ahead(self) -> int:
        """Look how long requests run; how many to take beyond those that can run at once. About once a second."""
        self.pool.ahead = self.lookahead.piped(MOST_AHEAD) if self.settings.pipelining else 0
        return self.lookahead.wanted(self.pool.capacity)

    def states(self) -> Iterable[str]:
        """What every slot is doing, a line each."""
        if self.settings.sessions.enabled:
            yield f"{self.name}: {len(self.sessions)} sessions, {self.sessions.evicted} evicted so far"
        yield from self._bridges.states()

    # What comes in.

    def knows(self, delivery: Delivery) -> bool:
        """Whether it will not run anew: see Gate.knows."""
        return self._gate.knows(delivery)

    def on_delivery(self, delivery: Delivery, partition: int | None = None) -> None:
        """A message came from the request queue, or from that of a partition's sessions."""
        self._gate.on_delivery(delivery, partition)

    def moved(self, partition: int) -> None:
        """Another node has the sessions of that partition now."""
        self._perform(self.pool.moved(partition, self._loop.time()))

    def grant(self, run: str, chunks: int) -> None:
        """The reader of that run has taken so many of its chunks, all in all."""
        self._outlets.grant(run, chunks)

    def readdress(self) -> None:
        """This node has another control queue."""
        self._outlets.readdress()

    # What nobody wants any more.

    def cancel(self, message_id: str) -> None:
        """The producer cancelled a request: it ends here, or when it comes."""
        self.tombstones.lay(message_id, self._loop.time())
        self._abandon(lambda work: work.delivery.properties.message_id == message_id)

    def watched(self) -> Iterable[str]:
        """The reply addresses of requests that shall end with their requester."""
        return (address for work in self.pool.tickets() if (address := work.watched_address) is not None)

    def requester_gone(self, address: str) -> None:
        """Nobody is left at `address`: what shall end with its requester ends."""
        self._abandon(lambda work: work.watched_address == address)

    def _abandon(self, unwanted: Callable[[Work], bool]) -> None:
        for work in [work for work in self.pool.tickets() if unwanted(work)]:
            self._perform(self.pool.cancel(work, self._loop.time()))
            work.silence()

    def _on_reader_stalled(self, work: Work, why: str) -> None:
        logger.warning("%s: request %s is stopped: %s", self.name, printable(work.name), why)
        self._perform(self.pool.cancel(work, self._loop.time(), Reason.READER_STALLED))

    # What bridges say.

    def _on_message(self, bridge: Bridge, message: Said, payload: bytes | bytearray) -> None:
        slot, request_id = bridge.slot, message.id
        assert request_id is not None
        run = self.pool.run(slot, request_id)
        if run is None:
            if request_id in bridge.told and isinstance(message, messages.Result | messages.Failure):
                bridge.told.discard(request_id)
            elif self.pool.slots[slot].phase is not Phase.STOPPING:  # one that was asked to go says so in its own way
                self._bridges.violation(bridge, f"it answered id {request_id}, which it was not asked")
            return
        now = self._loop.time()
        if run.recalled and isinstance(message, messages.Failure) and message.given_back:
            self._perform(self.pool.given_back(slot, request_id, now))
            return
        if not run.begun and run.reason is None:
            self._bridges.violation(
                bridge, f"it began id {request_id} before it answered the one before, and claims 'ahead'"
            )
            return
        if isinstance(message, (messages.Progress, messages.Chunk)):
            self._on_event(bridge, run.ticket, message, payload)
            return
        actions = self.pool.finished(slot, request_id, now, recycle=message.recycle)
        work = run.ticket
        # The next request goes to the bridge before the reply to this one goes out: it works meanwhile.
        self._perform(actions)
        self.lookahead.ran(now - run.started)
        # A cancelled request that came to its result all the same was first.
        reason = run.reason
        if reason is Reason.CANCELLED and isinstance(message, messages.Result) and not work.lacks_chunks:
            reason = None
        if reason is not None:
            self._fail(work, reason, bridge if run.begun else None, message)
            return
        self._leave(work)
        if isinstance(message, messages.Result):
            self._outcomes.succeeded(work, payload, slot)
            self._gate.keep_answer(work, payload)
        else:
            self._outcomes.answered_failure(work, message, payload, slot)

    def _on_event(
        self, bridge: Bridge, work: Work, event: messages.Progress | messages.Chunk, payload: bytes | bytearray
    ) -> None:
        if isinstance(event, messages.Chunk):
            if event.seq != work.chunks:
                self._bridges.violation(
                    bridge, f"it sent chunk {event.seq} of id {event.id}, and {work.chunks} was the next"
                )
                return
            work.chunks += 1
            if work.outlet is not None:
                work.outlet.chunk(payload)
        elif work.outlet is not None:
            work.outlet.progress(payload)

    # What is to be done.

    def _perform(self, actions: list[Action[Work]]) -> None:
        waiting = deque(actions)
        while waiting:
            match waiting.popleft():
                case Send(slot, work):
                    waiting += self._send(self._bridges[slot], work)
                case End(work, reason, slot):
                    waiting += self._end(work, reason, None if slot is None else self._bridges[slot])
                case Forget(slot, session):
                    self._bridges.tell_session_end(self._bridges[slot], session)
                case Start(slot, seat):
                    waiting += self._bridges.start(slot, seat)
                case Stop(slot, step, reason):
                    for run in list(self.pool.slots[slot].runs.values()):
                        run.ticket.silence()
                    self._bridges.stop(self._bridges[slot], step, reason)
                case Recall(slot, request_id):
                    self._bridges.recall(self._bridges[slot], request_id)
                case Cancel(slot, request_id):
                    if (cancelled := self.pool.run(slot, request_id)) is not None:
                        cancelled.ticket.silence()
                    self._bridges.cancel(self._bridges[slot], request_id)
        if self.pool.wake_at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self.pool.wake_at
            self._timer = self._loop.call_at(self._timer_at, self._due)

    def _due(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        # The loop's clock may fire a timer a tick early.
        self._perform(self.pool.due(max(self._loop.time(), self.pool.wake_at)))

    def _send(self, bridge: Bridge, work: Work) -> list[Action[Work]]:
        """Send the request to the bridge; what the pool wants done if it was not the bridge that it concerns."""
        if work.claim is not None and work.claim.closes and not bridge.knows_sessions:
            return self._close_session(bridge.slot, work)
        if work.binary and not bridge.capabilities.binary:
            return self._refuse_binary(bridge.slot, work)
        self._outlets.open(bridge, work, self.settings.stream)
        self._bridges.write(bridge, work.body if work.attempt == 1 else messages.with_attempt(work.body, work.attempt))
        return []

    def _close_session(self, slot: int, work: Work) -> list[Action[Work]]:
        """End a session of which its bridge keeps nothing: the node answers in the bridge's place."""
        actions = self.pool.finished(slot, work.request_id, self._loop.time())
        moment = messages.format_timestamp(self._wall())
        self._leave(work)
        payload = messages.encode_result(work.request_id, {"status": "closed"}, timestamp=moment)
        self._outcomes.succeeded(work, payload, slot)
        return actions

    def _refuse_binary(self, slot: int, work: Work) -> list[Action[Work]]:
        """Do not send bytes to a bridge that would take what stands for them for something else."""
        actions = self.pool.finished(slot, work.request_id, self._loop.time())
        self._leave(work)
        text = "there are bytes in its arguments, and its bridge takes none: it does not claim 'binary'"
        self._outcomes.refused(work, Fault(code=Code.BAD_REQUEST, message=text))
        return actions

    def _end(self, work: Work, reason: Reason, bridge: Bridge | None) -> list[Action[Work]]:
        """A request left the pool without a reply. In a session it may be tried again, at once."""
        if bridge is None or not self._outcomes.is_tried_again(work, reason, bridge):
            self._fail(work, reason, bridge)
            return []
        self._outlets.close(work)
        again = work.again()
        self._gate.change(work, again)
        self.settlement.counts.retried += 1
        logger.info("%s: a request of a session is tried again at once, in a new one: %s", self.name, reason)
        return self.pool.submit(again, self._loop.time())

    def _fail(
        self, work: Work, reason: Reason, bridge: Bridge | None, said: messages.Result | messages.Failure | None = None
    ) -> None:
        self._leave(work)
        self._outcomes.failed(work, reason, bridge, said)

    def _leave(self, work: Work) -> None:
        """It is in the pool no more."""
        self._outlets.close(work)
        self._gate.leave(work)
