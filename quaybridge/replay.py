"""Replaying dead letters: each request is published again, confirmed, and only then is its letter removed.

Whatever ends a replay, no request is lost. One that was published and whose letter was not removed is in both
places: replayed again it is the same request, with the same id and the same number of replays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile

from bridge_protocol import codec, messages
from bridge_protocol.dead_letter import DeadLetter
from bridge_protocol.errors import FrameError
from bridge_protocol.topology import EXCHANGE
from broker.contract import Delivery, Message
from quaybridge.dead_letters import Look

AT_ONCE = 64  # letters published before the first of them must be confirmed
BYTES_AT_ONCE = 16 * 1024 * 1024  # bytes of them, but for the last one
IN_MEMORY = 16 * 1024 * 1024  # bytes of a page's bodies; more are kept in a temporary file


@dataclass(frozen=True, slots=True)
class Replayed:
    """A request that is on its way again: its letter's id, how often by now, and what is not as it was, or empty."""

    id: str
    replays: int
    note: str


def request_of(letter: DeadLetter, *, now: float, timeout: float | None) -> tuple[Message, str]:
    """What is published to try a letter's request again, and a note on what is not as it was.

    `timeout` in seconds from `now` makes a new deadline. Without one the old deadline stays, and goes if it has
    passed: the body is then encoded anew without it, and is otherwise, as long as it can be, the same bytes.
    """
    moment = int(now * 1000)
    body, deadline, note = letter.body, letter.deadline, ""
    if timeout is not None:
        deadline = moment + int(timeout * 1000)
        body = messages.with_deadline(body, deadline)
        note = f"with {timeout:g} s from now"
    else:
        effective = _deadline_in(body) if deadline is None else deadline
        if effective is not None and effective <= moment:
            body, deadline = messages.with_deadline(body, None), None
            note = "without its deadline, which has passed"
    properties = letter.replay_properties(deadline=deadline)
    return Message(exchange=EXCHANGE, routing_key=letter.routing_key, body=body, properties=properties), note


async def replay(
    look: Look, chosen: Callable[[DeadLetter], bool], *, wall: Callable[[], float], timeout: float | None
) -> AsyncGenerator[Replayed, None]:
    """Replay the `chosen` letters of a look, in order. Raises what Look.publish and Look.pages do.

    Letters are published in parts: those of a part that were confirmed are removed, whatever became of the others.
    """
    with SpooledTemporaryFile(IN_MEMORY) as bodies:

        def take(letter: DeadLetter, delivery: Delivery) -> _Kept | None:
            if not chosen(letter):
                return None
            start = bodies.tell()
            bodies.write(letter.body)
            return _Kept(replace(letter, body=b""), delivery.tag, start, len(letter.body))

        async with aclosing(look.pages(take)) as pages:
            async for page in pages:
                for part in _parts(page):
                    letters: list[DeadLetter] = []
                    for kept in part:
                        bodies.seek(kept.start)
                        letters.append(replace(kept.letter, body=bodies.read(kept.size)))
                    requests = [request_of(letter, now=wall(), timeout=timeout) for letter in letters]
                    outcomes = await asyncio.gather(
                        *(look.publish(message) for message, _ in requests), return_exceptions=True
                    )
                    look.remove(kept.tag for kept, error in zip(part, outcomes, strict=True) if error is None)
                    for letter, (_, note), error in zip(letters, requests, outcomes, strict=True):
                        if error is None:
                            yield Replayed(letter.id, letter.replays + 1, note)
                    for error in outcomes:
                        if error is not None:
                            raise error
                bodies.seek(0)
                bodies.truncate()


@dataclass(frozen=True, slots=True)
class _Kept:
    """A chosen letter without its body, and where that is."""

    letter: DeadLetter
    tag: int
    start: int
    size: int


def _parts(page: list[_Kept]) -> Iterator[list[_Kept]]:
    part: list[_Kept] = []
    size = 0
    for kept in page:
        part.append(kept)
        size += kept.size
        if len(part) == AT_ONCE or size >= BYTES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _deadline_in(body: bytes) -> int | None:
    """The deadline a request's body names, if it is one that can be read."""
    try:
        deadline = codec.decode(body).get("deadline")
    except FrameError:
        return None
    return deadline if isinstance(deadline, int) else None
