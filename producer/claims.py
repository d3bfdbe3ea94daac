"""What travels by the store instead of the broker, and is let go of once it is of no use."""

from __future__ import annotations

import asyncio
import logging

from bridge_protocol.claim_check import ClaimCheck
from bridge_protocol.errors import Refused
from broker.contract import Delivery
from broker.store import MOST_AT_ONCE, Store, as_os_error, check_in
from broker.thread import Threads
from producer.reply import claim_restored
from producer.request import PreparedRequest

DELETE_TIMEOUT = 3.0  # seconds, at the end: what is left is swept

logger = logging.getLogger("quaybridge.producer")


class Claims:
    """The claim checks of one producer. Without a store there are none. For one event loop.

    `threshold`: arguments of more bytes than that go to the store; None: all travel in the message.
    """

    def __init__(self, store: Store | None, threshold: int) -> None:
        self.threshold = threshold if store is not None else None
        self.store = store
        self._putting = Threads(MOST_AT_ONCE)
        self._getting = Threads(MOST_AT_ONCE)
        self._deleting: set[asyncio.Task[None]] = set()

    async def check_in(self, request: PreparedRequest, timeout: float) -> PreparedRequest:
        """The request, with its cargo in the store. Raises Refused, after `timeout` seconds at most."""
        if request.cargo is None:
            return request
        assert self.store is not None
        try:
            async with asyncio.timeout(timeout):
                claim = await self._putting.run(check_in, self.store, request.cargo)
        except TimeoutError:
            text = f"not sent: {self.store!r} did not take its arguments within {timeout:g} s"
            raise Refused(text, message_id=request.message_id) from None
        except OSError as error:
            text = f"not sent: {self.store!r} takes nothing: {error.strerror or error}"
            raise Refused(text, message_id=request.message_id) from error
        return request.checked_in(claim)

    async def restore(self, delivery: Delivery, claim: ClaimCheck) -> Delivery:
        """The delivery with its result, from the store. Raises BadRequest, which names the claim."""
        return await self._getting.run(claim_restored, self.store, delivery, claim)

    def let_go(self, claim: ClaimCheck) -> None:
        """What it stands for is of no use any more."""
        if self.store is not None:
            task = asyncio.get_running_loop().create_task(self._delete(self.store, claim))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    async def close(self) -> None:
        """Wait until what was let go of is deleted, for at most DELETE_TIMEOUT (3 s)."""
        if self._deleting:
            await asyncio.wait(self._deleting, timeout=DELETE_TIMEOUT)

    async def _delete(self, store: Store, claim: ClaimCheck) -> None:
        try:
            with as_os_error():
                await self._putting.run(store.delete, claim.reference)
        except OSError as error:
            logger.info("claim %s is left to be swept: %s", claim.reference, error)
