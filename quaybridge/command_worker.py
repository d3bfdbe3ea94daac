"""`quaybridge worker`: serve requests until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge_protocol.errors import QuaybridgeError
from quaybridge.exit_status import ExitStatus, explained
from quaybridge.init import become_init
from quaybridge.logs import LogLevel, log_to_stderr

CONTAINER_STOP_TIMEOUT = 10.0  # seconds after which Docker kills, by default

if TYPE_CHECKING:
    from types import FrameType

    from broker.address import Address
    from broker.store import Store
    from quaybridge.settings import Configuration, Key
    from worker_node.node import Node
    from worker_node.settings import NodeSettings

logger = logging.getLogger("quaybridge.node")


def worker(
    service: Annotated[str | None, typer.Option(help="Serve this service, and no other that is configured.")] = None,
    bridge: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Its bridge: a program and its arguments; no shell is run.")
    ] = None,
    bridges: Annotated[
        str | None, typer.Option(metavar="N|MIN-MAX", help="Bridge subprocesses. Default: one for each CPU.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="eager|lazy", help="Start bridges with the node, or when work waits for one.")
    ] = None,
    run_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long one request may run. Default: 300.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(metavar="URL", help="Where RabbitMQ is; several, separated by commas, in turn.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="DIRECTORY", help="Where large payloads wait, shared with other workers and producers."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML. Default: QUAYBRIDGE_CONFIG, else ./quaybridge.toml.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The node's name, unique among nodes. Default: host name and process id.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged on stderr.")] = LogLevel.INFO,
) -> None:
    """Serve requests: consume them from RabbitMQ and have bridge subprocesses do the work.

    SIGTERM or SIGINT finishes what runs and ends it; a second signal ends it at once. SIGHUP reads the configuration
    again and replaces every bridge, one after the other. SIGUSR1 logs what every bridge is doing. Several services are
    configured by a file.
    """
    contained = become_init()
    # Until the event loop handles signals.
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # nothing to tell yet, and no reason to end
    with explained():
        from quaybridge.settings import BROKER, NODE_NAME, STORE, SettingsError, given, read_configuration

        options: dict[Key, tuple[str, object]] = {
            BROKER: ("--broker", broker),
            NODE_NAME: ("--name", name),
            STORE: ("--store", store),
        }
        of_service: dict[str, tuple[str, object]] = {
            "command": ("--bridge", bridge),
            "bridges": ("--bridges", bridges),
            "start": ("--start", start),
            "run_timeout": ("--run-timeout", run_timeout),
        }
        if service is not None:
            options[("services", service, "name")] = ("--service", service)
            options |= {("services", service, key): option for key, option in of_service.items()}
        elif without := [option for option, value in of_service.values() if value is not None]:
            raise SettingsError(f"{without[0]} needs --service, to say whose it is")

        def read() -> tuple[NodeSettings, Configuration]:
            configuration = read_configuration(config, environ=os.environ, flags=given(options))
            settings = configuration.node(service)
            _check_programs(settings)
            return settings, configuration

        settings, configuration = read()
        addresses = configuration.broker()
        log_to_stderr(log_level)
        if advice := stop_advice(settings.drain_timeout, contained=contained):
            logger.warning(advice)
        asyncio.run(
            _serve(settings, addresses, configuration.health_file(), configuration.store(), reread=lambda: read()[0])
        )


def stop_advice(drain_timeout: float, *, contained: bool) -> str | None:
    """What to say of a drain that may outlast what its container is given to stop; None: nothing.

    A container's own worker (`contained`) cannot know how long that is: 10 s by default in Docker, 30 s in Kubernetes.
    """
    if not contained or drain_timeout < CONTAINER_STOP_TIMEOUT:
        return None
    return (
        f"node.drain_timeout is {drain_timeout:g} s: give this container longer than that to stop "
        "(stop_grace_period, docker stop --time, terminationGracePeriodSeconds), or requests will run twice"
    )


def _end_at_once(number: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitStatus.DONE)


def _reload(node: Node, reread: Callable[[], NodeSettings]) -> None:
    """Replace the bridges by ones with the configuration as it is now; one that cannot be used changes nothing."""
    try:
        settings = reread()
    except QuaybridgeError as error:
        for line in str(error).splitlines():
            logger.error("not reloaded: %s", line)
    else:
        node.reload(settings)


def _check_programs(settings: NodeSettings) -> None:
    """Before anything is started or connected, so that a lazy service's mistake shows at once too."""
    from quaybridge.program import program_problem
    from worker_node.node import BridgeStartError

    for service in settings.services:
        if problem := program_problem(service, os.environ):
            raise BridgeStartError(f"service {service.name}: {problem}")


async def _serve(
    settings: NodeSettings,
    addresses: tuple[Address, ...],
    health_file: Path | None,
    store: Store | None,
    *,
    reread: Callable[[], NodeSettings],
) -> None:
    from broker.amqp import AmqpBroker
    from quaybridge.failpoints import armed_failpoints
    from quaybridge.heartbeat import Heartbeat
    from worker_node.node import Node

    broker = AmqpBroker(addresses)
    if (failpoints := armed_failpoints(os.environ)) is None:
        node = Node(settings, broker, store=store)
    else:
        from broker.failpoints import FailingBroker
        from worker_node.failing_bridge import FailingBridge

        node = Node(settings, FailingBroker(broker, failpoints), store=store, spawn=partial(FailingBridge, failpoints))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.request_stop)
    loop.add_signal_handler(signal.SIGHUP, _reload, node, reread)
    loop.add_signal_handler(signal.SIGUSR1, node.log_state)
    heartbeat = Heartbeat(health_file, lambda: node.serving) if health_file is not None else None
    if heartbeat is not None:
        heartbeat.start()
    try:
        await node.run()
    finally:
        # It is over: one more signal must not turn that into a failure.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1))
        if heartbeat is not None:
            heartbeat.stop()
