"""Producer.collect: kept replies, for a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from rig import PATIENCE, Rig, foreign

from bridge_protocol.errors import BrokerUnavailable
from producer.producer import Producer
from producer.reply import Reply


async def in_a_thread(use: Callable[[Producer], None], rig: Rig) -> None:
    loop = asyncio.get_running_loop()

    def run() -> None:
        with Producer(rig.broker, loop=loop, reply_queue="batch") as producer:
            use(producer)

    await asyncio.wait_for(asyncio.to_thread(run), PATIENCE)


async def test_a_thread_collects_what_it_published_and_what_was_left(rig: Rig) -> None:
    await rig.serve(foreign())
    ids: list[str] = []

    def publish(producer: Producer) -> None:
        ids.extend(producer.publish("work", "echo", {"n": n}) for n in range(3))

    def collect(producer: Producer) -> None:
        ids.append(producer.publish("work", "echo", {"n": 3}))
        assert producer.call("work", "echo", {"n": 4}).result["echoed"] == {"n": 4}
        replies = producer.collect()
        assert [next(replies).message_id for _ in range(4)] == ids
        replies.close()  # the last was not acknowledged: it comes again
        (again,) = producer.collect(idle_timeout=0.2)
        assert isinstance(again, Reply)
        assert again.message_id == ids[3]

    await in_a_thread(publish, rig)
    await in_a_thread(collect, rig)
    assert rig.broker.counts("quaybridge.reply.batch") == (0, 0)


async def test_a_closed_producer_ends_the_collecting_thread(rig: Rig) -> None:
    await rig.serve(foreign())
    loop = asyncio.get_running_loop()

    def use() -> None:
        with Producer(rig.broker, loop=loop, reply_queue="batch") as producer:
            loop.call_soon_threadsafe(loop.call_later, 0.1, lambda: asyncio.ensure_future(producer._producer.close()))
            with pytest.raises(BrokerUnavailable, match="the producer is closed"):
                next(producer.collect())
        with pytest.raises(BrokerUnavailable, match="the producer is closed"):
            next(producer.collect())

    await asyncio.wait_for(asyncio.to_thread(use), PATIENCE)
    await asyncio.sleep(0)
