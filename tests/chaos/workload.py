"""What is asked in a chaos run, and what each request must give: made from a seed, one by one."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chaos.ledger import Kind, digest

SERVICE = "chaos"
HURRY = 2.0  # seconds until the deadline of one that hurries


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `timeout`: seconds to its deadline, where it has one."""

    message_id: str
    kind: Kind
    command: str
    args: Mapping[str, Any]
    expected: str
    timeout: float | None = None


def made(seed: int, *, seconds: tuple[float, float], mixed: bool = True) -> Iterator[Asked]:
    """Requests without end; those that work take that long. `mixed`: some refuse, hurry or, rarely, poison."""
    source = random.Random(f"requests {seed}")
    for number in itertools.count():
        message_id = f"{source.getrandbits(128):032x}"
        draw = source.random() if mixed else 1.0
        text = source.randbytes(source.randrange(0, 1000)).hex() + "é\n"
        longest = round(source.uniform(*seconds), 4)
        if draw < 0.02:
            yield Asked(message_id, Kind.REFUSES, "refuses", {"number": number}, f"ApplicationError: no {number}")
        elif draw < 0.022:
            yield Asked(message_id, Kind.POISONS, "poisons", {"number": number}, "")
        else:
            args = {"number": number, "text": text, "seconds": longest}
            result = {"number": number, "text": text[::-1], "sha256": hashlib.sha256(text.encode()).hexdigest()}
            kind = Kind.HURRIES if draw < 0.04 else Kind.WORKS
            yield Asked(message_id, kind, "works", args, digest(result), HURRY if kind is Kind.HURRIES else None)
