"""Clocks that disagree: what can be seen of it is told, and not too often."""

from __future__ import annotations

import pytest

from bridge_protocol.messages import format_timestamp
from worker_node.core.skew import SAY_EVERY, TOLERATED, Skew

WALL = 1_700_000_000.0


def test_a_request_from_the_future_is_told_by_how_much() -> None:
    ahead = Skew().seen(format_timestamp(WALL + 300), wall=WALL, now=0.0)
    assert ahead == pytest.approx(300)


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, TOLERATED])
def test_what_may_be_in_order_is_not_told(ahead: float) -> None:
    assert Skew().seen(format_timestamp(WALL + ahead), wall=WALL, now=0.0) is None


@pytest.mark.parametrize("timestamp", ["", "yesterday", "1700000300", "9" * 10_000, "0001-01-01T00:00:00+23:59"])
def test_what_is_no_time_or_none_of_this_age_is_not_looked_at(timestamp: str) -> None:
    assert Skew().seen(timestamp, wall=WALL, now=0.0) is None


@pytest.mark.parametrize("timestamp", ["2123-11-14T22:13:20", "2123-11-14T22:13:20+02:00", "9999-12-31T23:59:59-23:59"])
def test_any_time_will_do(timestamp: str) -> None:
    assert Skew().seen(timestamp, wall=WALL, now=0.0) is not None


def test_it_is_told_once_in_a_while() -> None:
    skew = Skew()
    late = format_timestamp(WALL + 300)
    told = [now for now in range(0, 200, 10) if skew.seen(late, wall=WALL, now=float(now)) is not None]
    assert told == [0, SAY_EVERY, 2 * SAY_EVERY, 3 * SAY_EVERY]
