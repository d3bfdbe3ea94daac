"""A worker node: consumes requests, and supervises the bridges that carry them out.

    echo = ServiceSettings(name="echo", command=("python", "-m", "examples.echo"))
    node = Node(NodeSettings(services=(echo,)), broker)
    await node.start()
    ...
    await node.drain()

The composition root of the process: every other part gets from here what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

from bridge_protocol.control import (
    CONSUMES,
    OWNS,
    Cancel,
    Consumes,
    Credit,
    Owns,
    encode_consumes,
    encode_owns,
    owns_key,
)
from bridge_protocol.envelope import Properties
from bridge_protocol.errors import QuaybridgeError
from bridge_protocol.topology import (
    CONTROL,
    dead_letter_topology,
    request_queue,
    service_topology,
    session_topology,
    shared_topology,
)
from broker.contract import Broker, Channel, Consumer, Message
from broker.link import Link
from broker.store import Store
from worker_node.bridge_process import BridgeProcess
from worker_node.claims import sweep
from worker_node.control import Control
from worker_node.dispatcher import Dispatcher
from worker_node.intake import Intake
from worker_node.isolation import Isolation
from worker_node.launch import Launcher
from worker_node.lookout import Lookout
from worker_node.out_of_memory import OutOfMemoryKills
from worker_node.partitions import Partitions
from worker_node.reaper import Reaper
from worker_node.requesters import Requesters
from worker_node.settings import NodeSettings
from worker_node.settlement import Counts

LOOK_EVERY = 1.0  # seconds between two looks at how long requests run
# For the broker to confirm that nothing more comes. What is handed back before that may come here again.
UNSUBSCRIBE_TIMEOUT = 5.0  # seconds, of a drain
HASTY_UNSUBSCRIBE_TIMEOUT = 1.0  # seconds, of a stop

logger = logging.getLogger("quaybridge.node")


class BridgeStartError(QuaybridgeError):
    """Raised when a service's bridges cannot be started at all; says what the last one did."""


class Node:
    """One node. `start`, then `drain` (finish what runs) or `stop` (hand it back); both may be called twice.

    Publishing has a connection of its own: an alarm at the broker, or a reply it refuses, must not cost the
    connection that holds the requests in flight. `store`: where large payloads wait, if any: see `broker.store`.
    """

    def __init__(
        self,
        settings: NodeSettings,
        broker: Broker,
        *,
        store: Store | None = None,
        spawn: Callable[..., BridgeProcess] = BridgeProcess,
    ) -> None:
        self.settings = settings
        self._store = store
        self._sweeping: asyncio.Task[None] | None = None
        self._spawn = spawn
        self.name = settings.name
        self._publishing = Link(broker, f"{self.name} replies", set_up=self._set_up_publishing)
        self._consuming = Link(broker, f"{self.name} requests", set_up=self._set_up, on_lost=self._on_lost)
        self._services: list[tuple[Dispatcher, Intake]] = []
        self._reaper: Reaper | None = None
        self._partitions: list[tuple[Dispatcher, Partitions]] = []  # of the services that have sessions
        self._control = Control(
            self.name,
            tuple(service.name for service in settings.services),
            on_cancel=self._on_cancel,
            on_owns=self._on_owns,
            on_consumes=self._on_consumes,
            on_credit=self._on_credit,
            on_cancelled=self._on_cancelled,
        )
        self._requesters = Requesters(broker, self.name, watched=self._watched, on_gone=self._on_gone)
        self._lookout = Lookout(
            publishing=self._publishing, consuming=self._consuming, interval=settings.watch_interval
        )
        self._changed = asyncio.Event()
        self._isolation = Isolation(self._services, self._changed.set)
        self._taking = False
        self._looking: asyncio.Task[None] | None = None
        self._looked = -math.inf
        self._out_of_memory = OutOfMemoryKills(time.monotonic)
        self._stopping: asyncio.Event = asyncio.Event()
        self._hurrying: asyncio.Event = asyncio.Event()
        self._stopped = False

    def __repr__(self) -> str:
        return f"<Node {self.name}: {', '.join(repr(dispatcher.pool) for dispatcher, _ in self._services)}>"

    @property
    def counts(self) -> dict[str, Counts]:
        """What was done since the start, by service."""
        return {dispatcher.name: dispatcher.settlement.counts for dispatcher, _ in self._services}

    @property
    def services(self) -> list[Dispatcher]:
        """The services this node serves."""
        return [dispatcher for dispatcher, _ in self._services]

    @property
    def serving(self) -> bool:
        """Whether it takes requests now: connected, not draining, and every service able to run one."""
        linked = self._consuming.up and self._publishing.up
        return self._taking and linked and all(d.ready and not d.settlement.stalled for d in self.services)

    async def start(self) -> None:
        """Start the bridges and connect, at the same time; returns when it consumes every queue that answers.

        What an earlier run left on this host is killed before that. Raises BridgeStartError if no bridge of an
        eager service starts, or this process ignores SIGCHLD, and what `Link.start` does. Nothing is left running then.
        """
        await self._begin()
        try:
            await self._consumes()
        except BaseException:
            await self.stop()
            raise

    async def _begin(self) -> None:
        """The start, until it begins to take requests."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # The kernel would not keep what it knows of a bridge's end, nor its number, until that is asked for.
            raise BridgeStartError(
                "this process ignores SIGCHLD, and could not tell how a bridge ended: "
                "call signal.signal(signal.SIGCHLD, signal.SIG_DFL) before"
            )
        launcher = Launcher(os.environ.get("PATH"))
        if launcher.lacking:
            logger.warning("%s: this host has no %s", self.name, ", no ".join(launcher.lacking))
        self._reaper = Reaper(self.name)
        for settings in self.settings.services:
            dispatcher = Dispatcher(
                settings,
                node=self.name,
                link=self._publishing,
                launcher=launcher,
                reaper=self._reaper,
                publish_timeout=self.settings.publish_timeout,
                stall_timeout=self.settings.stall_timeout,
                control_queue=lambda: self._control.queue,
                on_change=self._changed.set,
                out_of_memory=self._out_of_memory,
                store=self._store,
                claim_threshold=self.settings.claim_threshold,
                spawn=self._spawn,
            )
            intake = Intake(
                request_queue(settings.name),
                partial(self._isolation.on_delivery, dispatcher),
                self._on_cancelled,
            )
            self._services.append((dispatcher, intake))
            self._lookout.add(dispatcher, intake)
            if settings.sessions.enabled:
                partitions = Partitions(
                    settings.name,
                    self.name,
                    on_delivery=partial(self._isolation.on_session_delivery, dispatcher),
                    on_owned=partial(self._announce_owned, settings.name),
                    on_consuming=partial(self._announce_consumed, settings.name),
                    on_cancelled=self._on_cancelled,
                )
                self._partitions.append((dispatcher, partitions))
        try:
            try:
                await self._reaper.start()
            except OSError as error:
                raise BridgeStartError(f"the node's reaper cannot be started: {error.strerror or error}") from error
            for dispatcher, _ in self._services:
                dispatcher.open()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._consuming.start(self.settings.connect_timeout))
                group.create_task(self._publishing.start(self.settings.connect_timeout))
                group.create_task(self._wait_ready())
        except BaseExceptionGroup as several:
            await self.stop()
            # One cause is enough for a person: the others follow from it, or will be met next.
            raise several.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise
        self._taking = True
        self._looking = asyncio.get_running_loop().create_task(self._look(), name=f"{self.name} intake")
        self._adjust()
        self._requesters.start()
        self._lookout.start()
        if self._store is not None:
            self._sweeping = asyncio.get_running_loop().create_task(sweep(self._store, self.settings.claim_age))

    async def _consumes(self) -> None:
        """The rest of it: until every queue is consumed. One whose majority is gone answers nobody, and is let be."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.connect_timeout):
                await self._adjusted()
        logger.info("%s: serving %s", self.name, ", ".join(repr(dispatcher) for dispatcher, _ in self._services))

    def request_stop(self) -> None:
        """Ask `run` to end: the first time by draining, the second time at once. For signal handlers."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    def log_state(self) -> None:
        """Log what every slot is doing, a line each. For a signal handler."""
        for dispatcher in self.services:
            for line in dispatcher.states():
                logger.info("%s", line)

    async def run(self) -> None:
        """Start, serve until `request_stop`, and drain. Raises what `start` does. Cancelled, it stops at once."""
        try:
            if await _unless(self._stopping, self._begin()):
                await _unless(self._stopping, self._consumes())
                await self._stopping.wait()
                if not await _unless(self._hurrying, self.drain()):
                    logger.info("%s: stopping at once", self.name)
        finally:
            await self.stop()

    def reload(self, settings: NodeSettings) -> None:
        """Replace the bridges of every service by ones with these settings, one after the other: a rolling restart.

        Only what belongs to a service that is served already takes effect; the rest takes a new process, and a
        line in the log says so.
        """
        wanted = {service.name: service for service in settings.services}
        served = {dispatcher.name: dispatcher for dispatcher in self.services}
        for name, dispatcher in served.items():
            dispatcher.reload(wanted.get(name, dispatcher.settings))
        with_sessions = {dispatcher.name for dispatcher, _ in self._partitions}
        if (
            wanted.keys() != served.keys()
            or with_sessions != {name for name, service in wanted.items() if service.sessions.enabled}
            or any(
                getattr(settings, name) != getattr(self.settings, name)
                for name in NodeSettings.model_fields
                if name != "services"
            )
        ):
            logger.warning(
                "%s: new and removed services, whether one has sessions, and settings of the node itself, "
                "need a new process",
                self.name,
            )
        logger.info("%s: replacing the bridges of %s", self.name, ", ".join(served))

    async def drain(self) -> None:
        """Stop gracefully: take no more, finish what runs within `drain_timeout`, hand back the rest."""
        logger.info("%s: draining", self.name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout):
                await self._take_no_more()
                await self._unsubscribed(UNSUBSCRIBE_TIMEOUT)
                for dispatcher in self.services:
                    dispatcher.drain()
                await self._wait(lambda: all(not any(d.pool.tickets()) for d in self.services))
                for dispatcher in self.services:
                    await dispatcher.settlement.wait_idle()
                # Idle bridges were asked to go already; they have their stop timeout to do so, no more.
                async with asyncio.timeout(max((d.settings.stop_timeout for d in self.services), default=0.0)):
                    await self._wait(lambda: all(d.pool.empty for d in self.services))
        await self.stop()

    async def stop(self) -> None:
        """Stop at once: kill every bridge, hand back what ran on it. Also completes a `drain` that was cancelled."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        await self._take_no_more()
        await self._unsubscribed(HASTY_UNSUBSCRIBE_TIMEOUT)
        for dispatcher in self.services:
            dispatcher.abort()
        await self._wait(lambda: all(d.pool.empty for d in self.services))
        closing = [self._requesters.close(), self._consuming.close(), self._publishing.close()]
        if self._reaper is not None:
            closing.append(self._reaper.stop())
        await asyncio.gather(*closing)
        await self._adjusted()
        for dispatcher in self.services:
            dispatcher.close()
        if not self._stopped:
            self._stopped = True
            logger.info("%s: stopped", self.name)

    async def _take_no_more(self) -> None:
        self._taking = False
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        await self._lookout.stop()
        for _, intake in self._services:
            intake.want(0, 0)
        for _, partitions in self._partitions:
            partitions.want(False)

    async def _adjusted(self) -> None:
        """Until what is wanted of the queues is so."""
        for _, intake in self._services:
            await intake.settled()
        for _, partitions in self._partitions:
            await partitions.settled()

    async def _unsubscribed(self, timeout: float) -> None:
        """Until nothing more comes. A connection that hangs must not hold up the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._adjusted()
        await self._isolation.close()  # not before: a suspect may have been on its way

    # The connections.

    async def _set_up(self, channel: Channel) -> None:
        self._forget_channel()  # of an earlier one that was lost while it was set up, nobody has told
        await channel.declare(shared_topology())
        await self._control.attach(channel)
        for dispatcher, intake in self._services:
            dispatcher.readdress()
            await channel.declare(service_topology(dispatcher.name))
            intake.attach(channel)
        for dispatcher, partitions in self._partitions:
            await channel.declare(session_topology(dispatcher.name))
            partitions.attach(channel)

    async def _set_up_publishing(self, channel: Channel) -> None:
        """At the start the other connection declares; later a loss may be why this channel is a new one."""
        if self._looking is None:
            return
        await channel.declare(shared_topology())
        for dispatcher in self.services:
            await channel.declare(dead_letter_topology(dispatcher.name))

    def _on_lost(self, reason: str) -> None:
        self._forget_channel()

    def _forget_channel(self) -> None:
        for dispatcher, intake in self._services:
            intake.detach()
            dispatcher.forget()
        for _, partitions in self._partitions:
            partitions.detach()

    def _on_cancelled(self, consumer: Consumer) -> None:
        # Never just consume again: see Channel.consume.
        self._consuming.rebuild(f"the broker ended the subscription to {consumer.queue}")

    # What nobody wants any more.

    def _on_cancel(self, cancel: Cancel) -> None:
        for dispatcher in self.services:
            if dispatcher.name == cancel.service:
                dispatcher.cancel(cancel.message_id)

    def _on_credit(self, credit: Credit) -> None:
        for dispatcher in self.services:
            if dispatcher.name == credit.service:
                dispatcher.grant(credit.run, credit.chunks)

    # Whose the sessions are.

    def _announce_owned(self, service: str, partition: int) -> None:
        self._announce(service, OWNS, encode_owns(Owns(service=service, partition=partition, node=self.name)))

    def _announce_consumed(self, service: str, partitions: Sequence[int]) -> None:
        consumes = Consumes(service=service, partitions=tuple(partitions), node=self.name)
        self._announce(service, CONSUMES, encode_consumes(consumes))

    def _announce(self, service: str, kind: str, body: bytes) -> None:
        message = Message(
            exchange=CONTROL,
            routing_key=owns_key(service),
            body=body,
            properties=Properties(type=kind, delivery_mode=1),
        )
        # If that fails, others find out by themselves.
        self._publishing.publish(message, timeout=self.settings.publish_timeout)

    def _on_owns(self, owns: Owns) -> None:
        for dispatcher, partitions in self._partitions:
            if dispatcher.name == owns.service:
                partitions.lose(owns.partition)
                dispatcher.moved(owns.partition)

    def _on_consumes(self, consumes: Consumes) -> None:
        for dispatcher, partitions in self._partitions:
            if dispatcher.name == consumes.service:
                partitions.yield_to(consumes.node, consumes.partitions)

    def _watched(self) -> Iterator[str]:
        for dispatcher in self.services:
            yield from dispatcher.watched()

    def _on_gone(self, address: str) -> None:
        for dispatcher in self.services:
            dispatcher.requester_gone(address)

    # What is taken, and when.

    async def _look(self) -> None:
        """Keep what is taken in step with what can run."""
        while True:
            self._adjust()
            self._note_memory()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._changed.wait()

    def _adjust(self) -> None:
        for dispatcher, intake in self._services:
            # Without their replies' being taken, more requests would only fill the node.
            stalled = dispatcher.settlement.check_stall()
            if not self._taking or self._isolation.active or not dispatcher.ready or stalled:
                intake.want(0, 0)
                if intake.stopped:
                    dispatcher.give_up()
            else:
                intake.want(dispatcher.pool.capacity, dispatcher.look_ahead())
        for dispatcher, partitions in self._partitions:
            # Not without bridges: another node may have some.
            partitions.want(self._taking and dispatcher.ready and not dispatcher.settlement.stalled)

    def _note_memory(self) -> None:
        self._out_of_memory.look()
        now = asyncio.get_running_loop().time()
        if now >= self._looked + LOOK_EVERY:
            self._looked = now
            for dispatcher in self.services:
                dispatcher.look()

    async def _wait_ready(self) -> None:
        """Until every service can serve; BridgeStartError once each of one's slots has failed to start."""

        def ready() -> bool:
            for dispatcher in self.services:
                if not dispatcher.ready and dispatcher.pool.failing:
                    raise BridgeStartError(f"service {dispatcher.name}: {dispatcher.start_trouble}")
            return all(dispatcher.ready for dispatcher in self.services)

        await self._wait(ready)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`, and whether it was done: cancelled if `event` is set first."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.wait([working])
    if working.cancelled():
        return False
    working.result()
    return True
