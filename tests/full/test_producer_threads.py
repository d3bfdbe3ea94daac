"""Producer on RabbitMQ: a hundred threads on one connection, and forks, which get one of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from elsewhere import PATIENCE, Elsewhere
from forking import forked
from responder import SERVICE, Responder
from soak import SOAK

from bridge_protocol.errors import OutcomeUnknown
from bridge_protocol.messages import Request
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Delivery
from producer.producer import Producer
from producer.reply import Reply

CALLS = 100 if SOAK else 15


def act(responder: Responder, delivery: Delivery, request: Request) -> None:
    if request.command == "echo":
        responder.succeed(delivery, request, request.args)


def ports() -> set[int]:
    """The local ports of this process's connections."""
    connections = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in connections if each.status == psutil.CONN_ESTABLISHED}


@pytest.fixture
def url(rabbitmq_url: str) -> Iterator[str]:
    elsewhere, responder = Elsewhere(), Responder(act)
    elsewhere.run(responder.start(AmqpBroker(parse_addresses(rabbitmq_url))))
    yield rabbitmq_url
    assert responder.channel is not None
    elsewhere.run(responder.channel.close())
    elsewhere.end()


def test_a_hundred_threads_get_their_own_replies(url: str) -> None:
    def calls(thread: int) -> list[tuple[int, int]]:
        replies = [producer.call(SERVICE, "echo", {"thread": thread, "n": n}, timeout=120) for n in range(CALLS)]
        return [(reply.result["thread"], reply.result["n"]) for reply in replies]

    with Producer(url) as producer, ThreadPoolExecutor(100) as pool:
        for thread, results in enumerate(pool.map(calls, range(100))):
            assert results == [(thread, n) for n in range(CALLS)]


def test_a_fork_has_a_connection_of_its_own(url: str) -> None:
    before = ports()
    with Producer(url) as producer:
        assert producer.call(SERVICE, "echo", {"n": 1}).result == {"n": 1}
        mine = ports() - before
        assert len(mine) == 1
        outcome = producer.submit(SERVICE, "silence")

        def use() -> str:
            with ThreadPoolExecutor(8) as pool:  # whose first uses are at the same time
                numbers = [reply.result["n"] for reply in pool.map(ask, range(100))]
            assert numbers == list(range(100))
            assert len(ports() - before - mine) == 1
            assert not ports() & mine
            with pytest.raises(OutcomeUnknown, match="this one was forked from that"):
                outcome.result()
            assert "fine" in forked(lambda: f"fine {ask(7).result}")  # and in a fork of the fork
            producer.close()
            assert ports() <= before
            return f"fine in {threading.active_count()} thread, {os.getpid()}"

        def ask(n: int) -> Reply:
            return producer.call(SERVICE, "echo", {"n": n}, timeout=PATIENCE)

        link = producer._producer.sender.link.channel
        for _ in range(3):
            assert forked(use).startswith("fine in 1 thread")
            assert ask(2).result == {"n": 2}
        assert producer._producer.sender.link.channel is link  # never lost
        assert ports() - before == mine
        assert not outcome.done()
