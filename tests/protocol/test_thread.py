"""Calls that block, and a process that may have no more threads just now."""

from __future__ import annotations

import asyncio
import threading

import pytest

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import ConnectionRefused
from broker.thread import Threads, in_thread
from worker_node.memory import MemoryWatch


def no_more(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_it_gives_what_the_call_returns_and_raises_what_it_raises() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


async def test_a_call_that_hangs_keeps_its_place_though_nobody_waits_for_it() -> None:
    threads, hang, before = Threads(2), threading.Event(), threading.active_count()
    abandoned = [asyncio.create_task(threads.run(hang.wait)) for _ in range(2)]
    waiting = asyncio.create_task(threads.run(hang.wait))
    await asyncio.sleep(0)
    for task in abandoned:
        task.cancel()
    await asyncio.wait(abandoned)
    for _ in range(10):  # turns of the loop: more than whoever waited for a place needs to take it
        await asyncio.sleep(0)
    assert threading.active_count() == before + 2
    hang.set()
    assert await waiting
    assert await asyncio.gather(*(threads.run(abs, -number) for number in range(5))) == list(range(5))


async def test_a_call_without_a_thread_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(1)
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", no_more)
        for _ in range(2):
            with pytest.raises(OSError, match="can't start new thread"):
                await threads.run(abs, -1)
    assert await threads.run(abs, -1) == 1


async def test_without_a_thread_a_broker_cannot_be_reached_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is tried again: anything else would end a link for good."""
    monkeypatch.setattr(threading.Thread, "start", no_more)
    broker = AmqpBroker(parse_addresses("amqp://127.0.0.1:1/"))
    with pytest.raises(ConnectionRefused, match="can't start new thread"):
        await broker.open("test", on_closed=lambda _: None)


async def test_without_a_thread_the_memory_of_bridges_is_looked_at_later(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()
    measured: asyncio.Queue[int] = asyncio.Queue()

    def look_at() -> dict[int, int]:
        looked.set()
        return {0: 1}

    monkeypatch.setattr("worker_node.memory.tree_memory", lambda pids: dict.fromkeys(pids, 42))
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", no_more)
        watch = MemoryWatch(look_at, lambda _, size: measured.put_nowait(size), 0.01)
        await looked.wait()
    assert await measured.get() == 42
    watch.close()
