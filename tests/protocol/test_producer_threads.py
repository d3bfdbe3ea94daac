"""Producer, with real threads: an embedded broker on a loop in another one, and no server at all."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from typing import Any

import pytest
from elsewhere import PATIENCE, Elsewhere, until
from responder import SERVICE, Responder

from bridge_protocol.errors import (
    ApplicationError,
    BadRequest,
    Blocked,
    BrokerUnavailable,
    Code,
    DeadlineExceeded,
    OutcomeUnknown,
    TooLarge,
    UnknownService,
)
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import Request
from broker.contract import Delivery
from broker.memory import MemoryBroker
from producer import producer as producer_of_threads
from producer.producer import MOST_HANDED_OVER, Producer


def answer_echo(responder: Responder, delivery: Delivery, request: Request) -> None:
    """Answers what is called `echo`, and nothing else."""
    if request.command == "echo":
        responder.succeed(delivery, request, request.args)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    found = Elsewhere()
    yield found
    found.end()


@pytest.fixture
def responder(elsewhere: Elsewhere) -> Responder:
    """Answers what is called `echo`; the tests do the rest."""
    found = Responder(answer_echo)
    elsewhere.run(found.start(elsewhere.broker))
    return found


@pytest.fixture
def producer(elsewhere: Elsewhere, responder: Responder) -> Iterator[Producer]:
    with Producer(elsewhere.broker, loop=elsewhere.loop) as found:
        yield found


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [thread for thread in threading.enumerate() if thread not in before and thread.name != "elsewhere"] == []


def closed_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# Asking.


def test_call_submit_publish_and_map(producer: Producer, responder: Responder) -> None:
    assert producer.call(SERVICE, "echo", {"n": 1}).result == {"n": 1}
    outcome = producer.submit(SERVICE, "echo", {"n": 2})
    reply = outcome.result(PATIENCE)
    assert (reply.result, reply.message_id) == ({"n": 2}, outcome.message_id)
    message_id = producer.publish(SERVICE, "note", {"n": 3})
    replies = producer.map(SERVICE, "echo", ({"n": n} for n in range(4, 500)), in_flight=30)
    assert [reply.result["n"] for reply in replies] == list(range(4, 500))
    assert responder.numbers == list(range(1, 500))
    assert responder.seen[2][0].properties.message_id == message_id
    assert repr(producer) == "<Producer <Link 'producer' to memory up, 0 waiting>, 0 awaiting replies>"


def test_every_reply_finds_its_thread(producer: Producer) -> None:
    def calls(thread: int) -> list[tuple[int, int]]:
        replies = [producer.call(SERVICE, "echo", {"thread": thread, "n": n}) for n in range(50)]
        return [(reply.result["thread"], reply.result["n"]) for reply in replies]

    with ThreadPoolExecutor(20) as pool:
        for thread, results in enumerate(pool.map(calls, range(20))):
            assert results == [(thread, n) for n in range(50)]


def test_maps_in_several_threads_at_once(producer: Producer) -> None:
    def mapped(thread: int) -> list[int]:
        args = ({"n": thread * 1000 + n} for n in range(200))
        return [reply.result["n"] for reply in producer.map(SERVICE, "echo", args, in_flight=20)]

    with ThreadPoolExecutor(5) as pool:
        for thread, results in enumerate(pool.map(mapped, range(5))):
            assert results == [thread * 1000 + n for n in range(200)]


def test_what_is_submitted_is_sent_in_order_and_as_it_was_then(producer: Producer, responder: Responder) -> None:
    args = {"n": 0}
    outcomes = []
    for n in range(1000):
        args["n"] = n
        outcomes.append(producer.submit(SERVICE, "echo", args))
    assert [outcome.result(PATIENCE).result["n"] for outcome in outcomes] == list(range(1000))
    assert responder.numbers == list(range(1000))


# Failing.


def test_failures_are_raised_where_they_are_waited_for(
    elsewhere: Elsewhere, producer: Producer, responder: Responder
) -> None:
    outcome = producer.submit(SERVICE, "fail")
    elsewhere.until(lambda: len(responder.seen) == 1)
    elsewhere.do(lambda: responder.fail(*responder.seen[0], Code.APPLICATION_ERROR, "as asked"))
    with pytest.raises(ApplicationError, match="as asked"):
        outcome.result(PATIENCE)
    with pytest.raises(UnknownService):
        producer.call("nobody", "echo")
    with pytest.raises(UnknownService):
        producer.publish("nobody", "echo")
    with pytest.raises(DeadlineExceeded):
        producer.call(SERVICE, "silence", timeout=0.05)


def test_bad_requests_are_raised_by_the_call_itself(producer: Producer, responder: Responder) -> None:
    for send in (producer.call, producer.submit, producer.publish):
        with pytest.raises(BadRequest, match="NaN"):
            send(SERVICE, "echo", {"x": math.nan})
        with pytest.raises(TooLarge):
            send(SERVICE, "echo", {"x": "x" * DEFAULT_LIMIT})
        with pytest.raises(BadRequest, match="more than 0 seconds"):
            send(SERVICE, "echo", timeout=0)
    with pytest.raises(BadRequest):
        list(producer.map(SERVICE, "echo", [{"x": math.nan}]))
    with pytest.raises(ValueError, match="in_flight must be at least 1"):
        producer.map(SERVICE, "echo", [], in_flight=0)
    assert responder.seen == []


def test_map_raises_the_first_failure_in_its_turn(
    elsewhere: Elsewhere, producer: Producer, responder: Responder
) -> None:
    taken: list[int] = []

    def args() -> Iterator[dict[str, Any]]:
        for n in range(100):
            taken.append(n)
            yield {"n": n if n != 7 else math.nan}

    replies = producer.map(SERVICE, "echo", args(), in_flight=3)
    assert [next(replies).result["n"] for _ in range(7)] == list(range(7))
    with pytest.raises(BadRequest):
        next(replies)
    assert taken == list(range(8))
    with pytest.raises(StopIteration):
        next(replies)


def test_map_left_early_recalls_the_rest(elsewhere: Elsewhere, producer: Producer, responder: Responder) -> None:
    replies = producer.map(SERVICE, "silence", ({"n": n} for n in range(100)), in_flight=10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, replies)
        elsewhere.until(lambda: len(responder.seen) == 10)
        elsewhere.do(lambda: responder.succeed(*responder.seen[0], "the first of them"))
        assert waiting.result(PATIENCE).result == "the first of them"
    assert ", 9 awaiting replies" in repr(producer)
    replies.close()
    elsewhere.until(lambda: ", 0 awaiting replies" in repr(producer))
    assert responder.numbers == list(range(10))


# Outcomes are futures.


def test_cancelling_an_outcome(elsewhere: Elsewhere, producer: Producer, responder: Responder) -> None:
    outcomes = [producer.submit(SERVICE, "silence", {"n": n}) for n in range(3)]
    elsewhere.until(lambda: len(responder.seen) == 3)
    seen: list[object] = []
    outcomes[0].add_done_callback(seen.append)
    assert outcomes[0].cancel()
    assert outcomes[0].cancel()  # as often as one likes
    assert seen == [outcomes[0]]
    with pytest.raises(CancelledError):
        outcomes[0].result()
    assert list(as_completed(outcomes[:1], PATIENCE)) == [outcomes[0]]
    assert wait(outcomes[:1], PATIENCE).done == {outcomes[0]}

    def answer_all() -> None:
        for delivery, request in responder.seen:
            responder.succeed(delivery, request, request.args)

    elsewhere.do(answer_all)
    assert {outcome.result(PATIENCE).result["n"] for outcome in as_completed(outcomes[1:], PATIENCE)} == {1, 2}
    assert not outcomes[1].cancel()
    elsewhere.until(lambda: producer._producer.late_replies == 1)


def test_whoever_waits_is_told_of_a_cancellation(producer: Producer) -> None:
    outcome = producer.submit(SERVICE, "silence")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, [outcome], PATIENCE)
        outcome.cancel()
        assert waiting.result(PATIENCE).done == {outcome}


def test_what_is_cancelled_before_it_was_sent_never_is(
    elsewhere: Elsewhere, producer: Producer, responder: Responder
) -> None:
    busy, free = threading.Event(), threading.Event()

    def hold_the_loop() -> None:
        busy.set()
        assert free.wait(PATIENCE)

    elsewhere.loop.call_soon_threadsafe(hold_the_loop)
    assert busy.wait(PATIENCE)
    outcome = producer.submit(SERVICE, "silence", {"n": 1})
    outcome.cancel()
    free.set()
    assert producer.call(SERVICE, "echo", {"n": 2}).result == {"n": 2}
    assert responder.numbers == [2]
    assert wait([outcome], PATIENCE).done == {outcome}


def test_cancelling_and_answering_at_once(elsewhere: Elsewhere, producer: Producer) -> None:
    """Whichever comes first, the outcome ends, in one way."""
    outcomes = [producer.submit(SERVICE, "echo", {"n": n}) for n in range(500)]
    cancelled = [outcome.cancel() for outcome in outcomes]
    assert wait(outcomes, PATIENCE).not_done == set()
    assert [outcome.cancelled() for outcome in outcomes] == cancelled
    elsewhere.until(lambda: ", 0 awaiting replies" in repr(producer))


def test_result_has_a_timeout_of_its_own(producer: Producer) -> None:
    outcome = producer.submit(SERVICE, "silence")
    with pytest.raises(TimeoutError):
        outcome.result(0.01)
    assert not outcome.done()


# Room.


def test_submit_waits_for_room(elsewhere: Elsewhere, producer: Producer, responder: Responder) -> None:
    window = producer._producer.sender._window._count
    elsewhere.do(lambda: elsewhere.broker.block("low on memory"))
    count = window + 2 * MOST_HANDED_OVER
    submitted = 0

    def submit_all() -> list[Any]:
        nonlocal submitted
        outcomes = []
        for n in range(count):
            outcomes.append(producer.submit(SERVICE, "echo", {"n": n}))
            submitted += 1
        return outcomes

    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(submit_all)
        elsewhere.until(lambda: f"{window} awaiting" in repr(producer))
        assert wait([submitting], 0.2).not_done  # it does not go on by itself
        assert window <= submitted <= window + MOST_HANDED_OVER
        elsewhere.do(elsewhere.broker.unblock)
        outcomes = submitting.result(PATIENCE)
        assert [outcome.result(PATIENCE).result["n"] for outcome in outcomes] == list(range(count))
    assert responder.numbers == list(range(count))


def test_no_room_in_time(elsewhere: Elsewhere, producer: Producer) -> None:
    elsewhere.do(lambda: elsewhere.broker.block("low on memory"))
    large = {"x": "x" * (15 * 1024 * 1024)}
    outcomes = [producer.submit(SERVICE, "echo", large, timeout=0.3) for _ in range(6)]
    for outcome in outcomes:
        with pytest.raises(Blocked, match="low on memory"):
            outcome.result(PATIENCE)
    elsewhere.do(elsewhere.broker.unblock)
    assert producer.call(SERVICE, "echo", {"n": 1}).result == {"n": 1}


# Starting and closing.


def test_use_before_and_after(elsewhere: Elsewhere) -> None:
    producer = Producer(elsewhere.broker, loop=elsewhere.loop)

    def uses() -> Iterator[Callable[[], object]]:
        yield lambda: producer.call(SERVICE, "echo")
        yield lambda: producer.submit(SERVICE, "echo")
        yield lambda: producer.publish(SERVICE, "echo")
        yield lambda: list(producer.map(SERVICE, "echo", [{}]))

    for use in uses():
        with pytest.raises(BrokerUnavailable, match="not sent: the producer is not started: use it in a with block"):
            use()
    with producer:
        pass
    for use in uses():
        with pytest.raises(BrokerUnavailable, match="not sent: the producer is closed"):
            use()
    producer.close()


def test_it_is_started_once(elsewhere: Elsewhere) -> None:
    with Producer(elsewhere.broker, loop=elsewhere.loop) as producer, pytest.raises(RuntimeError, match="make another"):
        producer.start()
    with pytest.raises(RuntimeError, match="make another"), producer:
        pass


def test_close_without_start(elsewhere: Elsewhere) -> None:
    producer = Producer(elsewhere.broker, loop=elsewhere.loop)
    producer.close()
    with pytest.raises(RuntimeError, match="make another"):
        producer.start()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_start_that_fails_leaves_no_thread(host: str) -> None:
    before = threading.active_count()
    producer = Producer(f"amqp://user:secret@{host}:{closed_port()}/", connect_timeout=0.3)
    with pytest.raises(BrokerUnavailable, match="cannot connect to amqp://") as raised, producer:
        pass
    assert "secret" not in str(raised.value)
    assert threading.active_count() == before
    with pytest.raises(BrokerUnavailable, match="not sent: the producer is closed"):
        producer.call(SERVICE, "echo")


def test_a_loop_of_its_own() -> None:
    before = threading.active_count()
    broker = MemoryBroker()
    with Producer(broker) as producer:
        with pytest.raises(UnknownService):
            producer.call(SERVICE, "echo")
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_broker_of_another_loop_is_refused_at_once(elsewhere: Elsewhere, responder: Responder) -> None:
    with pytest.raises(BrokerUnavailable, match="belongs to another event loop"):
        Producer(elsewhere.broker).start()


def test_a_loop_that_does_not_run_is_refused() -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(RuntimeError, match="must be running, in another thread"):
        Producer(MemoryBroker(), loop=loop).start()
    loop.close()


def test_use_in_its_own_loop_is_refused(elsewhere: Elsewhere, producer: Producer) -> None:
    def used() -> Iterator[type[Exception]]:
        other = Producer(elsewhere.broker, loop=elsewhere.loop)
        for use in (
            lambda: producer.call(SERVICE, "echo"),
            lambda: producer.submit(SERVICE, "echo"),
            lambda: producer.publish(SERVICE, "echo"),
            lambda: next(producer.map(SERVICE, "echo", [{}])),
            producer.close,
            other.start,
        ):
            with pytest.raises(RuntimeError, match="would wait for itself: use AsyncProducer there") as raised:
                use()
            yield raised.type

    assert len(elsewhere.do(lambda: list(used()))) == 6
    assert producer.call(SERVICE, "echo", {"n": 1}).result == {"n": 1}


@pytest.mark.parametrize("own_loop", [True, False])
def test_close_ends_what_is_under_way_in_other_threads(
    elsewhere: Elsewhere, responder: Responder, own_loop: bool
) -> None:
    broker = MemoryBroker() if own_loop else elsewhere.broker
    producer = Producer(broker, loop=None if own_loop else elsewhere.loop)
    producer.start()
    if own_loop:
        responder = Responder(answer_echo)
        producer.run(responder.start(broker))

    def call(thread: int) -> BaseException | None:
        try:
            while True:
                producer.call(SERVICE, "silence" if thread % 2 else "echo", {"n": 1})
        except (OutcomeUnknown, BrokerUnavailable) as error:
            return error

    with ThreadPoolExecutor(10) as pool:
        calling = [pool.submit(call, thread) for thread in range(10)]
        producer.run(until(lambda: len(responder.seen) > 100))
        producer.close()
        errors = [call.result(PATIENCE) for call in calling]
    assert sum(isinstance(error, OutcomeUnknown) for error in errors) >= 5


def test_a_close_that_a_callback_holds_up_says_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_of_threads, "CLOSE_TIMEOUT", 0.2)
    broker = MemoryBroker()
    producer = Producer(broker)
    producer.start()
    producer.run(Responder(answer_echo).start(broker))
    blocked, free, returned = threading.Event(), threading.Event(), threading.Event()

    def block(_: object) -> None:
        blocked.set()
        free.wait(PATIENCE)
        returned.set()

    producer.submit(SERVICE, "echo", {"n": 1}).add_done_callback(block)
    assert blocked.wait(PATIENCE)
    with pytest.raises(TimeoutError):
        producer.close()
    free.set()
    assert returned.wait(PATIENCE)
    with pytest.raises(BrokerUnavailable, match="closed"):
        producer.call(SERVICE, "echo", {"n": 2})
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name != "elsewhere":
            thread.join(PATIENCE)


def test_close_ends_what_waits_for_room(elsewhere: Elsewhere, responder: Responder) -> None:
    producer = Producer(elsewhere.broker, loop=elsewhere.loop)
    producer.start()
    elsewhere.do(lambda: elsewhere.broker.block("low on memory"))
    large = {"x": "x" * (15 * 1024 * 1024)}
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(producer.call, SERVICE, "echo", large) for _ in range(6)]
        calls += [pool.submit(producer.publish, SERVICE, "echo", large) for _ in range(2)]
        elsewhere.until(lambda: len(producer._tasks) >= 4)
        producer.close()
        for call in calls:
            assert isinstance(call.exception(PATIENCE), Blocked | OutcomeUnknown | BrokerUnavailable)


def test_a_close_during_the_start_ends_it() -> None:
    with closing(socket.socket()) as listener:  # accepts, and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        producer = Producer(f"amqp://user:secret@127.0.0.1:{listener.getsockname()[1]}/", connect_timeout=PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(producer.start)
            connection, _ = listener.accept()
            with closing(connection):
                producer.close()
                assert isinstance(starting.exception(PATIENCE), BrokerUnavailable)
