"""Parameters: what a command accepts, compiled from its signature once, checked for every request.

Checked: str, bytes, int, float (takes an int too), bool, None, list, list[T], dict, dict[str, T], Literal, unions of
these, Any. An annotation that is none of these says nothing here, and its values pass.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bridge_sdk.errors import ArgumentError

# What is wrong with a value, or None; the second argument is how the value is called in the answer.
Check = Callable[[Any, str], str | None]

SESSION_ID = "session_id"

_SCALARS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bytes: (bytes,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    None: (type(None),),
    type(None): (type(None),),
}
_JSON_NAMES = {dict: "object", list: "array", type(None): "null"}


class Parameters:
    """The parameters of one function. `bind` gives what to call it with, by name."""

    __slots__ = ("_checks", "_required", "_rest", "_takes_rest")

    def __init__(self, function: Callable[..., Any], *, method: bool = False) -> None:
        """Raises TypeError for a function that cannot be called by names alone, but for the first of a `method`."""
        self._checks: dict[str, Check | None] = {}
        self._rest: Check | None = None
        self._takes_rest = False
        required = set()
        hints = hints_of(function)
        parameters = list(inspect.signature(function).parameters.items())
        for name, parameter in parameters[1:] if method else parameters:
            check = _check(hints.get(name, Any))
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise TypeError(f"a command's arguments come by name, so {parameter} cannot be given")
            if parameter.kind is parameter.VAR_KEYWORD:
                self._takes_rest = True
                self._rest = check
            else:
                self._checks[name] = check
                if parameter.default is parameter.empty:
                    required.add(name)
        self._required = frozenset(required)

    def bind(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """`args`, if the function can be called with them. Raises ArgumentError, naming all that do not fit.

        A session's id travels among the arguments; a function that does not ask for it is not given it.
        """
        problems: list[str] | None = None
        if not self._takes_rest and SESSION_ID in args and SESSION_ID not in self._checks:
            args = {name: value for name, value in args.items() if name != SESSION_ID}
        for name, value in args.items():
            if name in self._checks:
                check = self._checks[name]
            elif self._takes_rest:
                check = self._rest
            else:
                problems = problems or []
                problems.append(f"unknown argument {name[:64]!r}")
                continue
            if check is not None and (problem := check(value, name[:64])) is not None:
                problems = problems or []
                problems.append(problem)
        if not self._required <= args.keys():
            problems = problems or []
            problems += [f"missing argument {name!r}" for name in sorted(self._required - args.keys())]
        if problems:
            raise ArgumentError("; ".join(problems[:16]))
        return args


def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The annotations of a function or class; none if one cannot be resolved (imported for type checkers only, say)."""
    try:
        return get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        return {}


def _check(annotation: Any) -> Check | None:
    """The check of `annotation`, or None where it says nothing."""
    if annotation in _SCALARS:
        return _scalar(annotation)
    origin = get_origin(annotation)
    if annotation is list or origin is list:
        return _list(*map(_check, get_args(annotation)))
    if annotation is dict or origin is dict:
        return _dict(*map(_check, get_args(annotation)[1:]))
    if origin is Literal:
        return _literal(get_args(annotation))
    if origin is Union or origin is types.UnionType:
        return _union(get_args(annotation))
    return None


def _scalar(annotation: Any) -> Check:
    accepted = _SCALARS[annotation]
    name = _name(annotation)

    def check(value: Any, path: str) -> str | None:
        # By exact type: JSON has no subclasses, and a bool is not to pass for an int.
        return None if type(value) in accepted else _wrong(path, name, value)

    return check


def _list(item: Check | None = None) -> Check:
    def check(value: Any, path: str) -> str | None:
        if type(value) is not list:
            return _wrong(path, "an array", value)
        if item is not None:
            for index, element in enumerate(value):
                if (problem := item(element, f"{path}[{index}]")) is not None:
                    return problem
        return None

    return check


def _dict(item: Check | None = None) -> Check:
    def check(value: Any, path: str) -> str | None:
        if type(value) is not dict:
            return _wrong(path, "an object", value)
        if item is not None:
            for key, element in value.items():
                if (problem := item(element, f"{path}[{key[:64]!r}]")) is not None:
                    return problem
        return None

    return check


def _literal(choices: tuple[Any, ...]) -> Check:
    shown = " or ".join(map(repr, choices))

    def check(value: Any, path: str) -> str | None:
        # 1 == True and 1 == 1.0: the types must agree too.
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return None
        return _wrong(path, shown, value)

    return check


def _union(members: tuple[Any, ...]) -> Check | None:
    checks = [_check(member) for member in members]
    known = [check for check in checks if check is not None]
    if len(known) < len(checks):
        return None
    shown = " or ".join(map(_name, members))

    def check(value: Any, path: str) -> str | None:
        if any(member(value, path) is None for member in known):
            return None
        return _wrong(path, shown, value)

    return check


def _name(annotation: Any) -> str:
    if annotation in (None, type(None)):
        return "null"
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _wrong(path: str, wanted: str, found: Any) -> str:
    return f"{path} must be {wanted}, not {_JSON_NAMES.get(type(found), type(found).__name__)}"
