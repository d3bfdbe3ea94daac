"""Session, the one for threads: many threads, one live bridge."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from rig import PATIENCE, Rig, with_sdk

from bridge_protocol.errors import BadRequest, BridgeCrashed, SessionLost
from producer.producer import Producer

THREADS, EACH = 8, 20


async def test_many_threads_share_a_session_and_none_of_their_requests_runs_beside_another(rig: Rig) -> None:
    await rig.serve(with_sdk("counts"), bridges=2, sessions={"enabled": True})

    loop = asyncio.get_running_loop()

    def use() -> None:
        with Producer(rig.broker, loop=loop) as producer, producer.session("shared", service="work") as session:
            with ThreadPoolExecutor(THREADS) as threads:

                def count(_: int) -> list[int]:
                    return [session.call("count", timeout=PATIENCE).result["count"] for _ in range(EACH)]

                counted = list(threads.map(count, range(THREADS)))
            assert sorted(number for each in counted for number in each) == list(range(1, THREADS * EACH + 1))
            assert all(each == sorted(each) for each in counted), "a thread's own are in the order it gave them"
            assert session.epoch is not None
            assert repr(session).startswith("<Session 'shared' of work, strict, 0 waiting")

    await asyncio.to_thread(use)


async def test_submit_returns_at_once_and_outcomes_come_in_order(rig: Rig) -> None:
    await rig.serve(with_sdk("counts"), sessions={"enabled": True})

    loop = asyncio.get_running_loop()

    def use() -> None:
        with Producer(rig.broker, loop=loop) as producer:
            session = producer.session("s", service="work")
            outcomes = [session.submit("count", timeout=PATIENCE) for _ in range(30)]
            numbers = [outcome.result(PATIENCE).result["count"] for outcome in as_completed(outcomes, PATIENCE)]
            assert sorted(numbers) == list(range(1, 31))
            assert [outcome.result().result["count"] for outcome in outcomes] == list(range(1, 31))
            slow = session.submit("count", {"seconds": 0.3}, timeout=PATIENCE)
            waiting = session.submit("count", timeout=PATIENCE)
            assert waiting.cancel_request(timeout=PATIENCE)
            assert slow.result(PATIENCE).result["count"] == 31
            session.close()
            with pytest.raises(BadRequest, match="closed here"):
                session.call("count")

    await asyncio.to_thread(use)


async def test_a_loss_is_raised_in_the_thread_that_asked(rig: Rig) -> None:
    await rig.serve(with_sdk("counts"), sessions={"enabled": True})

    loop = asyncio.get_running_loop()

    def use() -> None:
        with Producer(rig.broker, loop=loop) as producer:
            session = producer.session("s", service="work")
            session.call("count", timeout=PATIENCE)
            with pytest.raises(BridgeCrashed):
                session.call("crash", timeout=PATIENCE)
            with pytest.raises(SessionLost, match="its bridge ended"):
                session.call("count", timeout=PATIENCE)
            assert session.call("count", timeout=PATIENCE).result["count"] == 1

    await asyncio.to_thread(use)
