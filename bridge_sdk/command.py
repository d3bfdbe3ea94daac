"""A command: a function under a name, with what it accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from bridge_protocol.messages import PING, RESERVED_COMMANDS, command_problem
from bridge_sdk.parameters import Parameters


class Command:
    """`function`, callable by name. `asynchronous`: it must be awaited."""

    __slots__ = ("asynchronous", "function", "name", "parameters")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Raises ValueError for a name that cannot be used, TypeError for a function that cannot."""
        if problem := command_problem(name):
            raise ValueError(problem)
        if name == PING or name in RESERVED_COMMANDS:
            raise ValueError(f"{name!r} is the protocol's own: choose another name")
        self.name = name
        self.function = function
        self.parameters = Parameters(function)
        self.asynchronous = inspect.iscoroutinefunction(function)

    def __repr__(self) -> str:
        return f"<Command {self.name}{' async' if self.asynchronous else ''}>"


def commands_of(instance: object) -> Iterator[Command]:
    """The public methods of `instance`, as commands."""
    for name in dir(type(instance)):
        if not name.startswith("_"):
            member = getattr(type(instance), name)  # of the class: a property is not to be evaluated
            if callable(member) and not isinstance(member, type):
                yield Command(name, getattr(instance, name))
