"""The watchdog: what is a wedge, and above all what is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from worker_node.core.watchdog import MOST_PATIENCE, Sight, Watchdog

WEDGED = Sight(ready=3, room=2, deliveries=7, subscriptions=1, receiving=False)


def verdicts(sights: Iterable[Sight | None]) -> list[bool]:
    watchdog = Watchdog()
    return [watchdog.looked(sight) for sight in sights]


def test_two_looks_at_requests_that_nobody_brings_are_a_wedge() -> None:
    assert verdicts([WEDGED, WEDGED]) == [False, True]


@pytest.mark.parametrize(
    "innocent",
    [
        pytest.param(replace(WEDGED, ready=0), id="nothing to do, or another consumer is the active one and fast"),
        pytest.param(replace(WEDGED, room=0), id="a full pool, or no consumer: not ready, an open breaker, an alarm"),
        pytest.param(replace(WEDGED, receiving=True), id="a large message on a slow line"),
        pytest.param(None, id="nothing could be seen: no connection, or no answer"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_has_another_reason_to_be_silent_is_none(innocent: Sight | None, place: int) -> None:
    assert not any(verdicts([innocent] * 50))
    assert verdicts([WEDGED, innocent, WEDGED, innocent, WEDGED]) == [False] * 5
    sights: list[Sight | None] = [WEDGED, WEDGED]
    sights.insert(place, innocent)
    assert verdicts(sights)[-1] == (place != 1 and place != 2)


def test_a_delivery_between_two_looks_clears_the_consumer() -> None:
    busy = [replace(WEDGED, deliveries=number) for number in range(100)]  # a long queue, and room at each look
    assert not any(verdicts(busy))


def test_a_new_consumer_is_not_judged_by_the_last_ones_silence() -> None:
    assert not any(verdicts([replace(WEDGED, subscriptions=number) for number in range(100)]))


def looks_between_rebuilds(watchdog: Watchdog, count: int) -> list[int]:
    """How many looks each of `count` rebuilds took, where none of them helped."""
    looks = []
    sight = WEDGED
    for _ in range(count):
        looks.append(1)
        while not watchdog.looked(sight):
            looks[-1] += 1
        sight = replace(sight, subscriptions=sight.subscriptions + 1)
    return looks


def test_rebuilding_in_vain_is_done_ever_less_often_and_never_given_up() -> None:
    longest = MOST_PATIENCE + 1
    assert looks_between_rebuilds(Watchdog(), 8) == [2, 3, 5, 9, 17, longest, longest, longest]


def test_a_rebuild_that_helped_starts_anew() -> None:
    watchdog = Watchdog()
    looks_between_rebuilds(watchdog, 5)
    assert not watchdog.looked(replace(WEDGED, deliveries=8, subscriptions=6, ready=0))
    healed = replace(WEDGED, deliveries=8, subscriptions=6)
    assert [watchdog.looked(healed) for _ in range(2)] == [False, True]


def test_it_shows_what_it_suspects() -> None:
    watchdog = Watchdog()
    looks_between_rebuilds(watchdog, 1)
    watchdog.looked(WEDGED)
    assert repr(watchdog) == "<Watchdog 1 of 2 suspicions>"
