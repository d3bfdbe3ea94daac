"""The gate of a service: what comes in, and what is known again when it comes again.

    Delivery ─▶ admit ─▶ the same as one that is in? answered just now? cancelled? ─▶ Work, into the pool

Whatever came in by it must `leave` by it, when it is in the pool no more.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection

from bridge_protocol.claim_check import ClaimCheck, restored
from bridge_protocol.errors import BadRequest, Code
from broker.contract import Delivery
from broker.store import MOST_AT_ONCE, STORE_TIMEOUT, Store, check_out
from broker.thread import Threads
from worker_node.core.admission import Identity, Refused, admit, attempt_of, identity_of
from worker_node.core.answered import Answered
from worker_node.core.fate import Fault
from worker_node.core.reason import Reason
from worker_node.core.skew import Skew
from worker_node.core.tombstones import Tombstones
from worker_node.outcomes import Outcomes
from worker_node.settings import ServiceSettings
from worker_node.settlement import Case, Settlement
from worker_node.work import LIGHT, Work, work_for

logger = logging.getLogger("quaybridge.node")


class Gate:
    """Lets requests in; `submit` takes them from there. `wall` is the time of day in seconds since 1970.

    `tombstones`: of requests that were cancelled. `store`: where arguments of some are fetched from.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        settlement: Settlement,
        outcomes: Outcomes,
        tombstones: Tombstones,
        store: Store | None,
        wall: Callable[[], float],
        submit: Callable[[Work], None],
    ) -> None:
        self._settlement = settlement
        self._outcomes = outcomes
        self._tombstones = tombstones
        self._store = store
        self._wall = wall
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._skew = Skew()
        self._answered = Answered()
        self._known: dict[Identity, Work] = {}  # what is in the pool, by what tells it from all others
        self._fetching: dict[asyncio.Task[None], Work] = {}  # whose arguments are on their way from the store
        self._threads = Threads(MOST_AT_ONCE)
        self._left = asyncio.Event()
        self.reload(settings)

    def __repr__(self) -> str:
        return f"<Gate {len(self._known)} known, {self._answered!r}>"

    def reload(self, settings: ServiceSettings) -> None:
        """From now on these settings hold."""
        self._settings = settings
        bounds = settings.answered
        self._answered.bound(count=bounds.count, bytes=bounds.bytes, age=bounds.age)

    @property
    def fetching(self) -> Collection[Work]:
        """What has come, and is not in the pool yet."""
        return self._fetching.values()

    def knows(self, delivery: Delivery) -> bool:
        """Whether it will not run anew: it is in the pool already, or was answered just now.

        Its body is not decoded for that: it may be what the last node died of.
        """
        properties = delivery.properties
        identity = identity_of(properties, attempt_of(properties.headers, self._settings.retry.max_attempts))
        if identity is None:
            return False
        answer = self._answered.find(identity, delivery.body, self._loop.time())
        return answer is not None or self._same(identity, delivery) is not None

    def on_delivery(self, delivery: Delivery, partition: int | None) -> None:
        """A message came from the request queue, or from that of a partition's sessions."""
        verdict = admit(
            delivery.body,
            delivery.properties,
            limit=self._settings.frame_limit,
            max_attempts=self._settings.retry.max_attempts,
            partition=partition,
        )
        if isinstance(verdict, Refused):
            case = Case(delivery=delivery, attempt=1, request_id=verdict.request_id, command="", remaining=math.inf)
            self._settlement.fail(case, verdict.fault)
            return
        now, wall = self._loop.time(), self._wall()
        if (ahead := self._skew.seen(verdict.timestamp, wall=wall, now=now)) is not None:
            logger.warning(
                "%s: request %s was made %.1f s in the future: its producer's clock or this node's is wrong, and "
                "deadlines with it",
                *(self._settings.name, delivery.properties.message_id or verdict.request_id, ahead),
            )
        work = work_for(delivery, verdict, partition, now=now, wall=wall)
        identity = identity_of(delivery.properties, verdict.attempt)
        if identity is not None:
            if (running := self._same(identity, delivery)) is not None:
                running.joined += (delivery,)
                self._settlement.counts.joined += 1
                return
            if (payload := self._answered.find(identity, delivery.body, now)) is not None:
                self._outcomes.repeated(work, payload)
                return
        if self._is_cancelled(work):
            self._outcomes.failed(work, Reason.CANCELLED)
            return
        if identity is not None and identity not in self._known:
            self._known[identity] = work
            work.identity = identity
        if verdict.claim is None:
            self._submit(work)
            return
        task = self._loop.create_task(self._fetch(work, verdict.claim, partition))
        self._fetching[task] = work

    async def _fetch(self, work: Work, claim: ClaimCheck, partition: int | None) -> None:
        """Put the arguments of a request back in their place, from the store, and let it in."""
        fault: Fault | None = None
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                content = await self._threads.run(check_out, self._store, claim, limit=self._settings.frame_limit)
        except BadRequest as error:
            fault = Fault(code=Code.BAD_REQUEST, message=error.message)
        except OSError as error:
            why = f"it did not come within {STORE_TIMEOUT:g} s" if isinstance(error, TimeoutError) else error.strerror
            text = f"claim {claim.reference} cannot be fetched: {why or error}"
            logger.warning("%s: %s", self._settings.name, text)
            fault = Fault(code=Code.BAD_REQUEST, message=text, retryable=True)
        else:
            work.payload = restored(work.delivery.body, "args", content)
            work.light = len(work.payload) <= LIGHT
            verdict = admit(
                work.payload,
                work.delivery.properties,
                limit=self._settings.frame_limit,
                max_attempts=self._settings.retry.max_attempts,
                partition=partition,
            )
            if isinstance(verdict, Refused):
                fault = verdict.fault
        task = asyncio.current_task()
        assert task is not None
        del self._fetching[task]
        if work.stale:
            self.leave(work)
        elif fault is not None:
            self.leave(work)
            self._outcomes.refused(work, fault)
        elif self._is_cancelled(work):
            self.leave(work)
            self._outcomes.failed(work, Reason.CANCELLED)
        else:
            self._submit(work)

    def abort(self) -> None:
        """Hand back what is not in the pool yet."""
        for task, work in self._fetching.items():
            task.cancel()
            self.leave(work)
            self._outcomes.failed(work, Reason.DRAINED)
        self._fetching.clear()

    def leave(self, work: Work) -> None:
        """It is in the pool no more."""
        if work.identity is not None:
            self._known.pop(work.identity, None)
        self._left.set()

    def change(self, work: Work, again: Work) -> None:
        """In the place of `work` its next try is in the pool."""
        if work.identity is not None:
            self._known[work.identity] = again

    def keep_answer(self, work: Work, payload: bytes | bytearray) -> None:
        """Work that left was answered with `payload`, and will be again if it comes again."""
        if work.identity is not None:
            self._answered.keep(work.identity, work.delivery.body, payload, self._loop.time())

    async def wait_leaving(self) -> None:
        """Wait until something leaves."""
        self._left.clear()
        await self._left.wait()

    def _same(self, identity: Identity, delivery: Delivery) -> Work | None:
        """The same request, if it is in the pool: under the same name, and with the same body."""
        work = self._known.get(identity)
        return work if work is not None and work.delivery.body == delivery.body else None

    def _is_cancelled(self, work: Work) -> bool:
        return work.delivery.properties.message_id in self._tombstones and not work.replayed
