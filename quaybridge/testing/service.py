"""A service under test: a broker, a node with one bridge, and a producer, all in this process and gone with it."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from bridge_sdk.bridge import Bridge
from bridge_sdk.in_process import InProcess
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.memory import MemoryBroker
from producer.options import DEFAULT_TIMEOUT, Mode
from producer.outcome import Outcome
from producer.producer import Producer
from producer.reply import Reply
from producer.thread_session import Session
from quaybridge.testing.adapters import Adapter, adapter_named
from quaybridge.testing.mock_bridge import MockBridge
from quaybridge.testing.script import Script
from quaybridge.testing.scripted_bridge import ScriptedBridge
from worker_node.bridge_process import BridgeProcess
from worker_node.node import Node
from worker_node.settings import NodeSettings

NAME = "work"
# What a test wants where a service in use wants something else: the marker and `open_service` override each.
IMPATIENT: Mapping[str, Any] = {
    "name": NAME,
    "bridges": 1,
    "run_timeout": 5.0,
    "stop_timeout": 0.5,
    "restart_delay": 0.01,
    "max_restart_delay": 0.1,
    "pipelining": False,  # which request meets which failure must not depend on time
    "retry": {"max_attempts": 1},
}

T = TypeVar("T")


class Service:
    """A running service. `producer` sends to it; `call` and `submit` do so by its name. From any thread.

    `fail` and `heal` are its script's: see quaybridge.testing.Script.
    """

    def __init__(self, name: str, adapter: str, producer: Producer, node: Node, script: Script) -> None:
        self.name = name
        self.adapter = adapter
        self.producer = producer
        self.node = node
        self.script = script
        self.fail = script.fail
        self.heal = script.heal

    def __repr__(self) -> str:
        return f"<Service {self.name} on {self.adapter}: {self.script!r}>"

    def call(self, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> Reply:
        """Send a request and wait for its reply; raises what Producer.call does."""
        return self.producer.call(self.name, command, args, timeout=timeout)

    def submit(
        self, command: str, args: Mapping[str, Any] | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Outcome:
        """Send a request; a future for its reply: see Producer.submit."""
        return self.producer.submit(self.name, command, args, timeout=timeout)

    def session(self, id: str, *, mode: Mode = "strict", journal: Sequence[str] = ()) -> Session:
        """A session, if the service has them (`sessions={"enabled": True}`): see Producer.session."""
        return self.producer.session(id, service=self.name, mode=mode, journal=journal)


@contextmanager
def open_service(
    adapter: str,
    bridge: str | Bridge,
    *,
    command: str | Sequence[str] | None = None,
    seed: int = 0,
    url: str | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """A service of `bridge` on the adapter of that name; it has ended when the block has.

    `bridge`: "module", "module:attribute", or (mock only) a Bridge. `command`: the program that serves where bridges
    are processes; by default `python -m bridge_sdk` with `bridge`, which finds what this process can import. `seed`:
    of the script's rates. `url`: of a RabbitMQ, in a vhost of the test's own. `settings`: of worker_node.settings.
    ServiceSettings. Raises UnknownAdapter, ValueError for settings that cannot be used, and what Node.start does.
    """
    chosen = adapter_named(adapter)
    if chosen.server and url is None:
        raise ValueError(f"the adapter {adapter} needs the url of a RabbitMQ")
    script = Script(seed)
    spawn: Callable[..., BridgeProcess]
    if chosen.in_process:
        spawn = partial(MockBridge, script, InProcess(_loaded(bridge)))
        settings["bridges"] = 1  # they would share what in processes is each one's own
    else:
        spawn = partial(ScriptedBridge, script)
    environment = {**_environment(), **settings.pop("environment", {})}
    service = {**IMPATIENT, **settings, "environment": environment, "command": _command(chosen, bridge, command)}
    node_settings = NodeSettings.model_validate({"name": f"test-{os.getpid()}", "services": [service]})
    with ExitStack() as stack:
        loop = stack.enter_context(_running_loop())
        broker = _on(loop, _made(lambda: AmqpBroker(parse_addresses(url)) if url else MemoryBroker()))
        producer = stack.enter_context(Producer(broker, name="test", loop=loop))
        node = _on(loop, _made(lambda: Node(node_settings, broker, spawn=spawn)))
        stack.callback(lambda: _on(loop, node.stop()))
        _on(loop, node.start())
        yield Service(node_settings.services[0].name, adapter, producer, node, script)


def _loaded(bridge: str | Bridge) -> Bridge:
    """The bridge of that name, as `python -m bridge_sdk` would serve it."""
    if isinstance(bridge, Bridge):
        return bridge
    name, _, attribute = bridge.partition(":")
    module: ModuleType = import_module(name)
    found: object = getattr(module, attribute or "bridge", None)
    if isinstance(found, type):
        found = Bridge(found())
    if not isinstance(found, Bridge):
        raise ValueError(f"{name} has no Bridge, and no class, called {attribute or 'bridge'!r}")
    return found


def _command(adapter: Adapter, bridge: str | Bridge, command: str | Sequence[str] | None) -> tuple[str, ...]:
    if adapter.in_process:
        return (sys.executable,)  # not started
    if command is not None:
        return tuple(shlex.split(command) if isinstance(command, str) else command)
    if not isinstance(bridge, str):
        raise ValueError("where bridges are processes they are named: give bridge as a text, or a command")
    return (sys.executable, "-m", "bridge_sdk", bridge)


def _environment() -> dict[str, str]:
    """For bridges to find every module that this process finds."""
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))}


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def live() -> None:
        end = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), end))
        await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(live()), name="quaybridge service", daemon=True)
    thread.start()
    loop, end = started.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


def _on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


async def _made(make: Callable[[], T]) -> T:
    """What can only be made on the loop it lives on."""
    return make()
