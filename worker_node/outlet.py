"""The outlet of a run: what its bridge says before the reply, sent to whoever asked for it.

    chunk ────▶ Outflow ──▶ a message of several, at once or `delay` later ──▶ reply address
      │ without credit: hold the bridge; after `reader_timeout` without any: stalled
    progress ─▶ the latest, every PROGRESS_EVERY seconds at most ────────────▶ reply address

By the same channel as the reply, and before it: so they arrive in order. None of it is sent again: what is lost the
reader finds missing. Whoever holds the bridge, or ends the run, is told by callbacks; nothing here waits.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable

from bridge_protocol.envelope import CHUNKS, PROGRESS, Properties, event_properties
from bridge_protocol.errors import CodedError
from broker.confirm import Confirm
from broker.contract import BrokerError, Message
from broker.link import Link
from worker_node.core.admission import reply_address
from worker_node.core.outflow import MOST_BYTES_TOGETHER, Outflow

PROGRESS_EVERY = 0.1  # seconds


class Outlet:
    """`run`: what the messages are known by. `chunks`, `progress`: which of them are wanted.

    `requester`: the envelope of the request, as it came last. `control_queue`: where this node hears of credit, if it
    is connected. `on_hold(held)`: read no more from the bridge, or read on. `on_stalled(why)`, at most once: what the
    bridge says cannot be delivered, so it need not go on.
    """

    def __init__(
        self,
        link: Link,
        *,
        node: str,
        attempt: int,
        chunks: bool,
        progress: bool,
        delay: float,
        reader_timeout: float,
        publish_timeout: float,
        requester: Callable[[], Properties],
        control_queue: Callable[[], str | None],
        on_hold: Callable[[bool], None],
        on_stalled: Callable[[str], None],
    ) -> None:
        self.run = secrets.token_hex(8)
        self.dropped = False  # chunks came that were not sent on
        self.trouble: str | None = None  # why what the bridge says cannot be delivered
        self.chunks = chunks
        self.outflow = Outflow(delay)
        self._link = link
        self._node = node
        self._attempt = attempt
        self._wants_progress = progress
        self._reader_timeout = reader_timeout
        self._publish_timeout = publish_timeout
        self._requester = requester
        self._control_queue = control_queue
        self._on_hold = on_hold
        self._on_stalled = on_stalled
        self._loop = asyncio.get_running_loop()
        self._shut = False
        self._sent = 0  # messages
        self._told: str | None = None  # the control queue that the reader knows of
        self._flush_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None  # while the bridge is held
        self._progress: bytes | bytearray | None = None  # the latest, not sent yet
        self._progress_timer: asyncio.TimerHandle | None = None  # since the last that was sent

    def __repr__(self) -> str:
        state = "shut" if self._shut else "held" if self._stall_timer is not None else "open"
        return f"<Outlet {self.run} {state}, {self.outflow!r}>"

    def chunk(self, payload: bytes | bytearray) -> None:
        """The bridge sent the next chunk."""
        if not self.chunks or self._shut:
            self.dropped = self.dropped or self.chunks
            return
        if len(payload) >= MOST_BYTES_TOGETHER:
            self._flush()  # alone it fits a message
        self.outflow.take(payload)
        if not self.outflow.has_credit and self._stall_timer is None:
            self._hold()
        due = self.outflow.due()
        if due == -math.inf:
            self._flush()
        elif self._flush_timer is None:
            # One that is over means the next turn of the loop: what is read in this one travels together.
            self._flush_timer = self._loop.call_at(due, self._flush)

    def progress(self, payload: bytes | bytearray) -> None:
        """The bridge said how far it is."""
        if not self._wants_progress or self._shut:
            return
        self._progress = payload
        if self._progress_timer is None:
            self._send_progress()

    def grant(self, chunks: int) -> None:
        """The reader has taken so many, all in all."""
        if not self.outflow.grant(chunks) or self._stall_timer is None:
            return
        self._stall_timer.cancel()
        if self.outflow.has_credit:
            self._stall_timer = None
            self._on_hold(False)
        else:
            self._time_reader()

    def readdress(self) -> None:
        """This node has another control queue: whoever reads is told, and says again what they took."""
        if self._told is not None and not self._shut:
            self._flush()
            if self._told != self._control_queue():
                self._send_chunks(self.outflow.taken, b"")

    def shut(self) -> None:
        """What the bridge says from now on is read, and dropped; what it said before is sent. Again: without effect."""
        if not self._shut:
            if self.trouble is None:
                self._flush()
            self._shut = True
            self._stop_timers()

    def _stop_timers(self) -> None:
        for timer in (self._flush_timer, self._stall_timer, self._progress_timer):
            if timer is not None:
                timer.cancel()
        if self._stall_timer is not None:
            self._stall_timer = None
            self._on_hold(False)

    def end(self) -> None:
        """The run is over: send what is left. Its reply comes next. Again: without effect."""
        if not self._shut and self._progress is not None:
            self._send_progress()
        self.shut()

    # Credit.

    def _hold(self) -> None:
        self._time_reader()
        self._on_hold(True)

    def _time_reader(self) -> None:
        self._stall_timer = self._loop.call_later(self._reader_timeout, self._stalled)

    def _stalled(self) -> None:
        self._give_up(f"its reader has taken no chunk for {self._reader_timeout:g} s")

    def _give_up(self, why: str) -> None:
        if not self._shut:
            self.trouble = why
            self.shut()
            self._on_stalled(why)

    # What is published.

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self.outflow.due() < math.inf:
            self._send_chunks(*self.outflow.flush(self._loop.time()))

    def _send_chunks(self, seq: int, frames: bytes) -> None:
        queue = self._control_queue()
        news = queue if queue != self._told else None
        self._told = queue
        self._publish(CHUNKS, frames, seq=seq, control_queue=news)

    def _send_progress(self) -> None:
        self._progress_timer = None
        if self._progress is not None:
            payload, self._progress = self._progress, None
            self._publish(PROGRESS, payload)
            self._progress_timer = self._loop.call_later(PROGRESS_EVERY, self._send_progress)

    def _publish(
        self, kind: str, body: bytes | bytearray, *, seq: int | None = None, control_queue: str | None = None
    ) -> None:
        requester = self._requester()
        address = reply_address(requester)
        if address is None:
            return
        properties = event_properties(
            kind=kind,
            correlation_id=requester.correlation_id or requester.message_id,
            attempt=self._attempt,
            node=self._node,
            run=self.run,
            number=self._sent,
            seq=seq,
            control_queue=control_queue,
        )
        self._sent += 1
        message = Message(exchange="", routing_key=address, body=body, properties=properties)
        try:
            sent = self._link.publish(message, timeout=self._publish_timeout)
        except CodedError as error:
            self._loop.call_soon(self._give_up, f"what it said cannot be sent: {error}")
        else:
            sent.add_done_callback(self._published)

    def _published(self, sent: Confirm) -> None:
        error = sent.exception()
        if isinstance(error, BrokerError | CodedError):
            # The next ones would be of no use to the reader, if there is one.
            self._give_up(f"what it said could not be sent: {error}")
