"""The script of quaybridge.testing: which requests fail, by number and by rate, the same for the same seed."""

from __future__ import annotations

import pytest

from quaybridge.testing import ADAPTERS, Script, UnknownAdapter
from quaybridge.testing.adapters import adapter_named


def hit(script: Script, count: int = 100, command: str = "work") -> list[int]:
    """Which of so many further requests, counted from 1, something befalls."""
    before = script.requests
    return [n for n in range(before + 1, before + count + 1) if script.next(n, command) is not None]


def test_by_request() -> None:
    script = Script()
    script.fail("crash", request=3)
    script.fail("hang", request=(5, 7))
    assert hit(script, 10) == [3, 5, 7]
    assert script.requests == 10


def test_tries_of_one_request_count_once_and_only_the_first_ones_fail() -> None:
    script = Script()
    script.fail("crash", request=2, attempts=2)
    script.next(70, "work")
    assert [script.next(80, "work") is not None for _ in range(4)] == [True, True, False, False]
    assert script.requests == 2


def test_by_rate_the_same_seed_gives_the_same_requests_and_another_gives_others() -> None:
    def drawn(seed: int) -> list[int]:
        script = Script(seed)
        script.fail("error", rate=0.2)
        return hit(script, 1000)

    assert drawn(1) == drawn(1) != drawn(2)
    assert 120 < len(drawn(1)) < 280


def test_the_rates_of_two_failures_are_drawn_apart() -> None:
    script = Script()
    script.fail("error", rate=0.5)
    script.fail("slow", rate=0.5)
    kinds = [failure and failure.kind for failure in (script.next(n, "work") for n in range(1, 1001))]
    assert 150 < kinds.count("slow") < 350  # half of the half that is left


def test_the_ends_of_the_rate() -> None:
    script = Script()
    script.fail("slow", rate=0.0)
    assert hit(script) == []
    script.fail("slow", rate=1.0)
    assert len(hit(script)) == 100


def test_only_one_command_and_healing() -> None:
    script = Script()
    script.fail("error", command="bad")
    assert hit(script, 5, "good") == []
    assert hit(script, 5, "bad") == [6, 7, 8, 9, 10]
    script.heal()
    assert hit(script, 5, "bad") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "explode"}, "choose one of crash, hang, garbage, slow, error"),
        ({"kind": "crash", "rate": 1.5}, "0 … 1"),
        ({"kind": "crash", "request": 0}, "counted from 1"),
        ({"kind": "crash", "request": 1, "rate": 0.5}, "not both"),
        ({"kind": "crash", "attempts": 0}, "at least 1"),
        ({"kind": "slow", "seconds": -1}, "less than 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Script().fail(**options)  # type: ignore[arg-type]


def test_an_unknown_adapter_is_told_those_there_are() -> None:
    assert list(ADAPTERS) == ["mock", "memory", "rabbitmq"]
    assert [adapter_named(name).name for name in ADAPTERS] == list(ADAPTERS)
    with pytest.raises(UnknownAdapter, match="no adapter 'redis': choose one of mock, memory, rabbitmq"):
        adapter_named("redis")
