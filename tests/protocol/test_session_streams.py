"""Streams and progress in sessions, on the embedded broker and real bridges: in turn, and what a loss does to them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rig import PATIENCE, Rig, until, with_sdk

from bridge_protocol.errors import BadRequest, BridgeCrashed, DeadlineExceeded, SessionLost, StreamRestarted
from producer.producer import Producer
from producer.progress import Progress
from producer.session import AsyncSession
from producer.stream import AsyncStream
from worker_node.node import Node


async def serve(rig: Rig, **options: Any) -> Node:
    await rig.serve(with_sdk("counts"), sessions={"enabled": True}, **options)
    return rig.nodes[-1]


def climb(session: AsyncSession, to: int, *, on_restart: Any = None, **args: Any) -> AsyncStream:
    return session.stream("climb", {"to": to, **args}, timeout=PATIENCE, on_restart=on_restart)


async def count(session: AsyncSession) -> int:
    number: int = (await session.call("count", timeout=PATIENCE)).result["count"]
    return number


async def read(stream: AsyncStream, into: list[int]) -> list[int]:
    async for number in stream:
        into.append(number)
    return into


async def test_a_stream_takes_its_turn_and_those_after_it_wait_for_its_end(rig: Rig) -> None:
    node = await serve(rig, bridges=2)
    session = rig.producer.session("s", service="work")
    before = await session.submit("count", {"seconds": 0.2}, timeout=PATIENCE)
    stream = climb(session, 600, pause=0.0002)
    reading = asyncio.create_task(read(stream, []))
    await asyncio.sleep(0)  # it is in line now
    after = await session.submit("count", timeout=PATIENCE)
    assert await reading == list(range(2, 602))
    assert (await before).result["count"] == 1
    assert (await after).result["count"] == 602
    assert stream.reply is not None
    assert stream.reply.result == 601
    assert stream.reply.session_epoch == session.epoch
    assert node.counts["work"].succeeded == 3
    # One that is never iterated is never sent, and holds up nobody.
    climb(session, 5)
    assert await count(session) == 603


async def test_leaving_early_ends_the_work_and_the_session_goes_on(rig: Rig) -> None:
    node = await serve(rig)
    session = rig.producer.session("s", service="work")
    async for number in climb(session, 10**6, pause=0.001):
        if number == 5:
            break
    asked = await session.submit("count", timeout=PATIENCE)
    assert session.epoch is None
    reached = (await asked).result["count"]
    assert 6 <= reached < 10**6, "it was stopped before the next one began, in the same bridge"
    assert session.epoch == (await asked).session_epoch
    async with climb(session, 3) as stream:
        assert await anext(aiter(stream)) == reached + 1
    await until(lambda: not any(node.services[0].pool.tickets()))
    # One that is left while it waits is not sent.
    slow = await session.submit("count", {"seconds": 0.3}, timeout=PATIENCE)
    waiting = climb(session, 5)
    reading = asyncio.create_task(read(waiting, []))
    await asyncio.sleep(0)
    await waiting.aclose()
    assert await reading == []
    assert await count(session) == (await slow).result["count"] + 1


async def test_a_stream_that_waits_too_long_is_not_sent(rig: Rig) -> None:
    await serve(rig)
    session = rig.producer.session("s", service="work")
    slow = await session.submit("count", {"seconds": 0.5}, timeout=PATIENCE)
    with pytest.raises(DeadlineExceeded, match="it was not sent"):
        await read(session.stream("climb", {"to": 3}, timeout=0.1), [])
    assert (await slow).result["count"] == 1
    assert await count(session) == 2


async def test_a_strict_stream_is_told_of_a_loss_before_its_first_chunk(rig: Rig) -> None:
    node = await serve(rig)
    session = rig.producer.session("s", service="work")
    assert await read(climb(session, 3), []) == [1, 2, 3]
    rig.bridge().process.send_signal(9)
    await until(lambda: not node.services[0].sessions)
    came: list[int] = []
    with pytest.raises(SessionLost, match="its bridge ended"):
        await read(climb(session, 3), came)
    assert came == []
    assert await read(climb(session, 3), []) == [1, 2, 3]


async def test_a_crash_in_mid_stream_is_raised_after_the_chunks_so_far_and_then_the_loss(
    rig: Rig, tmp_path: Path
) -> None:
    await serve(rig, retry={"max_attempts": 3})
    session = rig.producer.session("s", service="work")
    assert await count(session) == 1
    came: list[int] = []
    with pytest.raises(BridgeCrashed):
        await read(climb(session, 10, deaths=1, note=str(tmp_path / "note")), came)
    assert came == [2, 3, 4, 5, 6]
    with pytest.raises(SessionLost):
        await count(session)
    assert await count(session) == 1


@pytest.mark.parametrize("mode", ["strict", "prefer"])
async def test_a_stream_that_may_run_anew_begins_anew(rig: Rig, tmp_path: Path, mode: Any) -> None:
    """One that opens its session, or does without what was lost."""
    await serve(rig, retry={"max_attempts": 2})
    for again in (False, True):
        session = rig.producer.session(f"s{again}", service="work", mode=mode)
        if mode == "prefer":
            await count(session)
        came: list[int] = []
        attempts: list[int] = []

        def forget(attempt: int, came: list[int] = came, attempts: list[int] = attempts) -> None:
            attempts.append(attempt)
            came.clear()

        note = tmp_path / f"note {again}"
        stream = climb(session, 10, deaths=1, note=str(note), on_restart=forget if again else None)
        if again:
            assert await read(stream, came) == list(range(1, 11))
            assert attempts == [2]
            assert stream.reply is not None
            assert stream.reply.fresh is (mode == "prefer")
        else:
            with pytest.raises(StreamRestarted):
                await read(stream, came)
            assert len(came) == 5
        assert await count(session) >= 1


async def test_a_session_in_rebuild_is_rebuilt_before_its_stream_begins_anew(rig: Rig, tmp_path: Path) -> None:
    await serve(rig)
    session = rig.producer.session("s", service="work", mode="rebuild", journal=["start_at"])
    await session.call("start_at", {"number": 40}, timeout=PATIENCE)
    rig.bridge().process.send_signal(9)
    assert await read(climb(session, 3), []) == [41, 42, 43], "nobody notices what was made good before the first chunk"
    came: list[int] = []
    restarts: list[int] = []

    def forget(attempt: int) -> None:
        restarts.append(attempt)
        came.clear()

    stream = climb(session, 10, deaths=2, note=str(tmp_path / "note"), on_restart=forget)
    with pytest.raises(BridgeCrashed):  # the second time it is not made good
        await read(stream, came)
    assert came == [41, 42, 43, 44, 45]
    assert restarts == [1]
    assert await count(session) == 41
    forget(0)
    stream = climb(session, 10, deaths=3, note=str(tmp_path / "note"), on_restart=forget)
    assert await read(stream, came) == list(range(41, 51))
    assert restarts == [1, 0, 1]
    with pytest.raises(StreamRestarted):
        await read(climb(session, 10, deaths=4, note=str(tmp_path / "note")), came)
    assert session.rebuilt == 5
    assert await count(session) >= 41


async def test_a_rebuilt_stream_begins_with_its_first_attempt_again(rig: Rig, tmp_path: Path) -> None:
    """It opened its session, so the node had tried it twice; what the session sends then is another request."""
    await serve(rig, retry={"max_attempts": 2})
    session = rig.producer.session("s", service="work", mode="rebuild", journal=["start_at"])
    came: list[int] = []
    attempts: list[int] = []

    def forget(attempt: int) -> None:
        attempts.append(attempt)
        came.clear()

    stream = climb(session, 10, deaths=2, note=str(tmp_path / "note"), on_restart=forget)
    assert await read(stream, came) == list(range(1, 11))
    assert attempts == [2, 1]


async def test_a_streamed_command_in_the_journal_is_sent_again_without_its_chunks(rig: Rig) -> None:
    await serve(rig)
    session = rig.producer.session("s", service="work", mode="rebuild", journal=["climb"])
    assert await read(climb(session, 4), []) == [1, 2, 3, 4]
    rig.bridge().process.send_signal(9)
    assert await read(session.stream("count", timeout=PATIENCE), []) == []
    assert await count(session) == 6


async def test_progress_in_a_session(rig: Rig) -> None:
    await serve(rig)
    session = rig.producer.session("s", service="work")
    told: list[Progress] = []
    assert (await session.call("climb", {"to": 3}, timeout=PATIENCE, progress=told.append)).result == 3
    assert (told[-1].done, told[-1].total) == (3, 3)
    told.clear()
    stream = session.stream("climb", {"to": 3}, timeout=PATIENCE, progress=told.append)
    assert await read(stream, []) == [4, 5, 6]
    assert (told[-1].done, told[-1].total) == (3, 3)
    handle = await session.submit("climb", {"to": 3}, timeout=PATIENCE, progress=True)
    assert [step.done async for step in handle.progress][-1] == 3
    assert (await handle).result == 9
    with pytest.raises(RuntimeError, match="not asked for"):
        _ = (await session.submit("count", timeout=PATIENCE)).progress
    assert await count(session) == 11


async def test_a_stream_in_a_thread(rig: Rig) -> None:
    await serve(rig)
    loop = asyncio.get_running_loop()

    def use() -> None:
        with Producer(rig.broker, loop=loop) as producer:
            session = producer.session("s", service="work")
            outcome = session.submit("count", timeout=PATIENCE)
            stream = session.stream("climb", {"to": 300}, timeout=PATIENCE)
            assert list(stream) == list(range(2, 302))
            assert outcome.result().result["count"] == 1
            with session.stream("climb", {"to": 10**6, "pause": 0.001}, timeout=PATIENCE) as endless:
                for number in endless:
                    if number == 310:
                        break
            assert 310 < session.call("count", timeout=PATIENCE).result["count"] < 10**6
            session.close()
            with pytest.raises(BadRequest, match="closed here"):
                session.stream("climb", {"to": 1})

    await asyncio.to_thread(use)
