"""Claim checks: a large payload waits in a store, and a message holds what it takes to fetch and to verify it.

    request  {"id": 7, "command": "echo", "claim": {"reference", "size", "sha256"}, …}        in the place of `args`
    reply    {"id": 7, "success": true, "claim": {"reference", "size", "sha256"}, …}          in the place of `result`

What is in the store is the JSON of the payload. Put back in its place it makes the message that a bridge, or a caller,
would have got without a store; so bridges know nothing of claims.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridge_protocol import codec
from bridge_protocol.errors import FrameError, FrameKind

CLAIM = "claim"
DEFAULT_THRESHOLD = 1024 * 1024  # bytes: a larger payload goes to the store, where there is one

Place = Literal["args", "result"]

_REFERENCE = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCheck:
    """What is fetched by its `reference`, 128 random bits in hexadecimal, and must have this size and digest."""

    reference: str
    size: int
    sha256: str

    def problem(self, content: bytes | None) -> str | None:
        """Why `content` is not what was checked in, or None. None: there is nothing by that reference."""
        if content is None:
            return f"claim {self.reference} is missing: it was never in this store, or too old"
        if len(content) != self.size:
            more = "more than " if len(content) > self.size else ""
            return f"claim {self.reference} has {more}{min(len(content), self.size):,} bytes, and {self.size:,} went in"
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return f"claim {self.reference} was altered: its SHA-256 is not the one it had"
        return None


def claim_check(reference: str, content: bytes) -> ClaimCheck:
    """For `content`, which is put into a store by this reference."""
    return ClaimCheck(reference=reference, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def reference_problem(reference: object) -> str | None:
    """Why `reference` can be none, or None. What passes is safe as the name of a file."""
    if isinstance(reference, str) and _REFERENCE.fullmatch(reference):
        return None
    return f"a claim's reference must be 32 hexadecimal digits, not {reference!r:.80}"


def read_claim(message: Mapping[str, Any], place: Place) -> ClaimCheck | None:
    """The claim in a decoded message, if it holds one in the place of its payload. Raises FrameError."""
    if CLAIM not in message:
        return None
    claim = message[CLAIM]
    if not isinstance(claim, dict):
        raise _wrong(f"'claim' must be an object, not {type(claim).__name__}")
    if place in message:
        raise _wrong(f"a message has '{place}' or a claim to it, not both")
    reference, size, sha256 = claim.get("reference"), claim.get("size"), claim.get("sha256")
    if problem := reference_problem(reference):
        raise _wrong(problem)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise _wrong("a claim's size must be its number of bytes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _wrong("a claim's sha256 must be 64 hexadecimal digits")
    assert isinstance(reference, str)
    return ClaimCheck(reference=reference, size=size, sha256=sha256)


def with_claim(message: bytes | bytearray, place: Place, claim: ClaimCheck) -> bytes:
    """`message` with `claim` in the place of its payload."""
    body = codec.decode(message)
    body.pop(place, None)
    body[CLAIM] = {"reference": claim.reference, "size": claim.size, "sha256": claim.sha256}
    return codec.encode(body)


def restored(message: bytes | bytearray, place: Place, content: bytes) -> bytes:
    """`message` with its payload in the place of its claim. Whoever gets it still has to look whether it is JSON."""
    body = codec.decode(message)
    del body[CLAIM]
    return b'%s,"%s":%s}' % (codec.encode(body)[:-1], place.encode(), content)


def _wrong(problem: str) -> FrameError:
    return FrameError(FrameKind.BAD_ENVELOPE, problem)
