"""Nobody serves it: told at once, whether the broker knows quaybridge yet or not."""

from __future__ import annotations

import pytest

from bridge_protocol.errors import OutcomeUnknown, UnknownService
from bridge_protocol.topology import EXCHANGE, service_topology, shared_topology
from broker.confirm import Confirm
from broker.contract import Channel, ChannelClosed, Message
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer


async def worker_channel(broker: MemoryBroker, service: str) -> Channel:
    channel = await broker.open("a worker", on_closed=lambda _: None)
    await channel.declare([*shared_topology(), *service_topology(service)])
    return channel


async def test_on_a_broker_where_no_worker_ever_was() -> None:
    async with AsyncProducer(MemoryBroker()) as producer:
        with pytest.raises(UnknownService, match="no worker was ever started"):
            await producer.call("echo", "echo", {}, timeout=5)
        with pytest.raises(UnknownService, match="no worker was ever started"):
            await producer.publish("echo", "echo", {}, timeout=5)


async def test_on_a_broker_where_workers_serve_something_else() -> None:
    broker = MemoryBroker()
    channel = await worker_channel(broker, "other")
    async with AsyncProducer(broker) as producer:
        with pytest.raises(UnknownService, match="a typing error in the name"):
            await producer.call("echo", "echo", {}, timeout=5)
    await channel.close()


async def test_an_exchange_that_was_there_before_leaves_the_outcome_unknown() -> None:
    # What was published before the exchange went may have been taken: nobody can tell from the 404.
    broker = ScriptedBroker()
    async with AsyncProducer(broker) as producer:
        await producer.publish("echo", "echo", {}, timeout=5)
        broker.missing = True
        with pytest.raises(OutcomeUnknown, match="no exchange"):
            await producer.publish("echo", "echo", {}, timeout=5)


class ScriptedBroker(MemoryBroker):
    """A broker whose exchange goes away when it is told so."""

    missing = False

    async def open(self, name: str, **callbacks: object) -> Channel:  # type: ignore[override]  # passed on whole
        channel = await super().open(name, **callbacks)  # type: ignore[arg-type]  # passed on whole
        await channel.declare([*shared_topology(), *service_topology("echo")])
        publish = channel.publish

        def scripted(message: Message, *, timeout: float) -> Confirm:
            if not self.missing:
                return publish(message, timeout=timeout)
            gone = Confirm()
            gone.fail(ChannelClosed(f"no exchange {EXCHANGE!r}", 404))
            return gone

        channel.publish = scripted  # type: ignore[method-assign]  # the script
        return channel
