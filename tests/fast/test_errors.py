"""Codes and exceptions stand one for one, and the tree in the docstring is the tree of classes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol import envelope, errors
from bridge_protocol.errors import (
    Code,
    CodedError,
    FrameError,
    FrameKind,
    PublishFailed,
    QuaybridgeError,
    RequestFailed,
    escape,
    exception_for,
)

BRANCH = re.compile(r"^ *(?P<bars>[│ ]*)(?:├──|└──) (?P<name>\w+) *(?P<note>.*)$")
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}


def drawn() -> dict[str, tuple[str, str]]:
    """The tree in the module's docstring: for each class the class above it and what is noted beside it."""
    tree: dict[str, tuple[str, str]] = {}
    above = ["QuaybridgeError"]
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]  # it has one
        if branch := BRANCH.match(line):
            depth = line.index("──") // 4  # each level is drawn four columns wide
            above[depth:] = [branch["name"]]
            tree[branch["name"]] = (above[depth - 1], branch["note"])
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    tree = drawn()
    assert tree.keys() | {"QuaybridgeError", "CodedError"} == CLASSES.keys()
    for name, (parent, _) in tree.items():
        drawn_bases = [base for base in CLASSES[name].__bases__ if base is not CodedError]
        assert [base.__name__ for base in drawn_bases] in ([parent], []), name
        assert issubclass(CLASSES[name], CLASSES[parent]), name


def test_the_tree_notes_each_code_beside_its_class() -> None:
    for name, (_, note) in drawn().items():
        code = getattr(CLASSES[name], "code", None)
        if code is not None:
            assert note.split(":")[0] == code.value, name


def test_each_code_has_one_exception_and_each_exception_one_code() -> None:
    classes = [exception_for(code) for code in Code]
    assert [cls.code for cls in classes] == list(Code)
    assert len(set(classes)) == len(Code) == 16
    coded = {cls for cls in CLASSES.values() if "code" in vars(cls)}
    assert coded == set(classes)


def test_the_codes_of_the_design_are_all_there() -> None:
    assert " ".join(Code) == (
        "bad_request too_large unknown_service refused blocked broker_unavailable deadline_exceeded cancelled"
        " application_error bridge_crashed bridge_timeout protocol_violation bridge_unavailable session_lost"
        " reader_stalled outcome_unknown"
    )
    assert envelope.RESULT not in set(Code)


def test_a_reply_carries_the_codes_of_requests_that_failed_and_a_publish_the_others() -> None:
    published = {"unknown_service", "refused", "blocked", "broker_unavailable"}
    assert {code for code in Code if issubclass(exception_for(code), PublishFailed)} == published
    assert {code for code in Code if issubclass(exception_for(code), RequestFailed)} == (
        set(Code) - published - {Code.OUTCOME_UNKNOWN}
    )


@pytest.mark.parametrize("code", list(Code))
def test_a_failure_carries_what_the_reply_said(code: Code) -> None:
    error = exception_for(code)("it broke", message_id="m1", attempt=2, node="n1", details={"exit_code": 3})
    assert isinstance(error, QuaybridgeError)
    assert str(error) == error.message == "it broke"
    assert (error.message_id, error.attempt, error.node, error.details) == ("m1", 2, "n1", {"exit_code": 3})
    bare = exception_for(code)("it broke")
    assert (bare.message_id, bare.attempt, bare.node, bare.details) == (None, 0, None, {})


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_copying_and_pickling(copied: type) -> None:
    coded = copied(exception_for(Code.BRIDGE_CRASHED)("it broke", message_id="m1", details={"signal": 9}))
    assert (coded.code, coded.message, coded.message_id) == ("bridge_crashed", "it broke", "m1")
    assert coded.details == {"signal": 9}
    frame = copied(FrameError(FrameKind.BAD_JSON, "no value", b"{"))
    assert (frame.kind, frame.detail, frame.preview, str(frame)) == (
        "bad_json",
        "no value",
        b"{",
        'bad_json: no value: "{"',
    )


@pytest.mark.parametrize("cls", CLASSES.values())
def test_every_class_says_when_it_is_raised(cls: type[Exception]) -> None:
    first = inspect.getdoc(cls).splitlines()[0]  # type: ignore[union-attr]  # it has one
    assert first.startswith("Raised when") or cls in (QuaybridgeError, CodedError)
    assert first.endswith(".")


def test_a_frame_error_keeps_and_quotes_at_most_64_bytes() -> None:
    error = FrameError(FrameKind.BAD_START, "why", b"\x1b[31m" + b"x" * 1000)
    assert len(error.preview) == 64
    assert len(pickle.dumps(error)) < 500
    assert str(error).startswith('bad_start: why: "\\x1b[31mxxx')
    assert str(FrameError(FrameKind.BAD_START, "why")) == "bad_start: why"


@given(st.binary(max_size=100), st.integers(0, 80))
def test_escaped_bytes_are_printable_ascii(data: bytes, limit: int) -> None:
    text = escape(data, limit)
    quoted = text.removesuffix("…")
    assert quoted.isascii()
    assert quoted.isprintable()
    assert len(text) <= 4 * limit + 3


def test_escape_says_that_there_is_more() -> None:
    assert escape(b"ab\n", 3) == '"ab\\n"'
    assert escape(b"ab\nc", 3) == '"ab\\n"…'
