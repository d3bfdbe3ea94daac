"""Signatures as DSPex defines them: named inputs and outputs, each with a type and a description.

    {"inputs":  [{"name": "question", "type": "string", "description": "what to answer"}],
     "outputs": [{"name": "answer", "type": "string"}, {"name": "sure", "type": "probability"}]}

or DSPy's own short form, "question -> answer". Types: string, integer, float, boolean, any, list, dict,
list[T], dict[str, T], and probability, confidence_score (0 … 1), embedding, reasoning_chain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import GenericAlias
from typing import Annotated, Any

import dspy
from pydantic import Field, TypeAdapter, ValidationError

from bridge_sdk import ApplicationError

_SHARE = Annotated[float, Field(ge=0, le=1)]
_TYPES: dict[str, Any] = {
    "string": str,
    "str": str,
    "atom": str,
    "integer": int,
    "int": int,
    "float": float,
    "number": float,
    "boolean": bool,
    "bool": bool,
    "any": Any,
    "list": list[Any],
    "array": list[Any],
    "dict": dict[str, Any],
    "map": dict[str, Any],
    "object": dict[str, Any],
    "probability": _SHARE,
    "confidence_score": _SHARE,
    "embedding": list[float],
    "reasoning_chain": list[str],
}
_LIST = re.compile(r"(?:list|array)[\[<](?P<item>.+)[\]>]")
_DICT = re.compile(r"(?:dict|map|object)[\[<](?:str|string), *(?P<item>.+)[\]>]")
_MOST_NESTED = 8


def read_signature(given: Mapping[str, Any] | str, instructions: str | None) -> Any:
    """The DSPy signature that is meant. Raises ApplicationError, naming what is wrong and what would be right."""
    if isinstance(given, str):
        try:
            return dspy.make_signature(given, instructions)
        except (ValueError, SyntaxError, TypeError) as error:
            raise ApplicationError(f"signature: {error}") from None
    fields: dict[str, tuple[Any, Any]] = {}
    for side, make in (("inputs", dspy.InputField), ("outputs", dspy.OutputField)):
        items = given.get(side)
        if not isinstance(items, list) or not items:
            raise ApplicationError(f"signature.{side} should be a list of at least one field")
        for number, item in enumerate(items):
            where = f"signature.{side}[{number}]"
            name, kind, description = _field(item, where)
            if name in fields:
                raise ApplicationError(f"{where}: the name {name!r} is taken")
            fields[name] = _type(kind, where), make(desc=description) if description else make()
    said = instructions or given.get("instructions") or given.get("description")
    return dspy.make_signature(fields, said) if isinstance(said, str) else dspy.make_signature(fields)


def read_inputs(signature: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, if it is what the signature's inputs want. Raises ApplicationError, naming all that do not fit."""
    wanted = signature.input_fields
    problems = [f"missing input {name!r}" for name in wanted if name not in given]
    problems += [f"unknown input {name[:64]!r}" for name in given if name not in wanted]
    inputs: dict[str, Any] = {}
    for name in wanted.keys() & given.keys():
        field = wanted[name]
        whole: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        try:
            inputs[name] = TypeAdapter(whole).validate_python(given[name], strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            inside = "".join(f"[{part!r}]" for part in problem["loc"])
            problems.append(f"input {name}{inside}: {problem['msg']}")
    if problems:
        raise ApplicationError("; ".join(sorted(problems)[:16]))
    return inputs


def describe(signature: Any) -> dict[str, list[dict[str, str]]]:
    """The signature's fields, as they are told to callers."""
    return {
        side: [
            {"name": name, "type": _name(field.annotation), "description": _description(name, field)}
            for name, field in fields.items()
        ]
        for side, fields in (("inputs", signature.input_fields), ("outputs", signature.output_fields))
    }


def _field(item: Any, where: str) -> tuple[str, str, str]:
    if not isinstance(item, Mapping):
        raise ApplicationError(f"{where} should be an object with a name and a type")
    name, kind, description = item.get("name"), item.get("type", "string"), item.get("description") or ""
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise ApplicationError(f"{where}.name should be a word, such as question")
    if not isinstance(kind, str) or not isinstance(description, str):
        raise ApplicationError(f"{where}: type and description should be texts")
    return name, kind, description


def _type(kind: str, where: str, depth: int = 0) -> Any:
    kind = kind.strip()
    if kind in _TYPES:
        return _TYPES[kind]
    if depth < _MOST_NESTED:
        if found := _LIST.fullmatch(kind):
            return GenericAlias(list, (_type(found["item"], where, depth + 1),))
        if found := _DICT.fullmatch(kind):
            return GenericAlias(dict, (str, _type(found["item"], where, depth + 1)))
    known = ", ".join(sorted(_TYPES))
    raise ApplicationError(f"{where}.type {kind[:64]!r} is none of {known}, list[…], dict[str, …]")


def _name(annotation: Any) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _description(name: str, field: Any) -> str:
    said = (field.json_schema_extra or {}).get("desc") or ""
    return "" if said == f"${{{name}}}" else str(said)  # DSPy's own default
