"""A command: a function under a name, with what it accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from bridge_protocol.errors import FrameError
from bridge_protocol.messages import PING, RESERVED_COMMANDS, Request, command_problem
from bridge_sdk.errors import BadArguments
from bridge_sdk.parameters import Parameters


class Binder(Protocol):
    """What a command's arguments must pass: see Parameters."""

    def bind(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """What to call its function with, by name. Raises ArgumentError."""


class Command:
    """`function`, callable by name. `asynchronous`: it must be awaited. `streams`: it is a generator, of chunks.

    `source`: the function whose signature and docstring tell what it is, and whether that is a class's method.
    """

    __slots__ = ("asynchronous", "function", "name", "parameters", "source", "streams")

    def __init__(self, name: str, function: Callable[..., Any], *, method: bool = False) -> None:
        """Raises ValueError for a name that cannot be used, TypeError for a function that cannot.

        `method`: of a class; its first parameter is not the caller's to give.
        """
        if problem := command_problem(name):
            raise ValueError(problem)
        if name == PING or name in RESERVED_COMMANDS:
            raise ValueError(f"{name!r} is the protocol's own: choose another name")
        self.name = name
        self.function = function
        self.source = (function, method)
        self.parameters: Binder = Parameters(function, method=method)
        self.streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self.asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)

    def arguments(self, request: Request) -> Mapping[str, Any]:
        """What to call the function with, by name. Raises ArgumentError for what does not fit."""
        if request.binary is None:
            return self.parameters.bind(request.args)
        try:
            args = request.arguments()
        except FrameError as error:
            raise BadArguments(error.detail) from None
        return self.parameters.bind(args)

    def __repr__(self) -> str:
        return f"<Command {self.name}{' async' if self.asynchronous else ''}{' stream' if self.streams else ''}>"


def commands_of(instance: object) -> Iterator[Command]:
    """The public methods of `instance`, as commands."""
    for name, _ in _methods(type(instance)):
        yield Command(name, getattr(instance, name))


def methods_of(kind: type) -> Iterator[Command]:
    """The public methods of a class, as commands that are yet to get an object to be called on."""
    for name, member in _methods(kind):
        bound = isinstance(inspect.getattr_static(kind, name), staticmethod | classmethod)
        yield Command(name, member, method=not bound)


def _methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(kind):
        if not name.startswith("_"):
            member = getattr(kind, name)  # of the class: a property is not to be evaluated
            if callable(member) and not isinstance(member, type):
                yield name, member
