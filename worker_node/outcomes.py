"""The outcomes of a service's requests: what became of each, with the fault where it failed, for its settlement."""

from __future__ import annotations

import asyncio

from bridge_protocol import messages
from bridge_protocol.envelope import epoch_node
from bridge_protocol.errors import Code
from worker_node.bridge import Bridge
from worker_node.core.fate import Fault, is_retried
from worker_node.core.pool import Pool
from worker_node.core.reason import Reason
from worker_node.core.sessions import Ending
from worker_node.core.verdict import TOLD_BY_THE_BRIDGE, application_error, fault_for
from worker_node.settlement import Case, Settlement
from worker_node.work import Work


class Outcomes:
    """Tells `settlement` what became of work that left `pool`. `node`: this one's name."""

    def __init__(self, pool: Pool[Work], settlement: Settlement, *, node: str) -> None:
        self._pool = pool
        self._settlement = settlement
        self._node = node
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Outcomes {self._settlement!r}>"

    def succeeded(self, work: Work, payload: bytes | bytearray, slot: int) -> None:
        """It was answered with `payload`, from a slot."""
        self._settlement.succeed(self._case(work, slot), payload)

    def repeated(self, work: Work, payload: bytes | bytearray) -> None:
        """It came again when it was answered with `payload`."""
        self._settlement.repeat(self._case(work, None), payload)

    def refused(self, work: Work, fault: Fault) -> None:
        """It was not let in."""
        self._settlement.fail(self._case(work, None), fault)

    def answered_failure(self, work: Work, failure: messages.Failure, payload: bytes | bytearray, slot: int) -> None:
        """Its bridge answered, with a failure."""
        self._settlement.fail(self._case(work, slot), application_error(failure), payload)

    def failed(
        self,
        work: Work,
        reason: Reason,
        bridge: Bridge | None = None,
        said: messages.Result | messages.Failure | None = None,
    ) -> None:
        """It left the pool without a reply that counts. `bridge`: where it ran; `said`: a reply that came too late."""
        if reason is Reason.DRAINED:
            self._settlement.hand_back(self._case(work, None))
            return
        trouble = bridge.trouble if bridge is not None else None
        details = dict(trouble.details) if trouble is not None else {}
        if reason is Reason.RUN_TIMEOUT:
            details["timeout"] = reason.value
        if reason is Reason.READER_STALLED and work.outlet is not None:
            details["why"] = work.outlet.trouble
        if isinstance(said, messages.Failure) and said.info is not None and said.info.traceback:
            details["traceback"] = said.info.traceback  # where it was when it was cancelled
        if reason in (Reason.SESSION_LOST, Reason.REPEATED):
            fault = self._session_lost(work, reason)
        elif trouble is not None and reason in TOLD_BY_THE_BRIDGE:
            fault = trouble
        else:
            fault = fault_for(reason, self._pool.limits, ran=bridge is not None, details=details)
        self._settlement.fail(self._case(work, None if bridge is None else bridge.slot), fault)

    def is_tried_again(self, work: Work, reason: Reason, bridge: Bridge) -> bool:
        """Whether it may run anew in a new session: it asked for no state that is gone now, or does without."""
        claim = work.claim
        if claim is None or (claim.epoch is not None and not claim.lenient) or reason is Reason.DRAINED:
            return False
        fault = bridge.trouble if reason in TOLD_BY_THE_BRIDGE else None
        fault = fault or fault_for(reason, self._pool.limits, ran=True, details={})
        policy = self._settlement.policy
        return work.attempt < policy.max_attempts and is_retried(fault, policy)

    def _session_lost(self, work: Work, reason: Reason) -> Fault:
        if reason is Reason.REPEATED:
            text = "the request came again; it ran in this session already, and its answer is not kept"
            return Fault(code=Code.SESSION_LOST, message=text, details={"ending": "repeated"})
        assert work.claim is not None
        epoch = work.claim.epoch or ""
        ended = self._pool.sessions.why(epoch)
        why, details = str(ended.ending), dict(ended.details)
        if ended.ending is Ending.UNKNOWN and (node := epoch_node(epoch)) != self._node:
            why = f"it was on the node {node}; {self._node} serves it now" if node else "no node has such an epoch"
            details["node"] = node
        details["ending"] = ended.ending.name.lower()
        return Fault(code=Code.SESSION_LOST, message=f"the session is gone: {why}", details=details)

    def _case(self, work: Work, slot: int | None) -> Case:
        return Case(
            delivery=work.delivery,
            attempt=work.attempt,
            request_id=work.request_id,
            command=work.command,
            remaining=work.deadline - self._loop.time(),
            slot=slot,
            joined=work.joined,
            epoch=self._epoch(work),
            fresh=work.fresh,
            delayed=work.claim is None,
            run=work.outlet.run if work.outlet is not None and work.outlet.chunks else None,
            chunks=work.chunks,
        )

    def _epoch(self, work: Work) -> str | None:
        """The epoch that a request ran in; of one that did not run here, that which it asked for."""
        claim = work.claim
        if claim is None:
            return None
        if work.session is not None:
            return work.session.epoch
        session = self._pool.sessions.get(claim.session)
        if session is not None and claim.message_id in session.begun:
            return session.epoch  # it came again
        return claim.epoch
