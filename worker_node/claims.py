"""Claim checks at a node: results go into the store, and what is kept there too long is swept."""

from __future__ import annotations

import asyncio
import logging

from bridge_protocol import codec
from bridge_protocol.claim_check import with_claim
from broker.store import Store, as_os_error, check_in
from broker.thread import in_thread

# Between two sweeps, a tenth of the age that is swept, within these.
SHORTEST_PAUSE = 60.0  # seconds
LONGEST_PAUSE = 3600.0  # seconds

logger = logging.getLogger("quaybridge.node")


def result_checked_in(store: Store, payload: bytes | bytearray) -> bytes:
    """The reply `payload` with a claim in the place of its result, which is in the store then. Raises OSError."""
    result = codec.encode(codec.decode(payload).get("result"))
    return with_claim(payload, "result", check_in(store, result))


async def sweep(store: Store, age: float) -> None:
    """Delete what nobody used for `age` seconds, now and then, until cancelled."""
    while True:
        try:
            with as_os_error():
                deleted = await in_thread(store.sweep, age)
        except OSError as error:
            logger.warning("%r cannot be swept: %s", store, error.strerror or error)
        else:
            if deleted:
                logger.info("%r: swept %d payloads that nobody used for %g s", store, deleted, age)
        await asyncio.sleep(min(max(age / 10, SHORTEST_PAUSE), LONGEST_PAUSE))
