"""A ticket: a delivery as the pool sees it, and what it says of its session."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from worker_node.core.sessions import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a request says of its session. `epoch` None: any will do, and a new one if there is none.

    `message_id`: by which it is known if it comes again; None: it is not. `lenient`: if its epoch is gone it may run
    in a new one. `closes`: its end is the end of the session.
    """

    session: str
    partition: int
    message_id: str | None
    epoch: str | None = None
    lenient: bool = False
    closes: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A delivery waiting for or holding a slot. `deadline` on the pool's clock, infinite where there is none.

    `alone`: it may not share its bridge (a later attempt: it may be what killed the last one). `light`: it is small
    enough to wait in a bridge's pipe. `streams`: its bridge may be held up for its reader, so nothing waits behind it
    there. Set by the pool: `since`, when it came; `session`, the one it belongs to;
    `fresh`, that this is not the one it asked for.
    """

    request_id: int
    deadline: float = math.inf
    alone: bool = False
    light: bool = False
    streams: bool = False
    claim: Claim | None = None
    since: float = 0.0
    session: Session | None = None
    fresh: bool = False

    def begin(self) -> None:
        """It begins to run: its session, if it has one, remembers that."""
        if self.session is not None and self.claim is not None and self.claim.message_id is not None:
            self.session.begin(self.claim.message_id)

    def unbegin(self) -> None:
        """It did not begin after all."""
        if self.session is not None and self.claim is not None and self.claim.message_id is not None:
            self.session.unbegin(self.claim.message_id)


T = TypeVar("T", bound=Ticket)
