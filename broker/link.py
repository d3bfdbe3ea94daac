"""A link: keeps a channel open. It connects, has its owner set the channel up, and does so again when it is lost.

    link = Link(broker, "worker alpha", set_up=declare_and_consume, on_lost=forget_deliveries)
    await link.start(timeout=10)        # raises what stands in the way, if it still does by then
    confirm = link.publish(message, timeout=5)
    await link.close()

What is published while there is no channel waits for the next one, until its own timeout.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from bridge_protocol.errors import BrokerUnavailable
from broker.confirm import Confirm
from broker.contract import Broker, BrokerError, Channel, ChannelClosed, ConnectionRefused, Message
from broker.limits import check_message

FIRST_PAUSE = 0.1  # seconds before a first try to connect again; doubles with each further one
# Back within 30 s of the broker's return, even if the last attempt just failed.
LONGEST_PAUSE = 5.0  # seconds
# A queue whose majority is gone answers nobody, on a connection that is well.
SET_UP_TIMEOUT = 30.0  # seconds for the owner to set a channel up
STEADY = 10.0  # seconds a channel has to last for its loss to be a first one again

NOT_STARTED = "the connection was not started"
CLOSED_HERE = "the connection was closed here"

logger = logging.getLogger("quaybridge.broker")


class Link:
    """One supervised channel. It is started once, and runs on the event loop that did so.

    `set_up` is awaited with each new channel before it is used, and may raise BrokerError to have it tried
    again; `on_lost` is called with the reason each time a channel that was in use is gone, and closed: its
    deliveries will come again, its unanswered requests will not be answered. It is not called by `close`.
    `readdress` is given each message that waited for a channel, before it is sent: what was made for an
    earlier channel (its address for replies) is made anew there.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        *,
        set_up: Callable[[Channel], Awaitable[None]],
        on_lost: Callable[[str], None] | None = None,
        readdress: Callable[[Message], Message] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.broker = broker
        self.name = name
        self.channel: Channel | None = None
        self._set_up = set_up
        self._on_lost = on_lost
        self._readdress = readdress
        self._jitter = jitter
        self._waiting: dict[_Waiting, None] = {}  # in the order in which they will be sent
        self._out_of_use: str | None = NOT_STARTED  # why it neither has a channel nor will have one
        self._lost: asyncio.Future[str] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._trouble: BrokerError | None = None

    def __repr__(self) -> str:
        state = "out of use" if self._out_of_use else "up" if self.up else "down"
        return f"<Link {self.name!r} to {self.broker.address} {state}, {len(self._waiting)} waiting>"

    @property
    def up(self) -> bool:
        """Whether there is a channel to publish on."""
        return self.channel is not None and not self.channel.closed

    async def start(self, timeout: float) -> None:
        """Connect; returns when the channel is set up.

        Raises at once what no further try would change (AccessRefused, TopologyMismatch, and what `set_up`
        raises beside BrokerError), and the last ConnectionRefused or ChannelClosed after `timeout` seconds
        without success. The link is closed then. Raises RuntimeError if it was started or closed before.
        """
        if self._out_of_use is not NOT_STARTED or self._keeper is not None:
            raise RuntimeError(f"{self!r} was started or closed before: make another")
        self._out_of_use = None
        loop = asyncio.get_running_loop()
        first: asyncio.Future[None] = loop.create_future()
        self._keeper = loop.create_task(self._keep(first), name=f"link {self.name}")
        self._keeper.add_done_callback(lambda keeper: self._on_keeper_done(keeper, first))
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(first)
        except TimeoutError:
            await self.close()
            raise self._trouble or ChannelClosed(f"{self.broker.address} gave no answer in {timeout:g} s") from None
        except BaseException:
            await self.close()
            raise

    def publish(self, message: Message, *, timeout: float) -> Confirm:
        """Publish on the channel, or on the next one. The confirm ends within about `timeout` seconds.

        It ends as Channel.publish says, or with BrokerUnavailable: there was no channel in time, it was not
        sent and will not be. Raises BadRequest and TooLarge for a message that cannot be sent.
        """
        channel = self.channel
        if channel is not None and self._out_of_use is None and not channel.closed:
            return channel.publish(message, timeout=timeout)
        check_message(message)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(message, loop.time() + timeout)
        if self._out_of_use is not None:
            waiting.give_up(self._out_of_use)
            return waiting
        self._waiting[waiting] = None
        timer = loop.call_at(waiting.deadline, self._overdue, waiting)

        def forget(_: object) -> None:
            timer.cancel()
            self._waiting.pop(waiting, None)

        waiting.add_done_callback(forget)
        return waiting

    def rebuild(self, reason: str) -> None:
        """Close the channel and open another: for an owner that finds it no longer trustworthy."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)

    async def close(self) -> None:
        """Stop for good. What waits ends in BrokerUnavailable."""
        self._retire(CLOSED_HERE)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        channel, self.channel = self.channel, None
        if channel is not None:
            await channel.close()

    async def _keep(self, first: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                lost = await self._connect()
            except BrokerError as error:
                if not first.done() and not isinstance(error, ConnectionRefused | ChannelClosed):
                    first.set_exception(error)
                    return
                self._report(error, failures)
            else:
                since = loop.time()
                if not first.done():
                    first.set_result(None)
                elif self._trouble is not None:
                    logger.info("%s: connected again to %s", self.name, self.broker.address)
                self._trouble = None
                reason = await lost
                await self._drop(reason)
                if loop.time() - since >= STEADY:
                    failures = 0
            # After a loss too: a broker that restarts loses everybody at once, and may be lost again at once.
            await asyncio.sleep(self._pause(failures))
            failures += 1

    async def _connect(self) -> asyncio.Future[str]:
        """A channel that is set up and in use; the future it gives ends, with the reason, when it is lost."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost = lost

        def on_closed(error: ChannelClosed) -> None:
            if not lost.done():
                lost.set_result(error.reason)

        channel = await self.broker.open(self.name, on_closed=on_closed, on_blocked=self._on_blocked)
        try:
            await self._set_up_in_time(channel)
            if lost.done():
                raise ChannelClosed(lost.result())
        except BaseException:
            await channel.close()
            raise
        self.channel = channel
        for waiting in list(self._waiting):
            self._send(waiting, channel)
        return lost

    async def _set_up_in_time(self, channel: Channel) -> None:
        try:
            async with asyncio.timeout(SET_UP_TIMEOUT):
                await self._set_up(channel)
        except TimeoutError:
            reason = f"{self.broker.address} let us in, and then gave no answer in {SET_UP_TIMEOUT:g} s"
            raise ChannelClosed(reason) from None

    async def _drop(self, reason: str) -> None:
        channel = self.channel
        assert channel is not None
        self._trouble = ChannelClosed(reason)
        logger.warning("%s: connection lost: %s", self.name, reason)
        if not channel.closed:  # it is being rebuilt
            await channel.close()
        if self._on_lost is not None:
            self._on_lost(reason)
        # Told first: this may wait a few seconds for a socket.
        await channel.close()
        self.channel = None

    def _on_keeper_done(self, keeper: asyncio.Task[None], first: asyncio.Future[None]) -> None:
        """Nothing ends the keeper but `close`, an error that is for `start` to raise, and a bug."""
        bug = None if keeper.cancelled() else keeper.exception()
        if not first.done():
            first.set_exception(bug or ChannelClosed(CLOSED_HERE))
            first.exception()  # a `start` that was cancelled is not there to take it; asyncio would log that
        elif bug is not None:
            logger.error("%s: out of use: %r", self.name, bug, exc_info=bug)
            self._retire(f"the connection is out of use: {bug!r}")

    def _retire(self, reason: str) -> None:
        self._out_of_use = reason
        for waiting in list(self._waiting):
            waiting.give_up(reason)

    def _report(self, error: BrokerError, failures: int) -> None:
        """Say it once for each new reason, then only now and then."""
        if str(error) != str(self._trouble) or failures % 20 == 19:
            logger.warning("%s: cannot connect: %s", self.name, error)
        self._trouble = error

    def _pause(self, failures: int) -> float:
        return min(FIRST_PAUSE * 2.0 ** min(failures, 16), LONGEST_PAUSE) * (0.5 + self._jitter() / 2)

    def _on_blocked(self, reason: str | None) -> None:
        if reason is None:
            logger.info("%s: %s takes messages again", self.name, self.broker.address)
        else:
            logger.warning("%s: %s takes no messages for now: %s", self.name, self.broker.address, reason)

    def _overdue(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            because = f": {self._trouble}" if self._trouble is not None else ""
            waiting.give_up(f"no connection to {self.broker.address} in time{because}")

    def _send(self, waiting: _Waiting, channel: Channel) -> None:
        left = waiting.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return  # about to be given up
        message = waiting.message if self._readdress is None else self._readdress(waiting.message)
        try:
            sent = channel.publish(message, timeout=left)
        except ChannelClosed:
            return  # it waits for the channel after this one
        del self._waiting[waiting]
        sent.add_done_callback(waiting.pass_on)


class _Waiting(Confirm):
    """A message that waits for a channel, until `deadline` on the loop's clock."""

    __slots__ = ("deadline", "message")

    def __init__(self, message: Message, deadline: float) -> None:
        super().__init__()
        self.message = message
        self.deadline = deadline

    def give_up(self, reason: str) -> None:
        self.fail(BrokerUnavailable(f"not sent: {reason}", message_id=self.message.properties.message_id))

    def pass_on(self, sent: Confirm) -> None:
        error = sent.exception()
        if error is None:
            self.succeed()
        else:
            self.fail(error)
