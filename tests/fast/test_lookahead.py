"""How many requests a node holds in waiting."""

from __future__ import annotations

import pytest

from worker_node.core.lookahead import BUDGET, ENOUGH, MOST_PER_SLOT, SAMPLES, Lookahead


def watched(*durations: float) -> Lookahead:
    lookahead = Lookahead()
    for seconds in durations:
        lookahead.ran(seconds)
    return lookahead


def test_nothing_is_held_before_enough_was_seen() -> None:
    assert watched(*[0.001] * (ENOUGH - 1)).wanted(8) == 0
    assert watched(*[0.001] * ENOUGH).wanted(8) > 0


@pytest.mark.parametrize(
    ("seconds", "each"),
    [
        (0.0, 128),
        (0.0001, 128),
        (0.00039, 128),
        (0.0015, 32),
        (0.002, 16),
        (0.004, 8),
        (0.012, 4),
        (0.02, 2),
        (0.05, 1),
        (0.051, 0),
        (60, 0),
    ],
)
def test_the_shorter_requests_are_the_more_wait_and_of_long_ones_none(seconds: float, each: int) -> None:
    lookahead = watched(*[seconds] * SAMPLES)
    assert lookahead.wanted(1) == each
    assert lookahead.wanted(8) == 8 * each


@pytest.mark.parametrize("seconds", [0.0001, 0.0013, 0.007, 0.03, 0.049])
def test_what_waits_is_served_within_the_budget(seconds: float) -> None:
    assert watched(*[seconds] * SAMPLES).wanted(1) * seconds <= BUDGET


def test_it_is_the_usual_request_that_counts_not_a_rare_long_one() -> None:
    assert watched(*[0.0001] * 40, *[30.0] * 20).wanted(1) == MOST_PER_SLOT


def test_old_runs_are_forgotten() -> None:
    assert watched(*[0.001] * 1000, *[1.0] * SAMPLES).wanted(4) == 0


def test_it_rises_only_by_a_clear_margin() -> None:
    lookahead = watched(*[0.012] * SAMPLES)
    assert lookahead.wanted(1) == 4
    for seconds, each in [
        (0.004, 4),
        (0.012, 4),
        (0.013, 2),
        (0.012, 2),
        (0.006, 8),
        (0.0015, 32),
        (0.06, 0),
        (0.05, 1),
    ]:
        for _ in range(SAMPLES):
            lookahead.ran(seconds)
        assert lookahead.wanted(1) == each, seconds


@pytest.mark.parametrize(
    ("seconds", "each"), [(0.0, 16), (0.0001, 16), (0.003, 16), (0.004, 12), (0.05, 1), (0.051, 0), (60, 0)]
)
def test_of_short_requests_some_wait_in_the_pipe(seconds: float, each: int) -> None:
    assert watched(*[seconds] * SAMPLES).piped(16) == each
    assert watched(*[seconds] * (ENOUGH - 1)).piped(16) == 0


def test_none_waits_in_the_pipe_where_some_take_long() -> None:
    lookahead = watched(*[0.001] * 60, *[10.0] * 4)
    assert lookahead.piped(16) == 0
    assert lookahead.wanted(1) == 32


def test_a_repr_says_how_much_it_saw() -> None:
    assert repr(watched(1, 2, 3)) == "<Lookahead 3 runs seen>"
