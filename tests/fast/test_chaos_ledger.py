"""The oracle of the chaos runs: it has to find what is wrong, or what it passes means nothing."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from chaos.ledger import Kind, Ledger, Verdict, digest, line
from chaos.workload import made

WANTED = digest({"n": 1})


def books(*entries: tuple[Any, ...], kind: Kind = Kind.WORKS, confirmed: bool = True) -> Ledger:
    """A ledger with one request `m1`, and what is written down after it."""
    ledger = Ledger()
    ledger.attempted("m1", kind, WANTED)
    if confirmed:
        ledger.confirmed("m1")
    for what, *arguments in entries:
        options = arguments.pop() if isinstance(arguments[-1], dict) else {}
        getattr(ledger, what)(*arguments, **options)
    return ledger


def summary(verdict: Verdict) -> tuple[int, int, int, int]:
    return len(verdict.lost), len(verdict.unexpected), len(verdict.wrong), verdict.duplicated


RESULT = ("replied", "m1", "result", WANTED, "body")


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([RESULT], (0, 0, 0, 0)),
        ([], (1, 0, 0, 0)),
        ([("died", "m1")], (0, 0, 0, 0)),
        ([("was_parked", "m1")], (0, 0, 0, 0)),
        ([RESULT, ("replied", "m1", "result", WANTED, "another")], (0, 0, 0, 1)),
        ([RESULT, ("died", "m1")], (0, 0, 0, 1)),
        ([RESULT, (*RESULT, {"again": True})], (0, 0, 0, 0)),  # the same message, given out twice
        ([RESULT, RESULT], (0, 0, 0, 1)),  # the broker says it is another one
        ([("replied", "m1", "result", digest({"n": 2}), "body")], (0, 0, 1, 0)),
        ([("replied", "m1", "application_error", "no 1", "body")], (0, 0, 1, 0)),
        ([("replied", "m1", "deadline_exceeded", "late", "body")], (0, 0, 1, 0)),
        ([("replied", "m1", "bridge_crashed", "gone", "body")], (0, 0, 1, 0)),  # and kept nowhere
        ([("replied", "m1", "bridge_crashed", "gone", "body"), ("died", "m1")], (0, 0, 0, 0)),
        ([RESULT, ("replied", "m2", "result", WANTED, "body")], (0, 1, 0, 0)),
        ([RESULT, ("died", "m2")], (0, 1, 0, 0)),
    ],
)
def test_what_the_books_show(entries: list[tuple[Any, ...]], found: tuple[int, int, int, int]) -> None:
    verdict = books(*entries).verdict()
    assert summary(verdict) == found
    assert verdict.sound == (found[:3] == (0, 0, 0))


def test_what_was_never_confirmed_is_not_lost_and_may_be_answered() -> None:
    assert summary(books(confirmed=False).verdict()) == (0, 0, 0, 0)
    verdict = books(RESULT, confirmed=False).verdict()
    assert (verdict.sound, verdict.recovered) == (True, 1)


def test_a_reply_that_comes_before_its_confirm_settles_it() -> None:
    ledger = books(RESULT, ("confirmed", "m1"), confirmed=False)
    assert ledger.unsettled == frozenset()
    assert ledger.verdict().sound


def test_poison_has_to_die_and_who_hurries_may_be_late() -> None:
    gone = ("replied", "m1", "bridge_crashed", "gone", "body")
    assert books(gone, ("died", "m1"), kind=Kind.POISONS).verdict().sound
    assert not books(RESULT, kind=Kind.POISONS).verdict().sound
    assert books(("replied", "m1", "deadline_exceeded", "late", "body"), kind=Kind.HURRIES).verdict().sound


def test_a_journal_gives_the_same_books_and_a_line_that_was_cut_off_does_not_count() -> None:
    written = [
        line("attempted", "m1", Kind.WORKS, WANTED),
        line("confirmed", "m1"),
        line(*RESULT, again=False),
        line("attempted", "m2", Kind.WORKS, WANTED)[:-5],
    ]
    ledger = Ledger()
    ledger.read(written)
    assert list(ledger.entries) == ["m1"]
    assert ledger.verdict() == books(RESULT).verdict()


def test_a_seed_makes_the_same_requests() -> None:
    one, same, other = (list(islice(made(seed, seconds=(0.01, 0.02)), 2000)) for seed in (1, 1, 2))
    assert one == same
    assert not {asked.message_id for asked in one} & {asked.message_id for asked in other}
    assert {asked.kind for asked in one} == set(Kind)
    assert {asked.kind for asked in islice(made(1, seconds=(0, 0), mixed=False), 500)} == {Kind.WORKS}
