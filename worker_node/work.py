"""A request on its way through the node: what the pool knows as a ticket, and whom its end concerns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bridge_protocol.envelope import CANCEL_ON_DISCONNECT, WANTS_CHUNKS, Properties, read_history
from bridge_protocol.messages import CLEANUP_SESSION
from broker.contract import Delivery
from worker_node.core.admission import Admitted, Identity, reply_address
from worker_node.core.ticket import Claim, Ticket
from worker_node.outlet import Outlet

LIGHT = 2000  # bytes of a request that may wait in a bridge's pipe: two to a page of 4 KiB


@dataclass(slots=True, eq=False, kw_only=True)
class Work(Ticket):
    """A delivery on its way through the node, and what joined it: the same request, delivered again meanwhile.

    `identity` None: what comes again is not known again. `payload`: what the bridge is given, if that is not the
    delivery's body. `outlet`: of what its run says before the reply, where that is wanted; `chunks`: how many the run
    has sent, in any case. `binary`: there are bytes in its arguments.
    """

    delivery: Delivery
    command: str
    attempt: int
    identity: Identity | None = None
    joined: tuple[Delivery, ...] = ()
    payload: bytes | None = None
    outlet: Outlet | None = None
    chunks: int = 0
    binary: bool = False

    @property
    def name(self) -> str:
        """What to call it in a log: not printable in any case."""
        return self.delivery.properties.message_id or str(self.request_id)

    @property
    def body(self) -> bytes | bytearray:
        """What the bridge is given, but for the attempt."""
        return self.payload or self.delivery.body

    @property
    def requester(self) -> Properties:
        """The envelope of whoever asked last."""
        return (self.joined[-1] if self.joined else self.delivery).properties

    @property
    def watched_address(self) -> str | None:
        """Where its requester is, if it shall end with them: where they asked last, who may have had to ask again.

        A stream always does: its chunks are sent once, and to nobody else.
        """
        properties = self.requester
        ends = self.streams or properties.headers.get(CANCEL_ON_DISCONNECT) is True
        return reply_address(properties) if ends else None

    @property
    def stale(self) -> bool:
        """Whether all of it will come again, here or elsewhere."""
        return self.delivery.stale and all(delivery.stale for delivery in self.joined)

    @property
    def replayed(self) -> bool:
        """Whether an operator had it tried again, and so knows better than whoever cancelled it once."""
        return read_history(self.delivery.properties.headers, None).replays > 0

    @property
    def lacks_chunks(self) -> bool:
        """Whether chunks that were wanted were dropped, so that its result would be that of another stream."""
        return self.outlet is not None and self.outlet.dropped

    def silence(self) -> None:
        """What its run says now is dropped, and read: a bridge must not be held when it is told to end."""
        if self.outlet is not None:
            self.outlet.shut()

    def again(self) -> Work:
        """Its next try, at once."""
        return replace(
            self,
            alone=True,
            light=False,
            attempt=self.attempt + 1,
            session=None,
            fresh=False,
            outlet=None,
            chunks=0,
        )


def work_for(delivery: Delivery, request: Admitted, partition: int | None, *, now: float, wall: float) -> Work:
    """The work that an admitted request is; `partition` of the session queue it came by.

    `now` on the pool's clock, `wall` the time of day in seconds since 1970.
    """
    properties = delivery.properties
    streams = properties.headers.get(WANTS_CHUNKS) is True
    claim: Claim | None = None
    if (session := request.session) is not None and partition is not None:
        # An operator's replay is meant to run again: its session shall not know it.
        name, replays = properties.message_id, read_history(properties.headers, None).replays
        claim = Claim(
            session=session.id,
            partition=partition,
            message_id=f"{name} {replays}" if name and replays else name,
            epoch=session.epoch,
            lenient=session.lenient,
            closes=request.command == CLEANUP_SESSION,
        )
    return Work(
        request_id=request.request_id,
        deadline=math.inf if request.deadline is None else now + request.deadline / 1000 - wall,
        alone=request.attempt > 1,
        light=len(delivery.body) <= LIGHT and not streams,
        streams=streams,
        claim=claim,
        delivery=delivery,
        command=request.command,
        attempt=request.attempt,
        binary=request.binary,
    )
