"""What a bridge says of its commands: their signatures and docstrings, as far as there is room for them."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin

from bridge_protocol import codec
from bridge_protocol.description import MOST_BYTES
from bridge_sdk.command import Command
from bridge_sdk.parameters import hints_of

LONGEST_DOC = 1024  # characters
LONGEST_TYPE = 256


def descriptions(commands: Mapping[str, Command], room: int) -> list[dict[str, Any]]:
    """All of them, in at most `room` bytes of JSON (or MOST_BYTES): with the first lines of docs alone, or none."""
    found = [_description(command) for _, command in sorted(commands.items())]
    room = min(room, MOST_BYTES)
    if len(codec.encode(found)) > room:
        found = [each | {"doc": each["doc"].partition("\n")[0]} if "doc" in each else each for each in found]
    return found if len(codec.encode(found)) <= room else []


def _description(command: Command) -> dict[str, Any]:
    function, method = command.source
    hints = hints_of(function)
    said: dict[str, Any] = {"name": command.name}
    if doc := inspect.getdoc(function) or inspect.getdoc(command.function):
        said["doc"] = doc[:LONGEST_DOC].encode(errors="replace").decode()
    parameters = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    said["args"] = [
        _argument(parameter, hints) for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    ]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        said["more"] = True
    if "return" in hints:
        returned = hints["return"]
        said["result"] = type_text(next(iter(get_args(returned)), Any) if command.streams else returned)
    if command.streams:
        said["streams"] = True
    return said


def _argument(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"name": parameter.name}
    if parameter.name in hints:
        said["type"] = type_text(hints[parameter.name])
    if parameter.default is parameter.empty:
        said["required"] = True
    elif parameter.default is not ...:
        try:
            codec.encode(parameter.default)
        except ValueError:
            pass  # no JSON
        else:
            said["default"] = parameter.default
    return said


def type_text(annotation: Any) -> str:
    """How a person would write it, with the fields of a model or dataclass, and the values of an enum."""
    return _text(annotation, _with_fields)[:LONGEST_TYPE]


def _text(annotation: Any, of_class: Callable[[type], str]) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
        return "None"
    if origin is Annotated:
        return _text(inner[0], of_class)
    if origin is Union or origin is types.UnionType:
        return " | ".join(_text(member, of_class) for member in inner)
    if origin is not None and isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(_text(member, of_class) for member in inner)}]"
    if isinstance(annotation, type):
        return of_class(annotation)
    return "…" if annotation is ... else str(annotation).replace("typing.", "")


def _with_fields(kind: type) -> str:
    if issubclass(kind, Enum):
        return f"{kind.__name__}({' | '.join(repr(member.value) for member in kind)})"
    fields = ", ".join(_fields(kind))
    return f"{kind.__name__}({fields})" if fields else kind.__name__


def _fields(kind: type) -> Iterator[str]:
    """The fields of a dataclass or of a pydantic model, which is known by what it has: it is not imported for this."""
    found: Iterable[tuple[str, Any, bool]] = ()
    if dataclasses.is_dataclass(kind):
        missing, hints = dataclasses.MISSING, hints_of(kind)
        found = (
            (field.name, hints.get(field.name, Any), field.default is missing and field.default_factory is missing)
            for field in dataclasses.fields(kind)
        )
    elif isinstance(model := getattr(kind, "model_fields", None), dict):
        found = ((field.alias or name, field.annotation, field.is_required()) for name, field in model.items())
    for name, annotation, required in found:
        yield f"{name}{'' if required else '?'}: {_text(annotation, lambda inner: inner.__name__)}"
