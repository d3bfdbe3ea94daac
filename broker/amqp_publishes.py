"""The publishes of one channel that have not ended yet.

add() ─┬─ the broker is blocked: held ──▶ Blocked, if it stays so past the deadline, or the channel closes
       └─ sent, numbered ──┬─ ack ─────▶ None      (one ack may stand for many)
                           ├─ nack ────▶ Refused
                           ├─ return ──▶ Unroutable (its ack, which follows, is of no interest)
                           ├─ deadline ▶ OutcomeUnknown
                           └─ the channel closes ▶ ChannelClosed
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from bridge_protocol.envelope import Properties
from bridge_protocol.errors import Blocked, OutcomeUnknown, Refused
from broker.confirm import Confirm
from broker.contract import ChannelClosed, Message, Unroutable

SWEEP_INTERVAL = 0.1  # seconds: how late a publish may notice that its time is over


class Publish(Confirm):
    """One publish, which its caller holds. `deadline` on the loop's clock."""

    __slots__ = ("deadline", "message")

    def __init__(self, message: Message, deadline: float) -> None:
        super().__init__()
        self.message = message
        self.deadline = deadline


class Publishes:
    """Numbers publishes as the broker does, and ends each once. `send` writes a message."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[Message], None]) -> None:
        self.blocked: str | None = None
        self._loop = loop
        self._send_message = send
        self._sequence = 0
        self._first = 1  # no number below it is unconfirmed
        self._unconfirmed: dict[int, Publish] = {}  # by sequence number, in order
        self._held: deque[Publish] = deque()  # not sent: the broker is blocked
        self._sweep_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Publishes {len(self._unconfirmed)} unconfirmed, {len(self._held)} held>"

    def add(self, message: Message, timeout: float) -> Publish:
        """Send `message`, or hold it back; it ends as the picture shows."""
        publish = Publish(message, self._loop.time() + timeout)
        if self.blocked is None:
            self._send(publish)
        else:
            self._held.append(publish)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL, self._sweep)
        return publish

    def on_confirm(self, sequence: int, multiple: bool, taken: bool) -> None:
        """Ack (`taken`) or nack of number `sequence`; `multiple`: and of all before it."""
        if not multiple:
            if publish := self._unconfirmed.pop(sequence, None):
                _end(publish, taken)
            return
        last = min(sequence, self._sequence)
        for number in range(self._first, last + 1):
            if publish := self._unconfirmed.pop(number, None):
                _end(publish, taken)
        self._first = max(self._first, last + 1)

    def on_return(self, exchange: str, routing_key: str, properties: Properties) -> None:
        """A message came back. Which one is not said: the first like it, as they come in the order they were sent."""
        for sequence, publish in self._unconfirmed.items():
            message = publish.message
            if (
                message.properties.message_id == properties.message_id
                and message.properties.correlation_id == properties.correlation_id
                and message.routing_key == routing_key
                and message.exchange == exchange
            ):
                del self._unconfirmed[sequence]
                publish.fail(Unroutable(f"no queue is bound to {routing_key!r} of exchange {exchange!r}"))
                return

    def on_blocked(self, reason: str | None) -> None:
        """Hold back from now on (why), or send what was held (None)."""
        self.blocked = reason
        if reason is None:
            held, self._held = self._held, deque()
            for publish in held:
                self._send(publish)

    def end(self, reason: ChannelClosed) -> None:
        """The channel is closed: end them all."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        held, self._held = self._held, deque()
        for publish in unconfirmed.values():
            # One each: whoever raises an exception writes its traceback into it.
            publish.fail(ChannelClosed(reason.reason, reason.code))
        for publish in held:
            message_id = publish.message.properties.message_id
            text = f"the broker took no messages ({self.blocked}), and then the channel closed: {reason.reason}"
            publish.fail(Blocked(text, message_id=message_id))

    def _send(self, publish: Publish) -> None:
        self._sequence += 1
        self._unconfirmed[self._sequence] = publish
        self._send_message(publish.message)

    def _sweep(self) -> None:
        """End what is late. One timer for all, which runs only while there is something to wait for."""
        now = self._loop.time()
        for sequence in [number for number, publish in self._unconfirmed.items() if publish.deadline <= now]:
            publish = self._unconfirmed.pop(sequence)
            message_id = publish.message.properties.message_id
            publish.fail(OutcomeUnknown("the broker did not confirm the message in time", message_id=message_id))
        for _ in range(len(self._held)):
            publish = self._held.popleft()
            if publish.deadline > now:
                self._held.append(publish)
                continue
            message_id = publish.message.properties.message_id
            publish.fail(Blocked(f"the broker takes no messages: {self.blocked}", message_id=message_id))
        waiting = self._unconfirmed or self._held
        self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL, self._sweep) if waiting else None


def _end(publish: Publish, taken: bool) -> None:
    if taken:
        publish.succeed()
        return
    message = publish.message
    publish.fail(
        Refused(
            f"the broker refused a message for {message.routing_key!r}: a queue is full or unavailable",
            message_id=message.properties.message_id,
        )
    )
