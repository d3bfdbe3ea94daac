"""What was answered just now, so that a request that comes again is answered again and not run again.

A request comes again when the connection that held it was lost before its acknowledgement arrived, or when its
producer published it twice for want of a confirm. Only successes are kept: a failure may end otherwise.
"""

from __future__ import annotations

from collections import OrderedDict

from worker_node.core.admission import Identity

# The request, what it was answered with, and when.
_Answer = tuple[bytes | bytearray, bytes | bytearray, float]


class Answered:
    """The latest successes: none until `bound` says how many.

    A request is known by its identity and its body, which is kept and compared whole: that costs a request that
    never comes again nothing, where a digest of it would have to be taken of each.
    """

    def __init__(self) -> None:
        self.bound(count=0, bytes=0, age=0.0)
        self._answers: OrderedDict[Identity, _Answer] = OrderedDict()  # the oldest first
        self._size = 0

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        return f"<Answered {len(self)} requests, {self._size:,} bytes>"

    def bound(self, *, count: int, bytes: int, age: float) -> None:
        """Keep no more than that from now on; `bytes` are those of requests and replies, `age` is in seconds."""
        self._most = count
        self._most_bytes = bytes
        self._age = age

    def keep(self, identity: Identity, request: bytes | bytearray, payload: bytes | bytearray, now: float) -> None:
        """`request` was answered with `payload`, which nobody changes any more."""
        answers = self._answers
        if (earlier := answers.pop(identity, None)) is not None:
            self._size -= _size(earlier)
        answers[identity] = (request, payload, now)
        self._size += len(request) + len(payload)
        while answers and (
            len(answers) > self._most
            or self._size > self._most_bytes
            or next(iter(answers.values()))[2] + self._age <= now
        ):
            _, forgotten = answers.popitem(last=False)
            self._size -= _size(forgotten)

    def find(self, identity: Identity, request: bytes | bytearray, now: float) -> bytes | bytearray | None:
        """What `request` was answered with, if that is known still."""
        answer = self._answers.get(identity)
        if answer is None:
            return None
        answered, payload, kept = answer
        return payload if answered == request and now < kept + self._age else None


def _size(answer: _Answer) -> int:
    return len(answer[0]) + len(answer[1])
