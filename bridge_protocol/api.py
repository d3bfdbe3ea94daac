"""An Api: a class of annotated methods, and so what the commands of a service take and give.

    class Images(Protocol):
        def thumbnail(self, image: bytes, size: Size = Size(80, 80)) -> bytes: ...
        def tiles(self, image: bytes) -> Iterator[bytes]: ...         # a stream

The caller's end binds it, the bridge's end implements it, and at both what is passed is checked, and converted, by
pydantic: models, dataclasses, dates, enums, and bytes, which stay what they are. Importing this costs what pydantic
does, 100 ms: so it is imported where there is an Api, and not before.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import to_jsonable_python

MOST_PROBLEMS = 16  # that are named

_STREAMS = frozenset({Iterator, Iterable, Generator})
_ASYNC_STREAMS = frozenset({AsyncIterator, AsyncIterable, AsyncGenerator})
_PLAIN = frozenset({str, int, float, bool, type(None), bytes})


class Mismatch(Exception):
    """Raised when a value is not what an Api says; the message names it, and each part of it that is not."""


class Api:
    """The methods of a class, by name. Raises TypeError, which names it, for one that cannot be a command."""

    def __init__(self, kind: object) -> None:
        if not isinstance(kind, type):
            raise TypeError(f"an Api is a class, typing.Protocol or not, and {kind!r:.80} is none")
        self.name = kind.__name__
        self.methods: Mapping[str, Method] = {name: Method(kind, name) for name in _public(kind)}
        if not self.methods:
            raise TypeError(f"{self.name} has no public methods")

    def __repr__(self) -> str:
        return f"<Api {self.name}: {', '.join(self.methods)}>"


class Method:
    """One of them. `streams`: it gives chunks. `asynchronous`: it is to be awaited, or iterated by `async for`.

    `source`: as the class has it. `of_instance`: its first parameter is not the caller's to give.
    """

    def __init__(self, kind: type, name: str) -> None:
        self.name = name
        self.label = f"{kind.__name__}.{name}"
        function = getattr(kind, name)
        bound = isinstance(inspect.getattr_static(kind, name), staticmethod | classmethod)
        self.source = function
        self.of_instance = not bound
        self.signature = _without_self(function, bound)
        for parameter in self.signature.parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{self.label}: arguments come by name, one by one, so {parameter} cannot be given")
        self.hints = self._hints(function)
        returned = self.hints.get("return", Any)
        origin = get_origin(returned) or returned
        coroutine = inspect.iscoroutinefunction(function)
        self.streams = origin in _STREAMS or origin in _ASYNC_STREAMS
        if self.streams and coroutine:
            raise TypeError(f"{self.label} gives chunks: write def, and not async def, where there is no yield in it")
        self.asynchronous = coroutine or origin in _ASYNC_STREAMS
        self._parameters = {name: self._adapter(self.hints.get(name, Any), name) for name in self.signature.parameters}
        self._required = {name for name, p in self.signature.parameters.items() if p.default is p.empty}
        given = next(iter(get_args(returned)), Any) if self.streams else returned
        self._given = self._adapter(given, "what it returns")

    def __repr__(self) -> str:
        return f"<Method {self.label}{self.signature}>"

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What it was called with, by name, as JSON and bytes can say it. Raises Mismatch."""
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise Mismatch(f"{self.label}: {error}") from None
        return {name: _as_json(self._parameters[name], value) for name, value in self.read_args(given).items()}

    def read_args(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, each as its annotation says. Raises Mismatch, which names all that do not fit."""
        problems = [f"{name[:64]}: there is no such argument" for name in args if name not in self._parameters]
        problems += [f"{name}: it is missing" for name in sorted(self._required - args.keys())]
        read: dict[str, Any] = {}
        for name, adapter in self._parameters.items():
            if name in args:
                try:
                    read[name] = adapter.validate_python(args[name])
                except ValidationError as error:
                    problems += _problems(error, name)
        if problems:
            raise Mismatch(f"{self.label}: {'; '.join(problems[:MOST_PROBLEMS])}")
        return read

    def write(self, value: Any) -> Any:
        """What it returned, or yielded, as JSON and bytes can say it. Raises Mismatch."""
        return _as_json(self._given, self.read(value))

    def read(self, value: Any) -> Any:
        """The same, the other way."""
        try:
            return self._given.validate_python(value)
        except ValidationError as error:
            raise Mismatch(f"{self.label}: what it gives: {'; '.join(_problems(error, '')[:MOST_PROBLEMS])}") from None

    def _hints(self, function: Callable[..., Any]) -> Mapping[str, Any]:
        try:
            return get_type_hints(function, include_extras=True)
        except (NameError, AttributeError) as error:
            raise TypeError(f"{self.label}: its annotations name what is not there at run time: {error}") from None

    def _adapter(self, annotation: Any, name: str) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(annotation)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            first = str(error).partition("\n")[0]
            raise TypeError(f"{self.label}: {name}: pydantic can make nothing of {annotation!r:.80}: {first}") from None


def _public(kind: type) -> Iterator[str]:
    for name in dir(kind):
        if not name.startswith("_") and inspect.isroutine(getattr(kind, name)):
            yield name


def _without_self(function: Callable[..., Any], bound: bool) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature if bound else signature.replace(parameters=list(signature.parameters.values())[1:])


def _problems(error: ValidationError, name: str) -> list[str]:
    """What is wrong, and where; without the values, which may be secret."""
    told = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(step)[:64] for step in (*([name] if name else []), *problem["loc"]))
        told.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return told


def _as_json(adapter: TypeAdapter[Any], value: Any) -> Any:
    """pydantic's own JSON has no bytes: so it takes models apart, and what is in them is written here."""
    try:
        return _plain(adapter.dump_python(value, by_alias=True, warnings=False))
    except ValueError as error:  # pydantic_core.PydanticSerializationError is one
        raise Mismatch(str(error)) from None


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [_plain(item) for item in value]
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return to_jsonable_python(value)


def _key(key: Any) -> str:
    return key if type(key) is str else str(next(iter(to_jsonable_python({key: None}))))
