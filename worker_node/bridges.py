"""The bridges of one service: starts them, greets them, takes them down, and says what was wrong with each.

The pool decides which there are; what happens to one is told to the pool, and what that wants done is performed by
whoever holds both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from bridge_protocol import messages
from bridge_protocol.errors import Code, FrameError, FrameKind
from bridge_protocol.frames import LIMIT_CEILING
from bridge_protocol.handshake import handshake, read_capabilities
from worker_node.bridge import MOST_UNANSWERED, Bridge
from worker_node.bridge_process import BridgeExit, BridgeProcess, Direction, Garbage, Stall
from worker_node.core.actions import Action
from worker_node.core.fate import Fault
from worker_node.core.ladder import Step
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.slot import Phase
from worker_node.environment import bridge_environment
from worker_node.frame_log import FrameLog
from worker_node.launch import Launcher
from worker_node.memory import MemoryWatch, tree_memory
from worker_node.out_of_memory import OutOfMemoryKills
from worker_node.process_status import resident
from worker_node.reaper import Reaper
from worker_node.settings import ServiceSettings
from worker_node.stderr import printable
from worker_node.work import Work

_CHECK = "`quaybridge conformance -- COMMAND…` checks a bridge"
LONGEST_QUOTE = 1024  # bytes of what was no frame, in a failure's details

Said = messages.Result | messages.Failure | messages.Progress | messages.Chunk

logger = logging.getLogger("quaybridge.node")
bridge_logger = logging.getLogger("quaybridge.bridge")


class Bridges:
    """By slot. `on_message(bridge, message, payload)` is called with what a bridge says once it is ready.

    `perform` does what the pool wants done; `on_change` is called whenever a bridge is ready, or gone, or did not
    start. `wall` is the time of day in seconds since 1970.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        pool: Pool[Work],
        *,
        node: str,
        launcher: Launcher,
        reaper: Reaper,
        out_of_memory: OutOfMemoryKills,
        spawn: Callable[..., BridgeProcess],
        wall: Callable[[], float],
        perform: Callable[[list[Action[Work]]], None],
        on_message: Callable[[Bridge, Said, bytes | bytearray], None],
        on_change: Callable[[], None],
    ) -> None:
        self.start_trouble: str | None = None  # why the latest could not start
        self._settings = settings
        self._pool = pool
        self._node = node
        self._launcher = launcher
        self._reaper = reaper
        self._out_of_memory = out_of_memory
        self._spawn = spawn
        self._wall = wall
        self._perform = perform
        self._on_message = on_message
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._bridges: dict[int, Bridge] = {}
        self._frames: FrameLog | None = None
        self._memory: MemoryWatch | None = None
        self.reload(settings)

    def __repr__(self) -> str:
        return f"<Bridges of {self._settings.name}: {len(self._bridges)} up>"

    def __iter__(self) -> Iterator[Bridge]:
        return iter(self._bridges.values())

    def __getitem__(self, slot: int) -> Bridge:
        return self._bridges[slot]

    def reload(self, settings: ServiceSettings) -> None:
        """From now on these settings hold: for whatever is started, and watched."""
        self.close()
        self._settings = settings
        self._oversize_told = False
        if settings.debug.directory is not None:
            self._frames = FrameLog(settings.debug, f"{self._node}.{settings.name}", clock=self._wall)
        recycle = settings.recycle
        if recycle.memory is not None or recycle.memory_hard is not None:
            self._memory = MemoryWatch(
                lambda: {bridge.slot: bridge.process.pid for bridge in self}, self._on_measured, recycle.memory_interval
            )

    def close(self) -> None:
        """Watch no more. May be called twice."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def look(self) -> None:
        """Note what they use. About once a second."""
        for bridge in self:
            bridge.process.look()

    def states(self) -> Iterable[str]:
        """What every slot is doing, a line each."""
        now = self._loop.time()
        for slot in self._pool.slots:
            bridge = self._bridges.get(slot.number)
            seat = bridge.seat if bridge is not None else slot.seat
            if seat is None:
                continue
            line = f"{self._settings.name}[{seat}] {slot.state}"
            if bridge is not None:
                memory = resident(bridge.process.pid)
                line += f": bridge {bridge.process.pid}, up {bridge.process.uptime:.1f} s, {slot.served} served"
                line += f", {_megabytes(memory)}" if memory is not None else ""
            for run in slot.runs.values():
                work = run.ticket
                again = f" (attempt {work.attempt})" if work.attempt > 1 else ""
                late = f", late ({run.reason})" if run.reason is not None else ""
                line += f"; {printable(work.command)} {printable(work.name)}{again} for {now - run.started:.1f} s{late}"
            if slot.reason is not None:
                line += f"; going: {slot.reason}"
            elif slot.worn is not None:
                line += f"; to be replaced: {slot.worn}"
            yield line

    # What they are told.

    def write(self, bridge: Bridge, payload: bytes | bytearray) -> None:
        """Send it a frame."""
        if self._frames is not None:
            self._frames.sent(bridge.seat, payload)
        bridge.process.send(payload)

    def say(self, bridge: Bridge, command: str, args: dict[str, Any]) -> int:
        """Send it a frame of the node's own; its id."""
        request = messages.Request(
            id=random.randint(1, messages.MAX_ID),  # noqa: S311 - an id has to differ, not to be secret
            command=command,
            args=args,
            timestamp=messages.format_timestamp(self._wall()),
        )
        self.write(bridge, messages.encode_request(request))
        return request.id

    def cancel(self, bridge: Bridge, request_id: int) -> None:
        """Tell it to end that request; if it does not, it says where it hangs before it is killed for that."""
        self.say(bridge, messages.CANCEL, {"id": request_id})
        # Half of the time it has to answer is left for the stacks of one that does not.
        self._loop.call_later(self._settings.stop_timeout / 2, self._ask_stacks, bridge, request_id)

    def recall(self, bridge: Bridge, request_id: int) -> None:
        """Ask it to give that request back, if it has not begun it."""
        self.say(bridge, messages.CANCEL, {"id": request_id, "unbegun": True})

    def tell_session_end(self, bridge: Bridge, session: str) -> None:
        """Tell it that a session is over, if it cares."""
        if bridge.knows_sessions and len(bridge.told) < MOST_UNANSWERED:
            bridge.told.add(self.say(bridge, messages.CLEANUP_SESSION, {"session_id": session}))

    def _ask_stacks(self, bridge: Bridge, request_id: int) -> None:
        stacks = bridge.capabilities.stacks
        if stacks is not None and self._bridges.get(bridge.slot) is bridge and self._pool.run(bridge.slot, request_id):
            bridge.process.ask_stacks(stacks.pid, stacks.signal)

    # Starting and stopping.

    def start(self, slot: int, seat: int) -> list[Action[Work]]:
        """Start a bridge in the slot and greet it; what the pool wants done if that fails at once."""
        settings = self._settings
        run = self._reaper.new_bridge()
        ends_with = self._launcher.ends_with
        environment = bridge_environment(os.environ, settings.environment, seat, run, ends_with=ends_with)
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
                on_doomed=lambda: self._pool.doom(slot),
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
            return self._pool.exited(slot, self._loop.time())
        bridge = self._bridges[slot] = Bridge(slot, seat, process, run)
        moment = messages.format_timestamp(self._wall())
        greeting = handshake(f"{self._node}-{seat}", moment, frame_limit=settings.frame_limit)
        self.write(bridge, messages.encode_request(greeting))
        return []

    def stop(self, bridge: Bridge, step: Step, reason: Reason) -> None:
        """Take it one step down the ladder."""
        process = bridge.process
        who = self._who(bridge)
        if step is Step.ASK and (why := _REPLACED_FOR.get(reason)) is not None:
            logger.info("%s is replaced: %s", who, why)
        if reason is Reason.MEMORY_HARD and step is Step.KILL:
            logger.warning("%s is killed: over recycle.memory_hard", who)
        if reason is Reason.START_TIMEOUT and step is Step.TERMINATE:
            within = f"within the start timeout of {self._settings.start_timeout:g} s"
            self._note_start_failure(bridge.seat, f"no answer to its handshake {within}")
        logger.debug("%s: %s (%s)", who, step.value, reason)
        bridge.taken_down[step] = self._loop.time()
        process.look()
        match step:
            case Step.ASK:
                if bridge.capabilities.shutdown:
                    self.say(bridge, messages.SHUTDOWN, {})
                process.end_input()
            case Step.TERMINATE:
                process.send_signal(signal.SIGTERM)
            case Step.KILL:
                process.send_signal(signal.SIGKILL)

    # What they do.

    def _on_payload(self, bridge: Bridge, payload: bytes | bytearray) -> None:
        if self._frames is not None:
            self._frames.received(bridge.seat, payload)
        if bridge.trouble is not None:
            return
        starting = self._pool.slots[bridge.slot].phase is Phase.STARTING
        try:
            if starting:
                self._greeted(bridge, messages.decode_message(payload))
                return
            message = messages.survey_message(payload)
        except FrameError as error:
            if starting:
                self._start_failed(bridge, f"it answered its handshake with what is no reply: {error} ({_CHECK})")
            else:
                self.violation(bridge, str(error))
            return
        if message.id is None:
            self.violation(bridge, f"it could not read the frame it was sent: {message.error[:200]!r}")
            return
        if isinstance(message, (messages.Result, messages.Chunk)) and message.binary is not None:
            payload = payload if bridge.capabilities.binary else messages.without_binary(payload)
        self._on_message(bridge, message, payload)

    def _greeted(self, bridge: Bridge, message: Said) -> None:
        if not isinstance(message, messages.Result) or message.id != messages.HANDSHAKE_ID:
            said = repr(message.error[:200]) if isinstance(message, messages.Failure) else type(message).__name__
            self._start_failed(bridge, f"it answered its handshake with {said}")
            return
        bridge.capabilities = read_capabilities(message.result)
        memory = None if self._memory is None else tree_memory([bridge.process.pid]).get(bridge.process.pid)
        self._perform(
            self._pool.greeted(
                bridge.slot,
                concurrency=bridge.capabilities.concurrency,
                cancels=bridge.capabilities.cancel,
                ahead=bridge.capabilities.ahead,
                now=self._loop.time(),
                memory=memory,
            )
        )
        if self._pool.slots[bridge.slot].oversized and not self._oversize_told:
            self._oversize_told = True
            name = self._settings.name
            logger.error(
                "%s: a new bridge uses %d MiB before its first request, more than its limit in services.%s.recycle: "
                "such bridges are not replaced for their memory; raise the limit",
                *(name, (memory or 0) // 2**20, name),
            )
        logger.info("%s is ready", self._who(bridge))
        self._on_change()

    def _on_garbage(self, bridge: Bridge, garbage: Garbage) -> None:
        length = int.from_bytes(garbage.error.preview[:4], "big")
        details = {"stdout": garbage.quoted(LONGEST_QUOTE)}
        if self._pool.slots[bridge.slot].phase is Phase.STARTING:
            self._start_failed(bridge, f"it wrote what is no frame: {garbage}")
        elif garbage.error.kind is FrameKind.FRAME_TOO_LARGE and length <= LIMIT_CEILING:
            # Of several requests any may be the one; tried again, each alone, only that one ends here again.
            alone = len(self._pool.slots[bridge.slot].at_work) == 1
            code = Code.TOO_LARGE if alone else Code.PROTOCOL_VIOLATION
            self.violation(bridge, f"a reply is over the limit: {garbage.error.detail}", code)
        else:
            self.violation(bridge, f"it wrote what is no frame: {garbage}", details=details)

    def _on_stalled(self, bridge: Bridge, stall: Stall) -> None:
        slot = self._pool.slots[bridge.slot]
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
        match self._pool.slots[bridge.slot].phase:
            case Phase.STARTING:
                self._start_failed(bridge, f"it closed its {name} and lives on")
            case Phase.READY:
                self.violation(bridge, f"it closed its {name} and lives on")

    def _on_exit(self, bridge: Bridge, ended: BridgeExit) -> None:
        slot = self._pool.slots[bridge.slot]
        self._reaper.clear(bridge.run, self._who(bridge), left=ended.left_group)
        killed = ended.signal == signal.SIGKILL and Step.KILL not in bridge.taken_down
        evidence = self._out_of_memory.evidence() if killed else None
        how = str(ended) + (f", for want of memory: {evidence}" if evidence is not None else "")
        if slot.phase is Phase.STARTING:
            self._start_failed(bridge, f"it ended before its handshake was done: {how}", ended)
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
                "served": slot.served,
                "memory_peak": ended.memory_peak,
                "stderr": list(ended.stderr),
            },
        )
        self._log_end(bridge, ended, how)
        self._perform(self._pool.exited(bridge.slot, self._loop.time(), bridge.trouble.details))
        if self._bridges.get(bridge.slot) is bridge:
            del self._bridges[bridge.slot]
        self._on_change()

    def _on_measured(self, slot: int, memory: int) -> None:
        self._bridges[slot].process.note_memory(memory)
        self._perform(self._pool.measured(slot, memory, self._loop.time()))

    # What was wrong with one.

    def violation(
        self,
        bridge: Bridge,
        message: str,
        code: Code = Code.PROTOCOL_VIOLATION,
        details: dict[str, Any] | None = None,
    ) -> None:
        """It broke the protocol: it must go, and what it says from now on is not believed."""
        self._condemn(bridge, Fault(code=code, message=message, details=details or {}), Reason.VIOLATION)

    def _condemn(self, bridge: Bridge, fault: Fault, reason: Reason) -> None:
        if bridge.trouble is None:
            bridge.trouble = fault
            did = "broke the protocol" if reason is Reason.VIOLATION else "stalled"
            logger.warning("%s %s: %s", self._who(bridge), did, fault.message)
            self._perform(self._pool.condemn(bridge.slot, reason, self._loop.time()))

    def _start_failed(self, bridge: Bridge, message: str, ended: BridgeExit | None = None) -> None:
        if bridge.trouble is None:
            bridge.trouble = Fault(code=Code.BRIDGE_UNAVAILABLE, message=message)
            last = f"; its last words: {ended.stderr[-1]}" if ended is not None and ended.stderr else ""
            self._note_start_failure(bridge.seat, message + last)
            if ended is None:
                self._perform(self._pool.condemn(bridge.slot, Reason.START_FAILED, self._loop.time()))

    def _note_start_failure(self, seat: int, message: str) -> None:
        self.start_trouble = message
        logger.warning("%s[%d]: the bridge did not start: %s", self._settings.name, seat, message)
        self._loop.call_soon(self._on_change)

    # What is logged of one.

    def _who(self, bridge: Bridge) -> str:
        return f"{self._settings.name}[{bridge.seat}]: bridge {bridge.process.pid}"

    def _log_end(self, bridge: Bridge, ended: BridgeExit, how: str) -> None:
        """One line for each end: a warning where it is the bridge's own doing and not told yet."""
        slot = self._pool.slots[bridge.slot]
        rungs = bridge.taken_down
        story = ""
        level = logging.DEBUG
        if slot.phase is Phase.READY:
            story, level = "ended by itself", logging.WARNING
        elif slot.reason is Reason.RUN_TIMEOUT:
            within = f"within the run timeout of {self._settings.run_timeout:g} s"
            story, level = f"gave no reply {within}", logging.WARNING
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
            logger.log(level, "%s %s: %s", self._who(bridge), story, facts)

    def _log_stderr(self, bridge: Bridge, line: str) -> None:
        runs = self._pool.slots[bridge.slot].at_work
        ids = ",".join(run.ticket.name for run in runs.values()) or "-"
        bridge_logger.info("%s[%d] %s: %s", self._settings.name, bridge.seat, ids, line)


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
