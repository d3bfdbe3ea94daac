"""Which dead letters are meant: by id, code, command and age, as a command line gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from bridge_protocol.dead_letter import BROKER_REASONS, UNKNOWN, DeadLetter
from bridge_protocol.errors import Code

CODES = (*(code.value for code in Code), *BROKER_REASONS, UNKNOWN)

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhdw]?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Lets those letters pass that match all of what is given; of several ids, codes or commands any one.

    `before` and `after` in seconds since 1970 are about a letter's last time; one that has none passes neither.
    """

    ids: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    commands: frozenset[str] = frozenset()
    before: float | None = None
    after: float | None = None

    def __call__(self, letter: DeadLetter) -> bool:
        """Whether `letter` is meant."""
        if self.codes and letter.code not in self.codes:
            return False
        if self.commands and letter.command not in self.commands:
            return False
        if self.before is not None and (letter.time is None or letter.time > self.before):
            return False
        if self.after is not None and (letter.time is None or letter.time < self.after):
            return False
        return not self.ids or letter.id in self.ids


def read_filter(
    *,
    ids: Iterable[str] = (),
    codes: Iterable[str] = (),
    commands: Iterable[str] = (),
    older_than: str | None = None,
    newer_than: str | None = None,
    now: float,
) -> LetterFilter:
    """A filter from what a command line says; ages count back from `now`. Raises ValueError, saying what to write."""
    wanted = frozenset(codes)
    for code in sorted(wanted.difference(CODES)):
        close = get_close_matches(code, CODES, 1)
        known = f"did you mean {close[0]}?" if close else f"the codes are {', '.join(CODES)}"
        raise ValueError(f"--code: there is no code {code[:80]!r}: {known}")
    return LetterFilter(
        ids=frozenset(ids),
        codes=wanted,
        commands=frozenset(commands),
        before=None if older_than is None else now - read_duration(older_than, "--older-than"),
        after=None if newer_than is None else now - read_duration(newer_than, "--newer-than"),
    )


def read_duration(text: str, option: str) -> float:
    """Seconds, from `90`, `90s`, `15m`, `2h`, `7d` or `1w`. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{option}: {text[:80]!r} is no duration: write 90s, 15m, 2h, 7d or 1w")
    return float(found[1]) * _UNITS[found[2]]
