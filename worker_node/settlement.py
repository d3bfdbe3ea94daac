"""How a delivery ends: the one funnel. Reply, retry or dead letter, each confirmed by the broker, and then the ack.

Nothing else acknowledges. A delivery whose channel is gone is let go: the broker delivers it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from bridge_protocol import messages, topology
from bridge_protocol.dead_letter import dead_letter
from bridge_protocol.envelope import (
    CANCEL_ON_DISCONNECT,
    CLAIMS,
    DEADLINE,
    DIRECT_REPLY_TO,
    RESULT,
    WANTS_CHUNKS,
    WANTS_PROGRESS,
    History,
    message_id_problem,
    read_history,
    read_traceparent,
    reply_properties,
    request_properties,
)
from bridge_protocol.errors import Code, CodedError
from broker.confirm import Confirm
from broker.contract import Delivery, Message, Unroutable
from broker.link import Link
from broker.store import MOST_AT_ONCE, STORE_TIMEOUT, Store
from broker.thread import Threads
from worker_node.claims import result_checked_in
from worker_node.core.admission import reply_address
from worker_node.core.fate import Ended, Fault, HandBack, Retry, RetryPolicy, decide
from worker_node.stderr import printable

PAUSE = 1.0  # seconds before a publish that failed is tried again
LONGEST_SHOWN = 500  # characters of somebody else's text in a log line

logger = logging.getLogger("quaybridge.node")


@dataclass(slots=True)
class Counts:
    """What this node did, since it started."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    dead: int = 0
    handed_back: int = 0
    redelivered: int = 0
    joined: int = 0  # came again while they ran, and were answered with that run
    repeated: int = 0  # came again when they were answered, and were told the same again
    replies_dropped: int = 0
    replies_parked: int = 0


@dataclass(slots=True, kw_only=True, eq=False)  # not frozen, which would double what making one takes
class Case:
    """What there is to settle: a delivery, which try it is, and the id its bridge knows it by.

    `joined`: the same request, delivered again while it was under way. What becomes of it becomes of all.
    """

    delivery: Delivery
    attempt: int
    request_id: int | None
    command: str
    remaining: float  # seconds until its deadline, when it came to its end
    slot: int | None = None  # where it ran, if it did
    joined: tuple[Delivery, ...] = ()
    epoch: str | None = None  # of the session that it ran in, or asked for in vain
    fresh: bool = False  # that is not the one it asked for
    run: str | None = None  # where its chunks are wanted: what they are known by
    chunks: int = 0  # how many there were
    delayed: bool = True  # whether another try may wait in a delay queue: not in a session

    @property
    def stale(self) -> bool:
        """Whether nothing of it can be settled any more."""
        return self.delivery.stale and all(delivery.stale for delivery in self.joined)

    def addressees(self) -> list[Delivery]:
        """One delivery for each place where an answer is awaited, or one without.

        What is stale is left out where something is not: it comes again, and is answered then.
        """
        if not self.joined:
            return [self.delivery]
        live = [delivery for delivery in (self.delivery, *self.joined) if not delivery.stale]
        return list({reply_address(delivery.properties): delivery for delivery in live}.values())

    def ack(self) -> None:
        """Let it go for good."""
        self.delivery.ack()
        for delivery in self.joined:
            delivery.ack()

    def reject(self, *, requeue: bool) -> None:
        """Hand it back, or have the broker keep it as a dead letter."""
        self.delivery.reject(requeue=requeue)
        for delivery in self.joined:
            delivery.reject(requeue=requeue)


class Settlement:
    """Ends the deliveries of one service. `wall` is the time of day in seconds since 1970, `jitter` in 0 … 1.

    `store`: where results of more than `claim_threshold` bytes go, whose requesters can fetch them from there.
    """

    def __init__(
        self,
        link: Link,
        *,
        node: str,
        service: str,
        policy: RetryPolicy,
        publish_timeout: float,
        stall_timeout: float,
        wall: Callable[[], float],
        jitter: Callable[[], float],
        store: Store | None = None,
        claim_threshold: int = 0,
    ) -> None:
        self.counts = Counts()
        self.stalled = False  # what `check_stall` found last
        self._link = link
        self._node = node
        self._service = service
        self.policy = policy
        self._publish_timeout = publish_timeout
        self._stall_timeout = stall_timeout
        self._wall = wall
        self._jitter = jitter
        self._store = store
        self._claim_threshold = claim_threshold
        self._tasks: set[asyncio.Task[None]] = set()  # of results on their way to the store
        self._threads = Threads(MOST_AT_ONCE)
        self._loop = asyncio.get_running_loop()
        self._pending: dict[Case, None] = {}  # came to their end, and are not acknowledged yet
        self._answered = self._loop.time()  # when the broker last answered one of their publishes, or none was pending
        self._idle = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Settlement of {self._service}: {len(self._pending)} pending>"

    @property
    def pending(self) -> int:
        """How many deliveries came to their end and are not acknowledged yet."""
        return len(self._pending)

    @property
    def held(self) -> int:
        """How many deliveries of the request queue, with what joined them, that makes."""
        plain = (case for case in self._pending if case.delayed)
        return sum(not each.stale for case in plain for each in (case.delivery, *case.joined))

    def check_stall(self) -> bool:
        """Whether the broker has taken nothing for `stall_timeout` seconds, though there is something to be taken.

        Logs when that begins and when it is over: to be asked every second or so.
        """
        stalled = bool(self._pending) and self._loop.time() - self._answered >= self._stall_timeout
        if stalled and not self.stalled:
            logger.warning(
                "%s: no more requests are taken: %d are done, and for %g s the broker has taken no reply",
                *(self._service, len(self._pending), self._stall_timeout),
            )
        elif self.stalled and not stalled:
            logger.info("%s: requests are taken again: the broker takes replies", self._service)
        self.stalled = stalled
        return stalled

    async def wait_idle(self) -> None:
        """Wait until every delivery that came to its end is acknowledged, or its channel is gone."""
        while not all(case.stale for case in self._pending):
            self._idle.clear()
            await self._idle.wait()

    def forget(self) -> None:
        """The channel is gone: what is pending can no longer be acknowledged, and will come again."""
        self._idle.set()

    def abort(self) -> None:
        """Wait for the store no longer: whose result is on its way there will come again."""
        for task in self._tasks:
            task.cancel()

    def succeed(self, case: Case, payload: bytes | bytearray) -> None:
        """The bridge answered; its bytes go back as they are."""
        self.counts.succeeded += 1
        self._answer(case, payload)

    def repeat(self, case: Case, payload: bytes | bytearray) -> None:
        """It came again, and was answered with `payload` before."""
        self.counts.repeated += 1
        self._answer(case, payload)

    def fail(self, case: Case, fault: Fault, payload: bytes | bytearray | None = None) -> None:
        """The request failed. `payload`: the bridge's own words, where it has said any."""
        delivery = case.delivery
        addressed = any(reply_address(each.properties) is not None for each in case.addressees())
        fate = decide(
            fault,
            attempt=case.attempt if case.delayed else self.policy.max_attempts,
            policy=self.policy,
            remaining=case.remaining,
            addressed=addressed,
            jitter=self._jitter(),
        )
        match fate:
            case HandBack():
                self.hand_back(case)
            case Retry(delay, attempt):
                self.counts.retried += 1
                logger.info(
                    "%s: %s: %s; trying again in %d s (attempt %d of %d)",
                    *(self._service, _name(delivery), _shown(fault), delay, attempt, self.policy.max_attempts),
                )
                self._settle(case, [self._retry(each, delay, attempt) for each in case.addressees()])
            case Ended(dead_letter):
                self.counts.failed += 1
                said = f"{fault.code}: {_shown(fault)}" + ("; kept as a dead letter" if dead_letter else "")
                level = logging.WARNING if dead_letter else logging.INFO
                logger.log(level, "%s: %s failed: %s", self._service, _name(delivery), said)
                outgoing = [self._dead_letter(case, fault)] if dead_letter else []
                self._settle(case, outgoing + self._reply(case, payload or self._failure(case, fault), fault.code))

    def _answer(self, case: Case, payload: bytes | bytearray) -> None:
        if (
            self._store is None
            or len(payload) <= self._claim_threshold
            or not any(_takes_claims(delivery) for delivery in case.addressees())
        ):
            self._settle(case, self._reply(case, payload, None))
            return
        self._enter(case)
        task = self._loop.create_task(self._check_in(self._store, case, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check_in(self, store: Store, case: Case, payload: bytes | bytearray) -> None:
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                claimed = await self._threads.run(result_checked_in, store, payload)
        except OSError as error:
            # It fits a message too.
            why = f"in {STORE_TIMEOUT:g} s" if isinstance(error, TimeoutError) else error
            logger.warning("%s: a result stays in its message: %r takes nothing: %s", self._service, store, why)
            claimed = None
        self._settle(case, self._reply(case, payload, None, claimed))

    def hand_back(self, work: Case | Delivery) -> None:
        """It did not run here: another node may have it."""
        self.counts.handed_back += 1
        work.reject(requeue=True)

    # What is published.

    def _reply(
        self, case: Case, payload: bytes | bytearray, code: Code | None, claimed: bytes | None = None
    ) -> list[Message]:
        """Replies to all who await one. `claimed`: the payload as a claim check, for those who take one."""
        replies: list[Message] = []
        for delivery in case.addressees():
            properties = delivery.properties
            address = reply_address(properties)
            if address is None:
                continue
            taken = claimed if claimed is not None and _takes_claims(delivery) else None
            envelope = reply_properties(
                correlation_id=_usable(properties.correlation_id) or _usable(properties.message_id),
                code=code,
                attempt=case.attempt,
                node=self._node,
                redelivered=delivery.redelivered,
                epoch=case.epoch,
                fresh=case.fresh,
                claim=taken is not None,
                run=case.run,
                chunks=case.chunks,
            )
            body = payload if taken is None else taken
            replies.append(Message(exchange="", routing_key=address, body=body, properties=envelope))
        return replies

    def _failure(self, case: Case, fault: Fault) -> bytes:
        info = messages.ErrorInfo(type=fault.code, message=fault.message, details=fault.details)
        moment = messages.format_timestamp(self._wall())
        return messages.encode_failure(case.request_id, fault.message, info=info, timestamp=moment)

    def _retry(self, delivery: Delivery, delay: int, attempt: int) -> Message:
        old = delivery.properties
        exchange, key = topology.delay_route(self._service, delay)
        deadline = old.headers.get(DEADLINE)
        now = int(self._wall() * 1000)
        history = read_history(old.headers, now)
        properties = request_properties(
            message_id=old.message_id,
            correlation_id=old.correlation_id,
            command=old.type,
            reply_to=reply_address(old),
            deadline=deadline if isinstance(deadline, int) else None,
            attempt=attempt,
            traceparent=read_traceparent(old.headers),
            history=History(first_failed=history.first_failed or now, replays=history.replays),
            cancel_on_disconnect=old.headers.get(CANCEL_ON_DISCONNECT) is True,
            claims=old.headers.get(CLAIMS) is True,
            priority=old.priority,
            chunks=old.headers.get(WANTS_CHUNKS) is True,
            progress=old.headers.get(WANTS_PROGRESS) is True,
        )
        return Message(exchange=exchange, routing_key=key, body=delivery.body, properties=properties)

    def _dead_letter(self, case: Case, fault: Fault) -> Message:
        self.counts.dead += 1
        letter = dead_letter(
            case.delivery.properties,
            case.delivery.body,
            service=self._service,
            code=fault.code,
            error=fault.message,
            attempt=case.attempt,
            node=self._node,
            slot=case.slot,
            details=fault.details,
            now=self._wall(),
        )
        return Message(
            exchange=topology.EXCHANGE,
            routing_key=topology.dead_letter_key(self._service),
            body=letter.body,
            properties=letter.properties(),
        )

    def _parked(self, reply: Message) -> Message:
        """The reply, and where it should have gone."""
        return Message(
            exchange=topology.EXCHANGE,
            routing_key="undeliverable",
            body=reply.body,
            properties=replace(reply.properties, reply_to=reply.routing_key),
        )

    # Publish them one after the other; when the last is confirmed, let the delivery go.

    def _settle(self, case: Case, outgoing: list[Message]) -> None:
        self.counts.redelivered += case.delivery.redelivered
        if case.joined:
            self.counts.redelivered += sum(each.redelivered for each in case.joined)
        self._enter(case)
        self._publish(case, outgoing, case.ack)

    def _enter(self, case: Case) -> None:
        if not self._pending:
            self._answered = self._loop.time()
        self._pending[case] = None

    def _publish(self, case: Case, outgoing: list[Message], let_go: Callable[[], None]) -> None:
        if not outgoing:
            let_go()
        elif not case.stale:
            try:
                sent = self._link.publish(outgoing[0], timeout=self._publish_timeout)
            except CodedError as error:
                self._unsendable(case, outgoing, let_go, error)
            else:
                sent.add_done_callback(partial(self._published, case, outgoing, let_go))
            return
        del self._pending[case]
        if not self._pending:
            self._idle.set()

    def _published(self, case: Case, outgoing: list[Message], let_go: Callable[[], None], sent: Confirm) -> None:
        error = sent.exception()
        message, following = outgoing[0], outgoing[1:]
        if error is None:
            pass
        elif isinstance(error, Unroutable) and message.routing_key.startswith(DIRECT_REPLY_TO):
            self.counts.replies_dropped += 1
            logger.debug("%s: a reply was not taken: its requester is gone", self._service)
        elif isinstance(error, Unroutable) and message.exchange == "":
            self.counts.replies_parked += 1
            logger.warning("%s: no queue %s: its reply is parked", self._service, message.routing_key)
            following = [self._parked(message), *following]
        else:
            # Not confirmed: until it is, the request stays unacked, and is another node's if this one ends.
            logger.warning("%s: not published yet: %s", self._service, error)
            if isinstance(error, Unroutable):
                # Something of our own topology was deleted: it is declared again with each new channel.
                self._link.rebuild(f"{error}: declaring it again")
            self._loop.call_later(PAUSE, self._publish, case, outgoing, let_go)
            return
        self._answered = self._loop.time()
        self._publish(case, following, let_go)

    def _unsendable(self, case: Case, outgoing: list[Message], let_go: Callable[[], None], error: CodedError) -> None:
        """No broker would take this message. Only a body can be at fault: the envelope is the node's own."""
        message, following = outgoing[0], outgoing[1:]
        if message.exchange == "":
            # The bridge's words: the failure that says so takes their place, and it is short.
            fault = Fault(code=Code.TOO_LARGE, message=f"the reply cannot be sent: {error.message}")
            if message.properties.type == RESULT:
                self.counts.succeeded -= 1
                self.counts.failed += 1
            following = [self._dead_letter(case, fault), *self._reply(case, self._failure(case, fault), fault.code)]
        else:
            # The request itself (RabbitMQ 3.10 took it): the broker can keep it, without its being sent again.
            fault = Fault(code=Code.TOO_LARGE, message=f"the request cannot be sent again: {error.message}")
            let_go = partial(case.reject, requeue=False)
            following = following or self._reply(case, self._failure(case, fault), fault.code)
        logger.warning("%s: %s: %s", self._service, _name(case.delivery), fault.message)
        self._publish(case, following, let_go)


def _takes_claims(delivery: Delivery) -> bool:
    """Whether it has a requester who can fetch a result from the store."""
    return delivery.properties.headers.get(CLAIMS) is True and reply_address(delivery.properties) is not None


def _name(delivery: Delivery) -> str:
    return f"request {_usable(delivery.properties.message_id) or '(without an id)'}"


def _usable(identity: str | None) -> str | None:
    """A message's id, or None for what cannot be one: it could neither be sent on nor logged."""
    return None if message_id_problem(identity) else identity


def _shown(fault: Fault) -> str:
    """The message of a fault for a log: it may be the bridge's, or hold what the requester wrote."""
    return printable(fault.message[:LONGEST_SHOWN]) + ("…" if len(fault.message) > LONGEST_SHOWN else "")
