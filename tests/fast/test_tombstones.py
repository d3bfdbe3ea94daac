"""Tombstones: kept long enough, and never too many."""

from __future__ import annotations

from bridge_protocol.topology import MAX_DELAY
from worker_node.core.tombstones import KEPT, Tombstones


def test_what_was_cancelled_is_known() -> None:
    stones = Tombstones(10)
    stones.lay("a", 0)
    assert "a" in stones
    assert "b" not in stones
    assert None not in stones


def test_it_is_kept_longer_than_the_longest_delay() -> None:
    stones = Tombstones(10)
    stones.lay("a", 0)
    stones.lay("b", MAX_DELAY)
    assert "a" in stones
    stones.lay("c", KEPT)
    assert "a" not in stones
    assert "b" in stones
    assert stones.dropped == 0


def test_of_too_many_the_oldest_goes() -> None:
    stones = Tombstones(3)
    for number in range(1000):
        stones.lay(f"{number}", number / 1000)
        assert len(stones) <= 3
    assert [name in stones for name in ("996", "997", "998", "999")] == [False, True, True, True]
    assert stones.dropped == 997
    assert repr(stones) == "<Tombstones 3/3>"


def test_said_again_it_is_kept_anew() -> None:
    stones = Tombstones(2)
    for number, name in enumerate("abac"):
        stones.lay(name, number)
    assert ("a" in stones, "b" in stones, "c" in stones) == (True, False, True)
    stones.lay("a", KEPT + 2)
    assert len(stones) == 2
