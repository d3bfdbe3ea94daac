"""An implementation of an Api: its methods as commands, whose arguments and results are what the Api says.

Imported where a bridge has one, and not before: pydantic costs 100 ms.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any

from bridge_protocol.api import Api, Method, Mismatch
from bridge_sdk.command import Command
from bridge_sdk.errors import BadArguments
from bridge_sdk.parameters import SESSION_ID


class TypedParameters:
    """The parameters of a method of an Api. `bind` gives what to call its implementation with."""

    __slots__ = ("_method",)

    def __init__(self, method: Method) -> None:
        self._method = method

    def bind(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments, converted. Raises BadArguments, which names all that do not fit.

        A session's id travels among them; a method that does not ask for it is not given it.
        """
        if SESSION_ID in args and SESSION_ID not in self._method.signature.parameters:
            args = {name: value for name, value in args.items() if name != SESSION_ID}
        try:
            return self._method.read_args(args)
        except Mismatch as error:
            raise BadArguments(str(error)) from None


def commands_of_api(kind: object, instance: object) -> Iterator[Command]:
    """The methods of the class `kind`, as commands that `instance` carries out.

    Raises TypeError for a method that `instance` lacks, or that cannot be called as the Api says.
    """
    for method in Api(kind).methods.values():
        function = getattr(instance, method.name, None)
        if not callable(function):
            raise TypeError(f"{method.label} is not implemented by {type(instance).__name__}")
        _check(method, function, type(instance).__name__)
        plain = Command(method.name, function)
        made = Command(method.name, _typed(method, function, plain))
        made.asynchronous, made.streams = plain.asynchronous, plain.streams
        made.parameters = TypedParameters(method)
        made.source = (method.source, method.of_instance)
        yield made


def _check(method: Method, function: Callable[..., Any], owner: str) -> None:
    given = method.signature.parameters
    try:
        signature = inspect.signature(function)
        signature.bind(**dict.fromkeys(given))
        signature.bind(**{name: None for name, p in given.items() if p.default is p.empty})
    except TypeError as error:
        raise TypeError(f"{owner}.{method.name} cannot be called as {method.label} says: {error}") from None
    gives_chunks = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if gives_chunks != method.streams:
        wanted = "a generator (with a yield)" if method.streams else "no generator"
        raise TypeError(f"{owner}.{method.name} must be {wanted}: {method.label} says so")


def _typed(method: Method, function: Callable[..., Any], plain: Command) -> Callable[..., Any]:
    """`function`, whose results, or chunks, are what the method says. Mismatch is raised in the place of others."""

    async def asynchronous(**arguments: Any) -> Any:
        return method.write(await function(**arguments))

    async def asynchronous_stream(**arguments: Any) -> AsyncIterator[Any]:
        async with aclosing(function(**arguments)) as chunks:
            async for chunk in chunks:
                yield method.write(chunk)

    def stream(**arguments: Any) -> Generator[Any, None, Any]:
        with closing(function(**arguments)) as chunks:
            while True:
                try:
                    chunk = next(chunks)
                except StopIteration as end:
                    return end.value
                yield method.write(chunk)

    def call(**arguments: Any) -> Any:
        return method.write(function(**arguments))

    if plain.streams:
        return asynchronous_stream if plain.asynchronous else stream
    return asynchronous if plain.asynchronous else call
