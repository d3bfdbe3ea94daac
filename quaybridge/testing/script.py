"""The script of a service under test: which of its requests fail, and how. Pure, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Kind = Literal["crash", "hang", "garbage", "slow", "error"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What befalls some requests.

    crash: the bridge is killed with the request on it; hang: it is stopped, and answers nothing until it is killed
    for that; garbage: it writes what is no frame; slow: it gets the request `seconds` later; error: it fails with
    `message`.

    It befalls the requests with these numbers (`requests`, in the order in which they reach a bridge, from 1), or
    each with the probability `rate`; of these only those of `command`, if that is given. `attempts`: how many tries
    of such a request it befalls; those after that go well.
    """

    kind: Kind
    requests: frozenset[int] | None = None
    rate: float = 1.0
    command: str | None = None
    attempts: int = 1
    seconds: float = 0.5
    message: str = "as scripted"
    retryable: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no failure {self.kind!r}: choose one of {', '.join(KINDS)}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate should be 0 … 1, not {self.rate}")
        if self.requests is not None and min(self.requests, default=1) < 1:
            raise ValueError(f"requests are counted from 1, so there is no {min(self.requests)}")
        if self.attempts < 1:
            raise ValueError(f"attempts should be at least 1, not {self.attempts}")
        if self.seconds < 0:
            raise ValueError(f"seconds should not be less than 0: {self.seconds}")


class Script:
    """The failures that were asked for, the first that fits winning, and the count of the requests that came.

    Whether a rate hits a request is drawn from the `seed` and the request's number: so from nothing that differs
    between two runs which send the same requests in the same order.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._failures: list[Failure] = []
        self._numbers: dict[int, int] = {}  # by request id, which all tries of a request share
        self._tries: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Script seed {self.seed}: {len(self._failures)} failures, {self.requests} requests>"

    @property
    def requests(self) -> int:
        """How many requests have reached a bridge; tries of one count once."""
        return len(self._numbers)

    def fail(
        self,
        kind: Kind,
        *,
        request: int | Collection[int] | None = None,
        rate: float | None = None,
        command: str | None = None,
        attempts: int = 1,
        seconds: float = 0.5,
        message: str = "as scripted",
        retryable: bool = False,
    ) -> None:
        """From now on: see Failure. Without `request` and `rate`: every request.

        Raises ValueError for a value that cannot be, and for a request and a rate at once.
        """
        if request is not None and rate is not None:
            raise ValueError("give request or rate, not both")
        numbers = (request,) if isinstance(request, int) else request
        failure = Failure(
            kind=kind,
            requests=None if numbers is None else frozenset(numbers),
            rate=1.0 if rate is None else rate,
            command=command,
            attempts=attempts,
            seconds=seconds,
            message=message,
            retryable=retryable,
        )
        self._failures.append(failure)

    def heal(self) -> None:
        """From now on nothing fails that was asked to; the count goes on."""
        self._failures.clear()

    def next(self, request_id: int, command: str) -> Failure | None:
        """What befalls this try of a request, which reaches a bridge now."""
        number = self._numbers.setdefault(request_id, len(self._numbers) + 1)
        tries = self._tries[request_id] = self._tries.get(request_id, 0) + 1
        for place, failure in enumerate(self._failures):
            if failure.command not in (None, command) or tries > failure.attempts:
                continue
            if number in failure.requests if failure.requests is not None else self._hits(failure.rate, place, number):
                return failure
        return None

    def _hits(self, rate: float, place: int, number: int) -> bool:
        return Random(f"{self.seed}/{place}/{number}").random() < rate  # noqa: S311 (for tests, and repeatable)
