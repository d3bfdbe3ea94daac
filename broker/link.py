"""A link: keeps a channel open. It connects, has its owner set the channel up, and does so again when it is lost.

    link = Link(broker, "worker alpha", set_up=declare_and_consume, on_lost=forget_deliveries)
    await link.start(timeout=10)        # raises what stands in the way, if it still does by then
    future = link.publish(message, timeout=5)
    await link.close()

What is published while there is no channel waits for the next one, until its own timeout.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bridge_protocol.errors import BrokerUnavailable, CodedError
from broker.contract import AccessRefused, Broker, BrokerError, Channel, ChannelClosed, Message, TopologyMismatch

FIRST_PAUSE = 0.1
# Back within 30 s of the broker's return, even if the last attempt just failed.
LONGEST_PAUSE = 5.0
CLOSED_HERE = "the connection was closed here"

logger = logging.getLogger("quaybridge.broker")


class Link:
    """One supervised channel. Everything runs on the event loop that called `start`.

    `set_up` is awaited with each new channel before it is used, and may raise BrokerError to have it tried
    again; `on_lost` is called with the reason each time a channel that was in use is gone: its deliveries
    will come again, its unanswered requests will not be answered.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        *,
        set_up: Callable[[Channel], Awaitable[None]],
        on_lost: Callable[[str], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.broker = broker
        self.name = name
        self.channel: Channel | None = None
        self._set_up = set_up
        self._on_lost = on_lost
        self._jitter = jitter
        self._waiting: set[_Waiting] = set()
        self._closed: asyncio.Event = asyncio.Event()
        self._lost: asyncio.Future[str] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._trouble: BrokerError | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else "up" if self.channel is not None else "down"
        return f"<Link {self.name!r} to {self.broker.address} {state}, {len(self._waiting)} waiting>"

    @property
    def up(self) -> bool:
        """Whether there is a channel to publish on."""
        return self.channel is not None

    async def start(self, timeout: float) -> None:
        """Connect; returns when the channel is set up.

        Raises AccessRefused and TopologyMismatch at once, and the last ConnectionRefused or ChannelClosed
        after `timeout` seconds without success. The link is closed then.
        """
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._keeper = loop.create_task(self._keep(self._first), name=f"link {self.name}")
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._first)
        except TimeoutError:
            trouble = self._trouble or ChannelClosed(f"{self.broker.address} gave no answer within {timeout:g} s")
            await self.close()
            raise trouble from None
        except BaseException:
            await self.close()
            raise

    def publish(self, message: Message, *, timeout: float) -> asyncio.Future[None]:
        """Publish on the channel, or on the next one. The future ends within about `timeout` seconds.

        It ends as Channel.publish says, or with BrokerUnavailable: there was no channel in time, it was not sent.
        Raises BadRequest and TooLarge for a message that cannot be sent.
        """
        channel = self.channel
        if channel is not None and not channel.closed:
            return channel.publish(message, timeout=timeout)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(message, loop.time() + timeout, loop.create_future())
        self._waiting.add(waiting)
        if self._closed.is_set():
            self._give_up(waiting, CLOSED_HERE)
            return waiting.future
        timer = loop.call_later(timeout, self._give_up, waiting, f"no connection to {self.broker.address} in time")
        waiting.future.add_done_callback(lambda _: timer.cancel())
        return waiting.future

    def rebuild(self, reason: str) -> None:
        """Close the channel and open another: for an owner that finds it no longer trustworthy."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)

    async def close(self) -> None:
        """Stop for good. What waits ends in BrokerUnavailable."""
        self._closed.set()
        for waiting in list(self._waiting):
            self._give_up(waiting, CLOSED_HERE)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        channel, self.channel = self.channel, None
        if channel is not None:
            await channel.close()

    async def _keep(self, first: asyncio.Future[None]) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                lost = await self._connect()
            except BrokerError as error:
                self._report(error, failures)
                if not first.done() and isinstance(error, AccessRefused | TopologyMismatch):
                    first.set_exception(error)
                    return
                await asyncio.sleep(self._pause(failures))
                failures += 1
                continue
            if not first.done():
                first.set_result(None)
            elif self._trouble is not None:
                logger.info("%s: connected again to %s", self.name, self.broker.address)
            self._trouble = None
            failures = 0
            reason = await lost
            await self._drop(reason)

    async def _connect(self) -> asyncio.Future[str]:
        """A channel that is set up and in use; the future it gives ends, with the reason, when it is lost."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost = lost

        def on_closed(error: ChannelClosed) -> None:
            if not lost.done():
                lost.set_result(error.reason)

        channel = await self.broker.open(self.name, on_closed=on_closed, on_blocked=self._on_blocked)
        try:
            await self._set_up(channel)
        except BaseException:
            await channel.close()
            raise
        if lost.done():
            raise ChannelClosed(lost.result())
        self.channel = channel
        for waiting in list(self._waiting):
            self._send(waiting, channel)
        return lost

    async def _drop(self, reason: str) -> None:
        channel, self.channel = self.channel, None
        self._trouble = ChannelClosed(reason)
        logger.warning("%s: lost the connection to %s: %s", self.name, self.broker.address, reason)
        if channel is not None:
            await channel.close()
        if self._on_lost is not None:
            self._on_lost(reason)

    def _report(self, error: BrokerError, failures: int) -> None:
        """Say it once for each new reason, then only now and then."""
        if str(error) != str(self._trouble) or failures % 20 == 19:
            logger.warning("%s: cannot connect to %s: %s", self.name, self.broker.address, error)
        self._trouble = error

    def _pause(self, failures: int) -> float:
        return min(FIRST_PAUSE * 2.0 ** min(failures, 16), LONGEST_PAUSE) * (0.5 + self._jitter() / 2)

    def _on_blocked(self, reason: str | None) -> None:
        if reason is None:
            logger.info("%s: %s takes messages again", self.name, self.broker.address)
        else:
            logger.warning("%s: %s takes no messages for now: %s", self.name, self.broker.address, reason)

    def _give_up(self, waiting: _Waiting, reason: str) -> None:
        if waiting in self._waiting:
            self._waiting.discard(waiting)
            if not waiting.future.done():
                waiting.future.set_exception(BrokerUnavailable(f"not sent: {reason}"))

    def _send(self, waiting: _Waiting, channel: Channel) -> None:
        left = waiting.deadline - asyncio.get_running_loop().time()
        try:
            sent = channel.publish(waiting.message, timeout=max(left, 0.0))
        except ChannelClosed:
            return  # it waits for the channel after this one
        except CodedError as error:
            sent = asyncio.get_running_loop().create_future()
            sent.set_exception(error)
        self._waiting.discard(waiting)
        sent.add_done_callback(waiting.pass_on)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A message that waits for a channel, until `deadline` on the loop's clock."""

    message: Message
    deadline: float
    future: asyncio.Future[None]

    def pass_on(self, sent: asyncio.Future[None]) -> None:
        if self.future.done():
            return
        error = sent.exception()
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)
