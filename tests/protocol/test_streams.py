"""Streams and progress from end to end, on the embedded broker and real bridges."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import PATIENCE, Rig, until, with_sdk

from bridge_protocol.control import WINDOW_BYTES, WINDOW_CHUNKS
from bridge_protocol.envelope import CHUNKS
from bridge_protocol.errors import (
    ApplicationError,
    BadRequest,
    BridgeCrashed,
    DeadlineExceeded,
    OutcomeUnknown,
    ProtocolViolation,
    ReaderStalled,
    StreamGap,
    StreamRestarted,
    UnknownService,
)
from bridge_protocol.messages import Request, encode_request
from broker.confirm import Confirm
from broker.contract import ChannelClosed, Message
from broker.limits import MAX_BODY
from producer import chunks as chunks_of_a_stream
from producer.async_producer import AsyncProducer
from producer.producer import Producer
from producer.progress import Progress
from producer.stream import AsyncStream
from worker_node import requesters
from worker_node.dispatcher import Dispatcher

RETRIES = {"max_attempts": 3, "first_delay": 1}


async def serve(rig: Rig, *, concurrency: int = 1, **options: Any) -> Dispatcher:
    return await rig.serve((*with_sdk("streams"), str(concurrency)), **options)


def stream(rig: Rig, command: str, args: dict[str, Any] | None = None, **options: Any) -> AsyncStream:
    return rig.producer.stream("work", command, args, **{"timeout": PATIENCE, **options})


async def read(
    said: AsyncStream, into: list[Any], *, at: int | None = None, do: Callable[[], Awaitable[Any]] | None = None
) -> None:
    """Read a stream to its end, and `do` something when so many chunks have come."""
    async for chunk in said:
        into.append(chunk)
        if len(into) == at and do is not None:
            await do()


@contextlib.contextmanager
def published(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Message]]:
    """What the node publishes from here on."""
    link = rig.nodes[0]._publishing
    messages: list[Message] = []
    real = link.publish

    def publish(message: Message, *, timeout: float) -> asyncio.Future[None]:
        messages.append(message)
        return real(message, timeout=timeout)

    with monkeypatch.context() as patched:
        patched.setattr(link, "publish", publish)
        yield messages


async def test_chunks_come_in_order_and_then_the_reply(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await serve(rig)
    with published(rig, monkeypatch) as messages:
        said = stream(rig, "count", {"to": 5000})
        assert [chunk async for chunk in said] == [str(number) for number in range(5000)]
    assert said.reply is not None
    assert (said.reply.result, said.reply.attempt) == (5000, 1)
    chunked = [message for message in messages if message.properties.type == CHUNKS]
    assert messages[-1].properties.type == "result"
    assert len(chunked) < 2500, "one message carries several chunks"
    assert [message for message in chunked if "control-queue" in message.properties.headers] == chunked[:1]
    assert not service._outlets
    assert service.settlement.counts.succeeded == 1


async def test_a_stream_without_chunks_and_a_command_that_does_not_stream(rig: Rig) -> None:
    await serve(rig)
    for command, args, result in (("nothing", None, None), ("steps", {"to": 2}, 2)):
        said = stream(rig, command, args)
        assert [chunk async for chunk in said] == []
        assert said.reply is not None
        assert said.reply.result == result


async def test_a_plain_call_gets_the_reply_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await serve(rig)
    with published(rig, monkeypatch) as messages:
        assert await rig.call("count", {"to": 300}) == 300
        assert await rig.call("steps", {"to": 3}) == 3
    assert [message.properties.type for message in messages] == ["result", "result"]


async def test_the_first_chunk_is_not_kept_waiting_and_those_after_it_only_that_long(rig: Rig) -> None:
    await serve(rig, stream={"delay": 1})
    loop = asyncio.get_running_loop()
    came: list[float] = []
    async for _ in stream(rig, "count", {"to": 5, "pause": 0.3}):
        came.append(loop.time())
    # They are made 0.3 s apart: the first goes alone, the next three or four together a second later.
    assert came[1] - came[0] > 0.5
    assert came[2] - came[1] < 0.3


async def test_a_chunk_that_fills_a_message_does_not_travel_with_those_before_it(rig: Rig) -> None:
    await serve(rig, stream={"delay": 1})
    sizes = [1, *[2000] * 20, MAX_BODY - 100, 1]
    came: list[str] = []
    await read(stream(rig, "sizes", {"of": sizes}), came)
    assert [len(chunk) for chunk in came] == sizes


async def test_a_failure_in_mid_stream_comes_after_the_chunks_so_far(rig: Rig) -> None:
    await serve(rig)
    for command, args, came, match in (
        ("fails", {"after": 300}, list(range(300)), "no more"),
        ("strange", None, [1], "chunk 1 is not JSON"),
    ):
        chunks: list[Any] = []
        with pytest.raises(ApplicationError, match=match):
            await read(stream(rig, command, args), chunks)
        assert chunks == came
    assert await rig.call("count", {"to": 1}) == 1


async def test_whoever_leaves_early_ends_the_work(rig: Rig, tmp_path: Path) -> None:
    service = await serve(rig)
    pid = rig.bridge().process.pid
    loop = asyncio.get_running_loop()

    async def leave(how: str, said: AsyncStream, note: str) -> None:
        async def fail() -> None:
            raise KeyError

        def read_some() -> None:
            with Producer(rig.broker, loop=loop) as producer:
                for chunk in producer.stream("work", "endless", {"note": note}):
                    if chunk == 20:
                        break

        match how:
            case "break":
                async for chunk in said:
                    if chunk == 20:
                        break
            case "raise":
                with pytest.raises(KeyError):
                    await read(said, [], at=20, do=fail)
            case "close":
                async with said:
                    await anext(aiter(said))
            case "drop":
                await anext(aiter(said))
            case "thread":
                await asyncio.to_thread(read_some)

    for how in ("break", "raise", "close", "drop", "thread"):
        note = tmp_path / how
        await leave(how, stream(rig, "endless", {"note": str(note)}), str(note))
        await until(note.exists)
        await until(lambda: not any(service.pool.tickets()))
    assert rig.bridge().process.pid == pid, "the bridge that was told to stop lives on"
    assert await rig.call("count", {"to": 1}) == 1


async def test_a_producer_that_closes_ends_its_streams(rig: Rig, tmp_path: Path) -> None:
    await serve(rig)
    note = tmp_path / "note"
    said = stream(rig, "endless", {"note": str(note)})
    with pytest.raises(OutcomeUnknown):
        await read(said, [], at=5, do=rig.producer.close)
    await until(note.exists)


async def test_a_producer_that_loses_its_connection_ends_its_streams(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks could come to nobody any more: the bridge is not held up until a reader's time is over."""
    monkeypatch.setattr(requesters, "LOOK_EVERY", 0.02)
    service = await serve(rig)
    note = tmp_path / "note"

    async def lose() -> None:
        rig.producer.sender.link.rebuild("for the test")

    with pytest.raises(OutcomeUnknown):
        await read(stream(rig, "endless", {"note": str(note)}), [], at=5, do=lose)
    await until(note.exists)
    await until(lambda: service.settlement.counts.failed == 1)
    assert await rig.call("count", {"to": 1}) == 1


async def test_a_stream_that_runs_again_after_its_end_is_ended(rig: Rig, tmp_path: Path) -> None:
    """Its request came again, as it may when a node or the broker dies: nobody reads it, and gives credit."""
    service = await serve(rig)
    said = stream(rig, "count", {"to": 3})
    assert [chunk async for chunk in said] == ["0", "1", "2"]
    sender = rig.producer.sender
    note = tmp_path / "note"
    again = encode_request(Request(id=7, command="endless", args={"note": str(note)}))
    message = said._request._replace(body=again, command="endless").message(sender._reply_to, time.time())
    await sender.link.publish(message, timeout=PATIENCE)
    await until(note.exists)
    await until(lambda: not any(service.pool.tickets()))
    assert len(sender._read) == 0


async def test_a_retry_begins_anew_and_two_attempts_are_never_mixed(rig: Rig) -> None:
    await serve(rig, retry=RETRIES)
    chunks: list[Any] = []
    with pytest.raises(StreamRestarted, match="attempt 2 began"):
        await read(stream(rig, "dies", {"to": 10, "attempts": 1}), chunks)
    assert chunks == [[1, number] for number in range(5)]
    attempts: list[int] = []

    def forget(attempt: int) -> None:
        attempts.append(attempt)
        chunks.clear()

    said = stream(rig, "dies", {"to": 10, "attempts": 1}, on_restart=forget)
    await read(said, chunks)
    assert chunks == [[2, number] for number in range(10)]
    assert attempts == [2]
    assert said.reply is not None
    assert said.reply.attempt == 2


async def test_nobody_notices_a_retry_if_no_chunk_was_given_out(rig: Rig) -> None:
    await serve(rig, retry=RETRIES)
    said = stream(rig, "dies", {"to": 1, "attempts": 1})
    assert [chunk async for chunk in said] == [[2, 0]]


async def test_a_crash_without_another_try_comes_after_the_chunks_so_far(rig: Rig) -> None:
    await serve(rig)
    chunks: list[Any] = []
    with pytest.raises(BridgeCrashed):
        await read(stream(rig, "dies", {"to": 10, "attempts": 1}), chunks)
    assert chunks == [[1, number] for number in range(5)]


async def test_events_out_of_place_are_violations(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    service = await serve(rig)
    for how, said in (
        ("gap", "it sent chunk 2 of id"),
        ("repeated", "it sent chunk 0 of id"),
        ("late", "which it was not asked"),
        ("stranger", "which it was not asked"),
    ):
        caplog.clear()
        await until(lambda: service.pool.ready)
        pid = rig.bridge().process.pid
        wanted: contextlib.AbstractContextManager[Any] = pytest.raises(ProtocolViolation, match=said)
        with contextlib.nullcontext() if how == "late" else wanted:
            await read(stream(rig, "breaks", {"how": how}), [])
        await until(lambda said=said: said in caplog.text)
        await until(lambda pid=pid: service.pool.ready and rig.bridge().process.pid != pid)
    assert await rig.call("count", {"to": 1}) == 1, "whoever asks next is served by another bridge"


async def test_without_credit_the_bridge_is_not_read_and_with_it_it_is_again(rig: Rig) -> None:
    service = await serve(rig)
    total = 20 * WINDOW_CHUNKS

    async def look() -> None:
        (outlet,) = service._outlets
        await until(lambda: not outlet.outflow.has_credit)
        await asyncio.sleep(0.1)  # whatever still moves has time to
        assert outlet.outflow.taken <= WINDOW_CHUNKS + 1

    chunks: list[Any] = []
    await read(stream(rig, "count", {"to": total}), chunks, at=1, do=look)
    assert len(chunks) == total


async def test_the_window_is_one_of_bytes_too(rig: Rig) -> None:
    service = await serve(rig)
    size = WINDOW_BYTES // 8

    async def look() -> None:
        (outlet,) = service._outlets
        await until(lambda: not outlet.outflow.has_credit)
        await asyncio.sleep(0.1)
        assert outlet.outflow.taken <= 10

    chunks: list[Any] = []
    await read(stream(rig, "count", {"to": 40, "size": size}), chunks, at=1, do=look)
    assert [len(chunk) for chunk in chunks] == [size] * 40


async def test_a_reader_that_stalls_ends_the_work_and_nothing_else(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    service = await serve(rig, bridges=2, stream={"reader_timeout": 0.5})

    async def stall() -> None:
        assert await rig.call("count", {"to": 10}) == 10, "the node serves others meanwhile"
        await until(lambda: service.settlement.counts.failed)

    chunks: list[Any] = []
    with pytest.raises(ReaderStalled, match="its chunks could not be delivered") as raised:
        await read(stream(rig, "count", {"to": 100 * WINDOW_CHUNKS}), chunks, at=1, do=stall)
    assert raised.value.details["why"] == "its reader has taken no chunk for 0.5 s"
    assert WINDOW_CHUNKS <= len(chunks) <= WINDOW_CHUNKS + 1, "those that came are given out first"
    assert "its reader has taken no chunk for 0.5 s" in caplog.text
    await until(lambda: service.pool.ready == 2 and not any(service.pool.tickets()))


async def test_a_slow_reader_is_no_stalled_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two grants by count there would be six times as long as a reader may take."""
    monkeypatch.setattr(chunks_of_a_stream, "GRANT_EVERY", 0.1)
    await serve(rig, stream={"reader_timeout": 1.0})
    count = 0
    async for _ in stream(rig, "count", {"to": WINDOW_CHUNKS + 70}):
        count += 1
        if count <= 15:
            await asyncio.sleep(0.1)
    assert count == WINDOW_CHUNKS + 70


async def test_a_stalled_stream_on_a_concurrent_bridge_leaves_it_alive(rig: Rig) -> None:
    service = await serve(rig, concurrency=4, stream={"reader_timeout": 0.5})
    pid = rig.bridge().process.pid

    async def stall() -> None:
        # It waits, at most until the stream is over: one pipe carries all that a bridge says.
        assert await rig.call("echo", {"text": "x"}) == "x"
        await until(lambda: service.settlement.counts.failed)

    with pytest.raises(ReaderStalled):
        await read(stream(rig, "ticks", {"to": 10**9}), [], at=1, do=stall)
    assert rig.bridge().process.pid == pid
    both = [[n async for n in stream(rig, "ticks", {"to": 50, "pause": 0.001})] for _ in range(2)]
    assert both == [list(range(50))] * 2


async def test_a_node_that_connects_again_goes_on_with_the_stream(rig: Rig) -> None:
    """Its control queue has another name then; the reader is told, and gives its credit there."""
    service = await serve(rig)
    said = stream(rig, "count", {"to": 1500, "pause": 0.0005})
    count = 0
    async for _ in said:
        count += 1
        if count == 100:
            rig.nodes[0]._consuming.rebuild("for the test")
            await until(lambda: rig.nodes[0]._control.queue is not None)
    assert count == 1500
    assert service.settlement.counts.joined == 1, "it was delivered again, and joined what ran"


async def test_a_node_that_cannot_deliver_chunks_ends_the_work(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(rig)
    note = tmp_path / "note"
    link = rig.nodes[0]._publishing
    real = link.publish

    def publish(message: Message, *, timeout: float) -> asyncio.Future[None]:
        if message.properties.type != CHUNKS:
            return real(message, timeout=timeout)
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lost.set_exception(ChannelClosed("for the test"))
        return lost

    async def lose() -> None:
        monkeypatch.setattr(link, "publish", publish)

    chunks: list[Any] = []
    with pytest.raises(ReaderStalled) as raised:
        await read(stream(rig, "endless", {"note": str(note)}), chunks, at=100, do=lose)
    assert raised.value.details["why"].startswith("what it said could not be sent: ")
    assert chunks == list(range(len(chunks)))
    await until(note.exists)


@pytest.mark.parametrize(("lost", "came"), [(0, 0), (1, 1), (3, 3)])
async def test_chunks_that_are_lost_on_the_way_are_missed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, lost: int, came: int
) -> None:
    await serve(rig, stream={"delay": 0.000001})
    link = rig.nodes[0]._publishing
    real = link.publish
    seen = 0

    def publish(message: Message, *, timeout: float) -> Confirm:
        nonlocal seen
        if message.properties.type == CHUNKS:
            seen += 1
            if seen == lost + 1:
                taken = Confirm()
                taken.succeed()
                return taken
        return real(message, timeout=timeout)

    monkeypatch.setattr(link, "publish", publish)
    got: list[Any] = []
    with pytest.raises(StreamGap):
        await read(stream(rig, "count", {"to": 4, "pause": 0.05}), got)
    assert got == [str(number) for number in range(came)]


async def test_the_deadline_ends_a_stream(rig: Rig, tmp_path: Path) -> None:
    await serve(rig)
    note = tmp_path / "note"
    chunks: list[Any] = []
    with pytest.raises(DeadlineExceeded):
        await read(stream(rig, "endless", {"note": str(note)}, timeout=0.5), chunks)
    assert chunks == list(range(len(chunks)))
    await until(note.exists)


async def test_what_cannot_be_asked_is_said_at_once(rig: Rig) -> None:
    await serve(rig)
    with pytest.raises(BadRequest):
        stream(rig, "cancel")
    with pytest.raises(UnknownService):
        await anext(aiter(rig.producer.stream("other", "count", {"to": 1})))
    said = stream(rig, "count", {"to": 1})
    assert [chunk async for chunk in said] == ["0"]
    with pytest.raises(RuntimeError, match="iterated once"):
        aiter(said)


async def test_streams_come_by_a_reply_queue_too_and_are_not_for_who_collects(rig: Rig) -> None:
    await serve(rig)
    async with AsyncProducer(rig.broker, reply_queue="mine") as producer:
        said = producer.stream("work", "count", {"to": 1000}, timeout=PATIENCE)
        assert [chunk async for chunk in said] == [str(number) for number in range(1000)]
        async for _ in producer.stream("work", "count", {"to": 10**6}, timeout=PATIENCE):
            break
        await until(lambda: not any(rig.nodes[0].services[0].pool.tickets()))
        assert (await producer.call("work", "steps", {"to": 1}, timeout=PATIENCE)).result == 1
        assert [reply async for reply in producer.collect(idle_timeout=0.05)] == []


async def test_threads_read_streams_too(rig: Rig) -> None:
    await serve(rig, bridges=2, retry=RETRIES)
    loop = asyncio.get_running_loop()

    def read() -> None:
        with Producer(rig.broker, loop=loop) as producer:
            said = producer.stream("work", "count", {"to": 2000})
            assert list(said) == [str(number) for number in range(2000)]
            assert said.reply is not None
            assert said.reply.result == 2000
            with pytest.raises(RuntimeError, match="iterated once"):
                iter(said)
            chunks: list[Any] = []
            restarted: list[int] = []
            for chunk in producer.stream("work", "dies", {"to": 4, "attempts": 1}, on_restart=restarted.append):
                chunks.append(chunk)
            assert restarted == [2]
            assert chunks == [[1, 0], [1, 1], [2, 0], [2, 1], [2, 2], [2, 3]]
            with pytest.raises(ApplicationError):
                list(producer.stream("work", "fails", {"after": 3}))

    await asyncio.gather(*(asyncio.to_thread(read) for _ in range(2)))


async def test_progress_is_told_to_whoever_asked(rig: Rig) -> None:
    await serve(rig)
    told: list[Progress] = []
    assert (await rig.producer.call("work", "steps", {"to": 4, "pause": 0.15}, progress=told.append)).result == 4
    assert [(each.done, each.total, each.note) for each in told] == [(n, 4, f"step {n}") for n in range(4)]
    handle = await rig.producer.submit("work", "steps", {"to": 4, "pause": 0.15}, progress=True)
    assert [each.done async for each in handle.progress] == [0, 1, 2, 3]
    assert (await handle).result == 4
    plain = await rig.producer.submit("work", "steps", {"to": 1})
    with pytest.raises(RuntimeError, match="progress=True"):
        plain.progress  # noqa: B018 (the look-up is the test)
    await plain


async def test_a_flood_of_progress_costs_a_few_messages_and_the_last_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(rig)
    told: list[Progress] = []
    with published(rig, monkeypatch) as messages:
        await rig.producer.call("work", "steps", {"to": 5000}, progress=told.append)
    assert told[-1].done == 4999
    assert len(messages) < 500
    assert messages[-1].properties.type == "result"


async def test_a_callback_that_raises_costs_nothing_else(rig: Rig) -> None:
    await serve(rig)
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
    try:
        reply = await rig.producer.call("work", "steps", {"to": 2}, progress=lambda progress: 1 / 0)
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert reply.result == 2
    assert isinstance(raised[0]["exception"], ZeroDivisionError)


async def test_threads_are_told_of_progress(rig: Rig) -> None:
    await serve(rig)
    loop = asyncio.get_running_loop()

    def ask() -> list[float | None]:
        told: list[Progress] = []
        with Producer(rig.broker, loop=loop) as producer:
            producer.call("work", "steps", {"to": 3, "pause": 0.15}, progress=told.append)
        return [each.done for each in told]

    assert await asyncio.to_thread(ask) == [0, 1, 2]
