"""The public names: listed once, each where it says, and for type checkers the same as at run time."""

from __future__ import annotations

import ast
import inspect

import pytest

import quaybridge
from bridge_protocol import errors


def test_every_name_is_there() -> None:
    assert len(set(quaybridge.__all__)) == len(quaybridge.__all__)
    for name in quaybridge.__all__:
        assert getattr(quaybridge, name).__name__ == name
    assert set(quaybridge.__all__) <= set(dir(quaybridge))


def test_every_error_is_public() -> None:
    public = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert public - {"FrameKind"} <= set(quaybridge.__all__)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(inspect.getsource(quaybridge))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: getattr(quaybridge, name).__module__ for name in quaybridge.__all__}


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'quaybridge' has no attribute 'Consumer'"):
        quaybridge.Consumer  # noqa: B018 (the look-up is the test)
