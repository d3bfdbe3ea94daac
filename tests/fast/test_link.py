"""The link: connects, connects again, and says what became of each publish. On a clock that does not wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from scripted_broker import ScriptedBroker, ScriptedChannel
from virtual_time import turns, virtual_time

from bridge_protocol.envelope import Properties
from bridge_protocol.errors import BadRequest, BrokerUnavailable, TooLarge
from bridge_protocol.topology import EXCHANGE, service_topology, shared_topology
from broker.confirm import Confirm
from broker.contract import (
    AccessRefused,
    Broker,
    BrokerError,
    Channel,
    ChannelClosed,
    ConnectionRefused,
    Message,
    TopologyMismatch,
    Unroutable,
)
from broker.limits import MAX_BODY
from broker.link import FIRST_PAUSE, LONGEST_PAUSE, SET_UP_TIMEOUT, STEADY, Link
from broker.memory import MemoryBroker

REFUSED = ConnectionRefused("scripted cannot be reached: Connection refused")


def message(body: str = "", *, key: str = "echo") -> Message:
    return Message(exchange=EXCHANGE, routing_key=key, body=body.encode(), properties=Properties())


class Owner:
    """Whose link it is: counts what the link tells it."""

    def __init__(
        self, broker: Broker, *, set_up: Callable[[Channel], Awaitable[None]] | None = None, jitter: float = 1.0
    ) -> None:
        self.channels: list[Channel] = []
        self.losses: list[str] = []
        self._own_set_up = set_up
        self.link = Link(broker, "owner", set_up=self._set_up, on_lost=self._on_lost, jitter=lambda: jitter)

    async def _set_up(self, channel: Channel) -> None:
        self.channels.append(channel)
        if self._own_set_up is not None:
            await self._own_set_up(channel)

    def _on_lost(self, reason: str) -> None:
        assert all(channel.closed for channel in self.channels)
        self.losses.append(reason)


def now() -> float:
    return asyncio.get_running_loop().time()


# Starting.


@virtual_time
async def test_start_tries_until_it_works() -> None:
    broker = ScriptedBroker([REFUSED, REFUSED, REFUSED])
    owner = Owner(broker)
    await owner.link.start(10)
    assert owner.link.up
    assert owner.channels == broker.channels
    assert owner.link.channel is broker.channel
    assert broker.tried_at == pytest.approx([0, 0.1, 0.3, 0.7])
    await owner.link.close()


@pytest.mark.parametrize("error", [AccessRefused("no"), TopologyMismatch("other arguments"), BrokerError("wrong loop")])
def test_what_no_further_try_changes_is_raised_at_once(error: BrokerError, caplog: pytest.LogCaptureFixture) -> None:
    @virtual_time
    async def run() -> None:
        broker = ScriptedBroker([error])
        owner = Owner(broker)
        with pytest.raises(type(error)) as raised:
            await owner.link.start(10)
        assert raised.value is error
        assert now() == 0
        assert broker.tried_at == [0]

    run()
    assert caplog.messages == []  # who gets the exception need not read it twice


@virtual_time
async def test_a_set_up_that_mismatches_is_raised_at_once_and_its_channel_closed() -> None:
    async def set_up(channel: Channel) -> None:
        raise TopologyMismatch("a queue exists with other arguments")

    broker = ScriptedBroker()
    with pytest.raises(TopologyMismatch, match="other arguments"):
        await Owner(broker, set_up=set_up).link.start(10)
    assert [channel.closed for channel in broker.channels] == [True]


@virtual_time
async def test_start_gives_up_with_the_last_trouble() -> None:
    broker = ScriptedBroker([ConnectionRefused(f"trouble {number}") for number in range(100)])
    owner = Owner(broker)
    with pytest.raises(ConnectionRefused) as raised:
        await owner.link.start(10)
    assert now() == 10
    assert str(raised.value) == f"trouble {len(broker.tried_at) - 1}"
    assert not owner.link.up
    with pytest.raises(BrokerUnavailable):
        await owner.link.publish(message(), timeout=5)


@virtual_time
async def test_start_gives_up_on_a_broker_that_says_nothing() -> None:
    owner = Owner(ScriptedBroker([1e6]))
    with pytest.raises(ChannelClosed, match="scripted gave no answer in 10 s"):
        await owner.link.start(10)
    assert now() == 10


@virtual_time
async def test_a_bug_in_set_up_is_raised_by_start() -> None:
    async def set_up(channel: Channel) -> None:
        raise KeyError("a bug")

    broker = ScriptedBroker()
    with pytest.raises(KeyError, match="a bug"):
        await Owner(broker, set_up=set_up).link.start(10)
    assert now() == 0
    assert broker.channel.closed


@virtual_time
async def test_a_channel_lost_during_set_up_is_tried_again() -> None:
    async def set_up(channel: Channel) -> None:
        if len(broker.channels) == 1:
            broker.channel.fail("lost during set-up")
            await turns(2)

    broker = ScriptedBroker()
    owner = Owner(broker, set_up=set_up)
    await owner.link.start(10)
    assert len(broker.channels) == 2
    assert owner.losses == []  # it was never in use
    await owner.link.close()


@virtual_time
async def test_a_rebuild_during_set_up_closes_that_channel() -> None:
    async def set_up(channel: Channel) -> None:
        if len(broker.channels) == 1:
            owner.link.rebuild("its queue was deleted")

    broker = ScriptedBroker()
    owner = Owner(broker, set_up=set_up)
    await owner.link.start(10)
    assert [channel.closed for channel in broker.channels] == [True, False]
    await owner.link.close()


@virtual_time
async def test_it_is_started_once() -> None:
    owner = Owner(ScriptedBroker())
    await owner.link.start(1)
    with pytest.raises(RuntimeError, match="started or closed before"):
        await owner.link.start(1)
    assert owner.link.up
    await owner.link.close()
    with pytest.raises(RuntimeError, match="started or closed before"):
        await owner.link.start(1)


@virtual_time
async def test_a_cancelled_start_leaves_nothing() -> None:
    broker = ScriptedBroker([5.0])
    starting = asyncio.ensure_future(Owner(broker).link.start(10))
    await asyncio.sleep(1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert broker.channels == []


# Connecting again.


@virtual_time
async def test_it_connects_again_with_growing_pauses() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    await asyncio.sleep(STEADY)
    broker.answers = [REFUSED] * 9
    broker.channel.fail("the cable was pulled")
    await asyncio.sleep(60)
    assert owner.link.up
    assert owner.losses == ["the cable was pulled"]
    tries = broker.tried_at[1:]
    pauses = [later - earlier for earlier, later in zip([STEADY, *tries], tries, strict=False)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])
    await owner.link.close()


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_pauses_are_jittered(jitter: float, share: float) -> None:
    @virtual_time
    async def run() -> None:
        broker = ScriptedBroker([REFUSED, REFUSED])
        owner = Owner(broker, jitter=jitter)
        await owner.link.start(10)
        assert broker.tried_at == pytest.approx([0, 0.1 * share, 0.3 * share])
        await owner.link.close()

    run()


@virtual_time
async def test_a_channel_that_does_not_last_is_opened_ever_less_often() -> None:
    async def set_up(channel: Channel) -> None:
        loop.call_later(0.01, broker.channel.fail, "poison")

    loop = asyncio.get_running_loop()
    broker = ScriptedBroker()
    owner = Owner(broker, set_up=set_up)
    await owner.link.start(10)
    await asyncio.sleep(60)
    assert len(owner.losses) < 20
    assert broker.tried_at[-1] - broker.tried_at[-2] >= LONGEST_PAUSE
    await owner.link.close()


@virtual_time
async def test_a_channel_that_lasted_is_replaced_soon() -> None:
    broker = ScriptedBroker([REFUSED] * 8)
    owner = Owner(broker)
    await owner.link.start(60)
    for _ in range(5):
        await asyncio.sleep(STEADY + 1)
        lost_at = now()
        broker.channel.fail("lost")
        await asyncio.sleep(1)
        assert broker.tried_at[-1] == pytest.approx(lost_at + FIRST_PAUSE)
    assert len(owner.losses) == 5
    assert len(owner.channels) == 6
    await owner.link.close()


@virtual_time
async def test_permanent_errors_are_tried_again_once_it_has_worked() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    broker.answers = [AccessRefused("the password was changed"), TopologyMismatch("under migration")]
    broker.channel.fail("lost")
    await asyncio.sleep(10)
    assert owner.link.up
    await owner.link.close()


def test_a_broker_that_lets_in_and_then_answers_nothing_is_left_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @virtual_time
    async def run() -> None:
        async def set_up(channel: Channel) -> None:
            if len(broker.channels) == 2:
                await asyncio.Event().wait()  # a queue without a majority: it neither takes nor refuses a consumer

        broker = ScriptedBroker()
        owner = Owner(broker, set_up=set_up)
        await owner.link.start(10)
        broker.channel.fail("lost")
        await asyncio.sleep(SET_UP_TIMEOUT - 1)
        assert not owner.link.up
        await asyncio.sleep(2)
        assert owner.link.up
        assert [channel.closed for channel in broker.channels] == [True, True, False]
        await owner.link.close()

    run()
    assert caplog.messages[-1] == "owner: cannot connect: scripted let us in, and then gave no answer in 30 s"


@virtual_time
async def test_rebuild_replaces_the_channel() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    owner.link.rebuild("a subscription was ended")
    owner.link.rebuild("and again")
    await asyncio.sleep(1)
    assert [channel.closed for channel in broker.channels] == [True, False]
    assert owner.losses == ["a subscription was ended"]
    await owner.link.close()


@virtual_time
async def test_rebuild_without_a_channel_does_nothing() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    owner.link.rebuild("before the start")
    await owner.link.start(10)
    broker.answers = [REFUSED]
    broker.channel.fail("lost")
    await asyncio.sleep(FIRST_PAUSE * 1.5)
    owner.link.rebuild("while it is down")
    await asyncio.sleep(5)
    assert owner.losses == ["lost"]
    assert len(broker.channels) == 2
    await owner.link.close()


def test_a_bug_while_connecting_again_ends_the_link_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    @virtual_time
    async def run() -> None:
        async def set_up(channel: Channel) -> None:
            if len(broker.channels) > 1:
                raise KeyError("a bug")

        broker = ScriptedBroker()
        owner = Owner(broker, set_up=set_up)
        await owner.link.start(10)
        broker.channel.fail("lost")
        await turns(3)
        waiting = owner.link.publish(message(), timeout=30)
        await asyncio.sleep(1)
        for sent in (waiting, owner.link.publish(message(), timeout=30)):
            with pytest.raises(BrokerUnavailable, match=r"not sent: the connection is out of use: KeyError\('a bug'\)"):
                await sent
        assert now() == 1
        assert broker.channel.closed
        await owner.link.close()

    run()
    assert caplog.messages == ["owner: connection lost: lost", "owner: out of use: KeyError('a bug')"]
    assert caplog.records[-1].exc_info is not None


# Publishing.


@virtual_time
async def test_what_is_published_while_it_is_down_goes_out_in_order() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    broker.answers = [REFUSED]
    broker.channel.fail("lost")
    bodies = [f"{number}" for number in range(100)]
    sent = []
    for body in bodies:
        sent.append(owner.link.publish(message(body), timeout=5))
        await asyncio.sleep(0.001)
    assert broker.channels[0].published == []
    await asyncio.sleep(1)
    assert broker.channel.bodies() == [body.encode() for body in bodies]
    for number, (_, future) in enumerate(broker.channel.published):
        if number % 2:
            future.succeed()
        else:
            future.fail(Unroutable("returned"))
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert all((outcome is None) == bool(number % 2) for number, outcome in enumerate(outcomes))
    await owner.link.close()


@virtual_time
async def test_what_could_not_be_sent_in_time_is_never_sent() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    broker.answers = [REFUSED] * 5
    broker.channel.fail("lost")
    early, late = owner.link.publish(message("early"), timeout=1), owner.link.publish(message("late"), timeout=30)
    with pytest.raises(BrokerUnavailable) as raised:
        await early
    assert now() == 1
    assert str(raised.value) == f"not sent: no connection to scripted in time: {REFUSED}"
    await asyncio.sleep(10)
    assert broker.channel.bodies() == [b"late"]
    broker.channel.published[0][1].succeed()
    await late
    await owner.link.close()


@virtual_time
async def test_a_publish_under_way_at_the_loss_ends_there() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    sent = owner.link.publish(message("a"), timeout=30)
    broker.channel.fail("lost")
    with pytest.raises(ChannelClosed, match="lost"):
        await sent
    await asyncio.sleep(5)
    assert broker.channels[1].published == []
    await owner.link.close()


@virtual_time
async def test_what_waited_has_only_the_rest_of_its_time_and_goes_where_it_is_readdressed() -> None:
    class Timed(ScriptedChannel):
        def publish(self, message: Message, *, timeout: float) -> Confirm:
            timeouts.append(timeout)
            confirm = super().publish(message, timeout=timeout)
            confirm.succeed()
            return confirm

    class TimedBroker(ScriptedBroker):
        async def open(
            self,
            name: str,
            *,
            on_closed: Callable[[ChannelClosed], None],
            on_blocked: Callable[[str | None], None] | None = None,
        ) -> Channel:
            await asyncio.sleep(1)
            self.channels.append(Timed(on_closed))
            return self.channels[-1]

    async def set_up(channel: Channel) -> None:
        pass

    timeouts: list[float] = []
    broker = TimedBroker()
    link = Link(broker, "link", set_up=set_up, readdress=lambda message: replace(message, routing_key="elsewhere"))
    starting = asyncio.ensure_future(link.start(10))
    await turns(2)
    waited = link.publish(message(), timeout=5)
    await starting
    direct = link.publish(message(), timeout=5)
    await waited
    await direct
    assert timeouts == [4, 5]
    assert [sent.routing_key for sent, _ in broker.channel.published] == ["elsewhere", "echo"]
    await link.close()


@virtual_time
async def test_what_cannot_be_sent_is_refused_even_while_it_is_down() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    for state in ("up", "down"):
        with pytest.raises(TooLarge):
            owner.link.publish(message("x" * (MAX_BODY + 1)), timeout=5)
        with pytest.raises(BadRequest):
            owner.link.publish(message(key="k" * 256), timeout=5)
        assert f" {state}, 0 waiting" in repr(owner.link)
        broker.channel.fail("lost")
    await owner.link.close()


@virtual_time
async def test_publishing_before_the_start_says_so() -> None:
    with pytest.raises(BrokerUnavailable, match="not sent: the connection was not started"):
        await Owner(ScriptedBroker()).link.publish(message(), timeout=30)
    assert now() == 0


# Closing.


@virtual_time
async def test_close_ends_everything_and_may_come_twice() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    sent = owner.link.publish(message(), timeout=30)
    await asyncio.gather(owner.link.close(), owner.link.close())
    await owner.link.close()
    assert broker.channel.closed
    assert owner.losses == []
    with pytest.raises(ChannelClosed):
        await sent
    with pytest.raises(BrokerUnavailable, match="not sent: the connection was closed here"):
        await owner.link.publish(message(), timeout=30)
    assert now() == 0


@virtual_time
async def test_close_while_it_is_down_ends_what_waits() -> None:
    broker = ScriptedBroker()
    owner = Owner(broker)
    await owner.link.start(10)
    broker.answers = [REFUSED] * 100
    broker.channel.fail("lost")
    await turns(3)
    sent = [owner.link.publish(message(), timeout=30) for _ in range(3)]
    await owner.link.close()
    for future in sent:
        with pytest.raises(BrokerUnavailable, match="closed here"):
            await future
    assert now() == 0


@virtual_time
async def test_close_while_it_connects_ends_the_start() -> None:
    owner = Owner(ScriptedBroker([100.0]))
    starting = asyncio.ensure_future(owner.link.start(60))
    await asyncio.sleep(1)
    await owner.link.close()
    with pytest.raises(ChannelClosed, match="closed here"):
        await starting
    assert now() == 1


@virtual_time
async def test_close_without_start_is_safe() -> None:
    owner = Owner(ScriptedBroker())
    await owner.link.close()
    with pytest.raises(RuntimeError):
        await owner.link.start(1)


# What an operator reads.


def test_each_trouble_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    @virtual_time
    async def run() -> None:
        broker = ScriptedBroker()
        owner = Owner(broker)
        await owner.link.start(10)
        broker.answers = [REFUSED] * 10 + [AccessRefused("the password is wrong")] * 2
        broker.channel.fail("the cable was pulled")
        await asyncio.sleep(120)
        await owner.link.close()

    caplog.set_level(logging.INFO, "quaybridge.broker")
    run()
    assert caplog.messages == [
        "owner: connection lost: the cable was pulled",
        "owner: cannot connect: scripted cannot be reached: Connection refused",
        "owner: cannot connect: the password is wrong",
        "owner: connected again to scripted",
    ]


def test_a_long_outage_is_recalled_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    @virtual_time
    async def run() -> None:
        owner = Owner(ScriptedBroker([REFUSED] * 1000))
        with pytest.raises(ConnectionRefused):
            await owner.link.start(600)

    run()
    assert 5 <= len(caplog.messages) <= 8
    assert set(caplog.messages) == {"owner: cannot connect: scripted cannot be reached: Connection refused"}


# On a broker that behaves.


def test_the_embedded_broker_lost_blocked_and_back(caplog: pytest.LogCaptureFixture) -> None:
    @virtual_time
    async def run() -> None:
        async def set_up(channel: Channel) -> None:
            await channel.declare([*shared_topology(), *service_topology("echo")])

        broker = MemoryBroker()
        owner = Owner(broker, set_up=set_up)
        await owner.link.start(10)
        await owner.link.publish(message("first"), timeout=5)
        broker.close_all("by the operator")
        await owner.link.publish(message("second"), timeout=5)
        assert owner.losses == ["CONNECTION_FORCED - by the operator"]
        broker.block("low on memory")
        held = owner.link.publish(message("third"), timeout=5)
        await asyncio.sleep(1)
        assert not held.done()
        broker.unblock()
        await held
        assert [sent.body for sent in broker.messages("quaybridge.echo")] == [b"first", b"second", b"third"]
        await owner.link.close()
        assert "0 channels" in repr(broker)

    caplog.set_level(logging.INFO, "quaybridge.broker")
    run()
    assert caplog.messages == [
        "owner: connection lost: CONNECTION_FORCED - by the operator",
        "owner: connected again to memory",
        "owner: memory takes no messages for now: low on memory",
        "owner: memory takes messages again",
    ]
