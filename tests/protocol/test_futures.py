"""What executors' users and asyncio's expect of a handle, and of a producer that was forked or is closed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

import pytest
from elsewhere import PATIENCE, Elsewhere
from forking import forked
from responder import SERVICE, Responder

from bridge_protocol.errors import BadRequest, BrokerUnavailable, Code, OutcomeUnknown, RequestFailed
from bridge_protocol.messages import Request
from broker.contract import Delivery
from broker.memory import MemoryBroker
from producer import producer as of_threads
from producer.async_producer import AsyncProducer
from producer.producer import Producer
from producer.reply import Reply


def act(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Answers `echo` with its arguments, `fail` with a failure, and nothing else."""
    if request.command == "echo":
        responder.succeed(delivery, request, request.args)
    elif request.command == "fail":
        responder.fail(delivery, request, Code.APPLICATION_ERROR, "as asked")


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    found = Elsewhere()
    yield found
    found.end()


@pytest.fixture
def producer(elsewhere: Elsewhere) -> Iterator[Producer]:
    elsewhere.run(Responder(act).start(elsewhere.broker))
    with Producer(elsewhere.broker, loop=elsewhere.loop) as found:
        yield found


# As executors have it.


def test_an_outcome_is_a_future_of_an_executor(producer: Producer) -> None:
    outcomes = [producer.submit(SERVICE, "echo", {"n": n}) for n in range(50)]
    assert all(isinstance(outcome, Future) for outcome in outcomes)
    assert {outcome.result().result["n"] for outcome in as_completed(outcomes, PATIENCE)} == set(range(50))
    silent, answered = producer.submit(SERVICE, "silence"), producer.submit(SERVICE, "echo")
    assert wait([silent, answered], PATIENCE, return_when=FIRST_COMPLETED) == ({answered}, {silent})
    assert not silent.done()
    with ThreadPoolExecutor(1) as pool:  # with futures of another kind, at once
        assert len(wait([producer.submit(SERVICE, "echo"), pool.submit(int, "7")], PATIENCE).done) == 2
    failed = producer.submit(SERVICE, "fail")
    assert isinstance(failed.exception(PATIENCE), RequestFailed)
    told: list[Future[object]] = []
    called = threading.Event()
    late = producer.submit(SERVICE, "echo")
    late.add_done_callback(lambda ended: (told.append(ended), called.set()))
    assert called.wait(PATIENCE)
    assert told == [late]
    failed.add_done_callback(told.append)  # at once: it has ended
    assert told == [late, failed]


def test_asyncio_awaits_an_outcome_of_a_thread(producer: Producer) -> None:
    async def run() -> list[int]:
        outcomes = [asyncio.wrap_future(producer.submit(SERVICE, "echo", {"n": n})) for n in range(5)]
        return [reply.result["n"] for reply in await asyncio.gather(*outcomes)]

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_a_hundred_threads_get_their_own_replies(producer: Producer) -> None:
    def calls(thread: int) -> list[tuple[int, int]]:
        replies = [producer.call(SERVICE, "echo", {"thread": thread, "n": n}) for n in range(100)]
        return [(reply.result["thread"], reply.result["n"]) for reply in replies]

    with ThreadPoolExecutor(100) as pool:
        for thread, results in enumerate(pool.map(calls, range(100))):
            assert results == [(thread, n) for n in range(100)]


# As asyncio has it.


async def test_a_handle_is_awaitable_wherever_asyncio_takes_one() -> None:
    broker = MemoryBroker()
    responder = Responder(act)
    await responder.start(broker)
    async with AsyncProducer(broker) as producer:
        handles = [await producer.submit(SERVICE, "echo", {"n": n}) for n in range(4)]
        assert [reply.result["n"] for reply in await asyncio.gather(*handles)] == [0, 1, 2, 3]
        assert (await handles[0]).result == {"n": 0}  # as often as one likes
        handles = [await producer.submit(SERVICE, "echo", {"n": n}) for n in range(4)]
        assert {(await each).result["n"] for each in asyncio.as_completed(handles, timeout=PATIENCE)} == {0, 1, 2, 3}
        failed, silent = await producer.submit(SERVICE, "fail"), await producer.submit(SERVICE, "silence")
        results = await asyncio.gather(failed, *handles, return_exceptions=True)
        assert isinstance(results[0], RequestFailed)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(silent.future), 0.01)
        assert not silent.done()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent, 0.01)  # which gives it up, as it does with any awaitable
        assert silent.future.cancelled()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(producer.call(SERVICE, "echo", {"n": n})) for n in range(4)]
        assert [task.result().result["n"] for task in tasks] == [0, 1, 2, 3]


# After a fork.


def test_what_the_parent_sent_is_not_the_childs_to_await(producer: Producer) -> None:
    outcome, ended = producer.submit(SERVICE, "silence"), producer.submit(SERVICE, "echo", {"n": 1})
    ended.result(PATIENCE)

    def tried() -> str:
        said = [str(ended.result().result["n"])]
        for use in (
            outcome.result,
            outcome.exception,
            outcome.cancel,
            outcome.cancel_request,
            lambda: outcome.add_done_callback(print),
            lambda: next(as_completed([outcome], 0.01)),
            lambda: producer.call(SERVICE, "echo"),
            producer.close,
        ):
            try:
                said.append(str(use()))
            except (OutcomeUnknown, RuntimeError, TimeoutError) as error:
                said.append(f"{type(error).__name__}: {error}")
        return "\n".join(said)

    said = forked(tried).splitlines()
    assert said[0] == "1"
    assert len(said) == 9, said
    for line in said[1:6]:
        assert line.startswith("OutcomeUnknown: its reply goes to process "), said
        assert line.endswith("which sent it; this one was forked from that")
    assert said[6].startswith("TimeoutError"), said
    assert "which was forked from it: make another Producer here" in said[7], said
    assert said[8] == "None"
    assert not outcome.done()
    assert producer.call(SERVICE, "echo", {"n": 2}).result == {"n": 2}


def test_an_embedded_broker_stays_with_its_process() -> None:
    with Producer(MemoryBroker()) as producer:

        def call() -> str:
            try:
                producer.call(SERVICE, "echo")
            except BrokerUnavailable as error:
                return str(error)
            return "it was answered"

        assert "belongs to another event loop" in forked(call)


# Closing.


def test_closing_is_bounded_where_a_callback_holds_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_threads, "CLOSE_TIMEOUT", 0.2)
    broker, responder = MemoryBroker(), Responder(act)
    producer = Producer(broker)
    producer.start()
    producer.run(responder.start(broker))
    holding, release = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        holding.set()
        release.wait(PATIENCE)

    producer.submit(SERVICE, "echo").add_done_callback(hold)
    assert holding.wait(PATIENCE)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        producer.close()
    assert time.monotonic() - began < PATIENCE / 2
    release.set()
    assert producer._thread is not None
    thread = producer._thread._thread
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_closing_with_work_in_flight_ends_all_of_it() -> None:
    broker, responder = MemoryBroker(), Responder(act)
    producer = Producer(broker)
    producer.start()
    producer.run(responder.start(broker))
    outcomes = [producer.submit(SERVICE, "silence") for _ in range(2000)]
    producer.close()
    assert all(outcome.done() for outcome in outcomes)
    assert {type(outcome.exception()) for outcome in outcomes} <= {OutcomeUnknown, BrokerUnavailable}


# map, whose work is the same in both producers.


def test_map_gives_failures_and_ends_as_they_come(producer: Producer) -> None:
    args = [{"n": n} if n != 5 else {"n": float("nan")} for n in range(300)]
    ends = list(producer.map(SERVICE, "echo", args, in_flight=20, in_flight_bytes=1000, on_error="return"))
    assert [type(end) for end in ends] == [Reply] * 5 + [BadRequest] + [Reply] * 294
    assert [end.result["n"] for end in ends if isinstance(end, Reply)] == [n for n in range(300) if n != 5]
    ends = list(producer.map(SERVICE, "echo", args, in_flight=20, on_error="return", ordered=False))
    assert sorted(end.position for end in ends if end.position is not None) == list(range(300))
    assert all(end.result == {"n": end.position} for end in ends if isinstance(end, Reply))
    with pytest.raises(RequestFailed):
        list(producer.map(SERVICE, "fail", args[:3], ordered=False))
