"""Registering commands: names, classes, and what is refused while the author can still see it."""

from __future__ import annotations

import pytest

from bridge_sdk import Bridge


def test_functions_are_registered_by_their_name_or_another_and_stay_functions() -> None:
    bridge = Bridge()

    @bridge.command
    def shout(text: str) -> str:
        return text.upper()

    @bridge.command("whisper quietly")
    async def whisper(text: str) -> str:
        return text.lower()

    assert shout("a") == "A"
    assert repr(bridge) == "<Bridge shout, whisper quietly>"


class Counter:
    """Counts. Its public methods are commands; a property, a nested class and a private method are none."""

    unit = "pieces"

    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    @staticmethod
    def zero() -> int:
        return 0

    @property
    def broken(self) -> int:
        raise AssertionError("a property must not be evaluated")

    def _private(self) -> None: ...

    class Inner: ...


def test_the_public_methods_of_an_instance_are_commands() -> None:
    assert repr(Bridge(Counter())) == "<Bridge add, zero>"


@pytest.mark.parametrize("name", ["ping", "cancel", "shutdown", "", "two\nlines", "x" * 256])
def test_a_name_that_cannot_be_a_command_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"command|protocol"):
        Bridge().command(name)(lambda: None)


def test_a_name_that_is_taken_is_refused() -> None:
    bridge = Bridge(Counter())
    with pytest.raises(ValueError, match="'add' already"):
        bridge.command("add")(lambda: None)


@pytest.mark.parametrize("concurrency", [0, -1, 1025])
def test_concurrency_has_bounds(concurrency: int) -> None:
    with pytest.raises(ValueError, match="1 … 1024"):
        Bridge(concurrency=concurrency)


def test_there_is_no_request_outside_of_a_command() -> None:
    with pytest.raises(LookupError):
        _ = Bridge().request
