"""What a command accepts: its signature against arguments, as a case table both ways."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

import pytest

from bridge_sdk.errors import ArgumentError
from bridge_sdk.parameters import Parameters


def takes(annotation: Any) -> Parameters:
    def command(value):  # type: ignore[no-untyped-def]  # annotated below, by the case
        return value

    command.__annotations__ = {"value": annotation}
    return Parameters(command)


ACCEPTED: list[tuple[Any, Any]] = [
    (str, ""),
    (int, 7),
    (int, -(2**63)),
    (float, 0.5),
    (float, 3),
    (bool, False),
    (None, None),
    (list, [1, "a", None]),
    (dict, {"a": 1}),
    (list[int], []),
    (list[int], [1, 2]),
    (list[list[str]], [["a"], []]),
    (dict[str, float], {"a": 1, "b": 2.5}),
    (dict[str, Any], {"a": object}),
    (dict[str, list[int]], {"a": [1]}),
    (Optional[int], None),  # noqa: UP045  (the old spelling is what this case is about)
    (Optional[int], 1),  # noqa: UP045
    (Union[int, str], "a"),  # noqa: UP007
    (int | str | None, None),
    (int | list[str], ["a"]),
    (Literal["fast", "slow"], "slow"),
    (Literal[1, None], None),
    (Any, {"any": ["thing"]}),
    (int | Any, "thing"),
    (tuple[int, ...], "not checked"),
    (bytes, b"\x00"),
    (bytes | None, None),
    ("int", 4),
    ("Unresolvable", "not checked"),
]

REFUSED: list[tuple[Any, Any, str]] = [
    (str, 1, "value must be str, not int"),
    (str, None, "value must be str, not null"),
    (str, b"text", "value must be str, not bytes"),
    (bytes, "text", "value must be bytes, not str"),
    (int, True, "value must be int, not bool"),
    (int, 1.0, "value must be int, not float"),
    (int, "1", "value must be int, not str"),
    (float, True, "value must be float, not bool"),
    (float, "1", "value must be float, not str"),
    (bool, 0, "value must be bool, not int"),
    (None, 0, "value must be null, not int"),
    (list, {}, "value must be an array, not object"),
    (dict, [], "value must be an object, not array"),
    (list[int], [1, "x", 2.5], "value[1] must be int, not str"),
    (list[list[str]], [["a"], [None]], "value[1][0] must be str, not null"),
    (dict[str, float], {"a": 1, "b": "x"}, "value['b'] must be float, not str"),
    (Optional[int], "1", "value must be int or null, not str"),  # noqa: UP045
    (int | list[str], [1], "value must be int or list[str], not array"),
    (Literal["fast", "slow"], "medium", "value must be 'fast' or 'slow', not str"),
    (Literal[1], True, "value must be 1, not bool"),
    ("int", "4", "value must be int, not str"),
]


@pytest.mark.parametrize(("annotation", "value"), ACCEPTED)
def test_accepts(annotation: Any, value: Any) -> None:
    assert takes(annotation).bind({"value": value}) == {"value": value}


@pytest.mark.parametrize(("annotation", "value", "problem"), REFUSED)
def test_refuses(annotation: Any, value: Any, problem: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        takes(annotation).bind({"value": value})
    assert str(caught.value) == problem


def shout(text: str, times: int = 1, *, loud: bool = True) -> str:
    return text * times


def test_defaults_may_be_left_out() -> None:
    assert Parameters(shout).bind({"text": "a"}) == {"text": "a"}
    assert Parameters(shout).bind({"text": "a", "loud": False}) == {"text": "a", "loud": False}


def test_every_problem_is_named() -> None:
    with pytest.raises(ArgumentError) as caught:
        Parameters(shout).bind({"txt": "a", "times": "2"})
    assert str(caught.value) == "unknown argument 'txt'; times must be int, not str; missing argument 'text'"


def test_the_answer_to_many_unknown_arguments_is_bounded() -> None:
    with pytest.raises(ArgumentError) as caught:
        Parameters(shout).bind({"x" * 1000 + str(number): 1 for number in range(1000)})
    assert len(str(caught.value)) < 2000


def test_further_arguments_go_to_the_rest_and_are_checked_as_annotated() -> None:
    def gather(first: str, **rest: int) -> None: ...

    assert Parameters(gather).bind({"first": "a", "x": 1}) == {"first": "a", "x": 1}
    with pytest.raises(ArgumentError, match="x must be int, not str"):
        Parameters(gather).bind({"first": "a", "x": "b"})


def test_a_session_id_is_given_to_those_who_ask_for_it_only() -> None:
    def asks(session_id: str) -> None: ...

    def takes_all(**args: Any) -> None: ...

    args = {"session_id": "s1"}
    assert Parameters(asks).bind(args) == args
    assert Parameters(takes_all).bind(args) == args
    assert Parameters(shout).bind({"text": "a", **args}) == {"text": "a"}


def test_a_function_that_names_alone_cannot_call_is_refused() -> None:
    def positional(a: int, /) -> None: ...

    def variable(*parts: int) -> None: ...

    for function, named in ((positional, "a: 'int'"), (variable, "parts: 'int'")):
        with pytest.raises(TypeError, match="by name") as caught:
            Parameters(function)
        assert named in str(caught.value)
